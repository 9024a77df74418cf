"""No file of the room imports itself, by whatever way round, types included."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import explainode.relevance

ROOM = Path(explainode.relevance.__file__).parent


def test_no_import_circle():
    names = {
        ".".join(("explainode", "relevance", *path.relative_to(ROOM).with_suffix("").parts)): path
        for path in ROOM.rglob("*.py")
    }
    imports = {
        name: {
            node.module
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and node.module in names
        }
        for name, path in names.items()
    }
    assert any(imports.values())
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle
