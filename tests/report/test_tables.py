"""Tables say the same in the terminal, in Markdown and in JSON."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from explainode.metrics.results import Results
from explainode.report.tables import is_marked, print_results, results_to_json, results_to_markdown, table_lines
from explainode.wording import arrow, enumerate_words, interval, number, p_phrase, p_value, percent, signed

Build = Callable[..., Results]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.45, "0.450"),
        (0.0001234, "1.23e−04"),
        (-0.13, "−0.130"),
        (12.345, "12.3"),
        (123.4, "123"),
        (54321.0, "54321"),
        (1e7, "1.00e+07"),
        (0.0, "0"),
        (-0.0, "0"),
        (1.0, "1.00"),
        (0.9996, "1.000"),
        (math.nan, "n/a"),
        (-math.inf, "−∞"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_words() -> None:
    assert interval(0.1, 0.2) == "0.100–0.200"
    assert interval(-0.1, 0.2) == "−0.100 to 0.200"
    assert interval(math.nan, math.nan) == ""
    assert signed(-0.00098, -0.0123, 0.0106) == ("−0.001", "−0.012 to +0.011")
    assert signed(0.5, 0.5, 0.5) == ("0.500", "0.500 to 0.500")
    assert [p_value(p) for p in (0.00001, 0.0004, 0.0123, 0.5, math.nan)] == [
        "<0.0001",
        "0.0004",
        "0.012",
        "0.50",
        "n/a",
    ]
    assert p_phrase(0.00001) == "p < 0.0001"
    assert p_phrase(0.03) == "p = 0.030"
    assert enumerate_words(["a"]) == "a"
    assert enumerate_words(["a", "b", "c"]) == "a, b and c"
    assert percent(0.9712) == "97.1 %"
    assert [arrow(b) for b in (True, False, None)] == ["↑", "↓", ""]


def test_the_best_model_is_marked_and_controls_never_are(make_results: Build) -> None:
    results = make_results(images=2, side=16, n=24, epochs=2)
    lines = table_lines(results)
    assert list(lines) == ["accuracy", "deletion", "insertion", "max_sensitivity", "smoothness.total_variation"]
    for line in lines["max_sensitivity"]:
        assert line.best == {"sde"}
        assert is_marked(line, "sde") == (not line.control)
        assert not is_marked(line, "resnet")
    for line in lines["insertion"]:
        values = {model: row.value for model, row in line.cells.items()}
        assert line.best == {max(values, key=lambda m: values[m])}
    assert all(not line.best and not line.top for line in lines["smoothness.total_variation"]), (
        "neutral facts have no best"
    )
    for model in ("resnet", "sde"):
        of_model = {line.explainer: line.cells[model].value for line in lines["deletion"] if not line.control}
        assert [line.explainer for line in lines["deletion"] if model in line.top] == [
            min(of_model, key=lambda e: of_model[e])
        ]


def test_only_the_last_epoch_is_shown(make_results: Build) -> None:
    results = make_results(images=2, side=16, n=24, epochs=3)
    assert {row.epoch for of in table_lines(results).values() for line in of for row in line.cells.values()} == {2}


def test_one_model_marks_its_best_explainer(make_results: Build) -> None:
    lines = table_lines(make_results(images=2, side=16, n=24, epochs=1, models=("resnet",)))["deletion"]
    marked = [line for line in lines if is_marked(line, "resnet")]
    assert len(marked) == 1
    assert marked[0].cells["resnet"].value == min(line.cells["resnet"].value for line in lines if not line.control)


def test_nan_is_never_the_best(make_results: Build) -> None:
    results = make_results(images=2, side=16, n=24, epochs=1)
    results.rows = [
        replace(r, value=math.nan) if (r.model, r.explainer, r.metric) == ("sde", "ig", "max_sensitivity") else r
        for r in results.rows
    ]
    line = next(line for line in table_lines(results)["max_sensitivity"] if line.explainer == "ig")
    assert line.best == {"resnet"}


def test_terminal_and_markdown_hold_every_headline(make_results: Build) -> None:
    results = make_results(images=2, side=16, n=24, epochs=1)
    out = io.StringIO()
    print_results(results, Console(file=out, width=160))
    text = out.getvalue()
    markdown = results_to_markdown(results)
    for row in results.rows:
        if "." not in row.metric:
            assert number(row.value) in text
        assert number(row.value) in markdown
    assert "total_variation" not in text
    assert "random_map (control)" in text
    assert "better" in text
    rows = markdown.splitlines()
    assert len({line.count(" | ") for line in rows}) == 1, "as many cells in every line"
    assert rows[0] == "| metric | explainer | resnet | sde | n | p, corrected, sde |"


def test_names_with_markup_are_only_text(make_results: Build) -> None:
    results = make_results(images=1, side=16, n=24, epochs=1, models=("[red]a|b[/red]", "<b>"))
    out = io.StringIO()
    print_results(results, Console(file=out, width=200))
    assert "[red]a|b[/red]" in out.getvalue()
    markdown = results_to_markdown(results)
    assert "[red]a\\|b[/red]" in markdown
    assert "&lt;b>" in markdown and "<b>" not in markdown


def test_nothing_measured_is_said() -> None:
    out = io.StringIO()
    print_results(Results(), Console(file=out))
    assert out.getvalue().strip() == "Nothing was measured yet."


def test_excluded_images_are_counted(make_results: Build) -> None:
    results = make_results(images=1, side=16, n=24, epochs=1, models=("resnet",))
    results.rows = [replace(row, n=20, excluded=4) if row.metric == "deletion" else row for row in results.rows]
    out = io.StringIO()
    print_results(results, Console(file=out, width=160))
    assert "20 (−4)" in out.getvalue()


def test_json_is_strict_and_complete(make_results: Build) -> None:
    results = make_results(images=1, side=16, n=24, epochs=1)
    results.rows[3] = replace(results.rows[3], value=math.nan)
    results.warnings = ["w"]

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    content = json.loads(results_to_json(results), parse_constant=refuse)
    assert len(content["rows"]) == len(results.rows)
    assert content["rows"][3]["value"] is None
    assert content["warnings"] == ["w"]
    assert {c["outcome"] for c in content["comparisons"]} <= {"better", "worse", "undecided"}
    assert content["verdict"]["models"][0].startswith("sde: ")


def test_a_file_has_no_width_that_would_break_numbers(make_results: Build) -> None:
    results = make_results(images=1, side=16, n=24, epochs=1)
    wide, narrow = io.StringIO(), io.StringIO()
    print_results(results, Console(file=wide, width=300))
    print_results(results, Console(file=narrow, width=20))
    assert [line.rstrip() for line in narrow.getvalue().splitlines()] == [
        line.rstrip() for line in wide.getvalue().splitlines()
    ]
