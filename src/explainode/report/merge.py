"""Several runs as one set of results, for `explainode compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from explainode.errors import UserError
from explainode.metrics.results import Key, Results
from explainode.report.run import RunDirectory, final


def merge_runs(folders: Sequence[Path]) -> Results:
    """The results of runs side by side, each model under `run/model` (the run's folder name).

    Raises:
        UserError: if a folder has no results, two have one name, or two measured a metric with different protocols.
    """
    labels = [folder.resolve().name for folder in folders]
    if len(set(labels)) < len(labels):
        labels = ["/".join(folder.resolve().parts[-2:]) for folder in folders]
    if len(set(labels)) < len(labels):
        raise UserError(f"the runs need different names, got {', '.join(map(str, folders))}")
    merged = Results()
    protocols: dict[tuple[str, str, str], tuple[str, str]] = {}
    for folder, label in zip(folders, labels, strict=True):
        if not (folder / "metrics.csv").is_file():
            raise UserError(f"{folder} has no metrics.csv; name run directories, such as runs/demo")
        results = final(RunDirectory(folder).read_results())
        for row in results.rows:
            key = (row.split, row.explainer, row.metric)
            protocol, owner = protocols.setdefault(key, (row.protocol, label))
            if protocol != row.protocol:
                raise UserError(
                    f"{row.metric} of {row.explainer or 'the model'} is {protocol!r} in {owner} and {row.protocol!r} in {label}; "
                    "measure both the same way with explainode evaluate"
                )
        _extend(merged, results, label)
    return merged


def _extend(merged: Results, results: Results, label: str) -> None:
    """Adds `results` with the run's label before each model's name."""

    def named(key: Key) -> Key:
        model, explainer, metric = key
        return f"{label}/{model}", explainer, metric

    merged.rows += [replace(row, model=f"{label}/{row.model}") for row in results.rows]
    merged.per_image |= {named(key): values for key, values in results.per_image.items()}
    merged.curves |= {named(key): curve for key, curve in results.curves.items()}
    merged.maps += [replace(maps, model=f"{label}/{maps.model}") for maps in results.maps]
    merged.warnings += [f"{label}: {warning}" for warning in results.warnings]
