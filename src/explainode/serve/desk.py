"""The desk: jobs come in, wait in a line of bounded length, go to the worker one after the other, and are forgotten after a while."""

from __future__ import annotations

import secrets
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from multiprocessing import Pipe
from typing import Any

from explainode.errors import UserError
from explainode.serve.worker import Place

DIED = "the process that computes ended in the middle of this job and was started again; ask for fewer methods, or a smaller network"
HUNG = "this job took longer than its {budget:.0f} seconds and was stopped; ask for fewer or cheaper methods"


@dataclass(frozen=True)
class Limits:
    """How much a server takes on.

    Attributes:
        queue: jobs that wait; more are answered with 503.
        per_client: jobs of one client that wait or run; this machine's own are not counted.
        budget: seconds of computing of a job; loading: of the networks, before the first one.
        keep: seconds that a finished job is kept; memory: bytes of maps that are, the newest of them.
        silent: seconds after which a job that nobody asks for is stopped.
        body: bytes of a picture.
        slow: seconds that a picture may take to arrive.
        requests: of one client in ten seconds; ten times as many of this machine's own.
    """

    queue: int = 20
    per_client: int = 4
    budget: float = 60.0
    loading: float = 300.0
    keep: float = 900.0
    memory: int = 32 << 20
    silent: float = 30.0
    body: int = 10 << 20
    slow: float = 20.0
    requests: int = 1000


@dataclass
class Job:
    """One picture's job.

    Attributes:
        state: queued, running, done, stopped or failed; sentence: why it failed.
        events: what was found so far, in its order.
    """

    id: str
    client: str
    wish: Any
    total: int
    state: str = "queued"
    sentence: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    made: float = field(default_factory=time.monotonic)
    asked: float = field(default_factory=time.monotonic)
    ended: float | None = None
    stop: bool = False

    @property
    def bytes(self) -> int:
        """Of the maps that it holds."""
        return sum(event["heat"].nbytes for event in self.events if event["kind"] == "map")

    @property
    def is_over(self) -> bool:
        return self.state in ("done", "stopped", "failed")


def is_local(client: str) -> bool:
    """Whether an address is this machine's own: behind it are many clients or one, and nobody else can be kept out by them."""
    return client in ("127.0.0.1", "::1", "testclient")


class Busy(Exception):
    """There is no place in the line, or this client has enough jobs in it."""


