"""IROF: segments are removed in the order of their mean relevance, so that single bright pixels do not decide the order."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from explainode.attribution import Explanation, check_reduction
from explainode.errors import UserError
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.baselines import baseline_image, check_baseline
from explainode.metrics.perturbation import check_score, target_score, usable
from explainode.metrics.removal_correlation import grid_segments


class IROF(ExplanationMetric):
    """1 - mean over k of f(x without the k most relevant segments) / f(x): higher is more faithful.

    Maps that are constant or not finite are excluded and counted, and images whose clean score is 0.

    Args:
        grid: segments along each side; squares.
        baseline: what replaces a segment, a name in `baselines.BASELINES`.
        reduction: of the channels.
        target: the "predicted" or the "explained" class, whose probability is followed.

    Shapes:
        compute(): (), at most 1. Costs grid^2 forwards per image.

    Source: Rieger and Hansen 2020, Eq. 1: AOC over f(x^l)_y / f(x^0)_y, l = 0 .. L, of SLIC superpixels replaced by the
    mean color. We take squares, which need no further package, and average over the L points after the first.
    """

    higher_is_better = True
    role = "faithfulness"
    kind = "irof"

    def __init__(
        self, grid: int = 8, baseline: str = "mean", reduction: str = "sum", target: str = "predicted"
    ) -> None:
        self.grid, self.baseline = grid, check_baseline(baseline)
        self.reduction, self.target = check_reduction(reduction), target
        check_score("probability", target)
        if grid < 2:
            raise UserError(f"a grid has at least 2 segments along each side, got {grid}; 8 is usual")
        if baseline == "inpaint":
            raise UserError("segments are replaced by one picture, which baseline=inpaint is not; mean is usual")
        super().__init__()

    def curve_axis(self) -> tuple[np.ndarray, str, str]:
        return np.arange(1, self.grid**2 + 1) / self.grid**2, "share of segments replaced", "share of the score left"

    def curves(self, explanation: Explanation) -> Tensor:
        return explanation.memo(("irof", self.protocol_hash), lambda: self._left(explanation))

    def _left(self, explanation: Explanation) -> Tensor:
        """(B, grid^2) share of the clean score that is left after each segment."""
        x = explanation.x
        segment = grid_segments(x.shape[-2], x.shape[-1], self.grid).to(x.device).flatten()
        heat = explanation.heatmap(self.reduction).flatten(1).double()
        good = usable(explanation, self.reduction)
        total = torch.zeros(len(x), self.grid**2, dtype=torch.float64, device=x.device)
        total.index_add_(1, segment, torch.where(good[:, None], heat, 0))
        mean = total / torch.bincount(segment)
        rank = mean.argsort(dim=1, descending=True, stable=True).argsort(1)[:, segment].view(-1, *x.shape[-2:])
        end = baseline_image(explanation, self.baseline)
        followed = explanation.logits.argmax(1) if self.target == "predicted" else explanation.target
        clean = target_score(explanation.logits.float(), followed, "probability")
        left = [
            target_score(explanation.forward(torch.where(rank[:, None] <= k, end, x)).float(), followed, "probability")
            for k in range(self.grid**2)
        ]
        return torch.where(good & (clean > 0), torch.stack(left) / clean, torch.nan).T

    def measure(self, explanation: Explanation) -> Tensor:
        return 1 - self.curves(explanation).double().mean(1, keepdim=True)

    def settings(self) -> tuple[str, ...]:
        return f"{self.grid}x{self.grid}", self.baseline, self.reduction, f"p({self.target})"
