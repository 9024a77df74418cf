"""Accuracy against sensitivity: which networks no other one beats on both."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from explainode.metrics.results import Results, Row
from explainode.metrics.statistics import bootstrap_interval
from explainode.report.comparisons import final_rows, is_primary, model_names, pool
from explainode.report.curves import INK, SERIES, axes_grid, to_svg
from explainode.wording import arrow, enumerate_words, percent

MOST_LABELS = 12
ACCURACY_GAP = 0.02  # above it, the weaker net may be less sensitive for the wrong reason


@dataclass(frozen=True)
class Point:
    """One model: its accuracy, its sensitivity averaged over explainers with a 95 % bootstrap interval, and whether it is on the front."""

    model: str
    accuracy: Row
    value: float
    low: float
    high: float
    front: bool


@dataclass(frozen=True)
class Front:
    """The models that have both numbers; the sensitivity is the mean over `explainers`, which all of them share."""

    metric: str
    explainers: tuple[str, ...]
    points: list[Point]

    @property
    def sentence(self) -> str:
        """Who is on the front, and whether the accuracies are alike."""
        best = enumerate_words([point.model for point in self.points if point.front])
        accuracies = [point.accuracy.value for point in self.points]
        text = f"On the front, where no other model is both more accurate and less sensitive: {best}."
        if max(accuracies) - min(accuracies) > ACCURACY_GAP:
            text += (
                f" The models are not equally accurate ({percent(min(accuracies))} to {percent(max(accuracies))}): a weaker one can be less "
                "sensitive for the wrong reason. Compare earlier epochs of the better ones with explainode compare ... --matched."
            )
        return text


def accuracy_front(results: Results) -> Front | None:
    """Accuracy and the first sensitivity that two or more models have for the same explainers; None where there is none."""
    rows = final_rows(results)
    models = [model for model in model_names(results) if not math.isnan(_accuracy(rows, model))]
    sensitive = {key: row for key, row in rows.items() if row.role == "sensitivity" and key[1] and is_primary(row)}
    for metric in dict.fromkeys(m for _, _, m in sensitive):
        mine = [(name, e) for (name, e, m), row in sensitive.items() if m == metric and not row.control]
        having = {model: {e for name, e in mine if name == model} for model in models}
        having = {
            model: measured
            for model, explainers in having.items()
            if (measured := {e for e in explainers if (model, e, metric) in results.per_image})
        }
        shared = set.intersection(*having.values()) if having else set()
        if len(having) > 1 and shared:
            order = tuple(dict.fromkeys(e for _, e in mine if e in shared))
            return Front(metric, order, _points(results, list(having), metric, order))
    return None


def _accuracy(rows: dict[tuple[str, str, str], Row], model: str) -> float:
    row = rows.get((model, "", "accuracy"))
    return math.nan if row is None else row.value


def _points(results: Results, models: list[str], metric: str, explainers: tuple[str, ...]) -> list[Point]:
    rows = final_rows(results)
    found = []
    for model in models:
        values = list(pool(results, model, explainers, metric).values())
        if values:
            found.append(
                Point(
                    model, rows[model, "", "accuracy"], float(np.mean(values)), *bootstrap_interval(values), front=False
                )
            )
    return [
        Point(p.model, p.accuracy, p.value, p.low, p.high, front=not any(_dominates(other, p) for other in found))
        for p in found
    ]


def _dominates(a: Point, b: Point) -> bool:
    """Whether a is at least as good as b on both numbers, and better on one."""
    return (
        a.accuracy.value >= b.accuracy.value
        and a.value <= b.value
        and (a.accuracy.value > b.accuracy.value or a.value < b.value)
    )


def front_figure(front: Front, models: list[str]) -> str:
    """SVG of the scatter with 95 % intervals; a step line joins the front, whose points are filled."""
    figure, axes = axes_grid(1, columns=1, wide=True)
    axis = axes[0]
    best = sorted((p for p in front.points if p.front), key=lambda p: p.value)
    axis.step(
        [p.value for p in best],
        [100 * p.accuracy.value for p in best],
        where="post",
        color=INK,
        linewidth=0.9,
        linestyle=(0, (4, 3)),
    )
    for place, point in enumerate(sorted(front.points, key=lambda p: p.value)):
        color = SERIES[models.index(point.model) % len(SERIES)]
        x, y, row = point.value, 100 * point.accuracy.value, point.accuracy
        for low, high, across in ((point.low, point.high, True), (100 * row.low, 100 * row.high, False)):
            if not math.isnan(low):
                axis.plot(
                    [low, high] if across else [x, x],
                    [y, y] if across else [low, high],
                    color=color,
                    linewidth=1.6,
                    alpha=0.55,
                )
        axis.plot(
            [x],
            [y],
            marker="o",
            markersize=7,
            color=color,
            markerfacecolor=color if point.front else "none",
            linestyle="none",
        )
        if point.front or len(front.points) <= MOST_LABELS:
            beside = (7, -14 if place % 2 else 6)  # neighbors on either side of their line
            axis.annotate(
                point.model, (x, y), textcoords="offset points", xytext=beside, fontsize=9, color=INK, parse_math=False
            )
    axis.margins(0.12, 0.15)
    axis.set_xlabel(f"{front.metric} {arrow(False)}")
    axis.set_ylabel("accuracy ↑ (%)")
    said = ", ".join(f"{p.model} {percent(p.accuracy.value)} at {p.value:.3g}" for p in front.points)
    return to_svg(figure, f"accuracy against {front.metric}: {said}", salt="front")
