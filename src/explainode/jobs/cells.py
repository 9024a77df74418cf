"""The finished cells of a benchmark: what was measured of one network under one explainer, each written whole or not at all.

A cell is a folder of parts, `cells/<model>/<explainer>/000/`: a run directory of its own, and `cell.json`, which says how it was measured.
Metrics that are asked for later make a further part. A part comes into its place by one rename.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote

from explainode.errors import UserError
from explainode.files import replace_file, told_in_one_sentence
from explainode.jobs.protocol import NAMED, SHOWN, Protocol, differences_between, hash_facts
from explainode.metrics.results import Results
from explainode.runs.directory import RunDirectory


@dataclass(frozen=True)
class Part:
    """One part of a cell on the disk."""

    path: Path
    protocol: Protocol
    seconds: float

    @property
    def metrics(self) -> list[str]:
        return list(self.protocol.facts["metric"])


class Cells:
    """The cells under a folder, for one process at a time.

    Use it as a context: another benchmark that wants the same folder meanwhile is refused.

    Attributes:
        parts: of every whole cell, {(model, explainer): parts}.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: dict[tuple[str, str], list[Part]] = {}
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Cells:
        with told_in_one_sentence(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise UserError(
                f"another benchmark is writing to {self.path.parent}; wait for it or choose another run_dir=..."
            ) from error
        except OSError:
            pass  # a file system without locks: two benchmarks in one folder would do the same work twice, and spoil nothing
        for left in self._left_by_a_killed_process():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        for file in sorted(self.path.glob("*/*/[0-9]*/cell.json")):
            self._note(file.parent)
        return self

    def _left_by_a_killed_process(self) -> list[Path]:
        """What it was writing: files and folders that never came into their places."""
        folder = self.path.parent
        return [left for place in (folder, folder / "explanations") for left in place.glob(".*.part")] + [
            *self.path.glob("*/*/.*.part")
        ]

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def _note(self, path: Path) -> None:
        try:
            record = json.loads((path / "cell.json").read_text(encoding="utf-8"))
            part = Part(path, Protocol(record["protocol"]), float(record["seconds"]))
            assert all(group in part.protocol.facts for group in NAMED)
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise UserError(
                f"{path / 'cell.json'} is damaged ({error}); remove {path}, and it is measured again"
            ) from error
        model, explainer = unquote(path.parts[-3]), unquote(path.parts[-2])
        self.parts.setdefault((model, explainer), []).append(part)

    def check(self, protocol: Protocol) -> None:
        """Refuse to mix cells of different protocols.

        Raises:
            UserError: naming both hashes and what differs.
        """
        for (model, explainer), parts in self.parts.items():
            for part in parts:
                there, here = part.protocol.shared_with(protocol)
                if (differences := differences_between(there, here)) != []:
                    more = f", and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
                    if protocol.facts["evaluation"]["only_correct"] and any(
                        "evaluation.images is" in text for text in differences
                    ):
                        more += " (with only_correct=true other networks mean other images)"
                    raise UserError(
                        f"{self.path.parent} holds cells of another protocol ({model} x {explainer}: {hash_facts(there)} there, {hash_facts(here)} here): "
                        f"{', '.join(differences[:SHOWN])}{more}; use the same settings, or another run_dir=..."
                    )

    def metrics(self, model: str, explainer: str) -> set[str]:
        """The metrics that the cell holds."""
        return {name for part in self.parts.get((model, explainer), []) for name in part.metrics}

    def seconds(self, model: str, explainer: str) -> float:
        """How long the cell took."""
        return sum(part.seconds for part in self.parts.get((model, explainer), []))

    def read(self, model: str, explainer: str) -> Results:
        """What the cell holds, its maps too.

        Raises:
            UserError: if a file is damaged.
        """
        found = Results()
        for number, part in enumerate(self.parts[model, explainer]):
            more = RunDirectory(part.path).read_results()
            found.extend(more if number == 0 else Results(more.rows, more.per_image, more.curves, [], more.warnings))
        return found

    def map_files(self, model: str, explainer: str) -> list[Path]:
        """The files of its maps."""
        return sorted((self.parts[model, explainer][0].path / "explanations").glob("*.npz"))

    def write(
        self, model: str, explainer: str, results: Results, protocol: Protocol, seconds: float, about: Mapping[str, Any]
    ) -> None:
        """Add a part to a cell: it is whole, or not there.

        Args:
            protocol: of the metrics that were measured; about: facts that do not decide the numbers (versions, device).

        Raises:
            UserError: if it cannot be written.
        """
        place = self.path / quote(model, safe=" =+@") / quote(explainer, safe=" =+@")
        target = place / f"{len(self.parts.get((model, explainer), [])):03d}"
        with told_in_one_sentence(place):
            place.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(dir=place, prefix=".", suffix=".part"))
            part.chmod(place.stat().st_mode)
        try:
            RunDirectory(part).write_results(results)
            record = {"protocol": protocol.facts, "seconds": round(seconds, 3), **about}
            replace_file(part / "cell.json", json.dumps(record, indent=1, default=str).encode())
            with told_in_one_sentence(target):
                os.rename(part, target)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        self._note(target)


def write_tables(folder: RunDirectory, results: Results) -> None:
    """The tables of a run directory in the place of those that it has; each is whole at any moment, metrics.csv comes last."""
    with (
        told_in_one_sentence(folder.path),
        tempfile.TemporaryDirectory(dir=folder.path, prefix=".", suffix=".part") as new,
    ):
        RunDirectory(new).write_results(results)
        for name in ("per_image.csv", "curves.csv", "warnings.txt", "metrics.csv"):
            if (Path(new) / name).exists():
                os.replace(Path(new) / name, folder.path / name)
            else:
                (folder.path / name).unlink(missing_ok=True)
