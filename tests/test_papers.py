"""Papers go by author and year; what went by a number is still understood, and says what it is called now."""

import re
from pathlib import Path

import pytest

from explainode.cli.main import main
from explainode.registry import former
from explainode.registry.composing import compose
from explainode.registry.entries import _text, names

ROOT = Path(__file__).parents[1]
OLD = [(group, old, new) for group, known in former.FORMER.items() for old, new in known.items()]


def test_no_text_calls_a_paper_by_its_number():
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for folder in ("src", "conf", "docs", "scripts", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".md", ".yaml", ".css"} and path.name not in ("former.py", "test_papers.py")
        for match in re.finditer(r"[Pp]apers?[ _-]?00[0-4]", path.read_text(encoding="utf-8"))
    ]
    assert not found


@pytest.mark.parametrize(("group", "old", "new"), OLD)
def test_a_former_name_means_the_entry_of_today(group, old, new):
    assert new in names(group) and old not in names(group)
    assert _text(group, old) == _text(group, new)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("experiment=paper001_tables", "experiment=jha2021_tables"),
        ("+experiment=paper001_tables", "+experiment=jha2021_tables"),
        ("experiment=cifar10_sde,paper001_tables", "experiment=cifar10_sde,jha2021_tables"),
        ("metric=[gini,max_sensitivity_paper001]", "metric=[gini,max_sensitivity_jha2021]"),
        ("metric.max_sensitivity_paper001.draws=3", "metric.max_sensitivity_jha2021.draws=3"),
        ("run_dir=runs/paper001_tables", "run_dir=runs/paper001_tables"),
        ("run=runs/paper001_tables", "run=runs/paper001_tables"),
    ],
)
def test_former_names_in_words(word, meant):
    assert former.current_override(word) == meant


def test_a_former_name_composes_what_its_new_name_does(capsys):
    former._said.clear()
    assert compose("train", ["module=classifier_paper001"]) == compose("train", ["module=classifier_jha2021"])
    assert "module=classifier_paper001 is called classifier_jha2021 now" in capsys.readouterr().err


def test_the_command_line_knows_former_names(capsys):
    assert main(["train", "module=classifier_paper001", "nonsense=1"]) == 2
    assert "nonsense" in capsys.readouterr().err
