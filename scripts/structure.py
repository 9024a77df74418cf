"""The structure of a Python package, read from its text with `ast`; nothing of it is imported.

    python scripts/structure.py                                 # explainode
    python scripts/structure.py diffrax zennit torchmetrics     # beside others that are installed here
    python scripts/structure.py --package ~/src/diffrax/diffrax

A *room* is what lies directly below the package: a subpackage or a module. An *arrow* goes from a room to another one that it imports at run
time, wherever in the file that is written. Given an order of floors (for explainode: `FLOORS` of tests/test_layering.py), an arrow that leads
to a higher floor goes *up*. A *circle* is a set of files each of which reaches every other one by imports. Lines are all lines of the files,
blank ones and comments among them. A function's lines begin at its `def`; its parameters are counted without `self` and `cls`; its nesting is
the number of blocks around its innermost statement.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import io
import statistics
import sys
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
Function = ast.FunctionDef | ast.AsyncFunctionDef
BLOCKS = (
    ast.If | ast.For | ast.AsyncFor | ast.While | ast.With | ast.AsyncWith | ast.Try | ast.Match | ast.FunctionDef
    | ast.AsyncFunctionDef
)  # fmt: skip


@dataclass
class File:
    """One file of a package: its dotted name below the package, its text and its tree."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.name.split(".")[0]

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    def functions(self) -> Iterator[Function]:
        yield from (node for node in ast.walk(self.tree) if isinstance(node, Function))

    @cached_property
    def comments(self) -> int:
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        return sum(token.type == tokenize.COMMENT for token in tokens)


@dataclass
class Package:
    """The files of a package by dotted name ("" is its own `__init__`), and the floors of its rooms where an order is given."""

    name: str
    files: dict[str, File]
    floors: dict[str, int] = field(default_factory=dict)

    def imports(self, file: File, types: bool) -> Iterator[str]:
        """The files of the package that a file imports; `types`: also for type checkers alone."""
        for node in walk_imports(file.tree, types):
            if isinstance(node, ast.Import):
                found = [self.find(alias.name) for alias in node.names]
            else:
                base = self.absolute(file, node)
                found = [self.find(f"{base}.{alias.name}") for alias in node.names]
            yield from (name for name in found if name is not None and name != file.name)

    def absolute(self, file: File, node: ast.ImportFrom) -> str:
        """The module that `from ... import` names, dots in front resolved."""
        if not node.level:
            return node.module or ""
        here = [self.name, *(file.name.split(".") if file.name else [])]
        is_package = file.path.name == "__init__.py"
        base = here[: len(here) - node.level + is_package]
        return ".".join([*base, *([node.module] if node.module else [])])

    def module(self, dotted: str) -> File | None:
        """The file that a dotted name means, and nothing in it."""
        name = self.find(dotted)
        return self.files[name] if name is not None and dotted == ".".join(filter(None, [self.name, name])) else None

    def find(self, dotted: str) -> str | None:
        """The file in which a dotted name lies: a module, or something in a module."""
        head, *parts = dotted.split(".")
        if head != self.name:
            return None
        for end in range(len(parts), -1, -1):
            if (name := ".".join(parts[:end])) in self.files:
                return name
        return None


