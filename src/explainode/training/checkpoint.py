"""Checkpoints that are whole or not there: written atomically, listed with their sha256, verified and loaded without executing anything."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import time
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from explainode.errors import UserError
from explainode.files import inflates, replacing

MANIFEST = "manifest.json"
_PATTERNS = ("last*.ckpt", "epoch*.ckpt", "hpc_ckpt_*.ckpt")
_PIECE = 1 << 20


class _Hashing:
    """A binary file that also counts and hashes what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256, self.size = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        written = self.file.write(data)
        self.size += written
        return written

    def flush(self) -> None:
        self.file.flush()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it to go on with the files' own checksums") from error
    if not isinstance(manifest, dict):
        raise UserError(f"{path} holds no list of checkpoints; remove it to go on with the files' own checksums")
    for name, entry in manifest.items():
        if not _is_entry(entry):
            raise UserError(
                f"{path} says of {name!r} what is no size and sha256; remove it to go on with the files' own checksums"
            )
    return manifest


def _is_entry(entry: Any) -> bool:
    """Whether a manifest's words about a file are such: its sha256, its size, when it was saved, and the file before it."""
    if not isinstance(entry, dict):
        return False
    before = entry.get("previous")
    kinds = {"sha256": str, "size": int} | ({"saved": int} if "saved" in entry else {})
    return all(type(entry.get(key)) is kind for key, kind in kinds.items()) and (before is None or _is_entry(before))


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    text = json.dumps(manifest, indent=1, sort_keys=True).encode()
    with replacing(folder / MANIFEST) as file:
        file.write(text)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _damage(path: Path) -> str | None:
    """What is wrong with the file at `path`, or None if every bit is as it was written."""
    if not path.is_file():
        return "there is no such file" if not path.exists() else "it is no file"
    path = path.resolve()  # save_last=link: the manifest knows the file, or an earlier one of the link's name
    size = path.stat().st_size
    if size == 0:
        return "the file is empty"
    if zipfile.is_zipfile(path):
        try:
            if (reason := inflates(path)) is not None:
                return reason
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            return f"it is cut off or changed ({error})"
    entry = _read_manifest(path.parent).get(path.name)
    if entry is not None:
        # a crash between the manifest and the rename leaves the file before: good too
        known = [entry, *([entry["previous"]] if entry.get("previous") else [])]
        if size not in [k["size"] for k in known]:
            return f"it has {size} bytes, but {entry['size']} were written"
        return None if _sha256(path) in [k["sha256"] for k in known] else f"its sha256 is not the one in {MANIFEST}"
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        with open(path, "rb") as file:
            head = file.read(4)
        return (
            f"it is cut off or changed ({error})"
            if head[:2] == b"PK"
            else "it is no checkpoint (neither written by torch.save nor a zip archive)"
        )
    return None if broken is None else f"its part {broken!r} was changed after writing"


def _instead(path: Path) -> str:
    other = next((c for c in _candidates(path.parent) if c != path and _damage(c) is None), None)
    return (
        f"use {other} instead"
        if other is not None
        else "no other good checkpoint lies beside it: train again or restore a copy"
    )


def verify(path: str | Path) -> Path:
    """The path, after checking the file against the manifest beside it (or, copied without one, against its own checksums).

    Raises:
        UserError: for a missing, empty, cut-off or changed file, or one that is no checkpoint; names what to use instead.
    """
    path = Path(path)
    damage = _damage(path)
    if damage is not None:
        raise UserError(f"the checkpoint {path} cannot be used: {damage}; {_instead(path)}")
    return path


