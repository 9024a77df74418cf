"""Imports go down: the floors of docs/architecture.md, read from the code with `ast`."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "explainode"
FLOORS = [
    {"errors", "hashing", "lazy", "ticker", "signals", "wording", "ranks"},
    {"annotations", "randomness", "blur", "files", "heartbeat", "plain_yaml", "turns", "extensions", "drawing"},
    {"attribution"},
    {"dynamics", "relevance", "attacks"},
    {"models", "explainers", "metrics", "data"},
    {"explaining", "sharing", "training", "runs"},
    {"evaluation"},
    {"gap", "report"},
    {"registry"},
    {"jobs", "asking"},
    {"cli", "callbacks", "serve"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# rooms of one floor that may know each other; everything else on a floor is introduced by the configuration
ALLOWED_SIDEWAYS = {
    ("cli", "callbacks"),
    ("cli", "serve"),  # the verb that starts it
}
ONLY_IN = {
    "lightning": {"data", "training", "callbacks", "jobs"},
    "hydra": {"registry", "cli"},  # composing is the register's; starting the points of a sweep is the command line's
    "wandb": {"callbacks"},
    "fastapi": {"serve"},
    "uvicorn": {"cli"},
    "captum": {"explainers"},
}


def _modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def _room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _imports(path: Path) -> list[str]:
    """Every module a file imports, also inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            found.append(node.module or "")
            if node.module == "explainode":
                found += [f"explainode.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down(path):
    room = _room(path)
    if room in ("__init__", "__main__"):
        return  # the package's own doors: they open the rooms by name, when asked
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] != "explainode" or len(parts) < 2 or parts[1].startswith("__"):
            continue
        other = parts[1]
        if other == room or (room, other) in ALLOWED_SIDEWAYS:
            continue
        assert other in FLOOR_OF, f"{path.name} imports {name}, a room without a floor"
        assert FLOOR_OF[other] < FLOOR_OF[room], f"{room} imports {name}: imports go down"


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_libraries_stay_in_their_rooms(path):
    room = _room(path)
    for name in _imports(path):
        library = name.split(".")[0]
        if library in ONLY_IN:
            assert room in ONLY_IN[library], (
                f"{room} imports {library}, which lives in {', '.join(sorted(ONLY_IN[library]))}"
            )


def test_every_room_has_a_floor():
    rooms = {_room(path) for path in _modules()} - {"__init__", "__main__"}
    assert rooms <= set(FLOOR_OF), f"rooms without a floor: {rooms - set(FLOOR_OF)}"


def test_the_page_shows_these_floors():
    page = (SOURCE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("| floor | rooms | what |\n|---|---|---|\n")[2].partition("\n\n")[0]
    shown = [set(re.findall(r"`(\w+)`", line.split("|")[2])) for line in table.splitlines()]
    assert shown == FLOORS[::-1]


def test_every_package_is_in_the_wheel():
    """An editable install hides what `packages` in pyproject.toml leaves out."""
    listed = re.findall(
        r'^  "(explainode[\w.]*)",$', (SOURCE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"), flags=re.M
    )
    found = {".".join(path.parent.relative_to(SOURCE.parent).parts) for path in SOURCE.rglob("__init__.py")}
    assert sorted(listed) == sorted(found | {"explainode.conf"})
