"""Seeded mutants of `src/`: small faults that the tests of a room have to notice.

    python scripts/mutants.py --seed 1 --count 100 --jobs 2

A mutant is one change of one place: a comparison, a sign, a constant off by one, a statement left out. Each is written into a copy of the
tree and meets the tests of its room there: first the file that mirrors it, then the rest of the room, up to the first failure. What no test
notices is a survivor, and is listed with what stood there and what stands there now. Finished mutants are kept in `--results`, so that a
run that was stopped goes on where it was.

Mutants that cannot be told from the original are left out where that is cheap: words (docstrings, messages, `__repr__`), annotations,
decorators, imports, assertions of our own invariants, and arguments that change no result.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import json
import os
import queue
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path("src/explainode")
PYTEST = ("-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not ddp and not slurm")

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
# calls that only speak, and arguments that change no result
WORDS = {"print", "warn", "warning", "info", "debug", "rank_zero_warn", "rank_zero_info", "Heartbeat", "UserError"}
SILENT_KEYWORDS = {"strict", "non_blocking", "stacklevel", "verbose", "encoding", "pin_memory", "persistent_workers"}
# the order of their arguments does not matter, or swapping it is a crash that every test notices
SYMMETRIC = {"isinstance", "issubclass", "getattr", "hasattr", "setattr", "cast", "min", "max", "minimum", "maximum"}
# methods without arguments whose result can stand in for by what they were called on
UNWRAPPED = {"abs", "detach", "clone", "square", "sqrt", "exp", "log", "neg", "copy", "strip", "lower"}


@dataclass(frozen=True)
class Place:
    """A node, and where it hangs in its parent: `parent.field`, or `parent.field[index]`."""

    parent: ast.AST
    field: str
    index: int | None
    node: ast.AST

    def put(self, new: ast.AST) -> None:
        """Let `new` stand here."""
        if self.index is None:
            setattr(self.parent, self.field, new)
        else:
            getattr(self.parent, self.field)[self.index] = new


@dataclass(frozen=True)
class Mutation:
    """One change of a source, found again by its number."""

    number: int
    line: int
    kind: str
    before: str
    after: str


@dataclass(frozen=True)
class Mutant:
    """One change of one file of the tree."""

    path: str
    mutation: Mutation

    @property
    def key(self) -> str:
        change = self.mutation
        return f"{self.path}:{change.line}:{change.number}:{change.before} -> {change.after}"

    @property
    def room(self) -> str:
        """The package or module directly below `explainode`."""
        return Path(self.path).relative_to(PACKAGE).parts[0].removesuffix(".py")


def mutations(source: str) -> list[Mutation]:
    """All changes of a source that we make, in the order of its lines."""
    found = _changes(ast.parse(source))
    return [
        Mutation(number, place.node.lineno, kind, _one_line(place.node), _one_line(new))  # type: ignore[attr-defined]
        for number, (place, kind, new) in enumerate(found)
    ]


def mutate(source: str, number: int) -> str:
    """The source with one change; comments and layout are not kept."""
    tree = ast.parse(source)
    place, _, new = _changes(tree)[number]
    place.put(ast.copy_location(new, place.node))
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def _one_line(node: ast.AST) -> str:
    return ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).splitlines()[0]


def _changes(tree: ast.Module) -> list[tuple[Place, str, ast.AST]]:
    """(place, kind, what could stand there), the tree itself unchanged."""
    return [(place, kind, new) for place in _places(tree) for kind, new in _alternatives(place)]


def _places(node: ast.AST) -> Iterator[Place]:
    """The places below a node where a change would be a fault, not a matter of wording."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST) or _speaks(child):
                continue
            yield Place(node, field, index if isinstance(value, list) else None, child)
            if not isinstance(child, ast.Raise):  # that it is raised is behavior, what it says is not
                yield from _places(child)


