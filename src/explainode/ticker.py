"""Something that is said again and again while the main thread is busy."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Ticker:
    """Calls `tick` every `every` seconds from a thread of its own, first after `every` seconds, until it is stopped.

    The thread is a daemon: where the program ends without stopping it, it ends too.
    """

    def __init__(self, tick: Callable[[], None], every: float) -> None:
        self.tick, self.every = tick, every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ticker", daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(self.every):
            self.tick()

    def start(self) -> Ticker:
        """Begin; a ticker runs once."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Return when the last tick is over."""
        self._stop.set()
        self._thread.join()
