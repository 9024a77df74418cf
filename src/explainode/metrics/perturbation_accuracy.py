"""Positive and negative perturbation: how does accuracy fall while pixels are masked from either end of the ranking?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from explainode.attribution import Explanation
from explainode.metrics.perturbation import check_percent
from explainode.metrics.points import PerturbationPoints, correct


class PerturbationAccuracy(PerturbationPoints):
    """Area under the top-1 accuracy while pixels are masked: the skeleton of both directions. One image is right or wrong at each point.

    Args:
        percent: of pixels masked, ascending.
        clean: begin the area with the clean accuracy at 0 %.
        normalize: divide the area by its width, a mean accuracy in [0, 1]; otherwise it is the area over percentages (Chefer et al. print this).
        baseline, reduction, ties: see `PerturbationPoints`.

    Shapes:
        explanation.label: (B,), -1 where unknown: such images are excluded.
        compute(): ().
    """

    needs = frozenset({"label"})
    positive: ClassVar[bool] = True

    def __init__(
        self,
        percent: Sequence[float] = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90),
        clean: bool = False,
        normalize: bool = True,
        baseline: str = "zero",
        reduction: str = "sum",
        ties: str = "raster",
    ) -> None:
        self.clean, self.normalize = clean, normalize
        self.percent = check_percent(percent, 0.01, 99.99)
        super().__init__(percent, baseline, reduction, ties)

    def curve_axis(self) -> tuple[np.ndarray, str, str]:
        fractions = np.array([0.0, *self.levels] if self.clean else self.levels) / 100
        return fractions, f"fraction of {'most' if self.positive else 'least'} relevant pixels masked", "top-1 accuracy"

    def curves(self, explanation: Explanation) -> Tensor:
        return explanation.memo(("accuracy", self.protocol_hash), lambda: self._curves(explanation))

    def _curves(self, explanation: Explanation) -> Tensor:
        masked = self.without_most(explanation) if self.positive else self.without_least(explanation)
        hits = correct(explanation, masked)
        if self.clean:
            hits = torch.cat((correct(explanation, explanation.logits)[:, None], hits), 1)
            hits[torch.isnan(hits).any(1)] = torch.nan
        return hits

    def measure(self, explanation: Explanation) -> Tensor:
        x = torch.from_numpy(self.curve_axis()[0])
        hits = self.curves(explanation).cpu()
        if len(x) == 1:
            return hits
        area = torch.trapezoid(hits, x, dim=1)[:, None]
        return area / (x[-1] - x[0]) if self.normalize else 100 * area

    def settings(self) -> tuple[str, ...]:
        return *super().settings(), *(("clean",) if self.clean else ()), *(() if self.normalize else ("area%",))


class PositivePerturbation(PerturbationAccuracy):
    """Accuracy while the most relevant pixels are masked first: lower is more faithful.

    Source: root inference (anonymous), Fig. 3a (1 %, 10 % ... 90 %, zero); Chefer et al. 2021 (preset `chefer`: 10 % ... 90 % and the clean accuracy, black
    before normalization, area in percent that is not divided by its width of 0.9). The root inference paper prints curves only. We mask black pixels.
    """

    higher_is_better = False
    role = "faithfulness"
    kind = "positive_perturbation"


class NegativePerturbation(PerturbationAccuracy):
    """Accuracy while the least relevant pixels are masked first: higher is more faithful.

    Source and deviations as `PositivePerturbation`; root inference (anonymous), Fig. 3b.
    """

    higher_is_better = True
    role = "faithfulness"
    kind = "negative_perturbation"
    positive = False
