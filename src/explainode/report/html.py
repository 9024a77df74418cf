"""The report: one HTML file that needs no network, no script and nothing but a run directory to be rebuilt."""

from __future__ import annotations

import datetime
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from explainode.errors import UserError
from explainode.files import replace_file
from explainode.metrics.results import Results
from explainode.report.board import Board, make_board
from explainode.report.comparisons import final_rows, model_names
from explainode.report.curves import curve_figure, curve_metrics, finite_curves, repeated, trend_figure
from explainode.report.front import accuracy_front
from explainode.report.html_panels import pictures_section
from explainode.report.html_standing import agreement_section, front_section, prior_section, ranks_section
from explainode.report.html_tables import glance, metrics_section, model_tiles
from explainode.report.markup import Markup, join, tag
from explainode.report.sections import Found, Section, added_parts, parts_of
from explainode.report.standing import standing
from explainode.report.verdict import judge
from explainode.runs.directory import RunDirectory

CURVE_FIGURES = 4
WARNINGS_SHOWN = 12


def write_report(path: Path | str) -> Path:
    """Build `<path>/report.html` from what the run directory holds, and return its path.

    Raises:
        UserError: if the folder is no run directory, a file in it is damaged, or the report cannot be written.
    """
    run = RunDirectory(path)
    page = render(
        run.read_config(), run.read_versions(), run.read_results(), run.read_class_names(), run.path.resolve().name
    )
    target = run.path / "report.html"
    replace_file(target, page.encode())
    return target


