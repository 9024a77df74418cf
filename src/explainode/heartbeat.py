"""A line at least every two seconds while something takes its time."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from explainode.ticker import Ticker

EVERY = 2.0  # seconds


class Heartbeat:
    """Context: says on stderr what is going on and for how long, also inside a long step.

    Quick work says nothing. Called as `heartbeat(what, done, total)` it is the progress function of `evaluate`.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.step = ""
        self._start = time.monotonic()
        self._ticker = Ticker(self._say, EVERY)

    def __call__(self, what: str, done: int, total: int) -> None:
        self.step = f", {what} done, {done}/{total} images"

    def _say(self) -> None:
        print(f"{self.what}{self.step} ({time.monotonic() - self._start:.0f} s)", file=sys.stderr, flush=True)

    def __enter__(self) -> Heartbeat:
        self._start = time.monotonic()
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ticker.stop()
