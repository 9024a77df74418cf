"""The nearest decision boundary, as if the network were linear, again and again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from explainode.attacks.base import Attack, AttackResult, Forward, input_gradient
from explainode.errors import UserError


@dataclass(frozen=True)
class DeepFool(Attack):
    """Steps to the nearest boundary of the linearized network until the prediction leaves `target`: a small perturbation in L2.

    With f_k the logits, f_0 that of `target`, w_k the gradient of f_k - f_0: l = argmin |f_k - f_0| / ||w_k||,
    r <- r + |f_l - f_0| / ||w_l||^2 w_l, and x + (1 + overshoot) r is tried next.

    Args:
        steps: at most so many.
        overshoot: the share by which the boundary is crossed.
        classes: only so many of the likeliest other classes are looked at (all where the network has fewer).

    Costs up to `steps` forwards and (classes + 1) times as many backwards.

    Source: Moosavi-Dezfooli et al. 2016, Algorithm 2 and its code (50 steps, 0.02, 10 classes). We clip to [0, 1], which the code does not, and
    then look for the nearest boundary among the directions that are left.
    """

    steps: int = 50
    overshoot: float = 0.02
    classes: int = 9

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"at least one step is needed, got {self.steps}; 50 is usual")
        if not self.overshoot >= 0:
            raise UserError(f"overshoot must not be negative, got {self.overshoot}; 0.02 is usual")
        if self.classes < 1:
            raise UserError(f"at least one other class must be looked at, got {self.classes}; 9 is usual")

    def attack(self, forward: Forward, x: Tensor, target: Tensor, allowed: Tensor | None) -> AttackResult:
        adversarial, total = x.clone(), torch.zeros_like(x)
        steps = torch.full_like(target, self.steps)
        success = torch.zeros_like(target, dtype=torch.bool)
        alive = torch.arange(len(x), device=x.device)
        others = None  # (B, classes): the likeliest classes of the clean images, as in the paper's code
        for step in range(self.steps + 1):
            last = step == self.steps
            current = adversarial[alive].requires_grad_(not last)
            with torch.set_grad_enabled(not last):
                logits = forward(current, alive)
            if others is None:
                count = min(self.classes, logits.shape[1] - 1)
                others = logits.detach().scatter(1, target[:, None], -torch.inf).topk(count, dim=1).indices
            flipped = logits.argmax(1) != target[alive]
            success[alive[flipped]] = True
            steps[alive[flipped]] = step
            going = torch.nonzero(~flipped)[:, 0]
            if last or not len(going):
                break
            r = self._nearest(
                logits, current, target[alive], others[alive], allowed if allowed is None else allowed[alive]
            )[going]
            alive = alive[going]
            total[alive] += r
            adversarial[alive] = (x[alive] + (1 + self.overshoot) * total[alive]).clamp(0, 1)
        return AttackResult(adversarial, success, steps)

    def _nearest(self, logits: Tensor, x: Tensor, target: Tensor, others: Tensor, allowed: Tensor | None) -> Tensor:
        """(A, C, H, W) step to the nearest boundary of the linearized network."""
        own = logits.gather(1, target[:, None])[:, 0]
        distance = torch.full_like(own, torch.inf).detach()
        step = torch.zeros_like(x).detach()
        for k in range(others.shape[1]):
            gap = logits.gather(1, others[:, k : k + 1])[:, 0] - own
            w = input_gradient(gap, x, keep=True)
            if allowed is not None:
                w = w * allowed
            w = w.masked_fill(
                ((x <= 0) & (w < 0)) | ((x >= 1) & (w > 0)), 0
            )  # a value at the end of its range cannot go on
            squared = w.flatten(1).square().sum(1).clamp(min=1e-24)
            here = gap.detach().abs() / squared.sqrt()
            nearer = here < distance
            distance = torch.where(nearer, here, distance)
            r = (gap.detach().abs() / squared).view(-1, 1, 1, 1) * w
            step = torch.where(nearer.view(-1, 1, 1, 1), r, step)
        return step
