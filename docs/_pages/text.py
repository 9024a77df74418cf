"""Docstrings as Markdown: what the author wrote as words stays words."""

from __future__ import annotations

import inspect
import re

SECTION = re.compile(r"(Args|Raises|Returns|Yields|Example|Examples|Attributes|Source|Shapes|Note):\s*(.*)")


def words(text: str) -> str:
    """Text outside of backticks with Markdown's own characters taken as they are."""
    parts = re.split(r"(`[^`\n]+`)", text)
    return "".join(
        part if number % 2 else re.sub(r"([*_<>\[\]|$\\#{}])", r"\\\1", part) for number, part in enumerate(parts)
    )


def cell(text: str) -> str:
    """One cell of a table: a line, its bars escaped also inside of code."""
    return " ".join(words(text).split()).replace("`|`", "`\\|`")


def sections(docstring: str) -> list[tuple[str, str]]:
    """A docstring in parts, the first without a name: [("", text), ("Args", ...), ("Source", ...)]."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for line in inspect.cleandoc(docstring).splitlines():
        match = SECTION.fullmatch(line)
        if match:
            found.append((match[1], [match[2]] if match[2] else []))
        else:
            found[-1][1].append(line)
    return [(name, "\n".join(lines).strip("\n")) for name, lines in found]


def _items(text: str) -> list[tuple[str, str]]:
    """`name: what it is`, with lines that go on indented below."""
    items: list[tuple[str, str]] = []
    for line in inspect.cleandoc(text).splitlines():
        match = re.match(r"([\w.*, ]+?)(?: \([^)]*\))?: (.*)", line)
        if match and not line.startswith(" "):
            items.append((match[1], match[2]))
        elif items:
            items[-1] = (items[-1][0], f"{items[-1][1]} {line.strip()}")
        elif line.strip():
            items.append(("", line.strip()))
    return items


def _prose(text: str) -> str:
    """Paragraphs; what is indented is a formula or a list, and stays as it stands."""
    blocks = []
    for block in re.split(r"\n\s*\n", text):
        if block.startswith((" ", "\t")) or ">>>" in block:
            blocks.append(f"```{'python' if '>>>' in block else 'text'}\n{inspect.cleandoc(block)}\n```")
        elif block.strip():
            blocks.append(words(" ".join(line.strip() for line in block.splitlines())))
    return "\n\n".join(blocks)


def markdown(docstring: str | None) -> str:
    """A docstring as Markdown.

    Example:
        >>> print(markdown("Mean of |x|.\\n\\nArgs:\\n    x: (B,) values."))
        Mean of \\|x\\|.
        <BLANKLINE>
        - `x`: (B,) values.
    """
    parts = []
    for name, text in sections(docstring or ""):
        if name in ("Args", "Attributes", "Raises", "Returns", "Yields"):
            rows = "\n".join(f"- `{key}`: {words(said)}" if key else f"- {words(said)}" for key, said in _items(text))
            parts.append(rows if name in ("Args", "Attributes") else f"*{name.lower()}*\n\n{rows}")
        elif name in ("Example", "Examples"):
            parts.append(f"```python\n{inspect.cleandoc(text)}\n```")
        elif name:
            parts.append(f"*{name}*: {_prose(text)}")
        else:
            parts.append(_prose(text))
    return "\n\n".join(part for part in parts if part.strip())
