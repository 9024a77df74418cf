"""What a benchmark could not measure, and why: `missing.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from explainode.errors import user_error
from explainode.files import replace_file

FILE = "missing.csv"


@dataclass(frozen=True)
class Missing:
    """A cell without numbers; one metric of a cell (`metric` is not empty then); or a metric on this data (only `metric` is not empty).

    Attributes:
        kind: "refused" (method, metric or data say that it does not apply) or "failed" (an exception that nobody expected).
        reason: a sentence, or the exception's type and message.
    """

    model: str
    explainer: str
    metric: str
    kind: str
    reason: str

    @classmethod
    def because(cls, error: Exception, model: str, explainer: str, metric: str = "") -> Missing:
        """What an exception leaves without numbers."""
        user = user_error(error)
        text = str(user) if user is not None else f"{type(error).__name__}: {error}"
        return cls(model, explainer, metric, "failed" if user is None else "refused", " ".join(text.split()))


def sentences(rows: Sequence[Missing]) -> list[str]:
    """What is missing and why, one sentence for all networks that miss the same for the same reason."""
    networks: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        networks.setdefault((row.explainer, row.metric, row.reason), []).append(row.model)
    found = []
    for (explainer, metric, reason), models in networks.items():
        subject = " x ".join(name for name in (", ".join(models), explainer, metric) if name)
        found.append(f"{subject} is missing: {reason}")
    return found


def read_missing(folder: Path) -> list[Missing]:
    """The lines of a folder's `missing.csv`; none where there is no such file."""
    if not (folder / FILE).is_file():
        return []
    with open(folder / FILE, encoding="utf-8", newline="") as file:
        return [Missing(**row) for row in csv.DictReader(file)]


def write_missing(folder: Path, rows: Sequence[Missing]) -> None:
    """Write `missing.csv` in the place of the one that is there; no file where nothing is missing."""
    if not rows:
        (folder / FILE).unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, [part.name for part in fields(Missing)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(missing) for missing in rows)
    replace_file(folder / FILE, text.getvalue().encode())
