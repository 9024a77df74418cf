"""Nothing is decided by a name: a run whose entries have other names is reported alike, and a control is what says that it is one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from explainode.metrics.results import CONTROLS, ROLES, Results
from explainode.registry import get, names
from explainode.report.exports import write_exports
from explainode.report.html import write_report
from explainode.report.verdict import verdict
from explainode.runs.directory import RunDirectory


def renamed(results: Results, new: Callable[[str], str]) -> Results:
    """The results under other names of the entries; what a metric calls its own results stays."""

    def metric(name: str) -> str:
        head, dot, tail = name.partition(".")
        return new(head) + dot + tail

    def key(old: tuple[str, str, str]) -> tuple[str, str, str]:
        return old[0], new(old[1]), metric(old[2])

    return Results(
        rows=[replace(r, explainer=new(r.explainer), metric=metric(r.metric)) for r in results.rows],
        per_image={key(k): v for k, v in results.per_image.items()},
        curves={key(k): v for k, v in results.curves.items()},
        maps=[replace(m, explainer=new(m.explainer)) for m in results.maps],
    )


def test_other_names_make_the_same_report(make_results: Callable[..., Results], tmp_path: Path) -> None:
    results = make_results(images=3, side=16, n=24, epochs=2)
    entries = {r.explainer for r in results.rows} | {r.metric.partition(".")[0] for r in results.rows if r.explainer}
    # of the length and the alphabetical place of the old ones, and saying nothing
    codes = {
        old: f"{i:02d}".translate(str.maketrans("0123456789", "ghijklmnop")).ljust(len(old), "z")
        for i, old in enumerate(sorted(entries - {""}))
    }

    def new(name: str) -> str:
        return codes.get(name, name)

    texts = []
    for folder, found in (("a", results), ("b", renamed(results, new))):
        run = RunDirectory(tmp_path / folder / "run")
        run.write_config({"name": "x"})
        run.write_results(found)
        write_exports(run, run.read_results())
        page = write_report(run.path).read_text(encoding="utf-8")
        texts.append(
            (verdict(run.read_results()), re.sub(r"<svg.*?</svg>|data:[^\"]+|<footer.*", "", page, flags=re.S))
        )
    (sentence, page), (other, other_page) = texts
    protocols = {row.protocol for row in results.rows}  # the metric's own word for itself, which no entry chooses
    for old in sorted(codes, key=len, reverse=True):
        sentence, page = (
            re.sub(rf"(?<![\w.]){re.escape(old)}(?![\w\[])", codes[old], text) for text in (sentence, page)
        )
    assert sentence == other and protocols
    assert re.findall(r"<h[1-4].*?</h[1-4]>|class=.control.", page) == re.findall(
        r"<h[1-4].*?</h[1-4]>|class=.control.", other_page
    )


@pytest.mark.parametrize("name", names("metric"))
def test_every_metric_says_what_it_judges(name: str) -> None:
    assert get(f"metric/{name}").role in ROLES


def test_controls_declare_themselves() -> None:
    found = {name: get(f"explainer/{name}").control for name in names("explainer")}
    assert {name for name, control in found.items() if control} == {
        "random_map",
        "centre_prior",
        "edge_map",
        "inverted_map",
        "squared",
        "blurred_map",
    }
    assert set(found.values()) <= {"", *CONTROLS}
