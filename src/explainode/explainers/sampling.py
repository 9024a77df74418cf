"""Methods that average over draws: around the image, or between the image and references; every draw comes from a key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from explainode.errors import UserError, nearest
from explainode.explainers.base import Explainer
from explainode.explainers.baselines import Baseline, make_baseline
from explainode.explainers.gradient import score_difference
from explainode.explainers.gradients import input_gradient
from explainode.explainers.passes import each_copy, predict
from explainode.explainers.targets import select_score
from explainode.randomness import input_keys, normal_like, uniform

STATISTICS = ("mean", "variance")


@dataclass(frozen=True)
class SmoothGrad(Explainer):
    """Mean (or variance: VarGrad) of another explainer's attributions of noisy copies of the image.

    Args:
        explainer: the method to average; it sees the copies as images of their own.
        samples: number of copies.
        sigma: standard deviation of the noise, as a fraction of each image's range (maximum minus minimum).
        statistic: "mean" or "variance" (of the population: divided by `samples`).

    Shapes: those of the inner explainer.

    Raises:
        UserError: if `samples` is less than 1, `sigma` is negative or the statistic has no such name.

    Source: Smilkov et al. 2017; VarGrad: Adebayo et al. 2018 (local explanations). We do not clip the copies to [0, 1].
    """

    stochastic: ClassVar[bool] = True

    explainer: Explainer
    samples: int = 20
    sigma: float = 0.15
    statistic: str = "mean"

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UserError(f"samples must be at least 1, got {self.samples}")
        if not self.sigma >= 0:
            raise UserError(f"sigma must be a fraction of the image's range, 0 or more, got {self.sigma}")
        if self.statistic not in STATISTICS:
            raise UserError(
                f"no statistic named {self.statistic!r}; the nearest are {nearest(self.statistic, STATISTICS)}"
            )

    @property
    def class_specific(self) -> bool:  # type: ignore[override]
        return self.explainer.class_specific

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        spread = self.sigma * (x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True))
        flat = x.contiguous()  # noise is drawn in memory order: the same for channels_last images
        copies = (x + spread * normal_like(flat, input_keys(x, "smoothgrad", draw)) for draw in range(self.samples))
        mean = square = torch.zeros(())
        attributions = each_copy(
            lambda rows, classes: (self.explainer.attribute(model, rows, classes),), copies, target
        )
        for n, (attribution,) in enumerate(
            attributions, start=1
        ):  # Welford's recurrence: no difference of large numbers
            change = attribution - mean
            mean = mean + change / n
            square = square + change * (attribution - mean)
        return mean if self.statistic == "mean" else square / self.samples


@dataclass(frozen=True)
class GradientSHAP(Explainer):
    """Expected gradients: (x - x') * df at a random point between the image and a random reference x', averaged over draws.

    Args:
        baseline: one reference (see `make_baseline`), or a tensor (N, C, H, W) of N references to draw from.
        samples: number of draws.

    Raises:
        UserError: if `samples` is less than 1 or the baseline does not fit.

    Source: Lundberg and Lee 2017; Erion et al. 2021, Eq. 3. We add no noise to the image.
    """

    stochastic: ClassVar[bool] = True

    baseline: Baseline = "black"
    samples: int = 20

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UserError(f"samples must be at least 1, got {self.samples}")

    def _references(self, x: Tensor) -> Tensor:
        """(N, 1 or B, C, H, W): what is drawn from; one entry unless a tensor of several was given."""
        if isinstance(self.baseline, Tensor) and self.baseline.dim() == 4:
            return torch.stack([make_baseline(reference, x[:1]) for reference in self.baseline])
        return make_baseline(self.baseline, x)[None]

    def _draws(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(alpha (B, 1, 1, 1), reference (B, C, H, W)) of each draw."""
        references = self._references(x).expand(-1, len(x), -1, -1, -1)
        rows = torch.arange(len(x), device=x.device)
        for draw in range(self.samples):
            alpha, choice = uniform(input_keys(x, "gradient_shap", draw), 2).to(x.dtype).unbind(1)
            yield alpha[:, None, None, None], references[(choice * len(references)).long(), rows]

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        points = (reference + alpha * (x - reference) for alpha, reference in self._draws(x))
        gradients = each_copy(lambda rows, classes: input_gradient(model, rows, classes), points, target)
        total = torch.zeros_like(x)
        for (grad, _), (_, reference) in zip(gradients, self._draws(x), strict=True):
            total += (x - reference) * grad
        return total / self.samples

    def expected_sum(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """E[f(x) - f(x')] over the references drawn; the sum meets it in expectation over the points between."""

        def score(rows: Tensor, classes: Tensor) -> tuple[Tensor]:
            return (select_score(predict(model, rows), classes),)

        if len(references := self._references(x)) == 1:
            return score_difference(model, x, references[0], target)
        drawn = each_copy(score, (reference for _, reference in self._draws(x)), target)
        return score(x, target)[0] - torch.stack([reference_score for (reference_score,) in drawn]).mean(0)
