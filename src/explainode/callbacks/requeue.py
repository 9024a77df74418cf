"""The machine is needed elsewhere: finish the batch, save, leave. A SLURM job then goes back into the queue (`explainode.jobs.slurm`)."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from explainode.callbacks.leave import Leave
from explainode.signals import PREEMPTIONS, TrainingPreempted, keep, take_signals


class Requeue(Leave):
    """Turn SIGUSR1, SIGUSR2 or SIGTERM into a checkpoint and a `TrainingPreempted` from `trainer.fit`, at the next safe point (see `Leave`).

    SLURM sends the first two some time before a job's end if it is asked to (`--signal=USR1@300`), which must be longer than what lies between two
    safe points; the last when a job is preempted or cancelled, and so do others who stop programs. What came before training is taken at its
    beginning, what comes too late for a safe point is kept for whoever comes next.

    Lightning's own handlers are switched off: for SIGTERM it makes a collective call inside the handler, and its requeueing saves inside of it. Both
    wait for ever where ranks stand at different places.

    Args:
        dirpath: where `last.ckpt` is written; None: beside the other checkpoints.
    """

    signals = PREEMPTIONS
    exception = TrainingPreempted

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for number in take_signals():
            self.request(number)
        super().on_train_start(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if self.requested:
            keep(self._signal or PREEMPTIONS[-1])
