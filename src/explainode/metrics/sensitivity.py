"""How far the explanation moves when the image hardly does."""

from __future__ import annotations

import torch
from torch import Tensor

from explainode.attribution import Explanation
from explainode.errors import UserError
from explainode.metrics.input_perturbation import Steps, fresh_distance, movement, perturbation
from explainode.metrics.small_steps import SmallSteps


class Sensitivity(SmallSteps):
    """Relative change of the attribution under small uniform steps of the input: the skeleton of maximum and mean. Lower is more robust.

    ||A(x') - A(x)|| / ||A(x)|| (L2; a zero map is divided by 1), x' = x + U(-radius, radius).

    Results: the headline keeps the record's own noise for all draws (common random numbers), so it measures the input alone; `fresh` gives
    each draw its own noise path, as the papers do; `floor` does so at radius 0: what noise alone moves, to be read beside `fresh`.
    Where nothing is stochastic, `fresh` equals the headline and `floor` is 0 by definition, and neither costs anything.

    Metrics with the same steps share one pass.
    """

    columns = ("", "fresh", "floor")
    higher_is_better = {"": False, "fresh": False, "floor": None}  # type: ignore[assignment]

    def over_draws(self, distance: Tensor) -> Tensor:
        """(draws, B) relative distances -> (B,)."""
        raise NotImplementedError

    def measure(self, explanation: Explanation) -> Tensor:
        norm = explanation.attribution.flatten(1).norm(dim=1)
        norm = torch.where(norm == 0, torch.ones_like(norm), norm)
        common = self.over_draws(movement(explanation, self.steps).distance / norm)
        if not explanation.stochastic:
            return torch.stack((common, common, common * 0), dim=1)
        fresh = self.over_draws(fresh_distance(explanation, self.steps, still=False) / norm)
        floor = self.over_draws(fresh_distance(explanation, self.steps, still=True) / norm)
        return torch.stack((common, fresh, floor), dim=1)


class MaxSensitivity(Sensitivity):
    """Largest relative change of the attribution over the draws.

    Args:
        radius, draws, units: of the steps, see `input_perturbation.Steps`.
        repetitions: the mean of so many maxima over `draws` new steps each (Jha et al. 2021 repeats 5 times).

    Shapes:
        compute(): three scalars, >= 0. Costs draws * repetitions explanations per image, three times as many where noise speaks.

    Source: Yeh et al. 2019, Def. 2, as captum's `sensitivity_max` reads it (0.9: 10 draws, 0.02, L2); Jha et al. 2021, Tables 1-3.
    We do not clamp x' to [0, 1]; captum does not either.
    """

    role = "sensitivity"
    kind = "max_sensitivity"

    def __init__(self, radius: float = 0.02, draws: int = 10, units: str = "pixel", repetitions: int = 1) -> None:
        self.repetitions = repetitions
        if repetitions < 1:
            raise UserError(f"at least one repetition is needed, got {repetitions}; Jha et al. 2021 takes 5")
        super().__init__(radius, draws, units)
        self.steps = Steps(radius, draws * repetitions, units)

    def over_draws(self, distance: Tensor) -> Tensor:
        return distance.unflatten(0, (self.repetitions, self.draws)).amax(1).mean(0)

    def settings(self) -> tuple[str, ...]:
        return *super().settings(), *((f"{self.repetitions}x",) if self.repetitions > 1 else ())


class MeanSensitivity(Sensitivity):
    """Mean relative change of the attribution over the draws: unlike the maximum it does not grow with their number.

    Args:
        radius, draws, units: of the steps, see `input_perturbation.Steps`.

    Shapes:
        compute(): three scalars, >= 0. Costs `draws` explanations per image, none beside `MaxSensitivity` with as many steps.

    Source: Bhatt et al. 2020 (average sensitivity); Quantus' `AvgSensitivity`. We divide by ||A(x)|| as captum does for the maximum.
    """

    role = "sensitivity"
    kind = "mean_sensitivity"

    def over_draws(self, distance: Tensor) -> Tensor:
        return distance.mean(0)


class LocalLipschitz(SmallSteps):
    """||A(x') - A(x)|| / ||x' - x|| for the worst of `draws` steps x', all in L2: lower is more robust.

    In units of the attribution per unit of input: compare maps of one method; `relative`, divided by ||A(x)||, compares methods.
    With the steps of `MaxSensitivity` both share one pass.

    Args:
        radius, draws, units: of the steps, see `input_perturbation.Steps`; ||x' - x|| is in the same units. The radius must not be 0.

    Shapes:
        compute(): two scalars, >= 0. Costs `draws` explanations per image.

    Source: Alvarez-Melis and Jaakkola 2018. We take the worst of random steps; they optimize over the ball.
    """

    columns = ("", "relative")
    higher_is_better = False
    role = "sensitivity"
    kind = "local_lipschitz"
    over_length = True

    def measure(self, explanation: Explanation) -> Tensor:
        length = torch.stack(
            [perturbation(explanation, self.steps, draw).flatten(1).norm(dim=1) for draw in range(self.draws)]
        )
        worst = (movement(explanation, self.steps).distance / length).amax(0)
        norm = explanation.attribution.flatten(1).norm(dim=1)
        return torch.stack((worst, worst / torch.where(norm == 0, torch.ones_like(norm), norm)), 1)
