"""The log file of a W&B run, read record by record and, for a run directory that was moved, written anew with the places of its artifacts.

A `.wandb` file is a LevelDB log: 7 bytes of header, then blocks of 32 KiB that hold pieces `<checksum, length, kind>` + data; a record is one whole
piece or a first, middles and a last one. The records are protocol buffers of W&B's own.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made at run time

from explainode.errors import UserError
from explainode.files import replacing

BLOCK, PIECE = 32768, struct.Struct("<IHB")
MAGIC = b":W&B"
HEADER = 7  # bytes of the file's own header
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
# What uploads itself or what lies in the run; among the others are some that read folders (`tbrecord`) or ask W&B to do things (`request`)
KINDS = frozenset(
    """run header footer exit final preempting alert history summary config metric stats telemetry environment
    output output_raw output_logger files artifact use_artifact""".split()  # noqa: SIM905
)
_CHECKSUMS = {kind: zlib.crc32(bytes([kind])) for kind in (FULL, FIRST, MIDDLE, LAST)}


def read_records(path: Path) -> Iterator[bytes]:
    """The records of a log file in order; a last one that a killed process left half written is left out.

    Raises:
        UserError: if the file is none of W&B's, or damaged before its end.
    """
    content = path.read_bytes()
    if content[:4] != MAGIC:
        raise UserError(f"{path} is no W&B run file (it begins with {content[:4]!r}); remove it, or copy the run again")
    at, parts = HEADER, []
    while at + PIECE.size <= len(content):
        left = BLOCK - at % BLOCK
        if left < PIECE.size:  # a block's last bytes, too few for a piece
            at += left
            continue
        checksum, length, kind = PIECE.unpack_from(content, at)
        data = content[at + PIECE.size : at + PIECE.size + length]
        if len(data) < length or (kind == 0 and not any(content[at:])):
            return
        if kind not in _CHECKSUMS or zlib.crc32(data, _CHECKSUMS[kind]) != checksum:
            raise UserError(
                f"{path} is damaged at byte {at}; copy the run again (the run's metrics.csv holds its numbers)"
            )
        at += PIECE.size + length
        parts.append(data)
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = []


def lay_out(header: bytes, records: Iterable[bytes]) -> bytes:
    """A log file of these records behind `header`, as W&B writes it."""
    out = bytearray(header)
    for record in records:
        rest, first = memoryview(record), True
        while first or rest:
            left = BLOCK - len(out) % BLOCK
            if left < PIECE.size:
                out += bytes(left)
                left = BLOCK
            piece, rest = rest[: left - PIECE.size], rest[left - PIECE.size :]
            kind = (FULL if not rest else FIRST) if first else (MIDDLE if rest else LAST)
            out += PIECE.pack(zlib.crc32(piece, _CHECKSUMS[kind]), len(piece), kind) + piece
            first = False
    return bytes(out)


@dataclass
class RunFile:
    """What a W&B log file says about its run.

    Attributes:
        entity, project: "" where nobody said; W&B's default then.
        started: seconds since 1970.
        history: so many lines of numbers.
        files: sizes of the artifacts' files in bytes, by the place where they are (see `find_artifacts`).
        missing: places of artifacts' files that are not there.
        outside: what the records or links of the run name outside of its run directory.
        moved: the run's files lie somewhere else than when it was recorded.
        finished: the run came to its end.
    """

    path: Path
    run_id: str = ""
    name: str = ""
    entity: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    started: float = 0.0
    history: int = 0
    files: dict[Path, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    moved: bool = False
    finished: bool = False

    def sizes(self) -> dict[Path, int]:
        """Bytes of every file that an upload may send, by its place: the log, the run's own files, its artifacts."""
        own = [self.path, *(file for file in sorted((self.path.parent / "files").rglob("*")) if file.is_file())]
        return {file: file.stat().st_size for file in own} | self.files

    @property
    def size(self) -> int:
        """Bytes of everything that an upload sends."""
        return sum(self.sizes().values())


