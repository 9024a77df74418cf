"""The engine behind sensitivities: explain the image again after small keyed steps of the input, and remember how the map moved.

One pass over the draws serves every metric that asks for the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from explainode.attribution import Explanation
from explainode.errors import UserError
from explainode.metrics.units import normalization
from explainode.randomness import sample_keys, uniform_like

ROWS = 64  # perturbed images explained together where the batch is smaller
STREAM = "input perturbation"


@dataclass(frozen=True)
class Steps:
    """Small random steps of the input.

    Attributes:
        radius: each value moves by U(-radius, radius).
        draws: how many steps.
        units: of the radius: "pixel" (of [0, 1]) or "network" (after the network's normalization, where captum and Jha et al. 2021 perturb).
    """

    radius: float = 0.02
    draws: int = 10
    units: str = "pixel"

    def __post_init__(self) -> None:
        if not self.radius >= 0:
            raise UserError(f"radius must not be negative, got {self.radius}; 0.02 is usual")
        if self.draws < 1:
            raise UserError(f"at least one draw is needed, got {self.draws}; 10 is usual")
        if self.units not in ("pixel", "network"):
            raise UserError(f"units must be 'pixel' or 'network', got {self.units!r}")


def scale(explanation: Explanation, units: str) -> Tensor | float:
    """What one unit is in pixels: 1, or the normalization's std (C, 1, 1)."""
    return 1.0 if units == "pixel" else normalization(explanation.model, explanation.x)[1]


def perturbation(explanation: Explanation, steps: Steps, draw: int) -> Tensor:
    """(B, C, H, W) step number `draw`, in the units of `steps`, keyed by (seed, sample id, draw): the same for any batch or explainer."""
    keys = sample_keys(explanation.sample_ids.to(explanation.x.device), explanation.seed, STREAM, draw, 0)
    return uniform_like(explanation.x, keys).mul_(2 * steps.radius).sub_(steps.radius)


def perturbed(explanation: Explanation, steps: Steps, draw: int) -> Tensor:
    """(B, C, H, W) pixels of x after step number `draw`; not clamped to [0, 1], as in captum."""
    return explanation.x + perturbation(explanation, steps, draw) * scale(explanation, steps.units)


@dataclass(frozen=True)
class Movement:
    """How the attribution moved at each draw: all (draws, B).

    Attributes:
        distance: L2 norm of A(x') - A(x).
        total: sum of A(x') - A(x) over all elements.
    """

    distance: Tensor
    total: Tensor


def movement(explanation: Explanation, steps: Steps) -> Movement:
    """Under the record's own noise (common random numbers): exactly one further explanation per image and draw."""

    def compute() -> Movement:
        batch = len(explanation)
        group = max(1, ROWS // batch)
        distance, total = [], []
        for first in range(0, steps.draws, group):
            draws = range(first, min(first + group, steps.draws))
            x = torch.cat([perturbed(explanation, steps, draw) for draw in draws])
            rows = torch.arange(batch, device=x.device).repeat(len(draws))
            moved = explanation.explain(x, rows=rows).unflatten(0, (len(draws), batch)) - explanation.attribution
            distance.append(moved.flatten(2).norm(dim=2))
            total.append(moved.flatten(2).sum(2))
        return Movement(torch.cat(distance), torch.cat(total))

    return explanation.memo(("movement", steps), compute)


def fresh_distance(explanation: Explanation, steps: Steps, still: bool) -> Tensor:
    """(draws, B) L2 distances to A(x) when each draw has its own noise path; `still` leaves x where it is (what noise alone does)."""

    def compute() -> Tensor:
        distance = []
        for draw in range(steps.draws):
            x = explanation.x if still else perturbed(explanation, steps, draw)
            moved = explanation.explain(x, draw=draw + 1) - explanation.attribution  # draw 0 is the record's own path
            distance.append(moved.flatten(1).norm(dim=1))
        return torch.stack(distance)

    return explanation.memo(("fresh distance", steps, still), compute)
