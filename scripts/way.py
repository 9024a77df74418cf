"""The way of a value through explainode, read from the text with `ast`: which functions it meets, and how often it climbs.

    python scripts/way.py cli/train.py:train:config
    python scripts/way.py data/image_folder.py:ImageFolderDataset.__getitems__:indices evaluation.py:evaluate:batches

`FILE:FUNCTION:PARAM` is where the value comes in. The way is the order in which a reader meets functions who steps into every call: arguments
first, then the function called, then the next line; a function that is met again is not gone through again. What carries the value is read
from the text: other names for it, its items, attributes and what its methods return, containers and records (dataclasses) it is put into, and
what a function returns that was given it and returns it in every case. Objects that are made *from* it do not carry it, and a call whose
function the text does not name (a callable, a method that several classes have) is not followed, and listed. Where the way comes out of such
a call, name a further place, and it goes on from there.

A *stay* is one arrival at a function. A *climb* is a step from one stay to the next that leads to a higher floor (`FLOORS` of
tests/test_layering.py); it is marked with ^. A *return* is a step to a file that the way had left before. A *name* is a parameter or variable
of a function that carries the value.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path

from structure import File, Function, Package, parameters, read_explainode, walk_imports

# of Python and OmegaConf: what comes out carries what went in
CARRIERS = {
    "dict", "list", "tuple", "set", "sorted", "reversed", "enumerate", "zip", "iter", "next", "copy", "deepcopy", "replace",
    "to_container", "create", "merge", "items", "values", "get", "pop", "union",
}  # fmt: skip
KEEPERS = {"append", "extend", "add", "update", "insert", "setdefault"}  # the receiver carries what went in
# methods of containers, texts, tensors and modules: no sign that a class of the package is meant
COMMON = {name for kind in (dict, list, set, str, bytes, int, Path) for name in dir(kind)} | {
    "to", "sum", "mean", "max", "min", "dim", "size", "forward", "modules", "parameters", "train", "eval", "item", "numpy",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A function in its file; `owner` is its class, `outer` the functions around it."""

    file: File = field(hash=False, compare=False)
    node: Function = field(hash=False, compare=False)
    owner: str | None
    name: str

    def __str__(self) -> str:
        return f"{self.file.name}:{f'{self.owner}.' if self.owner else ''}{self.name}"


@dataclass(frozen=True)
class Stay:
    """One arrival of the value at a function, under the names of these parameters."""

    place: str
    file: str
    floor: int | None
    parameters: tuple[str, ...]
    depth: int


