"""Every sentence that bad input can be answered with, read from the code."""

from __future__ import annotations

import ast
from pathlib import Path

import explainode
from _pages.text import words

ROOMS = {
    "cli": "The command line",
    "serve": "The server",
    "jobs": "Verbs at work",
    "registry": "Names and configurations",
    "report": "Reports",
    "runs": "Run directories",
    "training": "Training",
    "callbacks": "Callbacks and loggers",
    "models": "Networks",
    "data": "Data",
    "explainers": "Explanation methods",
    "metrics": "Metrics and statistics",
    "attacks": "Attacks",
    "relevance": "Relevance",
    "dynamics": "Solvers",
}


def _template(node: ast.expr) -> str | None:
    """The text of a message, with `...` where the user's own words will stand."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = []
        for value in node.values:
            parts.append(value.value if isinstance(value, ast.Constant) else "\0")
        return "".join(parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _template(node.left), _template(node.right)
        return None if left is None and right is None else (left or "\0") + (right or "\0")
    if isinstance(node, ast.IfExp):
        return _template(node.body)
    return None


def sentences() -> dict[str, list[str]]:
    """{room: the sentences of its `raise UserError(...)`}, sorted."""
    source = Path(explainode.__file__).parent
    found: dict[str, set[str]] = {}
    for file in sorted(source.rglob("*.py")):
        parts = file.relative_to(source).parts
        room = parts[0] if len(parts) > 1 else "jobs"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError" and node.args:
                text = _template(node.args[0])
                if text and text.strip("\0 "):
                    found.setdefault(room, set()).add(" ".join(text.split()))
    return {room: sorted(texts, key=lambda text: text.lstrip("\0 '").lower()) for room, texts in found.items()}


def error_page() -> str:
    """The page: a heading per room, a line per sentence."""
    known = sentences()
    count = sum(map(len, known.values()))
    parts = [
        "# What the errors say",
        "",
        f"Bad input gets one sentence (what came, what was expected, what to try) and exit status 2. These are all {count}, read from the code; "
        "`…` stands for your own words. Search this page, or the site, for a part of the sentence that you saw.",
        "",
    ]
    for room in [*ROOMS, *sorted(set(known) - set(ROOMS))]:
        if room in known:
            parts += [f"## {ROOMS.get(room, room.capitalize())}", ""]
            parts += [f"- {words(text).replace(chr(0), '…')}" for text in known[room]]
            parts += [""]
    return "\n".join(parts)
