"""A line at least every two seconds while something takes its time."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

EVERY = 2.0  # seconds


class Heartbeat:
    """Context: says on stderr what is going on and for how long, from a thread of its own, so that a long step does not silence it.

    Quick work says nothing. Called as `heartbeat(what, done, total)` it is the progress function of `evaluate`.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.step = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __call__(self, what: str, done: int, total: int) -> None:
        self.step = f", {what} done, {done}/{total} images"

    def _run(self) -> None:
        start = time.monotonic()
        while not self._stop.wait(EVERY):
            print(f"{self.what}{self.step} ({time.monotonic() - start:.0f} s)", file=sys.stderr, flush=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
