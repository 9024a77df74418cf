"""The critical-difference diagram: explainers on an axis of mean ranks, bars over those that are not told apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Container

from explainode.metrics.ranks import MeanRanks
from explainode.report.markup import Markup, tag
from explainode.wording import number

SPAN, LINE = 360, 17  # width of the axis, height of a name's row
LONGEST, CHARACTER = 28, 7.2  # characters of a name, whose whole is its title, and the width of one
AXIS = 44  # the axis's height above which the critical difference is drawn


STYLE = """
.ranks { font: 12.5px Helvetica, Arial, sans-serif; color: #171b23; } text { fill: #171b23; } path { fill: none; }
.tick { fill: #5b6472; font-size: 11px; } text .control { fill: #5b6472; font-style: italic; }
.rule { stroke: #171b23; } .lead-line { stroke: #5b6472; stroke-width: .8; } .lead-line.control { stroke-dasharray: 2 2; }
.clique { stroke: #0b5cad; stroke-width: 4; stroke-linecap: round; }
"""  # what report.css says of the diagram on the page, in its light colors


def standalone(figure: Markup) -> str:
    """The diagram as a file of its own, for a paper."""
    opening, _, rest = figure.partition(">")
    return f"{opening.replace('<svg', '<svg xmlns=' + chr(34) + 'http://www.w3.org/2000/svg' + chr(34), 1)}>{tag('style', Markup(STYLE))}{rest}\n"


def rank_figure(ranks: MeanRanks, title: str, controls: Container[str] = ()) -> Markup:
    """SVG: the best mean rank at the left. `controls` are in italics; the bar above the axis is Nemenyi's critical difference.

    Source: Demšar 2006, Fig. 1. Our bars join what paired tests do not tell apart (see `metrics.ranks`), not what lies within that difference.
    """
    k = len(ranks.names)
    side = 50 + CHARACTER * min(LONGEST, max(map(len, ranks.names)))
    width = 2 * side + SPAN
    low, high = math.floor(float(ranks.mean_rank.min())), math.ceil(float(ranks.mean_rank.max()))
    high = max(high, low + 1)

    def x(rank: float) -> float:
        return side + SPAN * (rank - low) / (high - low)

    parts = [tag("path", d=f"M{x(low):.1f} {AXIS}H{x(high):.1f}", class_="rule")]
    step = -(-(high - low) // 14)  # at most about fourteen numbers on the axis
    for tick in range(low, high + 1, step):
        parts.append(tag("path", d=f"M{x(tick):.1f} {AXIS}v-5", class_="rule"))
        parts.append(tag("text", tick, x=f"{x(tick):.1f}", y=AXIS - 9, text_anchor="middle", class_="tick"))
    parts += _difference_bar(ranks.critical_difference, x(low), SPAN / (high - low))
    bars, levels = _bars(ranks, x)
    top = AXIS + 10 + 7 * levels + LINE
    left = -(-k // 2)
    for place, name in enumerate(ranks.names):
        on_left = place < left
        row = place if on_left else k - 1 - place
        y = top + LINE * row
        at, edge = x(float(ranks.mean_rank[place])), side - 8 if on_left else width - side + 8
        control = name in controls
        shown = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
        label = tag("tspan", shown, class_="control" if control else None)
        mean = tag("tspan", f"{ranks.mean_rank[place]:.2f}", class_="tick")
        words = (mean, "  ", label) if not on_left else (label, "  ", mean)
        parts.append(
            tag("path", d=f"M{at:.1f} {AXIS}V{y}H{edge:.1f}", class_="lead-line control" if control else "lead-line")
        )
        anchor = (
            {"x": f"{edge - 4:.1f}", "text_anchor": "end"}
            if on_left
            else {"x": f"{edge + 4:.1f}", "text_anchor": "start"}
        )
        full = tag(
            "title", f"{name}: mean rank {ranks.mean_rank[place]:.2f}, mean {number(float(ranks.mean_value[place]))}"
        )
        parts.append(tag("text", full, *words, y=y + 4, **anchor))
    height = top + LINE * (left - 1) + 12
    order = ", ".join(f"{name} {rank:.2f}" for name, rank in zip(ranks.names, ranks.mean_rank, strict=True))
    return tag(
        "svg",
        parts,
        bars,
        viewBox=f"0 0 {width:.0f} {height}",
        width=f"{width:.0f}",
        height=height,
        role="img",
        aria_label=f"{title}: mean ranks {order}",
        class_="ranks",
    )


def _difference_bar(difference: float, left: float, unit: float) -> list[Markup]:
    """The critical difference to the axis's scale, from its left end."""
    width = difference * unit
    label = f"critical difference {difference:.2f} (Nemenyi)"
    bar = tag("path", d=f"M{left:.1f} 6v8m0 -4h{width:.1f}m0 -4v8", class_="rule")
    return [bar, tag("text", label, x=f"{left + width + 8:.1f}", y=14, class_="tick")]


def _bars(ranks: MeanRanks, x: Callable[[float], float]) -> tuple[list[Markup], int]:
    """The bars over what is not told apart, on as few levels as keep them from touching, and the number of levels."""
    ends: list[float] = []
    bars = []
    for first, last in ranks.cliques:
        start, stop = x(float(ranks.mean_rank[first])) - 4, x(float(ranks.mean_rank[last])) + 4
        level = next((i for i, end in enumerate(ends) if end + 4 < start), len(ends))
        ends[level : level + 1] = [stop]
        bars.append(tag("path", d=f"M{start:.1f} {AXIS + 8 + 7 * level}H{stop:.1f}", class_="clique"))
    return bars, len(ends)
