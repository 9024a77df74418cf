"""Attacks that follow the gradient of the loss inside a ball: one step, many steps, many steps on the values that a heat map points at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from explainode.attacks.base import Attack, AttackResult, Forward, _check_map, input_gradient
from explainode.attribution import rank_pixels
from explainode.errors import UserError
from explainode.randomness import input_keys, normal_like, uniform, uniform_like


def _check_budget(epsilon: float, alpha: float, steps: int) -> None:
    if not epsilon >= 0:
        raise UserError(f"epsilon must not be negative, got {epsilon}; 8/255 = 0.0314 is usual")
    if not alpha > 0:
        raise UserError(f"alpha must be positive, got {alpha}; 2.5 * epsilon / steps is usual")
    if steps < 1:
        raise UserError(f"at least one step is needed, got {steps}; 20 is usual")


def _norm(x: Tensor) -> Tensor:
    """(B, 1, 1, 1) L2 norms, never 0."""
    return x.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient ascent on the cross entropy of `target` inside a ball around x, clipped to [0, 1].

    linf: delta <- clip(delta + alpha sign(g), -epsilon, epsilon); l2: delta <- project(delta + alpha g / ||g||), g the gradient at x + delta.
    With an `allowed` mask M the gradient is g * M: an l0 ball whose support is given.

    Args:
        epsilon: radius of the ball, in pixel units ([0, 1]).
        alpha: length of a step, in pixel units.
        steps: at most so many.
        norm: "linf" or "l2".
        random_start: begin at a keyed random point of the ball (linf: uniform; l2: a random direction and a uniform length).
        stop: freeze an image as soon as its prediction leaves `target`; otherwise all images take all steps, and the last point counts.

    Costs at most `steps` forwards and backwards and one forward more.

    Source: Madry et al. 2018; Kurakin et al. 2017 (no random start).
    """

    epsilon: float = 8 / 255
    alpha: float = 1 / 255
    steps: int = 20
    norm: str = "linf"
    random_start: bool = False
    stop: bool = True

    def __post_init__(self) -> None:
        _check_budget(self.epsilon, self.alpha, self.steps)
        if self.norm not in ("linf", "l2"):
            raise UserError(f"norm must be 'linf' or 'l2', got {self.norm!r}")

    def attack(self, forward: Forward, x: Tensor, target: Tensor, allowed: Tensor | None) -> AttackResult:
        adversarial = self._start(x, allowed) if self.random_start else x.clone()
        steps = torch.full_like(target, self.steps)
        success = torch.zeros_like(target, dtype=torch.bool)
        flipped_before = torch.zeros_like(success)
        alive = torch.arange(len(x), device=x.device)
        for step in range(self.steps + 1):
            last = step == self.steps
            current = adversarial[alive].requires_grad_(not last)
            with torch.set_grad_enabled(not last):
                logits = forward(current, alive)
            success[alive] = flipped = logits.argmax(1) != target[alive]
            steps[alive[flipped & ~flipped_before[alive]]] = step
            flipped_before[alive[flipped]] = True
            if last:
                break
            going = torch.nonzero(~flipped)[:, 0] if self.stop else torch.arange(len(alive), device=x.device)
            if not len(going):
                break
            g = input_gradient(F.cross_entropy(logits[going], target[alive[going]], reduction="none"), current)[going]
            alive = alive[going]
            adversarial[alive] = self._step(
                x[alive], current[going].detach(), g, None if allowed is None else allowed[alive]
            )
        steps[~success] = self.steps  # without `stop` an image may flip and come back
        return AttackResult(adversarial, success, steps)

    def _step(self, x: Tensor, current: Tensor, g: Tensor, allowed: Tensor | None) -> Tensor:
        if allowed is not None:
            g = g * allowed
        if self.norm == "linf":
            delta = (current - x + self.alpha * g.sign()).clamp(-self.epsilon, self.epsilon)
        else:
            delta = current - x + self.alpha * g / _norm(g)
            delta = delta * (self.epsilon / _norm(delta)).clamp(max=1)
        return (x + delta).clamp(0, 1)

    def _start(self, x: Tensor, allowed: Tensor | None) -> Tensor:
        if self.norm == "linf":
            delta = self.epsilon * (2 * uniform_like(x, input_keys(x, "pgd start", 0)) - 1)
        else:
            delta = normal_like(x, input_keys(x, "pgd start", 0))
        if allowed is not None:
            delta = delta * allowed
        if self.norm == "l2":
            delta = (
                delta
                / _norm(delta)
                * self.epsilon
                * uniform(input_keys(x, "pgd length", 0), 1).to(x.dtype)[:, :, None, None]
            )
        return (x + delta).clamp(0, 1)