def render(
    config: dict[str, Any], versions: dict[str, Any], results: Results, class_names: list[str], run_name: str
) -> str:
    """The page as text: our sections, and before the last one, on how the run came about, those of other installed packages."""
    title = str(config.get("name") or run_name)
    found = _found(config, versions, results, class_names)
    added, failed = added_parts(found)
    *ours, last = parts_of(replace(found, warnings=[*found.warnings, *failed]), SECTIONS)
    shown = [*ours, *added, last]
    links = tag("nav", [tag("a", name, href=f"#{key}") for key, name, _ in shown], aria_label="Sections")
    facts = _facts(results, versions, run_name)
    header = tag(
        "header",
        tag("p", "explainode report", class_="brand"),
        tag("h1", title),
        tag("p", facts, class_="facts"),
        class_="page",
    )
    main = tag("main", [tag("section", tag("h2", name), content, id=key) for key, name, content in shown])
    foot = (
        "This file loads nothing. Beside it: metrics.csv and per_image.csv with every number, table.md, table.tex and figures/ for papers, "
        "explanations/ with the raw maps."
    )
    style = Markup(files("explainode.report").joinpath("report.css").read_text(encoding="utf-8"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; img-src data:; style-src 'unsafe-inline'",
        ),
        tag("title", f"{title} · explainode"),
        tag("style", style),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', header, links, main, tag('footer', foot)), lang='en')}\n"


def _facts(results: Results, versions: dict[str, Any], run_name: str) -> str:
    rows = final_rows(results).values()
    explainers, metrics = (
        {row.explainer for row in rows if row.explainer},
        {row.metric.split(".")[0] for row in rows if row.explainer},
    )
    when = str(versions.get("time") or datetime.datetime.now().astimezone().isoformat(timespec="minutes")).replace(
        "T", " "
    )[:16]
    counts = ((len(model_names(results)), "model"), (len(explainers), "explainer"), (len(metrics), "metric"))
    return " · ".join([run_name, when, *(f"{n} {word}{'s' * (n != 1)}" for n, word in counts)])


def _found(config: dict[str, Any], versions: dict[str, Any], results: Results, class_names: list[str]) -> Found:
    verdict = judge(results)
    models = model_names(results)
    board, missing = _board(results)
    standings = [found for model in models if (found := standing(results, model)) is not None]
    warnings = [*verdict.cautions, *missing, *results.warnings]
    return Found(config, versions, results, class_names, verdict, models, standings, board, warnings)


def _verdict(found: Found) -> Markup:
    models, controls = [*found.verdict.models, *found.verdict.scope], found.verdict.controls
    if not models:
        models, controls = controls[:1], controls[1:]
    lead = [tag("p", _quiet_proof(sentence), class_="lead") for sentence in models]
    rest = [tag("li", sentence) for sentence in controls]
    title = tag("h3", "Which explanation to trust") if rest else ""
    more = tag("ul", rest, class_="controls") if rest else ""
    return join(lead, title, more, model_tiles(found.results), glance(found.results, found.verdict))


def _quiet_proof(sentence: str) -> Markup:
    """The sentence with its bracket of interval, p-value and n set smaller than what it proves."""
    before, opening, rest = sentence.partition("[difference ")
    proof, closing, after = rest.partition("]")
    return join(before, tag("span", opening, proof, closing, class_="proof"), after) if closing else join(sentence)


def _warnings(found: Found) -> Markup:
    sentences = list(dict.fromkeys(found.warnings))
    if not sentences:
        return tag("p", "None.", class_="note")
    items = [tag("li", sentence) for sentence in sentences]
    rest = items[WARNINGS_SHOWN:]
    more = tag("details", tag("summary", f"{len(rest)} more"), tag("ul", rest, class_="warnings")) if rest else ""
    return join(tag("ul", items[:WARNINGS_SHOWN], class_="warnings"), more)


def _curves(found: Found) -> Markup:
    results = found.results
    curves = finite_curves(results)
    figures = [
        join(tag("h3", metric), _figure(curve_figure(curves, metric, direction, results.controls), ""))
        for metric, direction in list(curve_metrics(results).items())[:CURVE_FIGURES]
    ]
    note = tag("p", "Mean over images; the band is its 95 % interval.", class_="note")
    return join(note, figures) if figures else Markup("")


def _figure(svg: str, caption: str) -> Markup:
    """A figure around SVG that matplotlib made."""
    if not svg:
        return Markup("")
    return tag(
        "figure", tag("div", Markup(svg), class_="scroll"), tag("figcaption", caption) if caption else "", class_="plot"
    )


def _trend(found: Found) -> Markup:
    return _figure(trend_figure(found.results), _trend_caption(found.results))


def _trend_caption(results: Results) -> str:
    return f"Mean and 95 % interval after each epoch, {next((row.split for row in repeated(results.rows)), '')} split."


def _board(results: Results) -> tuple[Board | None, list[str]]:
    """The maps side by side, or the sentence that says why they are not."""
    if not results.maps:
        return None, []
    try:
        return make_board(results.maps), []
    except UserError as error:
        return None, [f"No pictures are shown: {error}"]


def _run(found: Found) -> Markup:
    """How the run came about, so that it can be repeated."""
    config, versions = found.config, found.versions
    command = versions.get("command")
    first = join(tag("h3", "Command"), tag("pre", tag("code", command))) if command else ""
    facts = [tag("div", tag("dt", key), tag("dd", value)) for key, value in versions.items() if key != "command"]
    content = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=110)
    folded = tag("details", tag("summary", "Configuration"), tag("pre", tag("code", content)))
    return join(first, tag("dl", facts, class_="versions") if facts else "", folded)


def _prior(found: Found) -> Markup:
    return prior_section(found.results, found.models) if found.standings else Markup("")


def _agreement(found: Found) -> Markup:
    return agreement_section(found.standings, found.board, found.models) if found.standings else Markup("")


def _pictures(found: Found) -> Markup:
    return Markup("") if found.board is None else pictures_section(found.results, found.board, found.class_names)


SECTIONS = {  # by their anchors; the last one stands at the end of every page
    "verdict": Section("Verdict", _verdict),
    "warnings": Section("Warnings", _warnings),
    "numbers": Section("Numbers", lambda found: metrics_section(found.results, found.verdict)),
    "ranks": Section("Ranks", lambda found: ranks_section(found.standings, found.models)),
    "prior": Section("Beyond the centre prior", _prior),
    "agreement": Section("Agreement", _agreement),
    "front": Section(
        "Accuracy and sensitivity", lambda found: front_section(accuracy_front(found.results), found.models)
    ),
    "curves": Section("Curves", _curves),
    "pictures": Section("Pictures", _pictures),
    "trend": Section("Over the epochs", _trend),
    "run": Section("The run", _run),
}
