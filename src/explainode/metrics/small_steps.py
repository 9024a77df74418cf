"""The skeleton of metrics that take small random steps of the input."""

from __future__ import annotations

from typing import ClassVar

from explainode.errors import UserError
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.input_perturbation import Steps


class SmallSteps(ExplanationMetric):
    """A metric of keyed steps; those of the same radius, number and units are shared by all metrics of a record.

    Args:
        radius, draws, units: see `input_perturbation.Steps`.

    Class attributes:
        over_length: the metric divides by the length of a step, so that the radius must not be 0.
    """

    over_length: ClassVar[bool] = False

    def __init__(self, radius: float = 0.02, draws: int = 10, units: str = "pixel") -> None:
        self.radius, self.draws, self.units = radius, draws, units
        self.steps = Steps(radius, draws, units)
        if self.over_length and radius == 0:
            raise UserError("radius must be positive: a ratio to a step of length 0 is undefined; 0.02 is usual")
        super().__init__()

    def settings(self) -> tuple[str, ...]:
        return f"r{self.radius:g}", f"n{self.draws}", self.units