def load_state(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """A verified checkpoint's content; tensors and plain values only, nothing in the file is executed.

    Raises:
        UserError: for a file that `verify` refuses, or that holds objects.
    """
    path = verify(path)
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        found = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        holds = (
            f"it holds objects ({', '.join(found)}), and loading those could run code"
            if found
            else "its content cannot be read"
        )
        raise UserError(f"the checkpoint {path} cannot be used: {holds}; save tensors and plain values only") from error
    except (RuntimeError, EOFError, KeyError) as error:
        raise UserError(
            f"the checkpoint {path} cannot be used: {str(error).splitlines()[0]}; {_instead(path)}"
        ) from error
    if not isinstance(state, dict):
        raise UserError(
            f"the checkpoint {path} holds a {type(state).__name__}, expected a dictionary; {_instead(path)}"
        )
    return state


def _candidates(folder: Path) -> list[Path]:
    """Checkpoints in a folder, the furthest trained first; of equally far ones the last written: clocks of several machines differ."""
    if not folder.is_dir():
        return []

    def progress(path: Path) -> tuple[float, int, bool]:
        file = path.resolve()
        entry = _read_manifest(file.parent).get(file.name) or {}
        step = entry["global_step"] if entry.get("global_step") is not None else _global_step(file)
        return step, entry.get("saved", file.stat().st_mtime_ns), path.name.startswith("last")

    found = {path for pattern in _PATTERNS for path in folder.glob(pattern) if path.is_file()}
    return sorted(found, key=progress, reverse=True)


def _global_step(path: Path) -> float:
    """After how many steps a checkpoint without an entry in a manifest was written; infinity for one that cannot be read, so that it is looked at and named."""
    try:
        return int(torch.load(path, map_location="meta", mmap=True, weights_only=True)["global_step"])
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, ValueError, pickle.UnpicklingError):
        return float("inf")


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The furthest trained good one of last*.ckpt, epoch*.ckpt and hpc_ckpt_*.ckpt in `folder`; None if there is none.

    A damaged file is passed over with a warning that names it.
    """
    for path in _candidates(Path(folder)):
        damage = _damage(path)
        if damage is None:
            return path
        warnings.warn(f"the checkpoint {path} is passed over: {damage}", stacklevel=2)
    return None


def resume_path(ckpt_path: str | Path | None, folder: str | Path) -> Path | None:
    """What a `ckpt_path` setting means: None stays None, "auto" is the newest good checkpoint of `folder` (None if there is none yet), else a file.

    Raises:
        UserError: for a file that cannot be used.
    """
    if ckpt_path is None:
        return None
    return latest_checkpoint(folder) if str(ckpt_path) == "auto" else verify(ckpt_path)


def _trouble(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "the folder cannot be written to; choose another output_dir"
    return f"{error.strerror or error}; check the disk or choose another output_dir"


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's door to checkpoint files: whole files only, a sha256 for each in manifest.json, loading that cannot execute anything.

    A file that cannot be written leaves the one before it as it was. The manifest is written first and keeps the hash of the file before, so that
    there is no moment at which a good file looks damaged.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`.

        Raises:
            UserError: if the disk is full or read-only, or the checkpoint holds objects that could not be loaded safely.
        """
        if storage_options is not None:
            raise TypeError("storage_options are not supported")
        path = Path(path)
        try:
            self._save(checkpoint, path)
        except OSError as error:
            raise UserError(
                f"the checkpoint {path} could not be written: {_trouble(error)} (checkpoints written earlier are intact)"
            ) from error

    def _save(self, checkpoint: dict[str, Any], path: Path) -> None:
        with replacing(path) as file:
            hashing = _Hashing(file)
            try:
                torch.save(checkpoint, hashing)  # type: ignore[arg-type]  # it needs no more than write and flush
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):  # torch reports a full disk while closing its archive
                    raise error.__context__ from error
                raise
            file.flush()
            objects = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file.name))
            if objects:
                raise UserError(
                    f"the checkpoint {path} would hold objects ({', '.join(objects)}) and could not be loaded safely; "
                    "give save_hyperparameters plain numbers, strings, lists and dictionaries only"
                )
            manifest = _read_manifest(path.parent)
            entry = {
                "sha256": hashing.sha256.hexdigest(),
                "size": hashing.size,
                "saved": time.time_ns(),
                "epoch": checkpoint.get("epoch"),
                "global_step": checkpoint.get("global_step"),
            }
            old = manifest.get(path.name)
            if old is not None and path.exists():
                entry["previous"] = {"sha256": old["sha256"], "size": old["size"]}
            os.fsync(file.fileno())
            _write_manifest(path.parent, {**manifest, path.name: entry})

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read `path` after verifying it; always with weights_only=True.

        Raises:
            UserError: for a file that cannot be used, naming what to use instead.
        """
        return load_state(path, "cpu" if map_location is None else map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        path = Path(path)
        path.unlink(missing_ok=True)
        manifest = _read_manifest(path.parent)
        if manifest.pop(path.name, None) is not None:
            _write_manifest(path.parent, manifest)
