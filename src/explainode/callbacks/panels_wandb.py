"""What W&B shows of explanations: the panel under a stable key, blended beforehand; table, curves with bands, histograms of sensitivities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import wandb
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from explainode.metrics.results import Results
from explainode.report.curves import DASHES, SERIES
from explainode.report.panels import panel

TABLE_COLUMNS = ("epoch", "split", "model", "explainer", "metric", "value", "low", "high", "n", "excluded")
POINT_COLUMNS = ("model", "explainer", "metric", "x", "mean", "low", "high")
BINS = 32


def log_explanations(
    logger: WandbLogger, results: Results, class_names: Sequence[str], epoch: int, global_step: int
) -> None:
    """Log what `pictures` makes of an epoch's results under `explain/`."""
    logger.log_metrics({**pictures(results, class_names, "explain", epoch), "epoch": epoch}, step=global_step)


def pictures(results: Results, class_names: Sequence[str], prefix: str, epoch: int) -> dict[str, Any]:
    """`<prefix>/table`, and where there is something to draw: `/panel`, `/curves` (a picture per metric) and `/sensitivity/<explainer>/<metric>`.

    Plain pictures in a list lie in the run's own folder; pictures inside tables do not. Each is one key for all epochs, since W&B's workspaces leave
    out media keys beyond a few dozens; it lets media have no axis, so the epoch stands in the caption.
    """
    table = wandb.Table(columns=list(TABLE_COLUMNS))
    for row in results.rows:
        table.add_data(*(getattr(row, name) for name in TABLE_COLUMNS))
    record: dict[str, Any] = {f"{prefix}/table": table}
    if results.maps:
        names = ", ".join(maps.explainer for maps in results.maps)
        drawn = panel(results.maps, class_names, style="overlay", images=len(results.maps[0].image))
        record[f"{prefix}/panel"] = [wandb.Image(drawn, caption=f"epoch {epoch}: input, {names}")]
    curves = {
        metric: draw_curves(results, metric) for metric in dict.fromkeys(metric for _, _, metric in results.curves)
    }
    if curves:
        record[f"{prefix}/curves"] = [
            wandb.Image(drawn, caption=f"epoch {epoch}: {metric}, 95 % bands") for metric, drawn in curves.items()
        ]
    for (_, explainer, metric), values in results.per_image.items():
        finite = [value for value in values.values() if np.isfinite(value)]
        if "sensitivity" in metric and finite:
            record[f"{prefix}/sensitivity/{explainer}/{metric}"] = wandb.Histogram(finite, num_bins=BINS)
    return record


def points(results: Results) -> wandb.Table:
    """The curves as a table, for charts of one's own."""
    table = wandb.Table(columns=list(POINT_COLUMNS))
    for key, curve in results.curves.items():
        model, explainer, metric = key
        for numbers in zip(curve.x, curve.mean, curve.low, curve.high, strict=True):
            table.add_data(model, explainer, metric, *map(float, numbers))
    return table


def draw_curves(results: Results, metric: str, size: tuple[float, float] = (7.2, 4.0), dpi: int = 110) -> Image.Image:
    """The curves of one metric with their bands as a picture on white; controls dotted. W&B's own line charts have no bands."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    mine = {(model, explainer): curve for (model, explainer, m), curve in results.curves.items() if m == metric}
    several = len({model for model, _ in mine}) > 1
    controls = results.controls
    ordinary = [key for key in mine if key[1] not in controls]
    for (model, explainer), curve in sorted(mine.items(), key=lambda item: item[0][1] in controls):
        control = explainer in controls
        place = list(mine).index((model, explainer)) if control else ordinary.index((model, explainer))
        shade, dash = SERIES[place % len(SERIES)], DASHES[2] if control else DASHES[place // len(SERIES) % len(DASHES)]
        name = f"{model}, {explainer}" if several else explainer
        if not control:
            axis.fill_between(curve.x, curve.low, curve.high, color=shade, alpha=0.16, linewidth=0)
        axis.plot(curve.x, curve.mean, color=shade, linestyle=dash, linewidth=1.2 if control else 1.8, label=name)
    first = next(iter(mine.values()))
    axis.set(xlabel=first.x_label, ylabel=first.y_label, title=metric)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.5)
    axis.legend(frameon=False, fontsize=8)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
