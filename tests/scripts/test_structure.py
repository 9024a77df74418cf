"""The table of a package of seven files, counted by hand."""

import ast

import pytest


@pytest.fixture(scope="module")
def structure(load_script):
    return load_script("structure")


FILES = {
    "__init__.py": '"""A package."""\n',
    "ground.py": "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from small.high.door import enter\n",
    "low/__init__.py": "",
    "low/one.py": "from . import two\nfrom .. import ground  # relative\n",
    "low/two.py": "def lazy():\n    from small.low.one import ground\n    import small.high.door\n",
    "high/__init__.py": "# nothing\n",
    "high/door.py": '''from small.low.one import two


class Door:
    """A door.

    >>> Door()
    """

    def open(self, key, *rest, wide=True, **more):
        """Open it."""
        for turn in key:
            if turn:
                pass
            elif rest:
                with turn:
                    pass
        # the longest line of all: ----------------------------------------------------------------------
        return wide

    def _close(self):
        """Not public: >>> no example."""


def enter():
    return 0  # -----------------------------------------------------------------------------------------------------------
''',
}


@pytest.fixture
def package(structure, tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "small" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return structure.read_package(tmp_path / "small", [{"ground"}, {"low"}, {"high"}])


def test_the_table(structure, package):
    assert structure.measure(package) == {
        "files": "7",
        "rooms": "3",
        "lines": str(sum(len(text.splitlines()) for text in FILES.values())),
        "arrows between rooms": "3",  # low to ground, low to high, high to low
        "arrows up": "1",
        "arrows sideways": "0",
        "circles at run time": "1 (3 files)",  # one and two, and the door by the import inside a function
        "circles with types": "1 (4 files)",
        "longest function, lines": "10 (open)",
        "most parameters": "4 (open)",
        "deepest nesting": "3 (open)",  # for, if (elif is no further one), with
        "lines over 100 columns": f"{2 / 37:.1%}",
        "lines over 120 columns": f"{1 / 37:.1%}",
        "comments per 100 lines": f"{400 / 37:.1f}",
        "public docstrings": "3",
        "... with an example": "1",
        "mean lines per file": "5",
        "largest file, lines": "26 (high.door)",
    }


def test_without_floors_nothing_goes_up(structure, package):
    package.floors.clear()
    assert structure.measure(package)["arrows up"] == "n/a"


@pytest.mark.parametrize(
    ("source", "depth"),
    [
        ("x = 1", 0),
        ("if a:\n    pass\nelif b:\n    pass\nelse:\n    x = 1", 1),
        ("if a:\n    pass\nelse:\n    if b:\n        pass\n    x = 1", 2),
        ("try:\n    with a:\n        pass\nexcept E:\n    while b:\n        for c in d:\n            pass", 3),
        ("match a:\n    case 1:\n        if b:\n            pass", 2),
    ],
)
def test_nesting(structure, source, depth):
    assert structure.nesting(ast.parse(source)) == depth


def test_parameters(structure):
    (function,) = ast.parse("def f(self, a, /, b, *args, c=1, **kwargs): ...").body
    assert structure.parameters(function) == ["self", "a", "b", "args", "c", "kwargs"]
    assert structure.count_parameters(function) == 5


def test_floors_are_read_from_the_test_of_layering(structure, tmp_path):
    (tmp_path / "layering.py").write_text('FLOORS = [{"a", "b"}, {"c"}]\n')
    assert structure.read_floors(tmp_path / "layering.py") == [{"a", "b"}, {"c"}]
    (tmp_path / "layering.py").write_text("")
    with pytest.raises(SystemExit, match="no FLOORS"):
        structure.read_floors(tmp_path / "layering.py")


def test_explainode_beside_what_is_and_what_is_not_installed(structure, package, capsys):
    path = package.files[""].path.parent
    structure.main(["no_such_package", "--package", str(path)])
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == ["explainode", "small"]
    assert "not installed here: no_such_package" in printed
    files = next(line for line in printed.splitlines() if line.startswith("files")).split()
    assert int(files[1]) > 200 and files[2] == "7"