class Way:
    """The way of a value through a package; `follow` walks it, several times for several legs."""

    def __init__(self, package: Package) -> None:
        self.package = package
        self.stays: list[Stay] = []
        self.names: set[tuple[str, str]] = set()
        self.unfollowed: list[str] = []
        self.carrying_fields: dict[str, set[str]] = defaultdict(set)
        self._inside: list[str] = []
        self._walked: dict[tuple[str, frozenset[str]], bool] = {}
        self._classes: dict[str, list[tuple[File, ast.ClassDef]]] = {}
        self._methods: dict[str, list[Place]] = {}
        for file in package.files.values():
            for node in file.tree.body:
                if isinstance(node, ast.ClassDef):
                    self._classes.setdefault(node.name, []).append((file, node))
                    for inner in node.body:
                        if isinstance(inner, Function):
                            self._methods.setdefault(inner.name, []).append(Place(file, inner, node.name, inner.name))

    def start(self, where: str) -> None:
        """Follow `FILE:FUNCTION:PARAM`; a method is `CLASS.METHOD`.

        Raises:
            SystemExit: if there is no such parameter.
        """
        path, function, parameter = where.split(":")
        name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        owner, _, last = function.rpartition(".")
        file = self.package.files.get(name)
        place = file and (self.method(owner, last) if owner else self.in_module(file, last))
        if not isinstance(place, Place) or parameter not in parameters(place.node):
            raise SystemExit(f"{where}: no such parameter; write it as cli/train.py:train:config")
        self.follow(place, frozenset([parameter]), 0)

    def follow(self, place: Place, carrying: frozenset[str], depth: int) -> bool:
        """Arrive at a function under these parameters and go through it, once for each set of them; whether it returns the value."""
        if str(place) in self._inside:
            return True  # it calls itself, directly or through others: no new stay, and its other returns decide
        floor = self.package.floors.get(place.file.room)
        self.stays.append(Stay(str(place), place.file.name, floor, tuple(sorted(carrying)), depth))
        key = (str(place), carrying)
        if key not in self._walked:
            self._inside.append(str(place))
            self._walked[key] = _Reader(self, place, set(carrying), depth).read()
            self._inside.pop()
        return self._walked[key]

    @property
    def climbs(self) -> list[tuple[Stay, Stay]]:
        """The steps that lead to a higher floor; a file without a floor is passed over."""
        placed = [stay for stay in self.stays if stay.floor is not None]
        return [(a, b) for a, b in pairwise(placed) if b.floor > a.floor]  # type: ignore[operator]

    @property
    def returns(self) -> int:
        """The steps to a file that had been left."""
        visits = [file for file, _ in groupby(stay.file for stay in self.stays)]
        return len(visits) - len(set(visits))

    # -- which function a call names

    def method(self, owner: str, name: str) -> Place | None:
        """A method of a class or of those it inherits from."""
        for file, node in self._classes.get(owner, []):
            for inner in node.body:
                if isinstance(inner, Function) and inner.name == name:
                    return Place(file, inner, owner, name)
            for base in node.bases:
                if (found := self.method(_last(base), name)) is not None:
                    return found
        return None

    def only_method(self, name: str) -> Place | None:
        """The method of this name, if one class alone has it."""
        found = self._methods.get(name, [])
        return found[0] if len(found) == 1 and name not in COMMON else None

    def fields(self, owner: str) -> list[str]:
        """The fields of a dataclass in their order, those it inherits first; none of another class."""
        found: list[str] = []
        for _, node in self._classes.get(owner, []):
            if any("dataclass" in ast.unparse(mark) for mark in node.decorator_list):
                found += [field for base in node.bases for field in self.fields(_last(base))]
                found += [_last(one.target) for one in node.body if isinstance(one, ast.AnnAssign)]
        return found

    def in_module(self, file: File, name: str) -> Place | str | None:
        """What a name means in a file: a function, a class's name, or nothing of this package."""
        for node in file.tree.body:
            if isinstance(node, Function) and node.name == name:
                return Place(file, node, None, name)
            if isinstance(node, ast.ClassDef) and node.name == name:
                return name
        return self._imported(file, file.tree, name)

    def _imported(self, file: File, scope: ast.AST, name: str) -> Place | str | None:
        """What a name means that is imported somewhere in `scope`: a function or a class's name."""
        dotted = self._origin(file, scope, name)
        module, _, last = dotted.rpartition(".")
        found = self.package.module(module)
        return None if found is None or found is file else self.in_module(found, last)

    def _origin(self, file: File, scope: ast.AST, name: str) -> str:
        """The dotted name behind an imported one, "" if it is not imported."""
        for node in walk_imports(scope, types=True):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    base = f"{self.package.absolute(file, node)}." if isinstance(node, ast.ImportFrom) else ""
                    return base + alias.name
        return ""

    def meaning(self, place: Place, name: str) -> Place | str | None:
        """What a name means inside a function: a function, a class's name, or nothing of this package."""
        for node in ast.walk(place.node):
            if isinstance(node, Function) and node.name == name and node is not place.node:
                return None  # a function within this one is read where it stands
        return self._imported(place.file, place.node, name) or self.in_module(place.file, name)

    def module(self, place: Place, name: str) -> File | None:
        """The module of the package that a name means inside a function."""
        origin = self._origin(place.file, place.node, name) or self._origin(place.file, place.file.tree, name)
        return self.package.module(origin)


def _last(node: ast.AST) -> str:
    """The last word of a dotted name; of `Base[Item]` that of `Base`."""
    node = node.value if isinstance(node, ast.Subscript) else node
    return getattr(node, "id", getattr(node, "attr", ""))


