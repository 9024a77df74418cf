"""What other installed packages add: verbs and sections of the report, found by the entry points that packages declare.

Only what is installed counts: neither a configuration nor a run directory can name code here.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from explainode.errors import UserError

VERBS = "explainode.verbs"
SECTIONS = "explainode.sections"


def extensions(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name, sorted; nothing is imported until one is loaded.

    Raises:
        UserError: if two packages give the same name.
    """
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        other = found.setdefault(point.name, point)
        if other.value != point.value:  # the same line is met twice where a package lies on the path twice
            raise UserError(
                f"{package(other)} and {package(point)} both add {point.name!r} to {group}; uninstall one of them"
            )
    return found


def package(point: EntryPoint) -> str:
    """The name of the package that an entry point belongs to."""
    return point.dist.name if point.dist is not None else point.module.partition(".")[0]


def load(point: EntryPoint) -> Any:
    """What an entry point names.

    Raises:
        UserError: if it is not there, or its package cannot be imported.
    """
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"{point.value} of the package {package(point)} cannot be loaded: {error}") from error
