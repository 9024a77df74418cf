"""Deletion without a baseline: what is removed is drawn anew as the world would have drawn it, given what is still seen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from explainode.attribution import Explanation, check_reduction
from explainode.errors import UserError
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.perturbation import PerturbationPath, check_score, order_of, target_score


class ExactDeletion(ExplanationMetric):
    """Area under the score while the most relevant pixels are redrawn from their true conditional distribution: lower is more faithful.

    The network never sees a picture that is not of the distribution it learned, and a hole tells nothing by its shape. Only data that we draw
    ourselves can be redrawn exactly. Maps that are constant or not finite are excluded and counted.

    Args:
        redraw: `redraw(x (n, C, H, W), sample_ids (n,), removed (n, H, W), seed, draw)` -> x with the removed pixels drawn anew, such as
            `data.redraw.ShapesRedraw`.
        points: of the curve, end points included.
        draws: of each point, averaged; common to all explainers.
        reduction, score, target, ties: see `faithfulness.PerturbationCurve`.

    Shapes:
        compute(): (), the trapezoid area over fractions 0..1. Costs draws * (points - 1) forwards per image.

    Source: the deletion of Petsiuk et al. 2018 with the conditional distribution that Covert et al. 2021 ask of removal; others approximate it by
    generative models.
    """

    higher_is_better = False
    role = "faithfulness"
    kind = "exact_deletion"

    def __init__(
        self,
        redraw: Callable[..., Tensor],
        points: int = 11,
        draws: int = 1,
        reduction: str = "sum",
        score: str = "probability",
        target: str = "predicted",
        ties: str = "raster",
    ) -> None:
        self.redraw, self.points, self.draws, self.reduction = redraw, points, draws, check_reduction(reduction)
        self.score, self.target, self.ties = score, target, ties
        check_score(score, target)
        if not isinstance(points, int):
            raise UserError(f"points must be a whole number, got {points!r}; 11 is usual")
        if draws < 1:
            raise UserError(f"at least one draw is needed, got {draws}; 1 is usual")
        self.walk = PerturbationPath(
            points, "zero", reduction, ties
        )  # of which the order and the counts are used alone
        super().__init__()

    def curve_axis(self) -> tuple[np.ndarray, str, str]:
        return self.walk.fractions, "fraction of pixels redrawn", f"{self.score} of the {self.target} class"

    def curves(self, explanation: Explanation) -> Tensor:
        return explanation.memo(("exact deletion", self.protocol_hash), lambda: self._curves(explanation))

    def _curves(self, explanation: Explanation) -> Tensor:
        x = explanation.x
        followed = explanation.logits.argmax(1) if self.target == "predicted" else explanation.target
        good, order = order_of(explanation, self.walk)
        curves = torch.full((len(x), self.points), torch.nan, dtype=torch.float64)
        if not len(good):
            return curves
        place = torch.arange(order.shape[1], device=x.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, place).view(-1, *x.shape[-2:])
        curves[good.cpu(), 0] = target_score(explanation.logits.float(), followed, self.score)[good].double().cpu()
        for point, count in enumerate(self.walk.counts(order.shape[1])[1:], 1):
            total = torch.zeros(len(good), dtype=torch.float64)
            for draw in range(self.draws):
                ids = explanation.sample_ids[good.to(explanation.sample_ids.device)]
                redrawn = self.redraw(x[good], ids, rank < count, explanation.seed, draw)
                logits = explanation.forward(redrawn, rows=good).float()
                total += target_score(logits, followed[good], self.score).double().cpu()
            curves[good.cpu(), point] = total / self.draws
        return curves

    def measure(self, explanation: Explanation) -> Tensor:
        return torch.trapezoid(self.curves(explanation), torch.from_numpy(self.walk.fractions), dim=1)[:, None]

    def settings(self) -> tuple[str, ...]:
        followed = f"{'p' if self.score == 'probability' else self.score}({self.target})"
        return str(self.points), f"n{self.draws}", self.reduction, followed, self.ties
