"""What a section of the report is: a title, and a function of what was found; ours are listed in `html.py`, those of other packages found here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from explainode.errors import UserError
from explainode.extensions import SECTIONS, extensions, load, package
from explainode.metrics.results import Results
from explainode.report.board import Board
from explainode.report.markup import Markup, text
from explainode.report.standing import Standing
from explainode.report.verdict import Verdict


@dataclass(frozen=True)
class Found:
    """What the sections read: the content of a run directory, and what several of them would work out of it.

    Attributes:
        config, versions, results, class_names: as in the run directory.
        verdict: what the comparisons amount to.
        models: in the order of the tables, which gives them their colors.
        standings: of the models that have ranks.
        board: the maps side by side; None if there are none, or they cannot be.
        warnings: sentences.
    """

    config: dict[str, Any]
    versions: dict[str, Any]
    results: Results
    class_names: list[str]
    verdict: Verdict
    models: list[str]
    standings: list[Standing]
    board: Board | None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        title: its heading, and its link at the top.
        make: its content from what was found; plain text is escaped, and a section without content is left out.
    """

    title: str
    make: Callable[[Found], Markup]


Part = tuple[str, str, Markup]  # anchor, title, content


def parts_of(found: Found, sections: dict[str, Section]) -> list[Part]:
    """The sections by their anchors, as far as they have something to say."""
    parts = [(key, section.title, text(section.make(found))) for key, section in sections.items()]
    return [part for part in parts if part[2]]


def added_parts(found: Found) -> tuple[list[Part], list[str]]:
    """The sections of other installed packages, and a sentence for each that failed: it must not cost the report of a long run."""
    parts: list[Part] = []
    failed = []
    try:
        added = extensions(SECTIONS)
    except UserError as error:
        return [], [f"No sections of other packages are shown: {error}"]
    for name, point in added.items():
        try:
            parts += parts_of(found, {f"added-{name}": load(point)})
        except Exception as error:  # any fault of any package's
            failed.append(
                f"The section {name!r} of the package {package(point)} is missing: {type(error).__name__}: {error}"
            )
    return parts, failed
