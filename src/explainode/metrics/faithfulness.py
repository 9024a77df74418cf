"""Deletion and insertion: does the score follow the pixels that the explanation calls relevant?"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from explainode.attribution import Explanation
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.perturbation import PerturbationPath, check_score, curve_scores


class PerturbationCurve(ExplanationMetric):
    """Area under the score while pixels are replaced (or brought back) in the order of relevance: the skeleton of both directions.

    Images whose map is constant or not finite order no pixels: they are excluded and counted.

    Args:
        points: points of the curve, end points included (101: 1 % of the pixels at a time), or "adaptive": at most 13 points on that grid.
        baseline: what replaces a pixel: blur, rise, groupcam, zero, network_zero, min, mean or noise.
        reduction: of the channels before ranking.
        score: softmax "probability" of the followed class, its "logit", or its "margin" over the runner-up, see `perturbation.target_score`.
        target: follow the "predicted" class of the clean image, or the "explained" one (they differ where the user chose a class).
        ties: "raster" or "reverse".

    Shapes:
        compute(): (), the trapezoid area over fractions 0..1; in [0, 1] for probabilities.
    """

    insert: ClassVar[bool] = False

    def __init__(
        self,
        points: int | str = 101,
        baseline: str = "blur",
        reduction: str = "sum",
        score: str = "probability",
        target: str = "predicted",
        ties: str = "raster",
    ) -> None:
        self.points, self.baseline, self.reduction = points, baseline, reduction
        self.score, self.target, self.ties = score, target, ties
        self.walk = PerturbationPath(points, baseline, reduction, ties)
        check_score(score, target)
        super().__init__()

    def curve_axis(self) -> tuple[np.ndarray, str, str]:
        done = "inserted" if self.insert else "replaced"
        return self.walk.fractions, f"fraction of pixels {done}", f"{self.score} of the {self.target} class"

    def curves(self, explanation: Explanation) -> Tensor:
        target = explanation.logits.argmax(1) if self.target == "predicted" else explanation.target
        key = ("curve", self.walk, self.insert, self.score, self.target)
        return explanation.memo(key, lambda: curve_scores(explanation, self.walk, self.insert, target, self.score))

    def measure(self, explanation: Explanation) -> Tensor:
        curves = self.curves(explanation).cpu().double()
        return torch.trapezoid(curves, torch.from_numpy(self.walk.fractions), dim=1)[:, None]

    def settings(self) -> tuple[str, ...]:
        followed = f"{'p' if self.score == 'probability' else self.score}({self.target})"
        return self.baseline, str(self.points), self.reduction, followed, self.ties


class Deletion(PerturbationCurve):
    """Area under the target probability as the most relevant pixels are replaced: lower is more faithful.

    Source: Petsiuk et al. 2018 (RISE); defaults as in Lei et al. 2023, Sec. 6.2 (1 % steps, blurred image, predicted class).
    We scale the blur with the image, as the paper does not describe it, and let ties keep raster order.
    """

    higher_is_better = False
    role = "faithfulness"
    kind = "deletion"


class Insertion(PerturbationCurve):
    """Area under the target probability as the most relevant pixels come back into the baseline: higher is more faithful.

    Source and deviations as `Deletion`; RISE inserts into a blurred image as well.
    """

    higher_is_better = True
    role = "faithfulness"
    kind = "insertion"
    insert = True
