"""HTML by construction: text is escaped unless it was built here, so a file name can never become a tag."""

from __future__ import annotations

import html
from typing import Any

VOID = frozenset({"img", "br", "hr", "input", "meta", "wbr"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: Any) -> Markup:
    """Any value as HTML text; what is markup stays as it is, None is nothing."""
    return value if isinstance(value, Markup) else Markup("" if value is None else html.escape(str(value)))


def join(*parts: Any) -> Markup:
    """Parts one after another; lists are joined, text is escaped."""
    return Markup("".join(join(*part) if isinstance(part, (list, tuple)) else text(part) for part in parts))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element: `tag("td", value, class_="number")`. Attributes that are None or False are left out, True stands alone."""
    shown = []
    for key, value in attributes.items():
        word = key.rstrip("_").replace("_", "-")
        if value is True:
            shown.append(f" {word}")
        elif value is not None and value is not False:
            shown.append(f' {word}="{html.escape(str(value))}"')
    opening = f"<{name}{''.join(shown)}>"
    return Markup(opening if name in VOID else f"{opening}{join(*children)}</{name}>")