def _speaks(node: ast.AST) -> bool:
    """Whether a node is for readers, checkers or Python's own machinery alone."""
    match node:
        case ast.JoinedStr() | ast.Import() | ast.ImportFrom() | ast.Assert() | ast.Delete():
            return True
        case ast.Expr(value=ast.Constant()):
            return True  # docstrings
        case ast.Expr(value=ast.Call() as call) | (ast.Call() as call):
            return _name(call.func) in WORDS
        case ast.keyword(arg=name):
            return name in SILENT_KEYWORDS
        case ast.FunctionDef(name=name):
            return name in ("__repr__", "__str__")
        case ast.If(test=test):
            return "TYPE_CHECKING" in ast.unparse(test) or "__name__" in ast.unparse(test)
        case ast.Assign(targets=[ast.Name(id="__all__")]):
            return True
    return False


def _name(function: ast.AST) -> str:
    """The last word of what is called."""
    return getattr(function, "id", getattr(function, "attr", ""))


def _alternatives(place: Place) -> Iterator[tuple[str, ast.AST]]:
    """(kind, another node) for each change that we make of this one."""
    node = place.node
    match node:
        case ast.Compare(ops=operators):
            for index, operator in enumerate(operators):
                new = copy.deepcopy(node)
                new.ops[index] = COMPARISONS[type(operator)]()
                yield "comparison", new
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in ARITHMETIC:
            if not any(_is_text(side) for side in (left, right)):
                yield "arithmetic", ast.BinOp(left, ARITHMETIC[type(operator)](), right)
        case ast.BoolOp(op=operator, values=values):
            yield "boolean", ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "removed not", operand
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield "sign", operand
        case ast.Constant(value=value):
            kind = "default" if _is_default(place) else "constant"
            for other in _other_constants(value):
                yield kind, ast.Constant(other)
        case ast.Call(func=function, args=[first, second, *rest], keywords=keywords):
            starred = isinstance(first, ast.Starred) or isinstance(second, ast.Starred)
            if not starred and _name(function) not in SYMMETRIC and ast.dump(first) != ast.dump(second):
                yield "swapped arguments", ast.Call(function, [second, first, *rest], keywords)
        case ast.Call(func=ast.Attribute(value=inner, attr=name), args=[], keywords=[]) if name in UNWRAPPED:
            yield "removed call", inner
        case ast.Return(value=value) if value is not None and not _is_none(value):
            yield "returned value", ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.AugAssign() | ast.Break() | ast.Continue():
            yield "removed statement", ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "removed statement", ast.Pass()
    if isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC:
        yield "arithmetic", ast.AugAssign(node.target, ARITHMETIC[type(node.op)](), node.value)
    is_condition = place.field in ("test", "ifs")
    if is_condition and not isinstance(node, (ast.Compare, ast.BoolOp, ast.UnaryOp, ast.Constant)):
        yield "negated condition", ast.UnaryOp(ast.Not(), node)  # type: ignore[arg-type]


def _other_constants(value: object) -> list[bool | int | float]:
    """Off by one for whole numbers, another sign and another size for others; words stay."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, float):
        return [value + 1, *([-value] if value else [])]
    return []


def _is_default(place: Place) -> bool:
    """Whether a value stands for what a caller leaves out."""
    in_signature = isinstance(place.parent, ast.arguments)
    return in_signature or (isinstance(place.parent, ast.AnnAssign) and place.field == "value")


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def find_mutants(root: Path, rooms: list[str]) -> list[Mutant]:
    """All mutants of the package below `root`, of the named rooms or, where none is named, of all."""
    found = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        changes = [Mutant(name, change) for change in mutations(path.read_text(encoding="utf-8"))]
        found += [mutant for mutant in changes if not rooms or mutant.room in rooms]
    return found


def choose(mutants: list[Mutant], seed: int, count: int) -> list[Mutant]:
    """So many mutants, no two of one place's text; the kinds take turns, as most places are constants."""
    shuffled = random.Random(seed).sample(mutants, len(mutants))
    by_kind: dict[str, list[Mutant]] = {}
    seen = set()
    for mutant in shuffled:
        place = (mutant.path, mutant.mutation.line, mutant.mutation.before)
        if place not in seen:
            seen.add(place)
            by_kind.setdefault(mutant.mutation.kind, []).append(mutant)
    turns = zip_longest(*(by_kind[kind] for kind in sorted(by_kind)))
    return [mutant for turn in turns for mutant in turn if mutant is not None][:count]


