"""Ctrl-C once: finish the batch, save, stop. Twice: stop at once."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging


class TrainingInterrupted(Exception):
    """The user stopped the training; `checkpoint` holds everything needed to go on (None if not even a batch was finished)."""

    def __init__(self) -> None:
        super().__init__("the training was interrupted")
        self.checkpoint: Path | None = None


class Interrupt(Callback):
    """Turn the first Ctrl-C into a checkpoint and a `TrainingInterrupted` from `trainer.fit`, at the next batch end or inside validation.

    We raise instead of setting `trainer.should_stop`: Lightning would first run the whole validation and count the half epoch as a finished one,
    so that a resumed run would skip the rest of it. A second Ctrl-C is a KeyboardInterrupt, wherever the program is: `trainer.fit` makes a
    SystemExit(1) of it, the command line exit status 130, as shells expect of a program that Ctrl-C ended; nothing is saved then.

    Args:
        dirpath: where `last.ckpt` is written; None: beside the other checkpoints.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        self.dirpath = dirpath
        self.requested = False  # a stop was asked for
        self.interrupted = False  # the training was left because of it
        self._previous: Any = None
        self._installed = False

    def request(self) -> None:
        """Ask for a stop at the next safe point."""
        self.requested = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.request()
        print("\nstopping after this batch and saving a checkpoint; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # last but for checkpoints: what others do at a batch's end (averaging weights) belongs to the batch, and into the checkpoint
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        others = [c for c in callbacks if c is not self]
        ordinary = [c for c in others if not isinstance(c, Checkpoint)]
        trainer.callbacks = [*ordinary, self, *others[len(ordinary) :]]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # not earlier: Lightning notes all handlers before this and puts them back after training
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
            self._installed = True

    def _uninstall(self) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._previous)
            self._installed = False

    def check(self, trainer: Trainer) -> None:
        """Leave now if a stop was asked for on any rank (a collective call).

        Raises:
            TrainingInterrupted: through `trainer.fit`, which saves the checkpoint on the way.
        """
        if trainer.strategy.reduce_boolean_decision(self.requested, all=False):
            raise TrainingInterrupted

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        # after an epoch's last batch Lightning resumes at the next epoch: the validation before it would be lost
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self.check(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.check(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        # ranks may have different numbers of validation batches: several ask each other once, before the first
        if trainer.world_size == 1 and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.check(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._uninstall()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._uninstall()
        if not isinstance(exception, TrainingInterrupted):
            return
        if trainer.validating:
            self._rewind_validation(trainer, pl_module)
        path = self._path(trainer)
        trainer.save_checkpoint(path, weights_only=False)
        exception.checkpoint = path
        self.interrupted = True

    def _path(self, trainer: Trainer) -> Path:
        folder = self.dirpath or getattr(trainer.checkpoint_callback, "dirpath", None) or Path(trainer.default_root_dir) / "checkpoints"
        return Path(folder) / "last.ckpt"

    @staticmethod
    def _rewind_validation(trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the saved progress that of a validation at its first batch, which is repeated as a whole on resuming."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, WeightAveraging):
                callback.on_validation_epoch_end(trainer, pl_module)  # gives the training weights back
        progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
        progress.reset_on_run()
        progress.total.reset()
        progress.increment_ready()
        progress.increment_started()
