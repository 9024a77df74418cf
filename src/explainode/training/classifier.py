"""The classifier: a network, its loss and its schedule, as Lightning wants them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from explainode.data.batch import Batch
from explainode.dynamics.noise import Noise
from explainode.errors import UserError
from explainode.randomness import noise_scope
from explainode.ranks import gather_ranks, of_rank
from explainode.training.conditioning import DepthConditioning, freeze_batchnorm

_TOTALS = ("total_steps", "T_max", "total_iters")  # what schedules call their length


class Classifier(LightningModule):
    """Cross-entropy training of `network`; noise blocks speak in training only.

    The noise of an image is keyed by (noise_seed, sample id, block, epoch): nothing about it needs to be saved, and a resumed epoch draws what
    the unbroken one would have drawn.

    Args:
        network: pixels (B, 3, H, W) in [0, 1] -> logits (B, num_classes).
        optimizer: `parameters -> Optimizer`, such as a partial of `torch.optim.Adam`.
        scheduler: `optimizer -> schedule`, or None. A length that it leaves open (`total_steps`, `T_max`, `total_iters`) is the length of the
            run in units of `interval`; `milestones` below 1 are fractions of it.
        interval: the schedule advances each "step" or each "epoch".
        label_smoothing: in [0, 1).
        noise_seed: seed of the training noise.
        channels_last: weights and images in channels_last memory order.
        conditioning: penalties that keep the blocks near a flow, `DepthConditioning`, logged as train/ values; BatchNorm is then frozen. None: none.
        compile: run the training step through `torch.compile`; `network` itself stays as it is, so explainers and checkpoints never meet it.

    Logs train/ val/ test/ `loss` and `accuracy`, val/ and test/ `calibration_error` (15 bins, L1).

    Raises:
        UserError: for a network that is none, an interval or smoothing out of range; when fitting starts, for a schedule without a known end.
    """

    network: nn.Module

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[..., torch.optim.Optimizer],
        num_classes: int,
        scheduler: Callable[..., Any] | None = None,
        interval: str = "step",
        label_smoothing: float = 0.0,
        noise_seed: int = 0,
        channels_last: bool = False,
        compile: bool = False,
        conditioning: DepthConditioning | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise UserError(f"network must be a torch.nn.Module, got {network!r}; choose one with model=...")
        if interval not in ("step", "epoch"):
            raise UserError(f"interval must be 'step' or 'epoch', got {interval!r}")
        if not 0.0 <= label_smoothing < 1.0:
            raise UserError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
        # only plain values: a checkpoint that holds objects cannot be loaded safely
        self.save_hyperparameters(
            "num_classes", "interval", "label_smoothing", "noise_seed", "channels_last", "compile"
        )
        self.network = network.to(memory_format=torch.channels_last) if channels_last else network  # type: ignore[call-overload]
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.interval = interval
        self.label_smoothing = label_smoothing
        self.noise_seed = noise_seed
        self.conditioning = conditioning
        self.channels_last = channels_last
        # in __dict__, not a submodule: the state dict has the bare network's keys
        self.__dict__["_step_network"] = torch.compile(network) if compile else None

        # "disable" keeps NaN, but with it torchmetrics ignores weights: a batch's mean is counted once for each of its images
        self.train_loss, self.train_accuracy = MeanMetric(nan_strategy="disable"), self._accuracy(num_classes)
        self.val_loss, self.val_accuracy, self.val_calibration_error = (
            MeanMetric(nan_strategy="disable"),
            self._accuracy(num_classes),
            self._calibration(num_classes),
        )
        self.test_loss, self.test_accuracy, self.test_calibration_error = (
            MeanMetric(nan_strategy="disable"),
            self._accuracy(num_classes),
            self._calibration(num_classes),
        )

    @staticmethod
    def _accuracy(num_classes: int) -> MulticlassAccuracy:
        return MulticlassAccuracy(num_classes, average="micro", ignore_index=-1, validate_args=False)

    @staticmethod
    def _calibration(num_classes: int) -> MulticlassCalibrationError:
        return MulticlassCalibrationError(num_classes, n_bins=15, norm="l1", ignore_index=-1, validate_args=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def _image(self, batch: Batch) -> Tensor:
        return batch.image.contiguous(memory_format=torch.channels_last) if self.channels_last else batch.image

    def on_train_epoch_start(self) -> None:
        if self.conditioning is not None:
            freeze_batchnorm(self.network)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        network = self.__dict__["_step_network"] or self.network
        with noise_scope(batch.sample_id, seed=self.noise_seed, draw=self.current_epoch, active=True):
            logits = network(self._image(batch))
        loss = F.cross_entropy(logits, batch.label, ignore_index=-1, label_smoothing=self.label_smoothing)
        if self.conditioning is not None:
            known = None if any(isinstance(module, Noise) for module in self.network.modules()) else logits
            with noise_scope(batch.sample_id[: self.conditioning.images], active=False):
                penalties = self.conditioning(self.network, self._image(batch), known)
            for name, penalty in penalties.items():
                self.log(f"train/{name}", penalty.detach(), on_step=False, on_epoch=True, batch_size=len(batch))
                loss = loss + penalty
        self.train_loss.update(loss.detach().expand(int((batch.label >= 0).sum())))
        self.train_accuracy.update(logits.detach(), batch.label)
        return loss

    def on_train_epoch_end(self) -> None:
        # not logged step by step: an epoch resumed after its last step must report its sums too
        for name, metric in self._running().items():
            self.log(name.replace("_", "/"), metric.compute())
            metric.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: Batch) -> Tensor:
        """(B, K) logits, having counted the batch in the stage's metrics."""
        with noise_scope(batch.sample_id, seed=self.noise_seed, active=False):
            logits = self.network(self._image(batch)).float()
        known = int((batch.label >= 0).sum())
        if known:
            loss = F.cross_entropy(logits, batch.label, ignore_index=-1)
            getattr(self, f"{stage}_loss").update(loss.expand(known))
        getattr(self, f"{stage}_accuracy").update(logits, batch.label)
        getattr(self, f"{stage}_calibration_error").update(logits.softmax(1), batch.label)
        for name in ("loss", "accuracy", "calibration_error"):
            self.log(
                f"{stage}/{name}", getattr(self, f"{stage}_{name}"), on_step=False, on_epoch=True, batch_size=len(batch)
            )
        return logits

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.network.parameters())
        if self.scheduler is None:
            return optimizer
        try:
            schedule = self._complete(self.scheduler)(optimizer)
        except ZeroDivisionError as error:  # torch's one-cycle schedule divides by the length of each of its phases
            raise UserError(
                f"the schedule cannot be laid over a run of {self._length()} {self.interval}s: a phase of it would have no length; "
                "train longer, on more images or in smaller batches, or set module.scheduler=null"
            ) from error
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": self.interval}}

    def _complete(self, scheduler: Callable[..., Any]) -> Callable[..., Any]:
        """`scheduler` with the length of the run filled in where it leaves it open."""
        given = scheduler.keywords if isinstance(scheduler, partial) else {}
        parameters = inspect.signature(scheduler.func if isinstance(scheduler, partial) else scheduler).parameters
        milestones = given.get("milestones") or []
        fractions = bool(milestones) and all(0 < m < 1 for m in milestones)
        open_lengths = [
            name
            for name in _TOTALS
            if name in parameters
            and given.get(name, parameters[name].default) in (None, inspect.Parameter.empty)
            and not given.get("epochs")
        ]
        if not open_lengths and not fractions:
            return scheduler
        length = self._length()
        filled: dict[str, Any] = dict.fromkeys(open_lengths, length)
        if fractions:
            filled["milestones"] = [round(m * length) for m in milestones]
        return partial(scheduler, **filled)

    def _length(self) -> int:
        """Steps or epochs of the whole run."""
        trainer = self.trainer
        if self.interval == "epoch":
            if trainer.max_epochs is None or trainer.max_epochs < 0:
                raise UserError(
                    "a schedule per epoch needs to know when the run ends; set trainer.max_epochs, or the schedule's own length"
                )
            return max(1, trainer.max_epochs)
        steps = trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise UserError(
                "a schedule per step needs to know when the run ends; set trainer.max_epochs or trainer.max_steps, or the schedule's own length"
            )
        return max(1, int(steps))

    def on_train_start(self) -> None:
        if self.conditioning is not None:  # a run resumed in mid epoch does not start that epoch again
            freeze_batchnorm(self.network)
        for config in self.trainer.lr_scheduler_configs:
            planned = getattr(config.scheduler, "total_steps", None)
            if planned is not None and config.interval == self.interval and planned < self._length():
                raise UserError(
                    f"the checkpoint's schedule ends after {planned} {self.interval}s, but the run is now {self._length()} long; "
                    "resume with the trainer.max_epochs of the first start, or train anew"
                )

    def _running(self) -> dict[str, Metric]:
        return {"train_loss": self.train_loss, "train_accuracy": self.train_accuracy}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the epoch's running sums, so that an epoch interrupted half-way reports its whole."""
        mine = {
            name: {k: v.detach().cpu() for k, v in metric.metric_state.items() if isinstance(v, Tensor)}
            for name, metric in self._running().items()
        }
        checkpoint["running_metrics"] = gather_ranks(mine)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        mine = of_rank(checkpoint.get("running_metrics") or [])
        for name, metric in self._running().items():
            for key, value in (mine or {}).get(name, {}).items():
                setattr(metric, key, value.to(getattr(metric, key).device))
            metric._update_count = int(mine is not None)  # or `compute` warns that nothing came
