"""The mutator on sources of a few lines, and the runner on a tree of three files."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def mutants(load_script):
    return load_script("mutants")


def changes(mutants, source):
    """{(kind, before, after)} of a source."""
    return {(one.kind, one.before, one.after) for one in mutants.mutations(source)}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a < b", {("comparison", "a < b", "a <= b")}),
        ("a is None", {("comparison", "a is None", "a is not None")}),
        ("a + b", {("arithmetic", "a + b", "a - b")}),
        ("a ** b", {("arithmetic", "a ** b", "a * b")}),
        ("a and b", {("boolean", "a and b", "a or b")}),
        ("x = not a", {("removed not", "not a", "a")}),
        ("x = -a", {("sign", "-a", "a")}),
        ("x = 3", {("constant", "3", "4"), ("constant", "3", "2")}),
        ("x = 0.0", {("constant", "0.0", "1.0")}),
        ("x = 0.5", {("constant", "0.5", "1.5"), ("constant", "0.5", "-0.5")}),
        ("x = True", {("constant", "True", "False")}),
        ("def f(a=1): ...", {("default", "1", "2"), ("default", "1", "0")}),
        ("class A:\n    n: int = 1", {("default", "1", "2"), ("default", "1", "0")}),
        ("x = f(a, b)", {("swapped arguments", "f(a, b)", "f(b, a)")}),
        ("x = a.abs()", {("removed call", "a.abs()", "a")}),
        ("x = CalibrationError(a, b)", {("swapped arguments", "CalibrationError(a, b)", "CalibrationError(b, a)")}),
        ("f(a)", {("removed statement", "f(a)", "pass")}),
        ("a.b = c", {("removed statement", "a.b = c", "pass")}),
        ("a += b", {("removed statement", "a += b", "pass"), ("arithmetic", "a += b", "a -= b")}),
        (
            "if a:\n    raise E(b + c)",
            {("negated condition", "a", "not a"), ("removed statement", "raise E(b + c)", "pass")},
        ),
        ("def f():\n    return a", {("returned value", "return a", "return None")}),
    ],
)
def test_what_is_changed(mutants, source, expected):
    assert changes(mutants, source) == expected


@pytest.mark.parametrize(
    "source",
    [
        '"""A docstring of 3 words."""',
        "def f(a: Literal[1] = None) -> Literal[2]: ...",
        "class A:\n    def __repr__(self):\n        return 1 + 2",
        "x = f'{a + 1}'",
        "x = a + 'text'",
        "assert a < 1",
        "print(1 + 2)",
        "warnings.warn('text', stacklevel=2)",
        "x = zip(a, strict=True)",
        "x = isinstance(a, b)",
        "x = f(a, a)",
        "x = UserError(f(1, 2))",
        "if TYPE_CHECKING:\n    x = 1",
        "if __name__ == '__main__':\n    main(1)",
        "@cache(3)\ndef f(): ...",
        "def f():\n    return None",
        "import a",
    ],
)
def test_what_is_left_alone(mutants, source):
    assert changes(mutants, source) == set()


def test_one_place_is_changed_and_nothing_else(mutants):
    source = "def f(x):\n    # why\n    if x < 1:\n        return x * (x + 2)\n    return -x\n"
    original = ast.unparse(ast.parse(source))
    every = [mutants.mutate(source, one.number) for one in mutants.mutations(source)]
    assert len(set(every)) == len(every) > 8
    for change, mutated in zip(mutants.mutations(source), every, strict=True):
        lines = [(a, b) for a, b in zip(original.splitlines(), mutated.splitlines(), strict=True) if a != b]
        assert len(lines) == 1, change
    sums = [one.number for one in mutants.mutations(source) if one.before == "x + 2" and one.kind == "arithmetic"]
    assert "return x * (x - 2)" in mutants.mutate(source, *sums), "brackets are kept"


@pytest.fixture(autouse=True)
def plain_pytest(monkeypatch):
    """The runs inside these tests need no plugins, which cost seconds."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


