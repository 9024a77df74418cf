"""Tables for papers beside the report: Markdown, LaTeX, and the values per image as parquet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from explainode.errors import UserError
from explainode.files import replace_file
from explainode.metrics.results import Results, Row
from explainode.report.comparisons import final_rows, is_primary, model_names
from explainode.report.rank_figure import rank_figure, standalone
from explainode.report.standing import standing
from explainode.report.tables import best_keys, results_to_markdown
from explainode.runs.directory import RunDirectory, file_part, final
from explainode.wording import percent, plus_minus

COLUMNS = 4  # metrics of one table that fit a page's width
ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip
ARROWS = {True: r" $\uparrow$", False: r" $\downarrow$", None: ""}


def write_exports(folder: RunDirectory, results: Results) -> list[Path]:
    """`table.md` and `table.tex` of the last measurements, `figures/ranks_<model>_<metric>.svg` where explainers are ranked, and
    `per_image.parquet` beside per_image.csv where pyarrow is installed.

    Raises:
        UserError: if a file cannot be written.
    """
    written = {
        "table.md": results_to_markdown(results),
        "table.tex": results_to_latex(results, folder.path.resolve().name),
    }
    for model in model_names(results):
        found = standing(results, model)
        if found is None:
            continue
        for metric, ranks in found.ranks.items():
            figure = rank_figure(ranks, f"{metric} of {model}", found.controls)
            written[f"figures/ranks_{file_part(model)}_{file_part(metric)}.svg"] = standalone(figure)
    for name, text in written.items():
        replace_file(folder.path / name, text.encode())
    paths = [folder.path / name for name in written]
    values = folder.path / "per_image.csv"
    if find_spec("pyarrow") is not None and values.is_file():
        paths.append(_write_parquet(values))
    return paths


def results_to_latex(results: Results, name: str = "run") -> str:
    """The headline metrics as booktabs tables: explainers below each other, one table per model and four metrics.

    A cell is the mean and half the width of its 95 % bootstrap interval; the best explainer of a column is bold, controls are set apart in
    italics and never bold. Where there are more models than explainers, as in a sweep, models stand below each other, one table per explainer.
    """
    rows = {key: row for key, row in final_rows(results).items() if key[1] and is_primary(row)}
    controls = results.controls
    models = [model for model in model_names(final(results)) if any(key[0] == model for key in rows)]
    explainers = sorted(dict.fromkeys(e for _, e, _ in rows), key=lambda e: e in controls)
    head = "% Needs \\usepackage{booktabs}. Mean over images and half the width of the 95 % bootstrap interval."
    tables: list[str] = []
    if len(models) > len([e for e in explainers if e not in controls]):
        for explainer in explainers:
            cells = {(m, metric): row for (m, e, metric), row in rows.items() if e == explainer}
            lines = {m: f"{latex(m)}{_accuracy(results, m)}" for m in models}
            tables += _tables(
                cells,
                lines,
                frozenset(),
                f"{latex(explainer)}{' (a control)' if explainer in controls else ''}",
                f"{name}-{explainer}",
            )
    else:
        for model in models:
            cells = {(e, metric): row for (m, e, metric), row in rows.items() if m == model}
            lines = {e: rf"\textit{{{latex(e)}}}" if e in controls else latex(e) for e in explainers}
            tables += _tables(
                cells, lines, frozenset(controls), f"{latex(model)}{_accuracy(results, model)}", f"{name}-{model}"
            )
    return "\n\n".join([head, *tables]) + "\n"


def latex(text: str) -> str:
    """Text with what LaTeX would read as commands escaped."""
    return "".join(ESCAPES.get(character, character) for character in text)


def _accuracy(results: Results, model: str) -> str:
    row = final_rows(results).get((model, "", "accuracy"))
    return "" if row is None else f" (accuracy {percent(row.value)})".replace(" %", r"\,\%")


def _tables(
    cells: Mapping[tuple[str, str], Row], lines: Mapping[str, str], controls: frozenset[str], subject: str, label: str
) -> Iterable[str]:
    """Tables of a few metrics each; `lines` holds what stands before each row of cells."""
    metrics = list(dict.fromkeys(metric for _, metric in cells))
    blocks = [metrics[first : first + COLUMNS] for first in range(0, len(metrics), COLUMNS)]
    for i, block in enumerate(blocks):
        yield _table(cells, lines, controls, block, subject, f"{label}-{i + 1}" if len(blocks) > 1 else label)


def _table(
    cells: Mapping[tuple[str, str], Row],
    lines: Mapping[str, str],
    controls: frozenset[str],
    metrics: Sequence[str],
    subject: str,
    label: str,
) -> str:
    columns = {metric: {line: cells[line, metric] for line in lines if (line, metric) in cells} for metric in metrics}
    best = {
        metric: best_keys({line: row for line, row in column.items() if line not in controls})
        for metric, column in columns.items()
    }
    cells_of = {metric: _column(column, best[metric]) for metric, column in columns.items()}
    titles = [f"{latex(m)}{ARROWS[next(iter(columns[m].values())).higher_is_better]}" for m in metrics]
    counts = [sorted({row.n for row in columns[m].values()}) for m in metrics]
    shown = ["--".join(str(n) for n in dict.fromkeys((c[0], c[-1]))) for c in counts]
    body = []
    for line, title in lines.items():
        if controls and line in controls and r"\midrule" not in body:
            body.append(r"\midrule")
        values = [cells_of[m].get(line, "--") for m in metrics]
        body.append(f"{title} & {' & '.join(values)} \\\\")
    apart = " Controls in italics." if controls else ""
    caption = (
        rf"{subject}: mean over $n$ images $\pm$ half the width of the 95\,\% bootstrap interval; best in bold.{apart}"
    )
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\centering\small",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{_key(label)}}}",
            rf"\begin{{tabular}}{{l{'r' * len(metrics)}}}",
            r"\toprule",
            f" & {' & '.join(titles)} \\\\",
            f"$n$ & {' & '.join(shown)} \\\\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _column(rows: Mapping[str, Row], best: Sequence[str]) -> dict[str, str]:
    """The cells of one metric, all with the same digits."""
    numbers = plus_minus([(row.value, row.low, row.high) for row in rows.values()])
    return {line: _cell(value, half, line in best) for line, (value, half) in zip(rows, numbers, strict=True)}


def _cell(value: str, half: str, best: bool) -> str:
    value = {"n/a": r"\mathrm{n/a}", "∞": r"\infty", "-∞": r"-\infty"}.get(value, value)
    value = rf"\mathbf{{{value}}}" if best else value
    return rf"${value} \pm {half}$" if half else f"${value}$"


def _key(label: str) -> str:
    """A label that \\ref can name."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-.:") else "-" for c in label)


def _write_parquet(values: Path) -> Path:
    """per_image.csv as per_image.parquet: the same columns, all epochs, a small fraction of the bytes."""
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    content = values.read_bytes()
    content = content[: content.rfind(b"\n") + 1]  # without what a killed process left of a last line
    words = {name: pyarrow.string() for name in ("split", "model", "explainer", "metric")}
    types = words | {"epoch": pyarrow.int64(), "sample_id": pyarrow.int64(), "value": pyarrow.float64()}
    options = pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=False)
    try:
        table = pyarrow.csv.read_csv(pyarrow.BufferReader(content), convert_options=options)
    except pyarrow.ArrowInvalid as error:
        raise UserError(
            f"{values} is damaged ({str(error).splitlines()[0]}); remove that line and read again"
        ) from error
    for name in words:  # few names, many rows
        table = table.set_column(table.column_names.index(name), name, table[name].dictionary_encode())
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    target = values.with_suffix(".parquet")
    replace_file(target, sink.getvalue().to_pybytes())
    return target
