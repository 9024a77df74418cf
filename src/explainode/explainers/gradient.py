"""Methods made of gradients with respect to the input: at the image, and along a path to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from explainode.errors import UserError
from explainode.explainers.base import Explainer
from explainode.explainers.baselines import Baseline, make_baseline
from explainode.explainers.gradients import input_gradient
from explainode.explainers.layers import PIXELS
from explainode.explainers.one_pass import OnePass
from explainode.explainers.passes import each_copy, predict
from explainode.explainers.quadrature import Partition, quadrature
from explainode.explainers.targets import select_score
from explainode.randomness import noise_rows


@dataclass(frozen=True)
class Saliency(OnePass):
    """The gradient of the score, signed: how the score changes when a pixel changes a little.

    Source: Simonyan et al. 2014. We keep the sign, which the paper drops by taking the absolute value.
    """

    def place(self, model: nn.Module, x: Tensor) -> str:
        return PIXELS

    def read(self, A: Tensor, gradient: Tensor) -> Tensor:
        return gradient


@dataclass(frozen=True)
class InputXGradient(OnePass):
    """x * df/dx: the first-order share of each value in the score, exact for networks that are linear and without bias.

    Source: Shrikumar et al. 2016.
    """

    def place(self, model: nn.Module, x: Tensor) -> str:
        return PIXELS

    def read(self, A: Tensor, gradient: Tensor) -> Tensor:
        return A * gradient


def score_difference(model: nn.Module, x: Tensor, baseline: Tensor, target: Tensor) -> Tensor:
    """(B,): f(x) - f(baseline), by two forwards."""
    return select_score(predict(model, x), target) - select_score(predict(model, baseline), target)


@dataclass(frozen=True)
class IntegratedGradients(Explainer):
    """(x - x') * the mean gradient along the straight path from the baseline x' to the image; sums to f(x) - f(x').

    Args:
        steps: number of gradient evaluations.
        quadrature: "gauss_legendre", "midpoint" or "trapezoid".
        baseline: x' (see `make_baseline`).

    Raises:
        UserError: if the quadrature is unknown or has too few steps.

    Source: Sundararajan et al. 2017, Eq. 1; Ayyar et al. 2021 Eq. 7.
    """

    steps: int = 50
    quadrature: str = "gauss_legendre"
    baseline: Baseline = "black"

    def __post_init__(self) -> None:
        quadrature(self.quadrature, self.steps)

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        rule = quadrature(self.quadrature, self.steps)
        difference = x - (baseline := make_baseline(self.baseline, x))
        points = (baseline + alpha * difference for alpha in rule.nodes)
        gradients = each_copy(lambda rows, classes: input_gradient(model, rows, classes), points, target)
        mean = torch.zeros_like(x)
        for weight, (grad, _) in zip(rule.weights, gradients, strict=True):
            mean += weight * grad
        return difference * mean

    def expected_sum(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return score_difference(model, x, make_baseline(self.baseline, x), target)


@dataclass(frozen=True)
class AdaptiveIntegratedGradients(Explainer):
    """Integrated gradients with as many steps as each image needs: until the sum is within `tolerance` of f(x) - f(x').

    Every gradient pass also returns the score at its point, so the error of the trapezoidal rule is known exactly on each piece of the
    path. The path begins in `first_steps` equal pieces; then the piece that drives the error of the sum most is halved, image by image, and
    images that are done are evaluated no more. An image that still misses the tolerance after `max_steps` evaluations keeps the map it has;
    its completeness error tells.

    The tolerance bounds the sum, not the map: on CIFAR ResNets about 13 evaluations reach 1 %, and the map is then as far from the limit as
    one of 12 or 13 fixed steps (9 %; 50 steps: 2.5 %).

    Args:
        tolerance: of |sum - (f(x) - f(x'))| relative to |f(x) - f(x')|, in (0, 1).
        first_steps: pieces to begin with; they take `first_steps` + 1 evaluations.
        max_steps: the most gradient evaluations that one image gets.
        baseline: x' (see `make_baseline`).

    Raises:
        UserError: if a parameter is out of range.

    Source: Sundararajan et al. 2017, Eq. 1, and their completeness axiom. The refinement is ours.
    """

    tolerance: float = 0.01
    first_steps: int = 8
    max_steps: int = 100
    baseline: Baseline = "black"

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise UserError(f"tolerance must be a fraction in (0, 1), got {self.tolerance}")
        if self.first_steps < 1 or self.max_steps <= self.first_steps:
            raise UserError(
                f"first_steps must be in 1..max_steps-1, got {self.first_steps} with max_steps {self.max_steps}"
            )

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        difference = x - (baseline := make_baseline(self.baseline, x))
        mean = torch.empty_like(x)

        def slope(grad: Tensor, rows: Tensor) -> Tensor:
            return (grad * difference[rows]).sum((1, 2, 3), dtype=torch.float64)

        rows = torch.arange(len(x), device=x.device)  # the images that still miss the tolerance
        points = (baseline + alpha * difference for alpha in torch.linspace(0, 1, self.first_steps + 1).tolist())
        evaluated = list(each_copy(lambda points, classes: input_gradient(model, points, classes), points, target))
        gradients = [grad for grad, _ in evaluated]
        path = Partition.uniform(
            torch.stack([score.double() for _, score in evaluated], 1),
            torch.stack([slope(grad, rows) for grad in gradients], 1),
        )
        while True:
            missing = path.errors().sum(1).abs() > self.tolerance * path.total().abs()
            done = ~missing if len(gradients) < self.max_steps else torch.ones_like(missing)
            if done.any():
                weights = path.weights()[done].to(x.dtype)[:, :, None, None, None]
                mean[rows[done]] = sum(weights[:, k] * grad[done] for k, grad in enumerate(gradients))
                rows, path, gradients = rows[~done], path.rows(~done), [grad[~done] for grad in gradients]
            if len(rows) == 0:
                return difference * mean
            interval, alpha = path.worst()
            with noise_rows(rows):
                point = baseline[rows] + alpha.to(x.dtype)[:, None, None, None] * difference[rows]
                grad, score = input_gradient(model, point, target[rows])
            path = path.split(interval, alpha, score.double(), slope(grad, rows))
            gradients.append(grad)

    def expected_sum(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return score_difference(model, x, make_baseline(self.baseline, x), target)