def tree(folder: Path) -> Path:
    """A package with one function, a test that sees its comparison, and none that sees its constant."""
    package = folder / "src" / "explainode"
    (package / "room").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "room" / "__init__.py").touch()
    (package / "room" / "small.py").write_text("def small(x):\n    return x < 5\n")
    (folder / "tests" / "room").mkdir(parents=True)
    test = "from explainode.room.small import small\ndef test_small():\n    assert small(0) and not small(9)\n"
    (folder / "tests" / "room" / "test_small.py").write_text(test)
    (folder / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["slow", "ddp", "slurm"]\n')
    return folder


def test_a_file_meets_its_mirror_then_its_room(mutants, tmp_path):
    root = tree(tmp_path)
    (root / "tests" / "test_alone.py").touch()
    assert mutants.tests_of(root, "src/explainode/room/small.py") == [
        ["tests/room/test_small.py"],
        ["tests/room", "--ignore=tests/room/test_small.py"],
    ]
    assert mutants.tests_of(root, "src/explainode/room/other.py") == [["tests/room"]]
    assert mutants.tests_of(root, "src/explainode/alone.py") == [["tests/test_alone.py"]]


def test_the_choice_follows_the_seed_and_takes_every_kind(mutants, tmp_path):
    root = tree(tmp_path)
    every = mutants.find_mutants(root, [])
    assert {mutant.room for mutant in every} == {"room"}
    assert [mutant.mutation.kind for mutant in mutants.choose(every, 0, 3)] == [
        "comparison",
        "constant",
        "returned value",
    ]
    assert mutants.choose(every, 1, 3) == mutants.choose(every, 1, 3)
    assert len(mutants.choose(every, 1, 99)) == 3, "5 -> 6 and 5 -> 4 are one place"
    assert mutants.find_mutants(root, ["data"]) == []


def test_killed_survived_and_resumed(mutants, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mutants, "ROOT", tree(tmp_path / "tree"))
    results = tmp_path / "results.jsonl"
    words = ["--seed", "0", "--count", "3", "--results", str(results)]
    mutants.main(words)
    rows = {row["kind"]: row for row in map(json.loads, results.read_text().splitlines())}
    assert {kind: row["status"] for kind, row in rows.items()} == {
        "comparison": "survived",  # x < 5 and x <= 5 are told apart by 5 alone
        "constant": "survived",
        "returned value": "killed",
    }
    assert "test_small" in rows["returned value"]["killer"]
    assert (tmp_path / "tree/src/explainode/room/small.py").read_text() == "def small(x):\n    return x < 5\n"
    first = capsys.readouterr().out
    assert "src/explainode/room/small.py:2  comparison\n    - x < 5\n    + x <= 5" in first
    mutants.main(words)
    assert len(results.read_text().splitlines()) == 3, "nothing is tried twice"
    assert first.endswith(capsys.readouterr().out.split("\n", 1)[1]), "and the same is found"


def test_tests_that_fail_without_a_mutant_are_refused(mutants, tmp_path, monkeypatch):
    root = tree(tmp_path / "tree")
    (root / "tests/room/test_small.py").write_text("def test_small():\n    assert False\n")
    monkeypatch.setattr(mutants, "ROOT", root)
    with pytest.raises(SystemExit, match="fail without a mutant"):
        mutants.main(["--seed", "0", "--count", "1", "--results", str(tmp_path / "results.jsonl")])


def test_a_mutant_that_hangs_is_killed_with_what_it_started(mutants, tmp_path):
    root = tree(tmp_path / "tree")
    (root / "tests/room/test_small.py").write_text(
        "import subprocess, sys, time\n"
        "def test_small():\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    open('child', 'w').write(str(child.pid))\n"
        "    time.sleep(600)\n"
    )
    copied = mutants.Copy(root, tmp_path / "copy")
    code, _ = copied.run(["tests/room"], mutants.Limit(processor=60, clock=8))
    assert code is None
    child = (copied.root / "child").read_text()
    state = subprocess.run(["ps", "-o", "state=", "-p", child], capture_output=True, text=True).stdout.strip()
    assert state in ("", "Z"), "ended, at most waiting to be collected"


def test_a_mutant_that_goes_round_forever_is_killed_by_the_processors_time(mutants, tmp_path):
    root = tree(tmp_path / "tree")
    (root / "tests/room/test_small.py").write_text("def test_small():\n    while True:\n        pass\n")
    copied = mutants.Copy(root, tmp_path / "copy")
    code, _ = copied.run(["tests/room"], mutants.Limit(processor=2, clock=300))
    assert code is None


def test_the_copy_is_what_is_imported(mutants, tmp_path):
    copied = mutants.Copy(tree(tmp_path / "tree"), tmp_path / "copy")
    copied.check()
    copied.environment["PYTHONPATH"] = ""
    words = [sys.executable, "-c", "import explainode"]
    elsewhere = subprocess.run(words, env=copied.environment, cwd=tmp_path, capture_output=True).returncode == 0
    if elsewhere:  # only where explainode is installed is there another to be mistaken for
        with pytest.raises(SystemExit, match="not the copy"):
            copied.check()
