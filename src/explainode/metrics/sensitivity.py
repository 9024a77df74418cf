"""How far the explanation moves when the image hardly does."""

from __future__ import annotations

import torch
from torch import Tensor

from explainode.attribution import Explanation
from explainode.errors import UserError
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.input_perturbation import Steps, fresh_distance, movement


class MaxSensitivity(ExplanationMetric):
    """Largest relative change of the attribution under small uniform steps of the input: lower is more robust.

    max over draws of ||A(x') - A(x)|| / ||A(x)|| (L2; a zero map is divided by 1), x' = x + U(-radius, radius).

    Results: the headline keeps the record's own noise for all draws (common random numbers), so it measures the input alone; `fresh` gives
    each draw its own noise path, as the papers do; `floor` does so at radius 0: what noise alone moves, to be read beside `fresh`.
    Where nothing is stochastic, `fresh` equals the headline and `floor` is 0 by definition, and neither costs anything.

    Args:
        radius, draws, units: of the steps, see `input_perturbation.Steps`.
        repetitions: the mean of so many maxima over `draws` new steps each (paper 001 repeats 5 times).

    Shapes:
        compute(): three scalars, >= 0. Costs draws * repetitions explanations per image, three times as many where noise speaks.

    Source: Yeh et al. 2019, Def. 2, as captum's `sensitivity_max` reads it (0.9: 10 draws, 0.02, L2); paper 001, Tables 1-3.
    We do not clamp x' to [0, 1]; captum does not either.
    """

    columns = ("", "fresh", "floor")
    higher_is_better = {"": False, "fresh": False, "floor": None}
    kind = "max_sensitivity"

    def __init__(self, radius: float = 0.02, draws: int = 10, units: str = "pixel", repetitions: int = 1) -> None:
        self.radius, self.draws, self.units, self.repetitions = radius, draws, units, repetitions
        if repetitions < 1:
            raise UserError(f"at least one repetition is needed, got {repetitions}; paper 001 takes 5")
        if draws < 1:
            raise UserError(f"at least one draw is needed, got {draws}; 10 is usual")
        self.steps = Steps(radius, draws * repetitions, units)
        super().__init__()

    def measure(self, explanation: Explanation) -> Tensor:
        norm = explanation.attribution.flatten(1).norm(dim=1)
        norm = torch.where(norm == 0, torch.ones_like(norm), norm)

        def worst(distance: Tensor) -> Tensor:
            return (distance / norm).unflatten(0, (self.repetitions, self.draws)).amax(1).mean(0)

        common = worst(movement(explanation, self.steps).distance)
        if not explanation.stochastic:
            return torch.stack((common, common, common * 0), dim=1)
        fresh = worst(fresh_distance(explanation, self.steps, still=False))
        floor = worst(fresh_distance(explanation, self.steps, still=True))
        return torch.stack((common, fresh, floor), dim=1)

    def settings(self) -> tuple[str, ...]:
        repeated = (f"{self.repetitions}x",) if self.repetitions > 1 else ()
        return f"r{self.radius:g}", f"n{self.draws}", self.units, *repeated
