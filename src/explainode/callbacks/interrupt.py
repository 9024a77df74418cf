"""Ctrl-C once: finish the batch, save, stop. Twice: stop at once."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from explainode.callbacks.leave import Leave
from explainode.signals import TrainingInterrupted


class Interrupt(Leave):
    """Turn the first Ctrl-C into a checkpoint and a `TrainingInterrupted` from `trainer.fit`, at the next safe point (see `Leave`).

    A second Ctrl-C is a KeyboardInterrupt, wherever the program is: `trainer.fit` makes a SystemExit(1) of it, the command line exit status 130, as
    shells expect of a program that Ctrl-C ended; nothing is saved then.

    Args:
        dirpath: where `last.ckpt` is written; None: beside the other checkpoints.
    """

    signals = (int(signal.SIGINT),)
    exception = TrainingInterrupted

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.request(number)
        print(
            "\nstopping after this batch and saving a checkpoint; press Ctrl-C again to stop at once",
            file=sys.stderr,
            flush=True,
        )
