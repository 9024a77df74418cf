"""Any number that a method says about its own attribution, as a row of the table."""

from __future__ import annotations

import torch
from torch import Tensor

from explainode.attribution import Explanation
from explainode.errors import UserError
from explainode.metrics.base import ExplanationMetric

DIRECTIONS = {"lower": False, "higher": True, "none": None}


class Diagnostic(ExplanationMetric):
    """The mean over images of one number that the explainer recorded beside each attribution, and the mean of its size.

    Methods that record no number of this name are excluded, image by image, as are numbers that are NaN.

    Results: the headline is the mean; `absolute`, the mean of |number|, in which errors of both signs do not cancel.

    Args:
        name: of the number in `Explanation.diagnostics`.
        better: "lower", "higher" or "none", for both results.

    Shapes:
        compute(): two scalars. Costs nothing: the record carries the number.

    Raises:
        UserError: for an empty name or another direction.
    """

    columns = ("", "absolute")
    role = "diagnostic"
    kind = "diagnostic"

    def __init__(self, name: str = "kappa", better: str = "lower") -> None:
        if not name:
            raise UserError("a diagnostic needs the name of a number that explainers record, such as name=kappa")
        if better not in DIRECTIONS:
            raise UserError(f"better must be lower, higher or none, got {better!r}")
        self.name = name
        self.better = better
        super().__init__()

    def direction(self, result: str = "") -> bool | None:
        return DIRECTIONS[self.better]

    def measure(self, explanation: Explanation) -> Tensor:
        found = explanation.diagnostics.get(self.name)
        if found is None:
            return torch.full((len(explanation), 2), torch.nan)
        return torch.stack((found, found.abs()), 1)

    def settings(self) -> tuple[str, ...]:
        return (self.name,)
