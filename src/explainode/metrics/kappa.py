"""How far the surrogate that explained is from the network that it stands for."""

from __future__ import annotations

import torch
from torch import Tensor

from explainode.attribution import Explanation
from explainode.metrics.base import ExplanationMetric


class Kappa(ExplanationMetric):
    """Distance of a surrogate's class probabilities from the network's, in [0, sqrt 2]: lower is better.

    The explainer recorded it with each attribution; images of methods that explain the network itself are excluded.

    Shapes:
        compute(): one scalar. Costs nothing: the record carries the number.

    Source: Lei et al. 2023, Definition 2.
    """

    higher_is_better = False
    role = "diagnostic"
    kind = "kappa"

    def measure(self, explanation: Explanation) -> Tensor:
        found = explanation.diagnostics.get("kappa")
        return torch.full((len(explanation), 1), torch.nan) if found is None else found[:, None].float()
