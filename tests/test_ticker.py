"""The thread that speaks: at its interval, while the main thread is busy, and no longer than it is wanted."""

from __future__ import annotations

import threading
import time

from explainode.ticker import Ticker


def test_ticks_at_its_interval_until_stopped():
    moments = []
    start = time.monotonic()
    ticker = Ticker(lambda: moments.append(time.monotonic() - start), 0.05).start()
    time.sleep(0.4)
    ticker.stop()
    said = len(moments)
    assert moments[0] >= 0.05 and 2 <= said <= 8  # the machine is shared: fewer, never more
    time.sleep(0.15)
    assert len(moments) == said and not any(thread.name == "ticker" for thread in threading.enumerate())


def test_stop_waits_for_the_last_tick_and_quick_work_is_silent():
    began, done = threading.Event(), []

    def slow():
        began.set()
        time.sleep(0.1)
        done.append(True)

    ticker = Ticker(slow, 0.01).start()
    assert began.wait(5)
    ticker.stop()
    assert done
    silent = []
    Ticker(lambda: silent.append(True), 60).start().stop()
    assert not silent