class Desk:
    """Jobs and the worker behind them; everything is called from any thread.

    Args:
        place: what the worker shows.
        limits: see `Limits`.

    Raises:
        UserError: from `start`, if the networks or the gallery cannot be loaded.
    """

    def __init__(self, place: Place, limits: Limits = Limits()) -> None:
        self.place, self.limits = place, limits
        self.jobs: dict[str, Job] = {}
        self.waiting: deque[Job] = deque()
        self.about: dict[str, Any] = {}
        self.restarts = 0
        self._changed = threading.Condition()
        self._closed = False
        self._process: Any = None
        self._connection: Any = None
        self._thread = threading.Thread(target=self._serve, daemon=True, name="desk")

    def start(self) -> None:
        """Start the worker and wait until it is ready."""
        self._start_worker()
        self._thread.start()

    def close(self) -> None:
        """End the worker; jobs that wait are lost."""
        self._closed = True
        with self._changed:
            self._changed.notify_all()
        self._end_worker()

    def submit(self, client: str, wish: Any) -> Job:
        """A new job at the end of the line.

        Raises:
            Busy: if the line is full, or the client has too many jobs.
        """
        with self._changed:
            self._forget()
            unfinished = [job for job in self.jobs.values() if not job.is_over]
            if len(self.waiting) >= self.limits.queue:
                raise Busy(f"{len(self.waiting)} jobs are waiting, and the line is full; try again in a few seconds")
            if not is_local(client) and sum(job.client == client for job in unfinished) >= self.limits.per_client:
                raise Busy(f"you have {self.limits.per_client} jobs that are not finished; wait for one, or stop it")
            job = Job(secrets.token_urlsafe(16), client, wish, len(wish.methods) * len(wish.networks))
            self.jobs[job.id] = job
            self.waiting.append(job)
            self._changed.notify_all()
            return job

    def find(self, name: str) -> Job | None:
        """The job of that id, which is then known to be asked for."""
        with self._changed:
            self._forget()
            job = self.jobs.get(name)
            if job is not None:
                job.asked = time.monotonic()
            return job

    def stop(self, job: Job) -> None:
        """Stop a job: at once where it waits, after the map that is being made where it runs."""
        with self._changed:
            job.stop = True
            if job in self.waiting:
                self.waiting.remove(job)
                self._end(job, "stopped")

    def position(self, job: Job) -> int:
        """How many jobs are before it."""
        with self._changed:
            return list(self.waiting).index(job) + 1 if job in self.waiting else 0

    def _forget(self) -> None:
        now = time.monotonic()
        for name, job in list(self.jobs.items()):
            if job.ended is not None and now - job.ended > self.limits.keep:
                del self.jobs[name]
            elif job.state == "queued" and now - job.asked > self.limits.silent:
                self.waiting.remove(job)
                self._end(job, "stopped")

        finished = [job for job in self.jobs.values() if job.is_over]
        held = sum(job.bytes for job in finished)
        for job in finished[:-1]:  # in the order in which they came; the newest stays whatever its size
            if held <= self.limits.memory:
                break
            held -= job.bytes
            del self.jobs[job.id]

    def _end(self, job: Job, state: str, sentence: str | None = None) -> None:
        job.state, job.sentence, job.ended = state, sentence, time.monotonic()
        job.wish.pictures.clear()  # a picture lives only as long as its job needs it

    def _start_worker(self) -> None:
        ours, theirs = Pipe()
        # a program of its own, and no fork: threads and a device would not survive one
        words = [sys.executable, "-m", "explainode.serve.worker", str(theirs.fileno())]
        process = subprocess.Popen(words, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        try:
            ours.send(self.place)
            if not ours.poll(self.limits.loading):
                process.kill()
                raise UserError(
                    f"the process that computes was not ready after {self.limits.loading:.0f} seconds; a network may be too large for this machine"
                )
            kind, content = ours.recv()
        except (EOFError, OSError) as error:
            raise UserError(
                "the process that computes ended before it was ready; explainode doctor shows what is here"
            ) from error
        if kind == "failed":
            raise UserError(content)
        self.about, self._process, self._connection = content, process, ours

    def _end_worker(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._connection.close()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self.waiting and not self._closed:
                    self._changed.wait(1.0)
                    self._forget()
                if self._closed:
                    return
                job = self.waiting.popleft()
                job.state = "running"
            self._run(job)

    def _run(self, job: Job) -> None:
        started, told = time.monotonic(), False
        try:
            self._connection.send(("job", job.id, job.wish))
            while True:
                if self._connection.poll(0.05):
                    kind, number, content = self._connection.recv()
                    if number != job.id:
                        continue
                    if kind == "event":
                        with self._changed:
                            job.events.append(content)
                        continue
                    with self._changed:
                        self._end(job, "failed" if content else "stopped" if job.stop else "done", content)
                    return
                now = time.monotonic()
                if now - job.asked > self.limits.silent:
                    job.stop = True
                if job.stop and not told:
                    self._connection.send(("stop", job.id, None))
                    told = True
                if now - started > self.limits.budget + (5 if told else 0):
                    self._replace(job, HUNG.format(budget=self.limits.budget))
                    return
                if self._process.poll() is not None and not self._connection.poll():
                    raise EOFError
        except (EOFError, BrokenPipeError, OSError):
            if not self._closed:
                self._replace(job, DIED)

    def _replace(self, job: Job, sentence: str) -> None:
        """A new worker for one that hangs or has died; its job says so."""
        self._end_worker()
        with self._changed:
            self._end(job, "failed", sentence)
        self.restarts += 1
        while not self._closed:
            try:
                self._start_worker()
                return
            except UserError:  # such as no memory at this moment: jobs wait
                time.sleep(1.0)
