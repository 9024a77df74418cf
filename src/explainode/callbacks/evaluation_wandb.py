"""A W&B run for each evaluated network: numbers, panel, curves, histograms, and the maps and tables themselves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from explainode.callbacks.artifacts_wandb import log_files
from explainode.callbacks.loggers import finish, wandb_logger
from explainode.callbacks.panels_wandb import pictures, points
from explainode.metrics.results import Results
from explainode.runs.directory import RunDirectory

TABLES = ("config.yaml", "versions.yaml", "classes.txt", "metrics.csv", "per_image.csv", "curves.csv", "report.html")


def log_evaluation(entry: Mapping[str, Any], config: Mapping[str, Any], network: str, folder: RunDirectory) -> None:
    """One run of job type "evaluate" for a network, in the group of the run directory.

    It holds `<split>/<explainer>/<metric>` and `<split>/<metric>` of the network itself, the pictures of `panels_wandb`, the curves as a table, and the
    artifact `explanations-<id>` with maps, tables and the report, where that is not larger than the entry's `explanations_mib`. A run of its own:
    what the test says is not another epoch, and several networks of one evaluation must not share a line.

    Args:
        entry: the parameters of `wandb_logger`; name, job type and id are set here.
        config: the settings that the network was measured with.
        folder: where the results and the report lie.
    """
    results = of_network(folder.read_results(), network)
    if not results.rows:
        return
    trained = entry.get("id") or os.environ.get("WANDB_RUN_ID")  # the latter from W&B's sweep agent
    own = {"name": f"{config['name']}/{network}", "job_type": "evaluate", "id": trained and f"{trained}-evaluate"}
    logger = wandb_logger(**{**entry, **own})
    logger.describe(config)
    split, epoch = results.rows[-1].split, results.rows[-1].epoch
    numbers = {"/".join(part for part in (split, row.explainer, row.metric) if part): row.value for row in results.rows}
    record = {**numbers, **pictures(results, folder.read_class_names(), split, epoch), "epoch": epoch}
    if results.curves:
        record[f"{split}/curve_points"] = points(results)
    logger.log_metrics(record)
    run = logger.experiment
    if not run.disabled and logger.explanations_mib:
        log_files(
            run,
            f"explanations-{run.id}",
            "explanations",
            _files(folder.path, network),
            folder.path,
            logger.explanations_mib,
        )
    finish()


def of_network(results: Results, network: str) -> Results:
    """What the last evaluation found of one network."""
    rows = [row for row in results.rows if row.model == network]
    if rows:
        rows = [row for row in rows if (row.split, row.epoch) == (rows[-1].split, rows[-1].epoch)]
    return replace(
        results,
        rows=rows,
        per_image={key: values for key, values in results.per_image.items() if key[0] == network},
        curves={key: curve for key, curve in results.curves.items() if key[0] == network},
        maps=[maps for maps in results.maps if maps.model == network],
    )


def _files(folder: Path, network: str) -> list[Path]:
    maps = sorted((folder / "explanations").glob("*.npz"))
    part = f"__model={quote(network, safe=' =+@')}__"  # as the run directory writes it
    return [
        *(folder / name for name in TABLES if (folder / name).is_file()),
        *(path for path in maps if part in path.name),
    ]
