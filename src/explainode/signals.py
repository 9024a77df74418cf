"""Signals that ask the program to leave: kept until somebody can act on them, and what is raised by who acts. Light: imported before all else."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

# what schedulers send before they take a machine away; the default of both is to end the program on the spot
NOTICES = tuple(int(signal.Signals[name]) for name in ("SIGUSR1", "SIGUSR2") if name in signal.Signals.__members__)
PREEMPTIONS = (*NOTICES, int(signal.SIGTERM))

_kept: list[int] = []


class TrainingLeft(BaseException):
    """The training was left before its end. Not an `Exception`, as KeyboardInterrupt is none: nobody should take it for a failure.

    Attributes:
        checkpoint: holds everything needed to go on; None if no batch was finished since the training began or was resumed.
        signal: the one that asked for it; None on ranks that did not receive it.
    """

    def __init__(self) -> None:
        super().__init__("the training was left before its end")
        self.checkpoint: Path | None = None
        self.signal: int | None = None


class TrainingInterrupted(TrainingLeft):
    """The user stopped the training."""


class TrainingPreempted(TrainingLeft):
    """The machine that we train on is taken away."""


def keep_signals(signals: Iterable[int] = NOTICES) -> None:
    """Keep `signals` from ending the program, until `take_signals` asks which have come. Handlers that somebody set are left alone.

    Signals that were blocked before the program started (`env --block-signal=USR1 explainode train`) are let in now, and none is lost.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in signals:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.SIG_IGN):
            signal.signal(number, keep)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def keep(number: int, frame: FrameType | None = None) -> None:
    """Keep one signal: the handler, and what those do who could not act on one any more."""
    _kept.append(number)


def take_signals() -> list[int]:
    """The signals kept since the last call, in order."""
    taken = list(_kept)
    del _kept[: len(taken)]
    return taken


@contextmanager
def at_once() -> Iterator[None]:
    """Context: where nothing is trained nothing has to be saved, so `PREEMPTIONS` raise `TrainingPreempted` on the spot.

    Handlers that somebody else set (submitit's) are left alone, and so is SIGTERM's default, which ends the program too.

    Raises:
        TrainingPreempted: also right away, if a signal has been kept.
    """

    def handle(number: int, frame: FrameType | None = None) -> None:
        left = TrainingPreempted()
        left.signal = number
        raise left

    previous: dict[int, Any] = {}
    try:
        for number in PREEMPTIONS:
            if signal.getsignal(number) is keep:
                previous[number] = signal.signal(number, handle)
        for number in take_signals():
            handle(number)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