def tests_of(root: Path, path: str) -> list[list[str]]:
    """The tests that a file's mutants meet, as arguments of pytest: what mirrors the file, then the rest of its room."""
    inner = Path(path).relative_to(PACKAGE)
    tests = root / "tests"
    folder = tests / inner.parts[0]
    mirrors = sorted((folder if folder.is_dir() else tests).glob(f"test_{inner.stem}*.py"))
    mirror = [file.relative_to(root).as_posix() for file in mirrors]
    rest = [f"tests/{folder.name}", *(f"--ignore={file}" for file in mirror)] if folder.is_dir() else []
    return [words for words in (mirror, rest) if words]


@dataclass(frozen=True)
class Limit:
    """Seconds that a run may take, of the processor and on the clock."""

    processor: int
    clock: float


class Copy:
    """A copy of the tree in which one mutant after another is tried.

    Its `src` comes first on the path of imports, so the copy is what the tests import, however the package is installed.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = folder / "tree"
        hidden = shutil.ignore_patterns(
            ".*", "__pycache__", "*.egg-info", "runs", "multirun", "outputs", "build", "dist"
        )
        shutil.copytree(root, self.root, ignore=hidden, symlinks=True)
        conf = self.root / PACKAGE / "conf"
        if not conf.exists():  # a part of the package that an installation maps to another folder
            conf.symlink_to(self.root / "conf")
        self.environment = os.environ | {
            "PYTHONPATH": str(self.root / "src"),
            "PYTHONDONTWRITEBYTECODE": "1",  # two versions of a file within a second have one time stamp
            "OMP_NUM_THREADS": "1",
        }

    def check(self) -> None:
        """Raise SystemExit where Python would import another tree than this one."""
        words = [sys.executable, "-c", "import explainode; print(explainode.__file__)"]
        done = subprocess.run(words, cwd=self.root, env=self.environment, capture_output=True, text=True)
        if not done.stdout.startswith(str(self.root)):
            raise SystemExit(f"the tests would import {done.stdout.strip() or done.stderr[-500:]}, not the copy")

    def run(self, tests: list[str], limit: Limit) -> tuple[int | None, str]:
        """Pytest's exit status, None when it ran out of time, and its last lines."""
        ulimit = f'ulimit -t {limit.processor}; exec "$@"'
        words = ["sh", "-c", ulimit, "sh", sys.executable, "-m", "pytest", *PYTEST, *tests]
        with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
            process = subprocess.Popen(
                words, cwd=self.root, env=self.environment, stdout=output, stderr=output, start_new_session=True
            )
            try:
                status: int | None = process.wait(limit.clock)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _end_group(process)
            status = None if status in (-signal.SIGXCPU, -signal.SIGKILL) else status
            output.seek(0)
            return status, "\n".join(output.read().splitlines()[-15:])

    def try_mutant(self, mutant: Mutant, limits: dict[str, Limit]) -> dict[str, object]:
        """Whether the mutant was killed, by what, and in how many seconds."""
        file = self.root / mutant.path
        source = file.read_text(encoding="utf-8")
        start, status, killer = time.monotonic(), "survived", ""
        file.write_text(mutate(source, mutant.mutation.number), encoding="utf-8")
        try:
            for tests in tests_of(self.root, mutant.path):
                code, output = self.run(tests, limits[mutant.room])
                if code not in (0, 5):  # 5: no test was chosen
                    status = "killed" if code is not None else "killed by time"
                    killer = next((line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
                    break
        finally:
            file.write_text(source, encoding="utf-8")
        seconds = round(time.monotonic() - start, 1)
        change = {"path": mutant.path, "room": mutant.room, **asdict(mutant.mutation)}
        return {"key": mutant.key, "status": status, "seconds": seconds, "killer": killer[:200], **change}


def _end_group(process: subprocess.Popen) -> None:
    """End a run and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def time_limits(tree: Copy, mutants: list[Mutant]) -> dict[str, Limit]:
    """What a room's tests may take: three times the processor's time without a mutant, and half a minute; on the clock more, as others may work too.

    Raises:
        SystemExit: for a room whose tests fail without a mutant.
    """
    limits = {}
    for room, path in sorted({mutant.room: mutant.path for mutant in mutants}.items()):
        start, busy = time.monotonic(), _processor_seconds()
        for tests in tests_of(tree.root, path):
            code, output = tree.run(tests, Limit(processor=3600, clock=3600))
            if code not in (0, 5):
                raise SystemExit(f"the tests of {room} fail without a mutant:\n{output}")
        seconds, busy = time.monotonic() - start, _processor_seconds() - busy
        limits[room] = Limit(processor=int(30 + 3 * busy), clock=60 + 6 * seconds)
        print(f"{room}: {seconds:.0f} s without a mutant, {busy:.0f} s of the processor", flush=True)
    return limits


def _processor_seconds() -> float:
    """What all processes took that this one has started and that are over."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read_results(path: Path) -> dict[str, dict]:
    """Finished mutants by key; the last word on each counts."""
    if not path.exists():
        return {}
    return {row["key"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def report(rows: list[dict]) -> str:
    """How many were killed, by room, and the survivors."""
    lines = [f"{'room':<14}{'mutants':>8}{'killed':>8}{'share':>8}"]
    for room in [*sorted({row["room"] for row in rows}), "all"]:
        of_room = [row for row in rows if room in (row["room"], "all")]
        killed = sum(row["status"] != "survived" for row in of_room)
        lines.append(f"{room:<14}{len(of_room):>8}{killed:>8}{killed / max(len(of_room), 1):>8.0%}")
    lines.append(f"{sum(row['status'] == 'killed by time' for row in rows)} of the killed ran out of time")
    survivors = [row for row in rows if row["status"] == "survived"]
    for row in sorted(survivors, key=lambda row: (row["path"], row["line"])):
        lines.append(f"{row['path']}:{row['line']}  {row['kind']}\n    - {row['before']}\n    + {row['after']}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, required=True, help="which mutants are chosen")
    parser.add_argument("--count", type=int, default=100, help="how many")
    parser.add_argument(
        "--rooms", type=lambda text: text.split(","), default=[], help="such as data,models; all if left out"
    )
    parser.add_argument("--jobs", type=int, default=1, help="mutants tried at a time, each in a copy of its own")
    parser.add_argument("--results", type=Path, help="finished mutants, one a line; default mutants-SEED.jsonl")
    parser.add_argument("--again", action="store_true", help="try the survivors in the results once more")
    parser.add_argument("--list", action="store_true", help="print the chosen mutants and stop")
    options = parser.parse_args(arguments)
    every = find_mutants(ROOT, options.rooms)
    chosen = choose(every, options.seed, options.count)
    if options.list:
        print("\n".join(f"{mutant.mutation.kind:<18} {mutant.key}" for mutant in chosen))
        return 0
    results = options.results or Path(f"mutants-{options.seed}.jsonl")
    before = read_results(results)
    done = {key for key, row in before.items() if not (options.again and row["status"] == "survived")}
    waiting = [mutant for mutant in chosen if mutant.key not in done]
    print(f"{len(chosen)} of {len(every)} mutants, {len(waiting)} to be tried", flush=True)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for job in range(options.jobs if waiting else 0):
            copies.put(Copy(ROOT, Path(folder) / str(job)))
        if waiting:
            first = copies.get()
            first.check()
            limits = time_limits(first, waiting)
            copies.put(first)

        def work(mutant: Mutant) -> dict[str, object]:
            tree = copies.get()
            try:
                return tree.try_mutant(mutant, limits)
            finally:
                copies.put(tree)

        with ThreadPoolExecutor(options.jobs) as pool, results.open("a", encoding="utf-8") as file:
            for count, row in enumerate(pool.map(work, waiting), 1):
                file.write(json.dumps(row) + "\n")
                file.flush()
                print(f"[{count}/{len(waiting)}] {row['status']}: {row['key']} ({row['seconds']} s)", flush=True)
    after = read_results(results)
    print(report([after[mutant.key] for mutant in chosen]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
