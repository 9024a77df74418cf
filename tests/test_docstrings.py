"""The examples in docstrings are run, and show what comes out."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).parents[1] / "src" / "explainode"
WITH_EXAMPLES = [path for path in sorted(SOURCE.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_examples_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what an example writes lies there
    torch.manual_seed(0)
    name = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
    found = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS, verbose=False)
    assert found.attempted and not found.failed
