"""A run directory belongs to one process at a time: the file that says to whom, made exclusively, taken over from the dead.

Two runs that write into one directory mix their tables without a word. So a run claims its directory before it writes; a directory without a
claim is nobody's.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from explainode.errors import UserError
from explainode.files import told_in_one_sentence

CLAIM = "claim.json"
_OURS = "EXPLAINODE_CLAIM"  # in the environment of whatever a run starts: its token, by which ranks know the directory for theirs
_BEING_WRITTEN = 2.0  # seconds for which an empty claim is taken for one that is being written


@dataclass(frozen=True)
class Owner:
    """Who claims a directory: a process, known by its start too, as numbers of processes are used again; the run's token; the job, if any."""

    host: str
    pid: int
    started: str
    token: str
    job: str = ""
    restarts: int = 0

    @staticmethod
    def here(job: str = "", restarts: int = 0) -> Owner:
        """This process, with a new token."""
        pid = os.getpid()
        return Owner(socket.gethostname(), pid, started_at(pid) or "", secrets.token_hex(8), job, restarts)

    def is_process_of(self, other: Owner) -> bool:
        """Whether both are one process."""
        return (self.host, self.pid, self.started) == (other.host, other.pid, other.started)

    def is_over_for(self, other: Owner) -> bool:
        """Whether `other` can know that this owner is gone: its process is dead on the same machine, or its job was started anew."""
        if self.job and self.job == other.job and self.restarts < other.restarts:
            return True
        return self.host == other.host and started_at(self.pid) != self.started


def started_at(pid: int) -> str | None:
    """When a process of this machine was started, in the system's own words; None for one that is dead."""
    try:
        # the name of the program, in parentheses, may hold anything: state and start follow behind it
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        said = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return said.stdout.strip() or None
    return None if fields[0] in "ZX" else fields[19]


@contextmanager
def claimed(folder: Path, me: Owner) -> Iterator[Owner]:
    """Context: the directory, made if need be, is ours; released at the end.

    Inside of another claim of this process, or in a process that the owner has started, it does nothing.

    Yields:
        The owner that the directory has now, with the token of its run.

    Raises:
        UserError: naming the owner, if the directory is somebody else's; or if it cannot be made.
    """
    with told_in_one_sentence(folder):
        folder.mkdir(parents=True, exist_ok=True)
        owner = _take(folder / CLAIM, me)
    if owner is not me:
        yield owner
        return
    before = os.environ.get(_OURS)
    os.environ[_OURS] = me.token
    try:
        yield owner
    finally:
        os.environ.pop(_OURS)
        if before is not None:
            os.environ[_OURS] = before
        _release(folder / CLAIM, me)


def owner_of(folder: Path) -> Owner | None:
    """Who claims a directory; None if nobody does, or only a process of this machine that is dead."""
    try:
        owner = _read((folder / CLAIM).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return None if owner is None or owner.is_over_for(Owner.here()) else owner


def _take(path: Path, me: Owner) -> Owner:
    patience = time.monotonic() + _BEING_WRITTEN
    while True:
        with suppress(FileExistsError), open(path, "x", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_size == 0:
                json.dump(asdict(me), file)
                return me
        with suppress(FileNotFoundError), open(path, "r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # of several that find a dead owner one takes over
            if os.fstat(file.fileno()).st_nlink == 0:
                continue  # released meanwhile
            text = file.read()
            owner = _read(text)
            if owner is not None and (owner.is_process_of(me) or owner.token == os.environ.get(_OURS)):
                return owner
            if owner is not None and not owner.is_over_for(me):
                raise UserError(refusal(path.parent, owner))
            if owner is not None or text or time.monotonic() > patience:
                file.seek(0)
                file.truncate()
                json.dump(asdict(me), file)
                return me
        time.sleep(0.02)


def _release(path: Path, me: Owner) -> None:
    with suppress(FileNotFoundError), open(path, "r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if _read(file.read()) == me:
            path.unlink()


def _read(text: str) -> Owner | None:
    """What a claim says; None for one that was never finished or is damaged, which protects nobody."""
    try:
        return Owner(**json.loads(text))
    except (json.JSONDecodeError, TypeError):
        return None


def refusal(folder: Path, owner: Owner) -> str:
    """The sentence that names who has a directory, and what to do."""
    of_job = f" of job {owner.job}" if owner.job else ""
    return (
        f"{folder} belongs to a run that is going on: process {owner.pid} on {owner.host}{of_job}; name another run_dir, "
        f"or remove {folder / CLAIM} if you know that this process is dead"
    )


def fresh_directory(folder: Path) -> Path:
    """The directory, or with -2, -3, ... behind its name where there is one already; made, so that no other run finds the same.

    Raises:
        UserError: if it cannot be made.
    """
    for k in itertools.count(1):
        place = folder if k == 1 else folder.with_name(f"{folder.name}-{k}")
        with told_in_one_sentence(place), suppress(FileExistsError):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.mkdir()
            return place
    raise AssertionError("there is always a next number")