@dataclass(frozen=True)
class FGSM(Attack):
    """One step of length epsilon along the sign of the loss' gradient: x + epsilon sign(g), clipped to [0, 1].

    Args:
        epsilon: length of the step, in pixel units.

    Source: Goodfellow et al. 2015.
    """

    epsilon: float = 8 / 255

    def __post_init__(self) -> None:
        _check_budget(self.epsilon, 1.0, 1)

    def attack(self, forward: Forward, x: Tensor, target: Tensor, allowed: Tensor | None) -> AttackResult:
        one_step = PGD(self.epsilon, max(self.epsilon, 1e-12), steps=1)  # a step as long as the ball is wide
        return one_step.attack(forward, x, target, allowed)


def top_values(relevance: Tensor, x: Tensor, top: int, unit: str = "value") -> Tensor:
    """(B, C, H, W) bool: the `top` values of x with the highest signed relevance, ties by index.

    Args:
        relevance: (B, C or 1, h, w), not NaN; brought to the size of x, one channel stands for all.
        unit: "value" ranks the C*H*W values; "pixel" ranks places by their sum over channels and opens all channels of each.
    """
    if relevance.shape[-2:] != x.shape[-2:]:
        relevance = F.interpolate(relevance, size=x.shape[-2:], mode="bilinear", align_corners=False)
    batch, channels, height, width = x.shape
    ranked = relevance.sum(1, keepdim=True) if unit == "pixel" else relevance.expand(-1, channels, -1, -1)
    order = rank_pixels(ranked.flatten(1, 2))[:, :top]
    mask = torch.zeros(batch, ranked[0].numel(), dtype=torch.bool, device=x.device).scatter_(1, order, True)
    return mask.view(batch, ranked.shape[1], height, width).expand(-1, channels, -1, -1)


@dataclass(frozen=True)
class GuidedPGD(PGD):
    """PGD that may change only the values which a heat map ranks highest: how well does the map say where the network can be hurt?

    The fourth argument of the call is the relevance map (B, C or 1, h, w), signed and unnormalized, instead of a mask.

    Args:
        top: how many values (or pixels) may change.
        unit: "value": of the C*H*W numbers of an image; "pixel": places, all channels of each.

    Source: root inference (anonymous), Table 2: 500 of 224*224*3, 8/255, at most 20 iterations, stop at a wrong prediction. The paper says
    "pixels" but counts 500 / 150528 = 0.003, so values. It does not give alpha: We take epsilon / 8 = 1/255, and it belongs beside
    every number, since the number of steps is mostly a function of it. No random start: the set of changed values would not be the map's.
    """

    top: int = 500
    unit: str = "value"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top < 1:
            raise UserError(
                f"at least one value must be open to the attack, got top={self.top}; the root inference paper opens 500"
            )
        if self.unit not in ("value", "pixel"):
            raise UserError(f"unit must be 'value' or 'pixel', got {self.unit!r}")

    def permitted(self, x: Tensor, allowed: Tensor | None) -> Tensor:
        """The mask of the highest relevance.

        Raises:
            UserError: without a map, or with one of another shape or with NaN.
        """
        if allowed is None:
            raise UserError(
                "GuidedPGD needs a relevance map as its fourth argument, got None; take PGD for an attack without one"
            )
        if not allowed.is_floating_point():
            raise UserError(
                f"the relevance map must be a float tensor, got {str(allowed.dtype).removeprefix('torch.')}; PGD takes masks"
            )
        if allowed.dim() != 4 or len(allowed) != len(x) or allowed.shape[1] not in (1, x.shape[1]):
            raise UserError(
                f"the relevance map must have shape ({len(x)}, {x.shape[1]} or 1, h, w), got {tuple(allowed.shape)}"
            )
        if bool(torch.isnan(allowed).any()):
            raise UserError("the relevance map holds NaN, which has no rank; leave these images out")
        mask = top_values(allowed.detach().to(x.device), x, self.top, self.unit)
        _check_map(x, mask)
        return mask