class _Reader:
    """One function read from top to bottom, with the names that carry the value so far."""

    def __init__(self, way: Way, place: Place, carrying: set[str], depth: int) -> None:
        self.way, self.place, self.carrying, self.depth = way, place, carrying, depth
        self.types: dict[str, str] = {}
        given = place.node.args
        for one in (*given.posonlyargs, *given.args, *given.kwonlyargs):
            if one.annotation is not None:
                self.types[one.arg] = _last(one.annotation)
        if place.owner and parameters(place.node)[:1] == ["self"]:
            self.types["self"] = place.owner
        self.returned: list[bool] = []

    def read(self) -> bool:
        """Go through the function; whether all that it returns carries the value."""
        for name in self.carrying:
            self.way.names.add((str(self.place), name))
        for statement in self.place.node.body:
            self._statement(statement)
        return bool(self.returned) and all(self.returned)

    def _statement(self, node: ast.AST) -> None:
        match node:
            case ast.Assign(targets=targets, value=value):
                carried = self._value(value)
                for target in targets:
                    self._value(target.slice if isinstance(target, ast.Subscript) else None)
                    self._assign(target, value, carried)
            case ast.AnnAssign(target=target, value=value) if value is not None:
                self._assign(target, value, self._value(value))
            case ast.AugAssign(target=target, value=value):
                if self._value(value):
                    self._assign(target, value, True)
            case ast.Return(value=value) if value is not None:
                self.returned.append(self._value(value))
            case ast.For(target=target, iter=iterated) | ast.AsyncFor(target=target, iter=iterated):
                self._assign(target, iterated, self._value(iterated))
                self._statements([*node.body, *node.orelse])
            case ast.With(items=items, body=body) | ast.AsyncWith(items=items, body=body):
                for item in items:
                    carried = self._value(item.context_expr)
                    if item.optional_vars is not None:
                        self._assign(item.optional_vars, item.context_expr, carried)
                self._statements(body)
            case ast.ClassDef() | ast.Import() | ast.ImportFrom():
                pass
            case ast.FunctionDef(body=body) | ast.AsyncFunctionDef(body=body):
                before = list(self.returned)  # what an inner function returns is not what this one returns
                self._statements(body)
                self.returned = before
            case ast.expr():
                self._value(node)
            case _:
                self._statements(ast.iter_child_nodes(node))

    def _statements(self, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            self._statement(node)

    def _assign(self, target: ast.AST, value: ast.AST, carried: bool) -> None:
        """Let a name carry the value, or no longer."""
        match target:
            case ast.Name(id=name):
                if carried:
                    self.carrying.add(name)
                    self.way.names.add((str(self.place), name))
                else:
                    self.carrying.discard(name)
                if isinstance(value, ast.Call) and isinstance(
                    made := self.way.meaning(self.place, _last(value.func)), str
                ):
                    self.types[name] = made
            case ast.Tuple(elts=targets) | ast.List(elts=targets):
                values = value.elts if isinstance(value, ast.Tuple) and len(value.elts) == len(targets) else None
                for index, one in enumerate(targets):
                    self._assign(
                        one, values[index] if values else value, self._carries(values[index]) if values else carried
                    )
            case ast.Starred(value=inner):
                self._assign(inner, value, carried)
            case ast.Subscript(value=container) if carried:
                self._assign(container, container, True)

    def _carries(self, node: ast.AST) -> bool:
        """Whether an expression that was already walked carries the value."""
        stays, names = len(self.way.stays), set(self.way.names)
        found = self._value(node)
        del self.way.stays[stays:]
        self.way.names = names
        return found

    def _value(self, node: ast.AST | None) -> bool:
        """Walk the calls of an expression in the order in which they happen; whether it carries the value."""
        match node:
            case None | ast.Constant():
                return False
            case ast.Name(id=name):
                return name in self.carrying
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if attribute in self.way.fields(
                self.types.get(name, "")
            ):
                return name in self.carrying and attribute in self.way.carrying_fields[self.types[name]]
            case ast.Attribute(value=inner) | ast.Starred(value=inner) | ast.Await(value=inner):
                return self._value(inner)
            case ast.Subscript(value=inner, slice=index):
                self._value(index)
                return self._value(inner)
            case ast.NamedExpr(target=target, value=inner):
                carried = self._value(inner)
                self._assign(target, inner, carried)
                return carried
            case ast.Yield(value=inner) | ast.YieldFrom(value=inner):
                self.returned.append(self._value(inner))
                return False
            case ast.Call():
                return self._call(node)
            case ast.Compare(left=left, comparators=others):
                for one in (left, *others):
                    self._value(one)
                return False
            case ast.JoinedStr(values=values):
                for one in values:
                    self._value(one)
                return False
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                for part in node.generators:
                    self._assign(part.target, part.iter, self._value(part.iter))
                    for condition in part.ifs:
                        self._value(condition)
                if isinstance(node, ast.DictComp):
                    self._value(node.key)
                return self._value(node.value if isinstance(node, ast.DictComp) else node.elt)
            case ast.Dict(keys=keys, values=values):
                for key in keys:
                    self._value(key)
                return self._any(values)
            case ast.IfExp(test=test, body=body, orelse=other):
                self._value(test)
                return self._any([body, other])
            case ast.Lambda(body=body):
                self._value(body)
                return False
        return self._any(child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr | ast.keyword))

    def _any(self, nodes: Iterable[ast.AST]) -> bool:
        """Walk all of the expressions; whether one of them carries the value."""
        carried = [self._value(node) for node in nodes]
        return any(carried)

    def _call(self, call: ast.Call) -> bool:
        inner = call.func.value if isinstance(call.func, ast.Attribute) else None
        by_receiver = self._value(inner) if inner is not None else self._value(call.func)
        by_position = [self._value(one) for one in call.args]
        by_name = [(one.arg, self._value(one.value)) for one in call.keywords]
        if not (by_receiver or any(by_position) or any(carried for _, carried in by_name)):
            return False
        callee = self._callee(call.func)
        if callee is None:
            name = _last(call.func)
            if name in KEEPERS and inner is not None and not by_receiver:
                self._assign(inner, call, True)
            elif name not in CARRIERS | COMMON and not by_receiver and not hasattr(builtins, name):
                self.way.unfollowed.append(f"{self.place}: {' '.join(ast.unparse(call).split())[:90]}")
            return (
                name in CARRIERS or by_receiver
            )  # what a method of the value returns is still the value: batch.to(device)
        if isinstance(callee, str):  # a class: it is made
            maker = self.way.method(callee, "__init__")
            if maker is None:
                return self._make_record(callee, by_position, by_name)
            callee, bound = maker, True
            self._arrive(callee, bound, False, call, by_position, by_name)
            return False
        bound = callee.owner is not None and inner is not None and not _is_static(callee.node)
        return self._arrive(callee, bound, by_receiver, call, by_position, by_name)

    def _make_record(self, owner: str, by_position: list[bool], by_name: list[tuple[str | None, bool]]) -> bool:
        """Note which fields of a dataclass carry the value; whether it is one."""
        fields = self.way.fields(owner)
        by_field = [*zip(fields, by_position, strict=False), *by_name]
        found = {name for name, carried in by_field if carried and name is not None}
        found |= {name for name in fields if (None, True) in by_name}
        self.way.carrying_fields[owner] |= found
        return bool(fields)

    def _arrive(
        self,
        callee: Place,
        bound: bool,
        by_receiver: bool,
        call: ast.Call,
        by_position: list[bool],
        by_name: list[tuple[str | None, bool]],
    ) -> bool:
        """Go into a function with those of its parameters that are given the value."""
        every, given = parameters(callee.node), callee.node.args
        positional = [one.arg for one in (*given.posonlyargs, *given.args)][bound:]
        found = {every[0]} if bound and by_receiver and every else set()
        for index, (argument, carried) in enumerate(zip(call.args, by_position, strict=True)):
            if carried and isinstance(argument, ast.Starred):
                found |= set(positional[index:]) | ({given.vararg.arg} if given.vararg else set())
            elif carried:
                found |= (
                    {positional[index]} if index < len(positional) else {given.vararg.arg} if given.vararg else set()
                )
        named = {name for name, _ in by_name}
        for name, carried in by_name:
            if carried and name is None:  # **value: into every parameter that nothing else is given to
                found |= {one for one in every[bound:] if one not in named and one not in positional[: len(call.args)]}
            elif carried and name in every:
                found.add(name)
            elif carried and given.kwarg:
                found.add(given.kwarg.arg)
        return bool(found) and self.way.follow(callee, frozenset(found), self.depth + 1)

    def _callee(self, function: ast.AST) -> Place | str | None:
        """The function or class that a call names."""
        match function:
            case ast.Name(id=name):
                return self.way.meaning(self.place, name)
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name):
                bases = [
                    _last(base) for _, node in self.way._classes.get(self.place.owner or "", []) for base in node.bases
                ]
                return next((found for base in bases if (found := self.way.method(base, name))), None)
            case ast.Attribute(value=ast.Name(id=variable), attr=name):
                owner = self.types.get(variable)
                if owner is None and isinstance(made := self.way.meaning(self.place, variable), str):
                    owner = made
                if (module := self.way.module(self.place, variable)) is not None:
                    return self.way.in_module(module, name)
                return (owner and self.way.method(owner, name)) or self.way.only_method(name)
            case ast.Attribute(attr=name):
                return self.way.only_method(name)
        return None


def _is_static(function: Function) -> bool:
    return any(_last(mark) == "staticmethod" for mark in function.decorator_list)


def say_way(way: Way) -> str:
    """The way, step by step, and its counts."""
    files = {stay.file for stay in way.stays}
    climbed = {id(after) for _, after in way.climbs}
    lines = []
    for stay in way.stays:
        mark = "^" if id(stay) in climbed else " "
        lines.append(
            f"{mark} {'-' if stay.floor is None else stay.floor} {'  ' * stay.depth}{stay.place}({', '.join(stay.parameters)})"
        )
    rooms = {file.split(".")[0] for file in files}
    lines += [f"  not followed: {call}" for call in dict.fromkeys(way.unfollowed)]
    lines.append(
        f"{len(way.stays)} stays in {len(files)} files of {len(rooms)} rooms, {len(way.climbs)} climbs, "
        f"{way.returns} returns, {len(way.names)} names"
    )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "places",
        nargs="+",
        metavar="FILE:FUNCTION:PARAM",
        help="where the value comes in; several are walked one after another",
    )
    options = parser.parse_args(arguments)
    way = Way(read_explainode())
    for where in options.places:
        way.start(where)
    print(say_way(way))
    return 0


if __name__ == "__main__":
    sys.exit(main())
