"""Curves as inline SVG: mean curves with bands, and small multiples of metrics over epochs."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from explainode.metrics.results import Curve, Key, Results, Row
from explainode.report.comparisons import final_rows, is_primary, model_names
from explainode.wording import arrow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by color-blind readers; the page may set other shades for a dark background
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a5195", "#b8860b", "#56b4e9", "#5c6370")
DASHES = ("-", (0, (5, 1.6)), (0, (1.4, 1.4)), (0, (6, 1.5, 1.4, 1.5)))
INK, FAINT = "#010203", "#040506"  # stand-ins that become the page's own text and line colors
SUBPLOTS = 12  # of one figure


def curve_figure(
    curves: Mapping[Key, Curve], metric: str, direction: bool | None = None, controls: Mapping[str, str] | None = None
) -> str:
    """SVG of the mean curves of one metric with their 95 % bands.

    Several models: one small plot per explainer with a line per model, and a control dotted beneath, to be beaten. One model: one plot
    with a line per explainer, controls dotted.

    Args:
        controls: {explainer: which control it is} of those that are one.
    """
    controls = controls or {}
    mine = {(model, explainer): curve for (model, explainer, m), curve in curves.items() if m == metric}
    models = list(dict.fromkeys(model for model, _ in mine))
    explainers = sorted(dict.fromkeys(explainer for _, explainer in mine), key=lambda e: e in controls)
    if not mine:
        return ""
    if len(models) > 1:
        control = next(
            iter(sorted(controls.keys() & set(explainers), key=lambda e: (controls[e] != "random", e))), None
        )
        shown = [e for e in explainers if e not in controls] or explainers
        plots = [(e, [(m, mine[m, e], i, 0) for i, m in enumerate(models) if (m, e) in mine]) for e in shown[:SUBPLOTS]]
        if control is not None and control not in shown:
            below = [
                (f"{m}, {control} (control)", mine[m, control], i, 2)
                for i, m in enumerate(models)
                if (m, control) in mine
            ]
            plots = [(e, lines + below) for e, lines in plots]
    else:
        lines = [
            (e, mine[models[0], e], i % len(SERIES), 2 if e in controls else i // len(SERIES))
            for i, e in enumerate(explainers)
        ]
        plots = [(models[0], lines)]
    figure, axes = axes_grid(len(plots), columns=min(4, len(plots)), wide=len(plots) == 1)
    for axis, (title, lines) in zip(axes, plots, strict=True):
        for name, curve, color, dash in lines:
            shade = SERIES[color % len(SERIES)]
            if dash != 2:
                axis.fill_between(curve.x, curve.low, curve.high, color=shade, alpha=0.16, linewidth=0)
            axis.plot(
                curve.x,
                curve.mean,
                color=shade,
                linestyle=DASHES[dash % len(DASHES)],
                linewidth=1.2 if dash == 2 else 1.7,
                label=name,
            )
        _title(axis, title + (" (control)" if title in controls else ""))
    _share_y(axes)
    first = next(iter(mine.values()))
    _outer_labels(axes, min(4, len(plots)), first.x_label, first.y_label)
    _legend(figure, axes[0])
    names = ", ".join(name for name, *_ in plots[0][1])
    return to_svg(figure, f"{metric} {arrow(direction)} curves with 95 % bands for {names}", salt=f"curve {metric}")


def trend_figure(results: Results, metrics: int = 4, explainers: int = 6) -> str:
    """SVG of small multiples over epochs: accuracy, then a row per headline metric and a column per explainer.

    "" for fewer than two epochs. Only the split that was measured most often is drawn, so that no line joins numbers of different images.
    """
    rows = repeated(results.rows)
    if not rows:
        return ""
    models = model_names(results)
    directed = [r.metric for r in rows if r.explainer and is_primary(r) and r.higher_is_better is not None]
    chosen = list(dict.fromkeys(directed))[:metrics]
    columns = [e for e in dict.fromkeys(r.explainer for r in rows if not r.control) if e][:explainers]
    cells: list[tuple[str, str]] = [(e, m) for m in chosen for e in columns]
    if any(r.metric == "accuracy" for r in rows):
        cells.insert(0, ("", "accuracy"))
    figure, axes = axes_grid(len(cells), columns=len(columns) or 1, lone_first=bool(cells) and cells[0][0] == "")
    for axis, (explainer, metric) in zip(axes, cells, strict=True):
        for i, model in enumerate(models):
            line = sorted(
                (r for r in rows if (r.model, r.explainer, r.metric) == (model, explainer, metric)),
                key=lambda r: r.epoch,
            )
            if not line:
                continue
            x, y = [r.epoch for r in line], [r.value for r in line]
            shade = SERIES[i % len(SERIES)]
            axis.fill_between(x, [r.low for r in line], [r.high for r in line], color=shade, alpha=0.16, linewidth=0)
            axis.plot(x, y, color=shade, linewidth=1.7, marker="o", markersize=3, label=model)
        direction = next((r.higher_is_better for r in rows if r.metric == metric), None)
        _title(axis, f"{explainer} · {metric} {arrow(direction)}" if explainer else f"{metric} {arrow(direction)}")
        axis.locator_params(axis="x", integer=True, nbins=5)
    for metric in dict.fromkeys(m for _, m in cells):
        _share_y([axis for axis, (_, m) in zip(axes, cells, strict=True) if m == metric])
    for axis in axes:
        axis.set_xlabel("epoch")
    _legend(figure, axes[0])
    return to_svg(
        figure,
        f"trend over epochs of {', '.join(dict.fromkeys(m for _, m in cells))} for {', '.join(models)}",
        salt="trend",
    )


def repeated(rows: Sequence[Row]) -> list[Row]:
    """The rows of the split with the most epochs, if it has two or more."""
    epochs: dict[str, set[int]] = {}
    for row in rows:
        epochs.setdefault(row.split, set()).add(row.epoch)
    split = max(epochs, key=lambda s: len(epochs[s]), default="")
    return [row for row in rows if row.split == split] if len(epochs.get(split, ())) > 1 else []


def curve_metrics(results: Results) -> dict[str, bool | None]:
    """The metrics that have curves, with their direction."""
    directions = {metric: row.higher_is_better for (_, _, metric), row in final_rows(results).items()}
    return {metric: directions.get(metric) for _, _, metric in results.curves}


def axes_grid(count: int, columns: int, wide: bool = False, lone_first: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes in rows of `columns`; `lone_first` gives the first one a row for itself."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

    cells = count + (columns - 1 if lone_first else 0)
    rows = max(1, -(-cells // columns))
    width, height = (8.4, 3.8) if wide else (3.05 * max(columns, 2), 2.2 * rows + 0.4)
    style: dict[Any, Any] = {
        "font.size": 9,
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "xtick.color": INK,
        "ytick.color": INK,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": FAINT,
        "grid.alpha": 0.55,
        "grid.linewidth": 0.5,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "axes.axisbelow": True,
    }
    with rc_context(style):
        figure = Figure(figsize=(width, height))
        figure.patch.set_alpha(0)
        # margins by hand: matplotlib's own layout would lay out every text twice, which is half of a figure's time
        inner = (width - 0.75 - 0.55 * (columns - 1)) / columns, (height - 1.1 - 0.72 * (rows - 1)) / rows
        grid = GridSpec(
            rows,
            columns,
            figure=figure,
            left=0.6 / width,
            right=1 - 0.15 / width,
            bottom=0.8 / height,
            top=1 - 0.3 / height,
            wspace=0.55 / inner[0],
            hspace=0.72 / inner[1],
        )
        places = [0, *range(columns, cells)] if lone_first else list(range(cells))
        axes = [figure.add_subplot(grid[place // columns, place % columns]) for place in places]
        for axis in axes:
            axis.patch.set_alpha(0)
    return figure, axes


def _title(axis: Axes, text: str) -> None:
    axis.set_title(text, fontsize=9.5, loc="left", color=INK, parse_math=False)


def _share_y(axes: Sequence[Axes]) -> None:
    """One scale for all, so that heights compare."""
    limits = [axis.get_ylim() for axis in axes]
    for axis in axes:
        axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _outer_labels(axes: Sequence[Axes], columns: int, x_label: str, y_label: str) -> None:
    for i, axis in enumerate(axes):
        if i + columns >= len(axes):
            axis.set_xlabel(x_label)
        if i % columns == 0:
            axis.set_ylabel(y_label)


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if len(labels) > 1:
        needed = 0.55 + 0.07 * max(map(len, labels))  # inches: the line and the widest name at 9 points
        columns = max(1, min(len(labels), 6, int(figure.get_figwidth() / needed)))
        _grow_below(figure, 0.19 * (-(-len(labels) // columns) - 1))
        legend = figure.legend(
            handles, labels, loc="lower center", ncols=columns, frameon=False, fontsize=9, labelcolor=INK
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def _grow_below(figure: Figure, inches: float) -> None:
    """More room under the axes, which keep their size."""
    from matplotlib.gridspec import GridSpec

    if not inches:
        return
    height, grid = figure.get_figheight(), figure.axes[0].get_gridspec()
    assert isinstance(grid, GridSpec) and grid.bottom is not None and grid.top is not None
    figure.set_figheight(height + inches)
    grid.bottom, grid.top = (
        (grid.bottom * height + inches) / (height + inches),
        (grid.top * height + inches) / (height + inches),
    )
    for axis in figure.axes:
        place = axis.get_subplotspec()
        assert place is not None
        axis.set_position(place.get_position(figure).bounds)


def to_svg(figure: Figure, description: str, salt: str) -> str:
    """The figure as an `<svg>` element: real text, no addresses, the page's colors, and ids of its own (told apart by `salt`)."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r"font: (?:[\w.-]+ )*([\d.]+px)[^;\"]*", r"font-size: \1", text)  # the page's own font
    prefix = re.sub(r"\W+", "-", salt)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", text)
    for i, color in enumerate(SERIES):
        text = text.replace(color, f"var(--series-{i + 1}, {color})")
    text = text.replace(INK, "currentColor").replace(FAINT, "var(--line, #c8ccd2)")
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', text)
    assert size is not None, "matplotlib writes the size in points"
    pixels = float(size[1]) * 4 / 3
    head = f'role="img" aria-label="{html.escape(description)}" style="width: 100%; max-width: {pixels:.0f}px; height: auto"'
    return text.replace(size[0], head, 1).strip()


def finite_curves(results: Results) -> dict[Key, Curve]:
    """The curves that can be drawn: those with a number at every point."""
    return {key: curve for key, curve in results.curves.items() if np.isfinite(curve.mean).all()}
