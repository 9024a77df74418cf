"""The public names of a room, imported when they are first used: `import explainode` costs next to nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def public(room: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a room (PEP 562).

    Args:
        room: the room's `__name__`.
        homes: the names of each file, separated by spaces.

    Example:
        >>> from explainode import dynamics
        >>> dynamics.RungeKutta.__module__
        'explainode.dynamics.solver'
    """
    home = {name: file for file, names in homes.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        value = getattr(import_module(f"{room}.{home[name]}"), name)
        setattr(sys.modules[room], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[room]), *home}), sorted(home)
