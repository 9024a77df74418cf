"""What an explanation costs."""

from __future__ import annotations

import torch
from torch import Tensor

from explainode.attribution import Explanation
from explainode.metrics.base import ExplanationMetric


class Cost(ExplanationMetric):
    """Forwards, backwards and seconds per image that the explainer took; passes are counted, not estimated.

    Seconds are wall time of the batch divided by its images, so they depend on machine and batch size; passes do not.

    Shapes:
        compute(): three scalars, >= 0.
    """

    columns = ("forwards", "backwards", "seconds")
    higher_is_better = False
    role = "cost"
    kind = "cost"

    def measure(self, explanation: Explanation) -> Tensor:
        total = torch.tensor([explanation.forwards, explanation.backwards, explanation.seconds], dtype=torch.float64)
        return (total / len(explanation)).expand(len(explanation), -1)
