"""Ends a run whose pictures cannot be read: what is learned from the rest would be another experiment."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from explainode.errors import UserError


class Readable(Callback):
    """Refuse to go on after an epoch in which more than `limit` of the files that were read so far were damaged or missing.

    Single bad files are named, skipped and counted by the data itself; this looks at their share, on every rank, and all ranks stop if one must.

    Args:
        limit: in [0, 1).

    Raises (from the hook): UserError naming the count and the first files.
    """

    def __init__(self, limit: float = 0.05) -> None:
        if not 0.0 <= limit < 1.0:
            raise UserError(f"callback.readable.limit must lie in [0, 1), got {limit}")
        self.limit = limit

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "check_skipped"):
            return  # a user's own data
        error: UserError | None = None
        try:
            data.check_skipped(self.limit)
        except UserError as bad:
            error = bad
        if trainer.strategy.reduce_boolean_decision(error is not None, all=False):
            raise error or UserError("another process cannot read its pictures; its message names them")
