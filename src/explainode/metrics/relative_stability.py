"""How far a map moves relative to what moved it: the input, or the network's own output."""

from __future__ import annotations

import torch
from torch import Tensor

from explainode.attribution import Explanation
from explainode.metrics.input_perturbation import perturbed
from explainode.metrics.small_steps import SmallSteps

SMALL = 0.1  # of the mean size of the values: smaller ones count as that, or a single value near 0 would be all that is measured
LEAST = 1e-2  # of a relative change: below, a ratio to it is made of rounding


class RelativeStability(SmallSteps):
    """Largest ratio of the relative change of the attribution to that of the input, over small steps that keep the predicted class: lower is more stable.

    Relative changes are ||(a' - a) / a||, elementwise; where |a| is less than a tenth of its mean, it counts as that.

    Results: the headline, relative to the input; `output`, relative to the logits. Images of which every step changes the class are excluded.

    Args:
        radius, draws, units: of the steps, see `input_perturbation.Steps`. The radius must not be 0.

    Shapes:
        compute(): two scalars, >= 0. Costs `draws` explanations and forwards per image.

    Source: Agarwal et al. 2022 (relative input and output stability), Eq. 2 and 5. We floor |a| where they add a constant, so that
    the number does not depend on a map's scale; their third, of representations, asks for a layer.
    """

    columns = ("", "output")
    higher_is_better = False
    role = "sensitivity"
    kind = "relative_stability"
    over_length = True

    def measure(self, explanation: Explanation) -> Tensor:
        worst = torch.full((2, len(explanation)), -torch.inf, dtype=torch.float64)
        predicted = explanation.logits.argmax(1)
        for draw in range(self.draws):
            x = perturbed(explanation, self.steps, draw)
            logits = explanation.forward(x)
            moved = _relative(explanation.attribution, explanation.explain(x))
            same = (logits.argmax(1) == predicted).cpu()
            for column, before, after in ((0, explanation.x, x), (1, explanation.logits, logits)):
                ratio = (moved / _relative(before, after).clamp(min=LEAST)).cpu()
                worst[column] = torch.where(same, torch.maximum(worst[column], ratio), worst[column])
        return torch.where(torch.isneginf(worst), torch.nan, worst).T


def _relative(before: Tensor, after: Tensor) -> Tensor:
    """(B,) float64 norms of the relative change; NaN where either is not finite."""
    a, b = before.flatten(1).double(), after.flatten(1).double()
    size = torch.maximum(a.abs(), SMALL * a.abs().mean(1, keepdim=True))
    return ((b - a) / torch.where(size > 0, size, 1.0)).norm(dim=1)
