"""Panels and tables of explanations in W&B: the panel under a stable key, blended beforehand, epoch in the caption."""

from __future__ import annotations

from collections.abc import Sequence

import wandb
from lightning.pytorch.loggers import WandbLogger

from explainode.metrics.results import Results
from explainode.report.panels import panel

TABLE_COLUMNS = ("epoch", "split", "model", "explainer", "metric", "value", "low", "high", "n", "excluded")


def log_explanations(logger: WandbLogger, results: Results, class_names: Sequence[str], epoch: int, global_step: int) -> None:
    """Log `explain/panel` (one picture) and `explain/table` at this epoch.

    Plain pictures in a list lie in the run's own folder; pictures inside tables do not, and an offline run copied elsewhere would lose them.
    """
    run = logger.experiment
    run.define_metric("epoch")
    run.define_metric("explain/*", step_metric="epoch")
    table = wandb.Table(columns=list(TABLE_COLUMNS))
    for row in results.rows:
        table.add_data(*(getattr(row, name) for name in TABLE_COLUMNS))
    record: dict[str, object] = {"explain/table": table, "epoch": epoch, "trainer/global_step": global_step}
    if results.maps:
        names = ", ".join(maps.explainer for maps in results.maps)
        picture = panel(results.maps, class_names, style="overlay", images=len(results.maps[0].image))
        record["explain/panel"] = [wandb.Image(picture, caption=f"epoch {epoch}: input, {names}")]
    # without step=: Lightning's own records advance W&B's step, and a smaller one would be dropped
    run.log(record)
