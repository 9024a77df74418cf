"""The end of every job that measures: the report, its tables and pictures, and the sentence that says what was found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from explainode.heartbeat import Heartbeat
from explainode.metrics.results import Results
from explainode.report.exports import write_exports
from explainode.report.html import write_report
from explainode.report.panels import panel
from explainode.report.verdict import verdict
from explainode.runs.directory import RunDirectory

_PANEL_IMAGES = 4


@dataclass(frozen=True)
class WrittenUp:
    """What a run directory's results amount to: the results, the verdict in a sentence, and where the report lies."""

    results: Results
    verdict: str
    report: Path


def write_up(folder: RunDirectory) -> WrittenUp:
    """Write `report.html`, `table.md`, `table.tex`, the figures and `panel.png` of a run directory.

    Raises:
        UserError: if there are no results, or the disk refuses.
    """
    with Heartbeat("writing the report"):
        path = write_report(folder.path)
        results = folder.read_results()
        write_exports(folder, results)
        if results.maps:
            panel(results.maps, folder.read_class_names(), images=_PANEL_IMAGES).save(folder.path / "panel.png")
        return WrittenUp(results, verdict(results), path)