def inspect(path: Path, run_directory: Path) -> RunFile:
    """Read a log file of a run directory.

    Raises:
        UserError: if it cannot be read, holds no run, or a record that is no part of one.
    """
    found = RunFile(path)
    here = run_directory.resolve()
    for file in [path, *sorted((path.parent / "files").rglob("*"))]:  # its links
        if not file.resolve().is_relative_to(here):
            found.outside.append(str(file.resolve()))
    for content in read_records(path):
        record: Any = _parse(content, path)
        kind = record.WhichOneof("record_type")
        if kind is not None and kind not in KINDS:
            raise UserError(f"{path} holds a record of kind {kind!r}, which no run of ours has; it is not uploaded")
        if kind == "run":
            run = record.run
            if found.run_id and (run.run_id, run.entity, run.project) != (found.run_id, found.entity, found.project):
                raise UserError(
                    f"{path} names two places to upload to, {found.entity}/{found.project}/{found.run_id} and "
                    f"{run.entity}/{run.project}/{run.run_id}; it is not uploaded"
                )
            found.run_id, found.name, found.entity, found.project = (
                run.run_id,
                run.display_name,
                run.entity,
                run.project,
            )
            found.group, found.job_type, found.started = (
                run.run_group,
                run.job_type,
                run.start_time.ToMicroseconds() / 1e6,
            )
        elif kind == "history":
            found.history += 1
        elif kind == "files":
            own = path.parent.resolve() / "files"
            found.outside += [
                item.path for item in record.files.files if not (own / item.path).resolve().is_relative_to(here)
            ]
        elif kind == "artifact":
            if record.artifact.manifest.manifest_file_path:
                found.outside.append(record.artifact.manifest.manifest_file_path)
            elsewhere = (record.artifact.entity, record.artifact.project)
            if elsewhere[0] not in ("", found.entity) or elsewhere[1] not in ("", found.project):
                raise UserError(
                    f"{path} holds an artifact for {'/'.join(elsewhere)}, and its run goes to {found.entity}/{found.project}; it is not uploaded"
                )
            for entry in record.artifact.manifest.contents:
                if entry.local_path:
                    _note_file(found, entry.local_path, run_directory)
        elif kind == "exit":
            found.finished = True
    if not found.run_id:
        raise UserError(f"{path} holds no run; it was cut off at its beginning, and can be removed")
    return found


def _parse(content: bytes, path: Path) -> Any:
    try:
        return Record.FromString(content)
    except DecodeError as error:
        raise UserError(f"{path} is damaged ({error}); copy the run again") from error


def _note_file(found: RunFile, recorded: str, run_directory: Path) -> None:
    place = place_of(recorded, run_directory)
    if not place.is_file():
        (found.outside if Path(recorded).exists() else found.missing).append(recorded)
        found.moved = True  # its recorded place, which is another's, must not be read when somebody puts a file there
        return
    found.files[place] = place.stat().st_size
    found.moved |= str(place) != recorded


def place_of(recorded: str, run_directory: Path) -> Path:
    """Where an artifact's file lies in the run directory, wherever that has gone: always inside of it, whether there is such a file or not."""
    here = run_directory.resolve()
    _, inside, rest = recorded.rpartition("/wandb-data/")
    for place in (here / "wandb-data" / rest if inside else Path(recorded), Path(recorded)):
        if place.resolve().is_relative_to(here) and place.is_file():
            return place
    return here / "wandb-data" / "missing" / Path(recorded).name


def relocate_in_place(path: Path, run_directory: Path) -> None:
    """Write a log file anew with the places that its artifacts' files have now, whole or not at all.

    W&B writes them down as absolute paths, which a copied run has left behind.
    """
    content = lay_out(path.read_bytes()[:HEADER], map(_mover(run_directory), read_records(path)))
    with replacing(path) as file:
        file.write(content)


def _mover(run_directory: Path) -> Callable[[bytes], bytes]:
    def move(content: bytes) -> bytes:
        record: Any = Record.FromString(content)
        if record.WhichOneof("record_type") != "artifact":
            return content
        for entry in record.artifact.manifest.contents:
            if entry.local_path:
                entry.local_path = str(place_of(entry.local_path, run_directory))
        return bytes(record.SerializeToString())

    return move
