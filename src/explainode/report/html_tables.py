"""The numbers of a report: a tile per model, what is better at a glance, and the table of metrics with intervals and paired tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from explainode.metrics.results import Results, Row
from explainode.report.comparisons import Comparison, final_rows, headline_metric, is_primary, model_names
from explainode.report.markup import Markup, join, tag
from explainode.report.tables import Line, is_marked, table_lines
from explainode.report.verdict import Verdict
from explainode.wording import arrow, interval, number, p_phrase, percent, signed

OPEN_LINES = 60  # of the table of headlines; what is beyond is folded away
OPEN_CELLS = 120  # of all glances: above, those beyond the first are folded away
SIGNS = {"better": "▲", "worse": "▼", "equivalent": "≈", "undecided": "○"}
DIRECTION = {True: "higher is better", False: "lower is better", None: "neither is better"}


def model_dot(models: Sequence[str], model: str) -> Markup:
    """The mark that stands for a model everywhere on the page."""
    return tag(
        "span", class_="dot", style=f"background: var(--series-{models.index(model) % 8 + 1})", aria_hidden="true"
    )


def model_tiles(results: Results) -> Markup:
    """A tile per model: accuracy, and the headline metric averaged over explainers, controls aside."""
    rows = final_rows(results)
    models = model_names(results)
    metric = headline_metric(results)
    tiles = []
    for model in models:
        mine = {key: row for key, row in rows.items() if key[0] == model}
        accuracy = mine.get((model, "", "accuracy"))
        lines = [] if accuracy is None else [_fact("accuracy ↑", percent(accuracy.value), _percents(accuracy))]
        headline = [
            r for (_, e, name), r in mine.items() if name == metric and e and not r.control and not math.isnan(r.value)
        ]
        if headline:
            over = f" (mean of {len(headline)} explainers)" if len(headline) > 1 else f" ({headline[0].explainer})"
            mean = sum(row.value for row in headline) / len(headline)
            lines.append(_fact(f"{metric} {arrow(headline[0].higher_is_better)}{over}", number(mean), ""))
        measured = sorted({row.n for row in mine.values() if row.explainer})
        count = f"{measured[-1]} images explained" if measured else "no image explained"
        epochs = sorted({row.epoch for row in mine.values()})
        splits = ", ".join(sorted({row.split for row in mine.values()}))
        note = tag("p", f"epoch {epochs[-1]}, {splits} split, {count}" if epochs else count, class_="note")
        tiles.append(tag("div", tag("h3", model_dot(models, model), model), tag("dl", lines), note, class_="tile"))
    return tag("div", tiles, class_="tiles")


def _fact(name: str, value: str, ends: str) -> Markup:
    return tag("div", tag("dt", name), tag("dd", tag("strong", value), " ", tag("span", ends, class_="interval")))


def _percents(row: Row) -> str:
    return "" if math.isnan(row.low) else f"{100 * row.low:.1f}–{100 * row.high:.1f}"


def glance(results: Results, verdict: Verdict) -> Markup:
    """Headline metrics by explainers: where the other models are better, worse or undecided against the first."""
    primary = [c for c in verdict.comparisons if is_primary(c)]
    if not primary:
        return Markup("")
    metrics, explainers = (
        list(dict.fromkeys(c.metric for c in primary)),
        list(dict.fromkeys(c.explainer for c in primary)),
    )
    subjects = list(dict.fromkeys(c.subject for c in primary))
    found = {(c.subject, c.metric, c.explainer): c for c in primary}
    reference = primary[0].reference
    tables: list[Markup] = []
    for subject in subjects:
        head = tag("tr", tag("th", "metric", scope="col"), [tag("th", e, scope="col") for e in explainers])
        body = [
            tag("tr", tag("th", m, scope="row"), [_glance_cell(found.get((subject, m, e))) for e in explainers])
            for m in metrics
        ]
        title = f"{subject} against {reference}"
        table = tag(
            "div",
            tag("table", tag("thead", head), tag("tbody", body), class_="glance", aria_label=title),
            class_="scroll",
        )
        if not tables:
            tables.append(join(tag("p", tag("b", title), ": ", _legend(), class_="note glance-note"), table))
        else:
            tables.append(tag("details", tag("summary", title), table, open=len(primary) <= OPEN_CELLS))
    return join(tables)


def _legend() -> Markup:
    words = {
        "better": "better",
        "worse": "worse",
        "equivalent": "equivalent: the difference is surely smaller than is of interest, a fifth of how much images differ",
        "undecided": "undecided: chance alone could make the difference, one time in twenty among all of these",
    }
    return join([join(tag("span", SIGNS[key], class_=f"sign {key}"), f" {word}  ") for key, word in words.items()])


def _glance_cell(comparison: Comparison | None) -> Markup:
    if comparison is None:
        return tag("td", tag("span", "–", class_="muted", title="not compared"))
    values = f"{number(comparison.subject_value)} vs {number(comparison.reference_value)}"
    tip = f"{values}, {p_phrase(comparison.adjusted)}, n = {comparison.n}"
    sign = tag("span", SIGNS[comparison.outcome], aria_hidden="true")
    return tag(
        "td",
        tag(
            "span",
            sign,
            tag("span", comparison.outcome, class_="unseen"),
            class_=f"sign {comparison.outcome}",
            title=tip,
        ),
    )


def metrics_section(results: Results, verdict: Verdict) -> Markup:
    """The table of headlines, and the other results folded away."""
    models = model_names(results)
    lines = table_lines(results, verdict.comparisons)
    shown = {m: of for m, of in lines.items() if m != "accuracy"}  # which has the tiles
    first = {m: of for m, of in shown.items() if is_primary(next(iter(of[0].cells.values())))}
    other = {m: of for m, of in shown.items() if m not in first}
    shown_first = list(first)[: _fitting([len(of) for of in first.values()])]
    rest = {m: of for m, of in first.items() if m not in shown_first}
    parts = [_table({m: first[m] for m in shown_first}, models, "Last measurement of each metric")] if first else []
    if rest:
        summary = tag("summary", f"{len(rest)} more metric{'s' * (len(rest) > 1)}: {', '.join(rest)}")
        parts.append(tag("details", summary, _table(rest, models, "Last measurement of each further metric")))
    if other:
        summary = tag("summary", f"{len(other)} further result{'s' * (len(other) > 1)}")
        parts.append(
            tag("details", summary, _table(other, models, "Further results; they are corrected among themselves"))
        )
    return join(parts)


def _fitting(lines: Sequence[int]) -> int:
    """How many metrics of so many lines each fill the open table; at least one, and no single one is folded away."""
    count = max(1, sum(total <= OPEN_LINES for total in accumulate(lines)))
    return len(lines) if len(lines) - count == 1 else count


def _table(lines: dict[str, list[Line]], models: Sequence[str], title: str) -> Markup:
    others = models[1:]
    best = "the best model of a line" if others else "the best explainer"
    how = [
        f"{title}: mean over images and its 95 % interval, none where the images are too few. ",
        tag("b", tag("u", "Bold and underlined")),
        f": {best}",
    ]
    if others:
        how.append(
            f"; ★: the best explainer of a model, controls aside. Differences are paired, image by image, from {models[0]}"
        )
    heads = [tag("th", "explainer", scope="col", class_="sticky")]
    heads += [tag("th", model_dot(models, m), m, scope="col", class_="number") for m in models]
    heads.append(tag("th", "value and interval", scope="col", class_="plot-head"))
    heads += [tag("th", f"{m} − {models[0]}", scope="col", class_="number") for m in others]
    heads += [tag("th", "n", scope="col", class_="number"), tag("th", "excluded", scope="col", class_="number")]
    bodies = []
    for metric, of_metric in lines.items():
        direction = of_metric[0].higher_is_better
        protocols = list(dict.fromkeys(row.protocol for line in of_metric for row in line.cells.values()))
        name = tag("span", f"{metric} {arrow(direction)}", class_="metric")
        about = tag("span", DIRECTION[direction], class_="direction")
        protocol = tag("span", "; ".join(protocols), class_="protocol")
        group = tag("tr", tag("th", name, about, protocol, scope="rowgroup", colspan=len(heads)), class_="group")
        span = _span(of_metric)
        bodies.append(tag("tbody", group, [_row(line, models, span) for line in of_metric]))
    table = tag(
        "table", tag("caption", title, class_="unseen"), tag("thead", tag("tr", heads)), bodies, class_="metrics"
    )
    scroll = tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=title)
    return join(tag("p", how, ".", class_="note"), scroll)


def _row(line: Line, models: Sequence[str], span: tuple[float, float] | None) -> Markup:
    label = join(line.explainer or "of the network", tag("span", "control", class_="chip") if line.control else "")
    cells = [tag("th", label, scope="row", class_="sticky")]
    cells += [tag("td", _value(line, model), class_="number") for model in models]
    cells.append(tag("td", _forest(line, models, span), class_="plot"))
    cells += [tag("td", _difference(line.tests.get(model)), class_="number") for model in models[1:]]
    counts = sorted({row.n for row in line.cells.values()})
    excluded = max(row.excluded for row in line.cells.values())
    cells.append(tag("td", "–".join(map(str, dict.fromkeys((counts[0], counts[-1])))), class_="number"))
    cells.append(tag("td", excluded or tag("span", "0", class_="muted"), class_="number"))
    return tag("tr", cells, class_="control" if line.control else None)


def _value(line: Line, model: str) -> Markup:
    row = line.cells.get(model)
    if row is None:
        return tag("span", "not measured", class_="muted")
    value = tag("b", tag("u", number(row.value))) if is_marked(line, model) else tag("span", number(row.value))
    star = (
        tag("span", "★", class_="star", title="best explainer of this model")
        if line.explainer and len(line.cells) > 1 and model in line.top
        else ""
    )
    return join(star, value, tag("span", interval(row.low, row.high), class_="interval"))


def _difference(test: Comparison | None) -> Markup:
    if test is None:
        return Markup("")
    about = [] if math.isnan(test.effect) else [f"{number(test.effect)} standard deviations of the images’ differences"]
    if test.outcome == "equivalent":
        about.append(f"within ±{number(test.margin)}")
    if test.outcome == "undecided" and math.isfinite(test.detectable):
        about.append(f"{number(test.detectable)} would be found four times in five")
    effect = "; ".join(about)
    sign = tag("span", f"{SIGNS[test.outcome]} {test.outcome}", class_=f"sign {test.outcome}", title=effect or None)
    difference, ends = signed(test.difference, test.low, test.high)
    return join(
        difference, " ", sign, tag("span", join(ends, ", " if ends else "", p_phrase(test.adjusted)), class_="interval")
    )


def _span(lines: Sequence[Line]) -> tuple[float, float] | None:
    """The smallest and largest number of a metric, which its small plots share."""
    rows = [row for line in lines for row in line.cells.values()]
    values = [v for row in rows for v in (row.value, row.low, row.high) if math.isfinite(v)]
    return (min(values), max(values)) if values and max(values) > min(values) else None


def _forest(line: Line, models: Sequence[str], span: tuple[float, float] | None, width: int = 190) -> Markup:
    """A dot with its interval per model on the metric's common scale; the numbers beside it say the same."""
    if span is None:
        return Markup("")
    step = 11
    height = step * len(models) + 4

    def x(value: float) -> float:
        return 5 + (width - 10) * (value - span[0]) / (span[1] - span[0])

    marks = []
    for i, model in enumerate(models):
        row = line.cells.get(model)
        if row is None or not math.isfinite(row.value):
            continue
        y, color = 2 + step * (i + 0.5), f"var(--series-{i % 8 + 1})"
        if math.isfinite(row.low) and math.isfinite(row.high):
            marks.append(
                tag("path", d=f"M{x(row.low):.1f} {y}H{x(row.high):.1f}", style=f"stroke: {color}", class_="whisker")
            )
        marks.append(tag("circle", cx=f"{x(row.value):.1f}", cy=y, r="3.2", style=f"fill: {color}"))
    axis = tag("path", d=f"M5 {height - 1}H{width - 5}", class_="axis")
    return tag(
        "svg",
        axis,
        marks,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        aria_hidden="true",
        class_="forest",
    )
