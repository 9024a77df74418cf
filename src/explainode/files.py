"""Files that are whole or not there, lines that are whole or not there, and a sentence for the user where the disk refuses.

A crash, a full disk or an interruption leaves what was there before.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from explainode.errors import UserError


def inflates(path: Path) -> str | None:
    """What is wrong with a zip archive whose members hold more than its file: they would fill the memory; None for one that is as `torch.save` writes it.

    Raises:
        zipfile.BadZipFile: if its directory is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        held, size = sum(member.file_size for member in archive.infolist()), path.stat().st_size
    return f"it would unpack to {held} bytes, and has {size}" if held > size else None


_HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
_STALE = 86400.0  # seconds after which what another machine left is nobody's


def remove_parts(folder: Path) -> None:
    """Remove what killed processes left of files that they were writing; a process that is alive, here or elsewhere, keeps its own."""
    for part in folder.rglob(".*.part"):
        host, _, pid = part.name.removesuffix(".part").rpartition(".")[0].rpartition("@")
        try:
            old = time.time() - part.stat().st_mtime > _STALE
            if (host.endswith(f".{_HOST}") and not _is_alive(pid)) or old:
                part.unlink()
        except FileNotFoundError:  # it took its place just now
            continue


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Context: an open file that takes the place of `path` at the end, after it was flushed to the disk; its folder is made if need be.

    A reader sees the old file or the new one, never a part. Where anything goes wrong inside, the old one stays and nothing else is left.

    Raises:
        OSError: if the folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name[:100]}.{_HOST}@{os.getpid()}.", suffix=".part", delete=False
    ) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.chmod(
                file.name, 0o666 & ~_umask()
            )  # temporary files are private; a run directory is shared as the user's umask says
            os.replace(file.name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(file.name)
            raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Flush the rename itself, where the file system can: network ones may refuse, and then the file is as safe as they make it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def told_in_one_sentence(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal into a sentence that names the file and what to try.

    Raises:
        UserError: for any OSError inside.
    """
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"cannot write {path}: {reason}; free some space or name another folder (earlier files are untouched)"
        ) from error


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` in the place of `path`, see `replacing`.

    Raises:
        UserError: if the folder cannot be made or written.
    """
    with told_in_one_sentence(path), replacing(path) as file:
        file.write(content)


def append_lines(path: Path, header: str, lines: str) -> None:
    """Append whole lines to a table, all or none, and flush them to the disk; a new table begins with `header`.

    Rewriting the table at each epoch would cost the square of its length. So it only grows: a write that fails is cut off again, and what a
    killed process left of its last line is cut off before the next one.

    Raises:
        UserError: if the folder or file cannot be written.
    """
    if not lines:
        return
    if not path.exists():
        replace_file(path, (header + lines).encode())
        return
    with told_in_one_sentence(path), open(path, "r+b", buffering=0) as file:
        end = _end_of_last_line(file.fileno())
        file.truncate(end)
        file.seek(end)
        content = memoryview((lines if end else header + lines).encode())
        try:
            while content:
                content = content[file.write(content) :]
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(end)
            raise


def _end_of_last_line(descriptor: int, block: int = 65536) -> int:
    """The position behind the last newline of a file."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - block)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
