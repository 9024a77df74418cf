"""Theorem 1 of Jha et al. 2021, measured: how much the total attribution and the output change for the worst of several small steps."""

from __future__ import annotations

import torch
from torch import Tensor

from explainode.attribution import Explanation
from explainode.metrics.input_perturbation import ROWS, movement, perturbation, perturbed
from explainode.metrics.small_steps import SmallSteps


class TotalAttributionChange(SmallSteps):
    """|sum_k (A_k(x') - A_k(x))| for the worst of `draws` steps x': lower is more robust.

    In the units of the explained score: a net with larger logits changes more, so compare nets of similar scale or read `ExpansionRatio`.
    With the steps of `MaxSensitivity` both share one pass.

    Args:
        radius, draws, units: of the steps, see `input_perturbation.Steps`.

    Shapes:
        compute(): (), >= 0. Costs `draws` explanations per image.

    Source: Jha et al. 2021, Theorem 1 and Eq. 9. We take the worst of random steps; the theorem's worst case is over all inputs.
    """

    higher_is_better = False
    role = "sensitivity"
    kind = "total_attribution_change"

    def measure(self, explanation: Explanation) -> Tensor:
        return movement(explanation, self.steps).total.abs().amax(0)[:, None]


class ExpansionRatio(SmallSteps):
    """||F(x') - F(x)|| / ||x' - x|| for the worst of `draws` steps x', F the logits: lower is more robust.

    Results: the headline over all logits; `score` with the explained logit alone, whose change is what a complete attribution's total
    changes by (Eq. 9). A property of the network and the target, computed once for all explainers of a batch.

    Args:
        radius, draws, units: of the steps, see `input_perturbation.Steps`; ||x' - x|| is in the same units. The radius must not be 0.

    Shapes:
        compute(): two scalars, >= 0. Costs `draws` forwards per image.

    Source: Jha et al. 2021, Eq. 11. We take the logits as the output representation F, which the paper does not fix.
    """

    columns = ("", "score")
    higher_is_better = False
    role = "sensitivity"
    kind = "expansion_ratio"
    over_length = True

    def measure(self, explanation: Explanation) -> Tensor:
        changes, lengths = explanation.memo(
            ("expansion", self.steps), lambda: self._expansion(explanation), shared=True
        )
        score = changes.gather(2, explanation.target[None, :, None].expand(len(changes), -1, 1))[..., 0]
        return torch.stack(((changes.norm(dim=2) / lengths).amax(0), (score.abs() / lengths).amax(0)), dim=1)

    def _expansion(self, explanation: Explanation) -> tuple[Tensor, Tensor]:
        """F(x') - F(x), (draws, B, K), and ||x' - x||, (draws, B)."""
        batch = len(explanation)
        group = max(1, ROWS // batch)
        changes = []
        for first in range(0, self.draws, group):
            draws = range(first, min(first + group, self.draws))
            x = torch.cat([perturbed(explanation, self.steps, draw) for draw in draws])
            rows = torch.arange(batch, device=x.device).repeat(len(draws))
            changes.append(explanation.forward(x, rows=rows).unflatten(0, (len(draws), batch)) - explanation.logits)
        lengths = [perturbation(explanation, self.steps, draw).flatten(1).norm(dim=1) for draw in range(self.draws)]
        return torch.cat(changes), torch.stack(lengths)
