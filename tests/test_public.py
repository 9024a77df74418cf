"""The public surface: what each room's `__all__` names is there, cheap to import, and all that the documentation uses."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import explainode

ROOT = Path(__file__).parents[1]
INSIDE = {"cli", "jobs", "conf"}  # rooms without a public surface
ROOMS = sorted(m.name for m in pkgutil.iter_modules(explainode.__path__) if m.ispkg and m.name not in INSIDE)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("name", ROOMS)
def test_every_public_name_is_there_and_hides_no_file(name):
    room = importlib.import_module(f"explainode.{name}")
    files = {module.name for module in pkgutil.iter_modules(room.__path__)}
    assert room.__all__ and not files & set(room.__all__), "an import of the file would take the name's place"
    assert all(
        getattr(room, public).__module__.startswith("explainode.") for public in room.__all__ if public.istitle()
    )
    assert {public for public in room.__all__ if getattr(room, public) is None} == set()
    assert set(room.__all__) <= set(dir(room))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        explainode.nothing  # noqa: B018


def test_nothing_heavy_is_imported_before_it_is_used():
    rooms = ", ".join(f"explainode.{name}" for name in ROOMS if name != "callbacks")
    code = f"import sys, explainode, {rooms}; print(sorted({{'torch', 'hydra', 'lightning', 'matplotlib'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_use_public_names_alone(page):
    for line in re.findall(
        r"^(?:>>> )?(from explainode[\w.]* import [^\n]+|import explainode[\w.]+)", page.read_text("utf-8"), re.M
    ):
        module, _, imported = line.removeprefix("from ").removeprefix("import ").partition(" import ")
        room = importlib.import_module(module)
        assert module.count(".") <= 1, f"{page.name} imports from a file: {line}"
        for name in re.findall(r"\w+(?= as |,|$|\))", imported):
            assert name in room.__all__, f"{page.name} imports {name}, which is not public in {module}"
