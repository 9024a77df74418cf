"""Does the attribution add up to what it promises?"""

from __future__ import annotations

import torch
from torch import Tensor

from explainode.attribution import Explanation
from explainode.metrics.base import ExplanationMetric


class CompletenessError(ExplanationMetric):
    """|sum of the attribution - what it should add up to|: lower is better; images of methods that define no sum are excluded.

    Results: the headline in units of the explained score; `relative` to the size of what it should add up to, excluded where that is 0.

    Shapes:
        compute(): two scalars, >= 0. Costs nothing: the record carries the error.

    Source: Sundararajan et al. 2017 (completeness); Jha et al. 2021, Eq. 8.
    """

    columns = ("", "relative")
    higher_is_better = False
    role = "completeness"
    kind = "completeness_error"

    def measure(self, explanation: Explanation) -> Tensor:
        error = explanation.completeness_error
        if error is None:
            return torch.full((len(explanation), 2), torch.nan)
        expected = explanation.attribution.flatten(1).sum(1) - error
        relative = torch.where(expected == 0, torch.nan, error.abs() / expected.abs())
        return torch.stack((error.abs(), relative), dim=1)
