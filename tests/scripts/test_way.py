"""Ways through packages of a few lines, walked by hand."""

import pytest


@pytest.fixture
def walk(load_script, tmp_path):
    """`walk(files, place, ...)`: the way through a package of these files; its floors are low, middle, high."""
    structure, way = load_script("structure"), load_script("way")

    def go(files, *places):
        root = tmp_path / "small"
        root.mkdir()
        (root / "__init__.py").touch()
        for name, text in files.items():
            (root / f"{name}.py").write_text(text)
        found = way.Way(structure.read_package(root, [{"low"}, {"middle"}, {"high"}]))
        for place in places:
            found.start(place)
        return found

    return go


def stays(way):
    return [f"{stay.place}({', '.join(stay.parameters)})" for stay in way.stays]


def test_calls_from_top_to_bottom_arguments_first(walk):
    high = """
from small.low import inner, deep
from small import middle

def start(config, other):
    unrelated(other)
    middle.outer(inner(config), 1, last=config["part"])
    return middle.again(other)

def unrelated(x): ...
"""
    middle = "from small.low import deep\ndef outer(a, b, last):\n    deep(last)\n\ndef again(x): ...\n"
    low = "def inner(x):\n    return [*x]\n\ndef deep(x):\n    return len(x)\n"
    way = walk({"high": high, "middle": middle, "low": low}, "high.py:start:config")
    assert stays(way) == ["high:start(config)", "low:inner(x)", "middle:outer(a, last)", "low:deep(x)"]
    assert [(a.place, b.place) for a, b in way.climbs] == [("low:inner", "middle:outer")]
    assert way.returns == 1, "low was left for the middle"
    assert len(way.names) == 5  # config; x; a, last; x


@pytest.mark.parametrize(
    ("line", "follows"),
    [
        ("y = x", True),
        ("y = x['a']['b']", True),
        ("y = x.part", True),
        ("y = x.get('a')", True),
        ("y = dict(x)", True),
        ("y = {**x, 'a': 1}", True),
        ("y = {'a': x}", True),
        ("y = {x: 1}", False),
        ("y = x if x else None", True),
        ("y, z = x, 1", True),
        ("z, y = x, 1", False),
        ("y = [one for one in x]", True),
        ("y = [1 for one in x]", False),
        ("y = []; y.append(x)", True),
        ("y = {}; y['a'] = x", True),
        ("y = len(x)", False),
        ("y = x == 1", False),
        ("y = make(x)", False),
        ("y = keep(x)", True),
        ("y = sometimes(x)", False),
        ("y = Thing(x)", False),
        ("y = Record(x, 1)", True),
        ("y = Record(x, 1).first", True),
        ("r = Record(x, 1); y = r.first", True),
        ("r = Record(x, 1); y = r.second", False),
        ("y = x; y = 1", False),
        ("y = x.to('cpu')", True),
    ],
)
def test_what_carries_the_value(walk, line, follows):
    text = f"""
from dataclasses import dataclass

@dataclass
class Record:
    first: int
    second: int

class Thing:
    def __init__(self, a): ...

def make(a):
    return 1

def keep(a):
    return dict(a)

def sometimes(a):
    if a:
        return a
    return 1

def start(x):
    {line}
    end(y)

def end(y): ...
"""
    assert ("low:end(y)" in stays(walk({"low": text}, "low.py:start:x"))) is follows


def test_methods_keywords_and_inner_functions(walk):
    text = """
class Base:
    def inherited(self, a, *, b=None, **rest): ...

class Door(Base):
    @classmethod
    def make(cls, a): ...

    @staticmethod
    def plain(a): ...

    def start(self, x):
        self.inherited(1, b=x)
        super().inherited(x, c=x)
        Door.make(x)
        Door.plain(x)
        other = Door()
        other.own(**x)
        def inner():
            return unknown(x)
        for key, part in x.items():
            self.own(key, part)
        self.start(x)

    def own(self, a, b=1): ...
"""
    way = walk({"low": text}, "low.py:Door.start:x")
    assert stays(way) == [
        "low:Door.start(x)",
        "low:Base.inherited(b)",
        "low:Base.inherited(a, rest)",
        "low:Door.make(a)",
        "low:Door.plain(a)",
        "low:Door.own(a, b)",
        "low:Door.own(a, b)",
    ]
    assert way.unfollowed == ["low:Door.start: unknown(x)"]


def test_a_function_is_gone_through_once_and_met_as_often_as_it_is_called(walk):
    text = "def start(x):\n    twice(x)\n    twice(x)\n    start(x)\n\ndef twice(y):\n    end(y)\n\ndef end(z): ...\n"
    way = walk({"low": text}, "low.py:start:x")
    assert stays(way) == ["low:start(x)", "low:twice(y)", "low:end(z)", "low:twice(y)"]


def test_several_places_are_one_way(walk, load_script):
    files = {"low": "def read(path): ...\n", "high": "def write(rows): ...\n"}
    way = walk(files, "low.py:read:path", "high.py:write:rows")
    assert len(way.climbs) == 1, "the step from one place to the next counts"
    printed = load_script("way").say_way(way).splitlines()
    assert printed == [
        "  0 low:read(path)",
        "^ 2 high:write(rows)",
        "2 stays in 2 files of 2 rooms, 1 climbs, 0 returns, 2 names",
    ]


@pytest.mark.parametrize("place", ["low.py:read:paths", "low.py:write:path", "lower.py:read:path"])
def test_a_place_that_is_not_there(walk, place):
    with pytest.raises(SystemExit, match=f"{place}: no such parameter"):
        walk({"low": "def read(path): ...\n"}, place)
