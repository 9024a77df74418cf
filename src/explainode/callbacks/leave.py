"""Leaving the training at the next safe point, on every rank together, because a signal asked for it."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, WeightAveraging

from explainode.ranks import agree_on_largest
from explainode.signals import TrainingLeft


class Leave(Callback):
    """The skeleton: note a signal; agree with the other ranks; save; raise `exception` from `trainer.fit`.

    Safe points are the ends of training batches after which the optimizer has made its step, the start of validation, its batches (one process
    only: ranks may have different numbers of them) and, through `check`, every step of a long explanation pass. We raise instead of setting
    `trainer.should_stop`: Lightning would first run the whole validation and count the half epoch as a finished one, so that a resumed run would
    skip the rest of it. A handler never saves by itself: ranks that are in different collective calls at that moment would wait for each other
    for ever.

    A training that `max_steps` or `max_time` ends in mid epoch is saved there too, before Lightning counts the epoch as a finished one: going on
    with it, the rest of the epoch follows.

    Where several of these callbacks are present they ask with one voice: one small collective call per safe point.

    Args:
        dirpath: where `last.ckpt` is written; None: beside the other checkpoints.
    """

    signals: tuple[int, ...] = ()
    exception: type[TrainingLeft] = TrainingLeft

    def __init__(self, dirpath: str | None = None) -> None:
        self.dirpath = dirpath
        self.requested = False  # to leave was asked for
        self.left = False  # and done
        self._signal: int | None = None
        self._trained = False
        self._previous: dict[int, Any] = {}

    def request(self, number: int | None = None) -> None:
        """Ask to leave at the next safe point."""
        self.requested, self._signal = True, number

    def handle(self, number: int, frame: FrameType | None) -> None:
        """What a signal does."""
        self.request(number)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # last but for checkpoints: what others do at a batch's end (averaging weights) belongs to the batch, and into the checkpoint
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        others = [c for c in callbacks if c is not self]
        ordinary = [c for c in others if not isinstance(c, Checkpoint)]
        trainer.callbacks = [*ordinary, self, *others[len(ordinary) :]]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # not earlier: Lightning notes all handlers before this and puts them back after training
        self._trained = False
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self.handle) for number in self.signals}
        self._check_once(trainer)  # a signal may have come before

    def _uninstall(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _check_once(self, trainer: Trainer) -> None:
        if _leaves(trainer)[-1] is self:
            check(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._trained = True
        loop = trainer.fit_loop.epoch_loop
        # after an epoch's last batch Lightning resumes at the next epoch: the validation before it would be lost
        if loop._num_ready_batches_reached():
            return
        if loop._should_accumulate():  # gradients of batches without a step are in no checkpoint
            trainer.should_stop = False  # the timer asks again after the next batch
            return
        self._check_once(trainer)
        if _leaves(trainer)[-1] is self and _is_over(trainer):
            self._save_unfinished(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._check_once(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.world_size == 1 and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._check_once(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._uninstall()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._uninstall()
        if type(exception) is not self.exception:
            return
        exception.signal = self._signal
        if self._trained:
            if trainer.validating:
                self._rewind_validation(trainer, pl_module)
            path = self._path(trainer)
            trainer.save_checkpoint(path, weights_only=False)
            exception.checkpoint = path
        self.left = True

    def _save_unfinished(self, trainer: Trainer) -> None:
        """Write `last.ckpt` in mid epoch, and keep the checkpoint after it, which says that the epoch is finished, from taking its place."""
        path = self._path(trainer)
        trainer.save_checkpoint(path, weights_only=False)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.save_last:
                callback._last_global_step_saved = trainer.global_step
                callback._last_checkpoint_saved = str(path)  # at the training's end one is written where none was

    def _path(self, trainer: Trainer) -> Path:
        folder = (
            self.dirpath
            or getattr(trainer.checkpoint_callback, "dirpath", None)
            or Path(trainer.default_root_dir) / "checkpoints"
        )
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


def _is_over(trainer: Trainer) -> bool:
    """Whether the training ends with this batch, though its epoch does not."""
    steps = trainer.max_steps
    return (steps != -1 and trainer.global_step >= steps) or (trainer.should_stop and trainer.fit_loop._can_stop_early)


def _leaves(trainer: Trainer) -> list[Leave]:
    return [callback for callback in trainer.callbacks if isinstance(callback, Leave)]  # type: ignore[attr-defined]


def check(trainer: Trainer) -> None:
    """Leave now if any rank was asked to; every rank must call this equally often.

    Raises:
        TrainingLeft: of the callback that was asked, the last one if several were, on every rank.
    """
    leaves = _leaves(trainer)
    asked = max((place for place, leave in enumerate(leaves, 1) if leave.requested), default=0)
    asked = agree_on_largest(asked, trainer.strategy.root_device)
    if asked:
        raise leaves[asked - 1].exception


class SafePoints:
    """Safe points inside a piece of work in which ranks have different numbers of steps: `planned` of them on every rank.

    Call it after each step, and `finish` when this rank has done its share.
    """

    def __init__(self, trainer: Trainer, planned: int) -> None:
        self.trainer, self.left = trainer, planned if _leaves(trainer) else 0

    def __call__(self) -> None:
        if self.left:
            self.left -= 1
            check(self.trainer)

    def finish(self) -> None:
        """Answer the others until they have done theirs."""
        while self.left:
            self()