def walk_imports(node: ast.AST, types: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports below a node, also inside functions; `types`: also those for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not types and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from (found for other in child.orelse for found in walk_imports(other, types))
        else:
            yield from walk_imports(child, types)


def read_package(root: Path, floors: Iterable[Iterable[str]] = ()) -> Package:
    """The package whose `__init__.py` lies in `root`."""
    files = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        files[name] = File(name, path, text, ast.parse(text))
    return Package(root.name, files, {room: floor for floor, rooms in enumerate(floors) for room in rooms})


def read_floors(layering: Path) -> list[set[str]]:
    """`FLOORS` of a test of layering, the ground first."""
    for node in ast.parse(layering.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS":
            return ast.literal_eval(node.value)
    raise SystemExit(f"{layering} has no FLOORS")


def read_explainode() -> Package:
    """The package of this tree, with its floors."""
    return read_package(ROOT / "src" / "explainode", read_floors(ROOT / "tests" / "test_layering.py"))


def measure(package: Package) -> dict[str, str]:
    """The numbers of the table, as they are printed."""
    files = list(package.files.values())
    lines = [line for file in files for line in file.lines]
    functions = [(function, file) for file in files for function in file.functions()]
    rooms = sorted({file.room for file in files if file.room})
    arrows = {
        (file.room, package.files[other].room)
        for file in files
        for other in package.imports(file, types=False)
        if file.room and package.files[other].room not in ("", file.room)
    }
    floors = package.floors
    placed = [(floors[a], floors[b]) for a, b in arrows if a in floors and b in floors]
    docstrings = [text for file in files for text in public_docstrings(file.tree)]
    sizes = {file.name: len(file.lines) for file in files}
    largest = max(sizes, key=lambda name: sizes[name])
    return {
        "files": str(len(files)),
        "rooms": str(len(rooms)),
        "lines": str(len(lines)),
        "arrows between rooms": str(len(arrows)),
        "arrows up": str(sum(b > a for a, b in placed)) if floors else "n/a",
        "arrows sideways": str(sum(b == a for a, b in placed)) if floors else "n/a",
        "circles at run time": _say_circles(circles(package, types=False)),
        "circles with types": _say_circles(circles(package, types=True)),
        "longest function, lines": _most(functions, lambda f: (f.end_lineno or f.lineno) - f.lineno + 1),
        "most parameters": _most(functions, count_parameters),
        "deepest nesting": _most(functions, nesting),
        "lines over 100 columns": f"{sum(len(line) > 100 for line in lines) / len(lines):.1%}",
        "lines over 120 columns": f"{sum(len(line) > 120 for line in lines) / len(lines):.1%}",
        "comments per 100 lines": f"{100 * sum(file.comments for file in files) / len(lines):.1f}",
        "public docstrings": str(len(docstrings)),
        "... with an example": str(sum(">>>" in text for text in docstrings)),
        "mean lines per file": f"{statistics.mean(sizes.values()):.0f}",
        "largest file, lines": f"{sizes[largest]} ({largest or '__init__'})",
    }


def _most(functions: list[tuple[Function, File]], count: Callable[[Function], int]) -> str:
    if not functions:
        return "0"
    function, _ = max(functions, key=lambda found: count(found[0]))
    return f"{count(function)} ({function.name})"


def count_parameters(function: Function) -> int:
    """Parameters without `self` and `cls`; `*args` and `**kwargs` are one each."""
    return len([name for name in parameters(function) if name not in ("self", "cls")])


def parameters(function: Function) -> list[str]:
    """The names of all parameters in their order."""
    given = function.args
    every = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
    return [one.arg for one in every if one is not None]


def nesting(node: ast.AST, depth: int = 0) -> int:
    """How many blocks lie around the innermost statement; `elif` is no block of its own."""
    deepest = depth
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                is_elif = (
                    isinstance(node, ast.If) and name == "orelse" and isinstance(child, ast.If) and len(value) == 1
                )
                deepest = max(deepest, nesting(child, depth + (isinstance(child, BLOCKS) and not is_elif)))
    return deepest


def public_docstrings(tree: ast.Module) -> Iterator[str]:
    """The docstrings of a module, its public classes and functions, and their public methods."""
    yield from filter(None, [ast.get_docstring(tree)])
    waiting: list[ast.AST] = [tree]
    while waiting:
        for node in waiting.pop(0).body:  # type: ignore[attr-defined]
            if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
                yield from filter(None, [ast.get_docstring(node)])
                if isinstance(node, ast.ClassDef):
                    waiting.append(node)


def circles(package: Package, types: bool) -> list[list[str]]:
    """The sets of two files and more that import each other, directly or through others."""
    graph = {name: set(package.imports(file, types)) for name, file in package.files.items()}
    reached = {name: _reach(graph, name) for name in graph}
    mutual = {frozenset([a, *(b for b in reached[a] if a in reached[b])]) for a in graph if a in reached[a]}
    return sorted(sorted(circle) for circle in mutual if len(circle) > 1)


def _reach(graph: Mapping[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        if (name := waiting.pop()) not in seen:
            seen.add(name)
            waiting += graph[name]
    return seen


def _say_circles(found: list[list[str]]) -> str:
    return f"{len(found)} ({sum(map(len, found))} files)" if found else "0"


def locate(name: str) -> Path | None:
    """The folder of an installed package, which is not imported."""
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return Path(found.origin).parent if found and found.origin else None


def say_table(columns: Mapping[str, Mapping[str, str]]) -> str:
    """One row per number, one column per package."""
    widths = {name: max(len(name), *(len(value) for value in column.values())) + 2 for name, column in columns.items()}
    rows = list(next(iter(columns.values())))
    lines = [f"{'':<26}" + "".join(f"{name:<{widths[name]}}" for name in columns)]
    lines += [f"{row:<26}" + "".join(f"{columns[name][row]:<{widths[name]}}" for name in columns) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="installed packages to show beside explainode")
    parser.add_argument("--package", type=Path, action="append", default=[], help="the folder of a package, shown too")
    options = parser.parse_args(arguments)
    places = {name: locate(name) for name in options.names} | {path.name: path for path in options.package}
    packages = [read_explainode(), *(read_package(path) for path in places.values() if path is not None)]
    print(say_table({package.name: measure(package) for package in packages}))
    if missing := [name for name, path in places.items() if path is None]:
        print(f"\nnot installed here: {', '.join(missing)}; give their folders with --package")
    return 0


if __name__ == "__main__":
    sys.exit(main())
