"""Verbs and sections of other installed packages: found by what the packages declare, and ours stay ours."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from explainode.cli import main as door
from explainode.cli.completion import candidates
from explainode.errors import UserError
from explainode.extensions import SECTIONS, VERBS, extensions, load, package
from explainode.metrics.results import Results
from explainode.report.html import render

CODE = """
from explainode.report import Section, tag

def count(words):
    print("words:", *words)
    return len(words)

good = Section("Good <section>", lambda found: tag("p", "<b>", len(found.results.rows)))
plain = Section("Plain", lambda found: "a < b")
empty = Section("Empty", lambda found: "")
bad = Section("Bad", lambda found: 1 / 0)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package: its entry points by group, as lines."""
    names = []

    def add(name, groups, code=CODE):
        folder = tmp_path / name
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / f"{name}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = "\n".join(f"[{group}]\n{textwrap.dedent(entries)}" for group, entries in groups.items())
        (info / "entry_points.txt").write_text(lines)
        monkeypatch.syspath_prepend(str(folder))
        names.append(name)

    yield add
    for name in names:
        sys.modules.pop(name, None)


def test_a_verb_of_another_package_gets_its_words_and_gives_the_status(install, capsys):
    install("other_one", {VERBS: "count = other_one:count"})
    assert door.main(["count", "a", "b"]) == 2
    assert capsys.readouterr().out == "words: a b\n"
    assert door.main(["count"]) == 0
    assert candidates("explainode cou") == ["count"]
    assert "  count       of the package other_one\n" in door.usage()


def test_a_verb_of_ours_cannot_be_taken(install, capsys):
    install("other_two", {VERBS: "list = other_two:count\ntrain = other_two:count"})
    assert door.main(["list", "explainer"]) == 0
    assert "words:" not in capsys.readouterr().out
    assert "other_two" not in door.usage()
    assert candidates("explainode trai") == ["train"]


def test_an_unknown_verb_names_the_nearest_of_all(install, capsys):
    install("other_three", {VERBS: "count = other_three:count"})
    assert door.main(["coutn"]) == 2
    assert "count" in capsys.readouterr().err


def test_what_cannot_be_loaded_is_one_sentence_that_names_its_package(install, capsys):
    install("other_four", {VERBS: "gone = other_four:gone\nlost = nowhere_at_all:run"})
    for verb in ("gone", "lost"):
        assert door.main([verb]) == 2
        error = capsys.readouterr().err
        assert "of the package other_four cannot be loaded" in error and "fault of ours" not in error


def test_two_packages_with_one_name_are_refused(install):
    install("other_five", {VERBS: "count = other_five:count"})
    install("other_six", {VERBS: "count = other_six:count"})
    with pytest.raises(UserError, match=r"other_(five|six) and other_(five|six) both add 'count'"):
        extensions(VERBS)


def test_entry_points_are_not_looked_up_for_our_own_verbs():
    code = "import sys; from explainode.cli.main import run; run(['compare', '--help']); print('explainode.extensions' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_sections_stand_before_the_last_one_and_are_escaped(install):
    groups = {SECTIONS: "good = other_seven:good\nplain = other_seven:plain\nempty = other_seven:empty"}
    install("other_seven", groups)
    page = render({}, {}, Results(), [], "empty")
    assert '<section id="added-good"><h2>Good &lt;section&gt;</h2><p>&lt;b&gt;0</p></section>' in page
    assert '<section id="added-plain"><h2>Plain</h2>a &lt; b</section>' in page
    assert '<a href="#added-good">' in page and "added-empty" not in page
    assert page.index('id="verdict"') < page.index('id="added-good"') < page.index('id="run"')


def test_a_section_that_fails_is_a_warning_and_the_page_is_whole(install):
    install("other_eight", {SECTIONS: "bad = other_eight:bad\ngone = other_eight:gone\ngood = other_eight:good"})
    page = render({}, {}, Results(), [], "empty")
    assert (
        "The section &#x27;bad&#x27; of the package other_eight is missing: ZeroDivisionError: division by zero" in page
    )
    assert "The section &#x27;gone&#x27; of the package other_eight is missing: UserError" in page
    assert 'id="added-good"' in page and 'id="run"' in page


def test_a_run_cannot_name_a_section(install, tmp_path):
    install("other_nine", {}, 'raise SystemExit("imported")')
    page = render(
        {"sections": ["other_nine:good"], "report": {"sections": ["other_nine:good"]}}, {}, Results(), [], "x"
    )
    assert "added-" not in page and "other_nine" not in sys.modules


def test_an_entry_point_says_its_package(install):
    install("other_ten", {VERBS: "count = other_ten:count"})
    point = extensions(VERBS)["count"]
    assert package(point) == "other_ten" and load(point)(["a"]) == 1
