"""What the network loses without the most relevant pixels, and what it keeps with them alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from explainode.attribution import Explanation
from explainode.errors import UserError
from explainode.metrics.perturbation import check_percent
from explainode.metrics.points import PerturbationPoints, ScoreAtPoints


class AOPC(ScoreAtPoints):
    """Area over the perturbation curve: mean over k of f(x) - f(x without its k % most relevant pixels); higher is more faithful.

    Args:
        points: of the curve, from 0 to 100 %, end points included: k = 0 adds nothing to the sum, but counts in the mean.
        baseline, reduction, score, target, ties: see `ScoreAtPoints`.

    Shapes:
        compute(): (), in [-1, 1] for probabilities.

    Source: Samek et al. 2017: 1 / (L + 1) sum_{k=0}^{L}. We take away single pixels down to the baseline; they, 100 of the 9 x 9
    patches of a 227 x 227 image. With the whole grid it is the clean score minus the mean of the deletion curve.
    """

    higher_is_better = True
    role = "faithfulness"
    kind = "aopc"

    def __init__(
        self,
        points: int = 101,
        baseline: str = "blur",
        reduction: str = "sum",
        score: str = "probability",
        target: str = "predicted",
        ties: str = "raster",
    ) -> None:
        self.points = points
        if points < 2:
            raise UserError(f"points must be at least 2, got {points}; 101 is usual")
        super().__init__([100 * k / (points - 1) for k in range(points)], baseline, reduction, score, target, ties)

    def measure(self, explanation: Explanation) -> Tensor:
        lost = self.clean(explanation) - self.followed(explanation, self.without_most(explanation))
        return lost.mean(1, keepdim=True)


class Comprehensiveness(ScoreAtPoints):
    """Mean over `percent` of f(x) - f(x without its most relevant pixels): higher, the map found all that matters.

    Args:
        percent: of pixels taken away, ascending.
        baseline, reduction, score, target, ties: see `ScoreAtPoints`.

    Shapes:
        compute(): (), in [-1, 1] for probabilities.

    Source: DeYoung et al. 2020 (ERASER), with its aggregate over 1, 5, 10, 20 and 50 %. They remove words; We replace pixels.
    """

    higher_is_better = True
    role = "faithfulness"
    kind = "comprehensiveness"

    def __init__(
        self,
        percent: Sequence[float] = (1, 5, 10, 20, 50),
        baseline: str = "blur",
        reduction: str = "sum",
        score: str = "probability",
        target: str = "predicted",
        ties: str = "raster",
    ) -> None:
        self.percent = check_percent(percent)
        super().__init__(percent, baseline, reduction, score, target, ties)

    def measure(self, explanation: Explanation) -> Tensor:
        lost = self.clean(explanation) - self.followed(explanation, self.without_most(explanation))
        return lost.mean(1, keepdim=True)


class Sufficiency(Comprehensiveness):
    """Mean over `percent` of f(x) - f(the most relevant pixels alone): lower, the map's best pixels suffice.

    Source: DeYoung et al. 2020 (ERASER); otherwise as `Comprehensiveness`.
    """

    higher_is_better = False
    role = "faithfulness"
    kind = "sufficiency"

    def measure(self, explanation: Explanation) -> Tensor:
        lost = self.clean(explanation) - self.followed(explanation, self.only_most(explanation))
        return lost.mean(1, keepdim=True)


class FlipRate(PerturbationPoints):
    """Share of images whose predicted class changes when the most relevant `percent` of their pixels go: higher is more faithful.

    Results: the headline for the most relevant pixels; `least` for as many of the least relevant, to be read beside it: what the
    replacement alone does to the network.

    Args:
        percent: of pixels, one number.
        baseline, reduction, ties: see `PerturbationPoints`.

    Shapes:
        compute(): two scalars in [0, 1].

    Source: Lei et al. 2023, Sec. 6.4 ("less than 10 % of the pixels"); it counts no images. The paper's own replacement there is not given.
    """

    columns = ("", "least")
    higher_is_better = {"": True, "least": None}
    role = "faithfulness"
    kind = "flip_rate"

    def __init__(
        self, percent: float = 10, baseline: str = "blur", reduction: str = "sum", ties: str = "raster"
    ) -> None:
        self.percent = percent
        super().__init__(check_percent([percent], 0.01, 100), baseline, reduction, ties)

    def measure(self, explanation: Explanation) -> Tensor:
        predicted = explanation.logits.argmax(1)
        columns = []
        for logits in (self.without_most(explanation)[:, 0], self.without_least(explanation)[:, 0]):
            flipped = (logits.argmax(1) != predicted).double()
            columns.append(torch.where(torch.isnan(logits).any(1), torch.nan, flipped))
        return torch.stack(columns, 1)
