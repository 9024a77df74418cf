"""Results as a table in the terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from explainode.metrics.results import Results, Row
from explainode.report.comparisons import Comparison, compare_models, final_rows, is_primary, model_names
from explainode.wording import arrow, interval, number, p_value

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Line:
    """One metric of one explainer, for each model.

    Attributes:
        cells: {model: Row}, models without this measurement missing.
        best: the models with the best value of the line (several on a tie, none for neutral facts or a single model).
        top: the models for which this explainer is the best one, controls aside.
        tests: {model: Comparison with the reference model}.
    """

    metric: str
    explainer: str
    cells: dict[str, Row]
    best: frozenset[str]
    top: frozenset[str]
    tests: dict[str, Comparison]

    @property
    def higher_is_better(self) -> bool | None:
        return next(iter(self.cells.values())).higher_is_better

    @property
    def control(self) -> bool:
        return any(row.control for row in self.cells.values())


def table_lines(results: Results, comparisons: Iterable[Comparison] | None = None) -> dict[str, list[Line]]:
    """The last measurements by metric: accuracy first, then headlines, then the others; explainers in their order, controls last."""
    rows = final_rows(results)
    models = model_names(results)
    tests = {
        (c.metric, c.explainer, c.subject): c for c in (compare_models(results) if comparisons is None else comparisons)
    }
    first = {row.metric: row for row in reversed(rows.values())}
    metrics = sorted(
        dict.fromkeys(m for _, _, m in rows),
        key=lambda m: (first[m].role != "performance", not is_primary(first[m]), not first[m].is_headline),
    )
    controls = results.controls
    table: dict[str, list[Line]] = {}
    for metric in metrics:
        explainers = sorted(dict.fromkeys(e for _, e, m in rows if m == metric), key=lambda e: e in controls)
        cells = {
            e: {model: rows[model, e, metric] for model in models if (model, e, metric) in rows} for e in explainers
        }
        real = [e for e in explainers if e not in controls]
        top = (
            {model: best_keys({e: cells[e][model] for e in real if model in cells[e]}) for model in models}
            if len(real) > 1
            else {}
        )
        table[metric] = [
            Line(
                metric,
                e,
                cells[e],
                best=frozenset(best_keys(cells[e])) if len(models) > 1 else frozenset(),
                top=frozenset(model for model, names in top.items() if e in names),
                tests={model: tests[metric, e, model] for model in models if (metric, e, model) in tests},
            )
            for e in explainers
        ]
    return table


def best_keys(rows: dict[str, Row]) -> list[str]:
    """The keys of the best values; none where nothing has a direction or a number."""
    values = {
        key: row.value for key, row in rows.items() if row.higher_is_better is not None and not math.isnan(row.value)
    }
    if not values:
        return []
    higher = next(iter(rows.values())).higher_is_better
    best = max(values.values()) if higher else min(values.values())
    return [key for key, value in values.items() if value == best]


def is_marked(line: Line, model: str) -> bool:
    """Whether a value is set in bold and underlined: the best model of a line, or the best explainer where there is one model.

    Controls are never marked: they are there to be beaten.
    """
    return not line.control and model in (line.best if len(line.cells) > 1 else line.top)


def print_results(results: Results, console: Console, everything: bool = False) -> None:
    """The table on the terminal: headlines only, unless `everything`; the rest is in metrics.csv and the report.

    Where the output goes to a file or a pipe, which have no width, its lines are as long as the table needs.
    """
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    models = model_names(results)
    lines = [
        line
        for metric, of_metric in table_lines(results).items()
        if everything or is_primary(next(iter(of_metric[0].cells.values())))
        for line in of_metric
    ]
    if not lines:
        console.print("Nothing was measured yet.")
        return
    table = Table(box=None, padding=(0, 1), header_style="bold", caption_justify="left", caption_style="dim")
    table.add_column("metric", overflow="fold")
    table.add_column("explainer", overflow="fold")
    for model in models:
        table.add_column(Text(model), justify="right", overflow="fold")
    table.add_column("n", justify="right")
    for model in models[1:]:
        table.add_column(Text(f"p {model}" if len(models) > 2 else "p, corrected"), justify="right", overflow="fold")
    last = ""
    for line in lines:
        if last and line.metric != last:
            table.add_row()
        cells = [Text(f"{line.metric} {arrow(line.higher_is_better)}" if line.metric != last else "")]
        cells.append(Text(line.explainer + (" (control)" if line.control else ""), style="dim" if line.control else ""))
        for model in models:
            cells.append(_terminal_cell(line, model))
        cells.append(Text(_counts(line)))
        cells += [Text(_test(line, model)) for model in models[1:]]
        table.add_row(*cells)
        last = line.metric
    if not console.is_terminal:
        console.width = max(
            console.width, Measurement.get(console, console.options.update(max_width=10_000), table).maximum
        )
    console.print(table)


def _terminal_cell(line: Line, model: str) -> Any:
    from rich.text import Text

    row = line.cells.get(model)
    if row is None:
        return Text("–", style="dim")
    cell = Text(number(row.value), style="bold underline" if is_marked(line, model) else "")
    ends = interval(row.low, row.high)
    return cell.append(f" [{ends}]", style="not bold not underline dim") if ends else cell


def _counts(line: Line) -> str:
    """The number of images, and of excluded ones."""
    counts = sorted({row.n for row in line.cells.values()})
    excluded = max(row.excluded for row in line.cells.values())
    return "–".join(map(str, (counts[0], counts[-1]))) * (len(counts) > 1) or f"{counts[0]}" + (
        f" (−{excluded})" if excluded else ""
    )


def _test(line: Line, model: str) -> str:
    test = line.tests.get(model)
    if test is None:
        return ""
    return f"{p_value(test.adjusted)} {test.outcome}"


def results_to_markdown(results: Results) -> str:
    """All last measurements as one Markdown table; the best of a line in bold."""
    models = model_names(results)
    head = ["metric", "explainer", *models, "n", *(f"p, corrected, {model}" for model in models[1:])]
    lines = [head, ["---", "---", *["---:"] * len(models), "---:", *["---:"] * (len(models) - 1)]]
    for metric, of_metric in table_lines(results).items():
        for line in of_metric:
            cells = [
                f"{metric} {arrow(line.higher_is_better)}".strip(),
                line.explainer + (" (control)" if line.control else ""),
            ]
            cells += [_markdown_cell(line, model) for model in models]
            lines.append([*cells, _counts(line), *(_test(line, model) for model in models[1:])])
    return "".join(f"| {' | '.join(_markdown_escape(cell) for cell in line)} |\n" for line in lines)


def _markdown_cell(line: Line, model: str) -> str:
    row = line.cells.get(model)
    if row is None:
        return ""
    value = f"**{number(row.value)}**" if is_marked(line, model) else number(row.value)
    ends = interval(row.low, row.high)
    return f"{value} ({ends})" if ends else value


def _markdown_escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("<", "&lt;")


def results_to_json(results: Results) -> str:
    """Rows, paired comparisons, verdict and warnings as JSON; what is no number is null."""
    from explainode.report.verdict import judge

    verdict = judge(results)
    content = {
        "verdict": {
            "models": verdict.models,
            "scope": verdict.scope,
            "controls": verdict.controls,
            "cautions": verdict.cautions,
        },
        "rows": [asdict(row) for row in results.rows],
        "comparisons": [asdict(c) | {"outcome": c.outcome} for c in verdict.comparisons],
        "warnings": results.warnings,
    }
    return json.dumps(_finite(content), indent=2, ensure_ascii=False)


def _finite(value: Any) -> Any:
    """NaN and infinities as None: JSON has no words for them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
