"""The public names of each room, from their docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
from importlib import import_module
from typing import Any

from _pages.text import markdown, words

ROOMS = {
    "": "explain, evaluate and what comes out",
    "dynamics": "solvers, adjoints, neural ODEs and SDEs",
    "relevance": "relevance propagation: operations, rules, composites",
    "explainers": "explanation methods",
    "metrics": "what judges explanations, and the statistics of it",
    "attacks": "searches near a picture",
    "models": "networks",
    "data": "pictures, labels, masks",
    "training": "Lightning modules",
    "callbacks": "what happens while a network is trained",
    "runs": "run directories",
    "registry": "conf/ as a register",
    "report": "what people look at",
}


def _signature(value: Any) -> str:
    try:
        text = str(inspect.signature(value))
    except (TypeError, ValueError):
        return ""
    text = re.sub(r"<([\w.]+) object at 0x[0-9a-f]+>|<function ([\w.<>]+) at 0x[0-9a-f]+>|<factory>", "...", text)
    text = re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", text.replace("'", ""))
    return text.removesuffix(" -> None")


def _members(value: type) -> list[tuple[str, Any]]:
    fields = {field.name for field in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
    found = []
    for name, member in vars(value).items():
        inner = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if not name.startswith("_") and name not in fields and inspect.isfunction(inner) and inner.__doc__:
            found.append((name, member))
    return found


def _entry(room: str, name: str, value: Any) -> str:
    kind = "class" if inspect.isclass(value) else "function" if callable(value) else "value"
    lines = [f"## {name}", ""]
    if kind != "value":
        lines += ["```python", f"{room}.{name}{_signature(value)}", "```", ""]
    documented = getattr(value, "__doc__", None) if kind != "value" else None
    inherited = kind == "class" and value.__doc__ in {base.__doc__ for base in value.__mro__[1:]}
    automatic = bool(documented and dataclasses.is_dataclass(value) and documented.startswith(f"{name}("))
    if documented and not inherited and not automatic:
        lines += [markdown(documented), ""]
    if kind == "value":
        lines += [f"`{words(repr(value))[:200]}`", ""]
    if kind == "class":
        for member, what in _members(value):
            inner = what.fget if isinstance(what, property) else getattr(what, "__func__", what)
            call = (
                "" if isinstance(what, property) else _signature(inner).replace("(self, ", "(").replace("(self)", "()")
            )
            lines += [f"### `{name}.{member}`", "", *(["```python", f"{member}{call}", "```", ""] if call else [])]
            lines += [markdown(inner.__doc__), ""]
    return "\n".join(lines)


def api_pages() -> dict[str, str]:
    """One page per room, and the index of them."""
    pages, rows = {}, []
    for room, what in ROOMS.items():
        module = import_module(f"explainode.{room}" if room else "explainode")
        names = sorted(module.__all__, key=str.lower)
        file = f"{room or 'explainode'}.md"
        title = module.__name__
        text = [f"# {title}", "", markdown(module.__doc__), ""]
        text += [_entry(title, name, getattr(module, name)) for name in names]
        pages[file] = "\n".join(text) + "\n"
        rows.append(f"- [{title}]({file}): {what} ({len(names)} names)")
    toc = "\n".join(f"{room or 'explainode'}" for room in ROOMS)
    pages["index.md"] = (
        "# API\n\nEach room names what is public; those names stay, whatever file they move to. An example in a docstring is run by the tests.\n\n"
        + "\n".join(rows)
        + f"\n\n```{{toctree}}\n:hidden:\n\n{toc}\n```\n"
    )
    return pages
