"""Stops a run whose loss or gradients are no longer numbers, before the weights are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from explainode.data.batch import Batch
from explainode.errors import UserError
from explainode.training.checkpoint import latest_checkpoint

_SHOWN = 8  # sample ids in a message


class Finite(Callback):
    """End the run when the loss or a gradient is NaN or infinite, before the optimizer steps.

    One number per step is read back from the device, after the backward pass. Under float16 with a gradient scaler, infinite gradients are part
    of the method, and only the loss is held to account.

    Args:
        gradients: also check the gradients.

    Raises (from the hook): UserError naming the step, the batch and the last good checkpoint. The weights stay as they were before the step.
    """

    def __init__(self, gradients: bool = True) -> None:
        self.gradients = gradients
        self._losses: list[tuple[Tensor, Any, int]] = []  # since the last step, with their batches
        self._batch: tuple[Any, int] = (None, 0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = batch, batch_idx

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._losses.append((loss.detach(), *self._batch))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        numbers = [loss.float() for loss, _, _ in self._losses]
        grads: list[Tensor] = []
        if self.gradients and getattr(trainer.precision_plugin, "scaler", None) is None:
            grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            numbers += [norm.float() for norm in torch._foreach_norm(grads)]
        good = not numbers or bool(torch.stack(numbers).isfinite().all())
        if not good and all(bool(loss.isfinite()) for loss, _, _ in self._losses):
            good = all(bool(grad.isfinite().all()) for grad in grads)  # a norm's squares overflow before its terms do
        # every rank stops, or the others would wait for this one forever
        if trainer.strategy.reduce_boolean_decision(good, all=True):
            self._losses.clear()
            return
        raise UserError(self._sentence(trainer))

    def _sentence(self, trainer: Trainer) -> str:
        bad = next(((loss, batch, index) for loss, batch, index in self._losses if not bool(loss.isfinite())), None)
        what = f"the loss became {bad[0].item()}" if bad is not None else "a gradient became NaN or infinite"
        batch, index = (bad[1], bad[2]) if bad is not None else self._batch
        where = f"step {trainer.global_step} (epoch {trainer.current_epoch}, batch {index}{self._samples(batch)})"
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        last = latest_checkpoint(Path(folder)) if folder else None
        kept = f"the last good checkpoint is {last}" if last is not None else "no checkpoint was written yet"
        return f"{what} at {where}; the weights were not updated and {kept}; try a lower learning rate or trainer.gradient_clip_val=1"

    @staticmethod
    def _samples(batch: Any) -> str:
        if not isinstance(batch, Batch):
            return ""
        broken = ~batch.image.isfinite().flatten(1).all(1)
        ids = batch.sample_id[broken].tolist() if bool(broken.any()) else batch.sample_id.tolist()
        shown = ", ".join(map(str, ids[:_SHOWN])) + (", ..." if len(ids) > _SHOWN else "")
        return f", samples {shown}{' whose pixels are not finite' if bool(broken.any()) else ''}"
