"""Distillation: a neural ODE learns to be the network that it stands for, and is kept only where it came closer."""

from __future__ import annotations

import copy
import math
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from explainode.data.batch import Batch
from explainode.dynamics.block import ode_blocks
from explainode.errors import UserError
from explainode.explainers.adjoint import kappa
from explainode.models.neural_ode import teacher_states
from explainode.randomness import noise_scope
from explainode.training.classifier import Classifier


class Surrogate(Classifier):
    """Makes `network` follow a frozen teacher: every continuous block from state to state, and the whole to the teacher's probabilities.

        loss = feature_weight * mean_l |Phi_l(X_l) - X_{l+1}|^2 / |X_{l+1}|^2 + logit_weight * T^2 KL(teacher || surrogate)

    X_l are the teacher's states, so every block learns its own piece whatever the others do. Stem, shape-changing blocks and head are the teacher's and stay so
    unless `train_discrete`.

    Distilling can also lead away from a teacher that is nearly a flow. So kappa on the validation images is measured before the first step and
    after each epoch, and the network ends as it was when kappa was smallest, be it untrained.

    Args:
        network: `NeuralODE` made from the teacher.
        teacher: pixels -> logits; never changed.
        feature_weight, logit_weight: of the two terms, 0 or more.
        temperature: T, softens both distributions.
        train_discrete: let the copied maps learn too.
        optimizer, ...: as for `Classifier`.

    Logs what the classifier logs, and val/ test/ `kappa` (mean distance of probabilities, Lei et al. 2023 Definition 2) and `agreement`.

    Raises:
        UserError: without a teacher, if the network was not made from this one or with other weights, a weight is negative, or T is not positive.

    Source: Hinton et al. 2015; Chu et al. 2022 (a ResNet teaching a neural ODE). Keeping the best, the first included, is ours.
    """

    def __init__(
        self,
        network: nn.Module,
        teacher: nn.Module,
        *,
        feature_weight: float = 1.0,
        logit_weight: float = 1.0,
        temperature: float = 1.0,
        train_discrete: bool = False,
        **settings: Any,
    ) -> None:
        if unused := [name for name in ("label_smoothing", "conditioning", "compile") if settings.get(name)]:
            raise UserError(
                f"distillation has no use for {', '.join(unused)}; leave it out, or train the teacher with it"
            )
        if not isinstance(teacher, nn.Module):
            raise UserError(
                f"distillation needs a network that was made from a teacher, and {type(network).__name__} was not; "
                "choose model=neural_ode with model@model.teacher=resnet20 and model.teacher.weights=path of the trained teacher"
            )
        super().__init__(network, **settings)
        if min(feature_weight, logit_weight) < 0 or temperature <= 0:
            raise UserError(
                f"weights must be 0 or more and temperature positive, got feature_weight={feature_weight}, logit_weight={logit_weight}, "
                f"temperature={temperature}"
            )
        self.save_hyperparameters("feature_weight", "logit_weight", "temperature", "train_discrete")
        check_surrogate(network, teacher, copied=not train_discrete)
        learning = {id(p) for block in ode_blocks(network).values() for p in block.parameters()}
        for parameter in network.parameters():
            parameter.requires_grad_(train_discrete or id(parameter) in learning)
        self.feature_weight, self.logit_weight, self.temperature = feature_weight, logit_weight, temperature
        # in __dict__, not a submodule: neither trained, nor saved, nor seen by DDP
        self.__dict__["teacher"] = copy.deepcopy(teacher).eval().requires_grad_(False)
        # "disable" keeps NaN: a surrogate that fails on some images is not accepted for the others
        self.val_kappa, self.val_agreement = MeanMetric(nan_strategy="disable"), MeanMetric(nan_strategy="disable")
        self.test_kappa, self.test_agreement = MeanMetric(nan_strategy="disable"), MeanMetric(nan_strategy="disable")
        self.best_kappa, self.first_kappa = float("inf"), float("nan")
        self._best: dict[str, Tensor] = {}
        self._validated: dict[str, Tensor] = {}

    @property
    def teacher(self) -> nn.Module:
        """The network to be followed, on this module's device."""
        return self.__dict__["teacher"].to(self.device, next(self.network.parameters()).dtype)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x = self._image(batch)
        blocks = ode_blocks(self.network)
        with torch.no_grad(), noise_scope(batch.sample_id, seed=self.noise_seed, active=False):
            states, wanted = teacher_states(
                self.teacher, [block.replaces for block in blocks.values() if block.replaces], x
            )
        with noise_scope(batch.sample_id, seed=self.noise_seed, draw=self.current_epoch, active=True):
            errors = [_relative_error(block(X), Y) for block, (X, Y) in zip(blocks.values(), states, strict=True)]
            logits = self.network(x)
        feature_loss = torch.stack(errors).mean()
        T = self.temperature
        logit_loss = T**2 * F.kl_div(
            (logits / T).log_softmax(1), (wanted / T).log_softmax(1), reduction="batchmean", log_target=True
        )
        loss = self.feature_weight * feature_loss + self.logit_weight * logit_loss
        self.train_loss.update(loss.detach().expand(len(batch)))
        self.train_accuracy.update(logits.detach(), batch.label)
        return loss

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.best_kappa == float("inf"):  # else resumed: the start has been measured
            self._compare_untrained()

    @torch.no_grad()
    def _compare_untrained(self) -> None:
        """Measure kappa before the first step, on every rank's share of the validation images."""
        training = self.network.training
        self.network.eval()
        self.trainer.fit_loop.epoch_loop.val_loop.setup_data()  # the images that each epoch will be judged on, and no others
        seen = 0
        for batch in islice(self.trainer.val_dataloaders or (), int(sum(self.trainer.num_val_batches))):
            with noise_scope(batch.sample_id, seed=self.noise_seed, active=False):
                self._compare("val", batch.to(self.device), self.network(self._image(batch.to(self.device))))
            seen += len(batch)
        self.network.train(training)
        if seen:
            self.first_kappa = float(self.val_kappa.compute())
            self._validated = self._weights()
            self._keep(self.first_kappa)
        self.val_kappa.reset()
        self.val_agreement.reset()

    @torch.no_grad()
    def _compare(self, stage: str, batch: Batch, logits: Tensor) -> None:
        with noise_scope(batch.sample_id, seed=self.noise_seed, active=False):
            wanted = self.teacher(self._image(batch))
        getattr(self, f"{stage}_kappa").update(kappa(wanted, logits))
        getattr(self, f"{stage}_agreement").update((wanted.argmax(1) == logits.argmax(1)).float())

    def _evaluate(self, stage: str, batch: Batch) -> Tensor:
        logits = super()._evaluate(stage, batch)
        self._compare(stage, batch, logits)
        for name in ("kappa", "agreement"):
            self.log(
                f"{stage}/{name}", getattr(self, f"{stage}_{name}"), on_step=False, on_epoch=True, batch_size=len(batch)
            )
        return logits

    def on_validation_epoch_start(self) -> None:
        # here, since a callback that averages weights has its average in place now and takes it out before the epoch's end
        self._validated = self._weights()

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            found = float(self.val_kappa.compute())
            if found < self.best_kappa:
                self._keep(found)

    def _keep(self, found: float) -> None:
        self.best_kappa = found
        self._best = self._validated

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self.network.state_dict().items()}

    def on_fit_end(self) -> None:
        # not on_train_end, which a resumed run that has nothing left to train never reaches
        if self._best:
            self.network.load_state_dict(self._best)

    def verdict(self) -> str:
        """One sentence: did the distillation bring the surrogate closer?"""
        if math.isnan(self.first_kappa):
            return "Nothing was distilled and compared; the surrogate is as it was last."
        if self.best_kappa < self.first_kappa:
            return f"Distillation accepted: held-out kappa fell from {self.first_kappa:.4f} to {self.best_kappa:.4f}."
        return f"Distillation not accepted: held-out kappa never fell below its {self.first_kappa:.4f} at the start; the surrogate is as converted."

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["distillation"] = {
            "best": self._best,
            "best_kappa": self.best_kappa,
            "first_kappa": self.first_kappa,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        kept = checkpoint.get("distillation") or {}
        self._best, self.best_kappa = kept.get("best", {}), kept.get("best_kappa", float("inf"))
        self.first_kappa = kept.get("first_kappa", float("nan"))


def check_surrogate(network: nn.Module, teacher: nn.Module, copied: bool = True) -> None:
    """Refuse a network that was not made from this teacher.

    Args:
        copied: stem, shape-changing blocks and head must be the teacher's own, bit for bit.

    Raises:
        UserError: naming the block that the teacher lacks, or the layer that differs.
    """
    blocks = ode_blocks(network)
    layers = {name for name, _ in teacher.named_modules()}
    missing = [name for block in blocks.values() for name in block.replaces or ("?",) if name not in layers]
    if not blocks or missing:
        raise UserError(
            f"the network is no surrogate of this teacher ({'no continuous block' if not blocks else f'no block {missing[0]!r} in it'}); "
            "choose model=neural_ode, which is made from it"
        )
    if not copied:
        return
    inside = tuple(f"{name}." for name in blocks)
    own = {name.removeprefix("network."): t for name, t in network.state_dict().items() if not name.startswith(inside)}
    theirs = teacher.state_dict()
    if other := next((n for n, t in own.items() if n in theirs and not torch.equal(t.cpu(), theirs[n].cpu())), None):
        raise UserError(
            f"the surrogate's copied layer {other!r} differs from the teacher's; give both the same weights "
            "(model.teacher.weights=path of the trained teacher)"
        )


def _relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """The mean over samples of |found - wanted|^2 / |wanted|^2."""
    error = (found - wanted).flatten(1).square().sum(1)
    return (error / wanted.flatten(1).square().sum(1).clamp_min(torch.finfo(wanted.dtype).tiny)).mean()
