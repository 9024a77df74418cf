"""Writes the pages that the code knows best, before Sphinx reads: the API, the register, the verbs, what the errors say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from _pages.api import api_pages
from _pages.errors import error_page
from _pages.register import register_pages
from _pages.verbs import verb_page


def write(folder: Path, pages: dict[str, str]) -> None:
    """Write what changed and remove what is no page any more, so that Sphinx reads again only what it must."""
    folder.mkdir(exist_ok=True)
    for file in folder.glob("*.md"):
        if file.name not in pages:
            file.unlink()
    for name, text in pages.items():
        file = folder / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def generate(app: Sphinx) -> None:
    """All generated pages, each kind in its folder."""
    here = Path(app.srcdir)
    write(here / "_api", api_pages())
    write(here / "_register", register_pages())
    write(here / "_reference", {"verbs.md": verb_page(), "errors.md": error_page()})


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", generate, priority=100)  # before the gallery is made
    return {"parallel_read_safe": True}
