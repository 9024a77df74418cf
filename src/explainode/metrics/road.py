"""ROAD: remove pixels so that the hole itself says nothing, and debias both orders against each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from explainode.attribution import Explanation
from explainode.metrics.perturbation import check_percent
from explainode.metrics.points import ScoreAtPoints


class ROAD(ScoreAtPoints):
    """Half the gap between the score without the least and without the most relevant pixels, holes filled by noisy linear interpolation.

    Results: the headline, mean over `percent` of (f(least removed) - f(most removed)) / 2, higher is better; `morf`, the mean score
    with the most relevant removed first, lower is better; `lerf`, with the least relevant, higher is better.

    Args:
        percent: of pixels removed, ascending.
        baseline: how pixels are replaced; "inpaint" is ROAD's, others show what the filling changes.
        reduction, score, target, ties: see `ScoreAtPoints`.

    Shapes:
        compute(): three scalars; the headline in [-1/2, 1/2] for probabilities. Costs 2 * len(percent) forwards per image.

    Source: Rong et al. 2022; combined as in pytorch-grad-cam's `ROADCombined`. We count pixels (ties in raster order) where it
    cuts by percentile, which removes all zeros of a ReLU map at once; the paper reports accuracy, We follow the score; noise is keyed.
    """

    columns = ("", "morf", "lerf")
    higher_is_better = {"": True, "morf": False, "lerf": True}
    role = "faithfulness"
    kind = "road"

    def __init__(
        self,
        percent: Sequence[float] = (10, 20, 30, 40, 50, 60, 70, 80, 90),
        baseline: str = "inpaint",
        reduction: str = "sum",
        score: str = "probability",
        target: str = "predicted",
        ties: str = "raster",
    ) -> None:
        self.percent = check_percent(percent, 0.01, 99.99)
        super().__init__(percent, baseline, reduction, score, target, ties)

    def measure(self, explanation: Explanation) -> Tensor:
        morf = self.followed(explanation, self.without_most(explanation)).mean(1)
        lerf = self.followed(explanation, self.without_least(explanation)).mean(1)
        return torch.stack(((lerf - morf) / 2, morf, lerf), 1)
