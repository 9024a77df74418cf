"""How much of the relevance lies on the object: by its mass, and by its highest ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from explainode.attribution import Explanation
from explainode.errors import UserError, nearest
from explainode.metrics.localization import LocalizationMetric, ranking_of

SIGNS = ("positive", "absolute")


class RelevanceMass(LocalizationMetric):
    """Share of the map's mass on the object: a constant map, and about any random one, has the object's share of the image.

    Against boxes and with positive relevance this is the energy-based pointing game. Maps without mass are excluded.

    Args:
        truth, reduction: see `LocalizationMetric`.
        sign: "positive" leaves negative relevance out; "absolute" takes its size.

    Shapes:
        compute(): (), in [0, 1]. Depends on the contrast of the map.

    Source: relevance mass accuracy, Arras et al. 2022; energy-based pointing game, Wang et al. 2020 (Score-CAM).
    """

    kind = "relevance_mass"

    def __init__(self, truth: str = "mask", reduction: str = "sum", sign: str = "positive") -> None:
        if sign not in SIGNS:
            raise UserError(f"sign must be positive or absolute, got {sign!r}; the nearest are {nearest(sign, SIGNS)}")
        self.sign = sign
        super().__init__(truth, reduction)

    def score(self, heat: Tensor, mask: Tensor, explanation: Explanation) -> Tensor:
        mass = heat.double().clamp(min=0) if self.sign == "positive" else heat.double().abs()
        on_object = (mass * (mask == 1)).sum((1, 2))
        return (on_object / (mass * (mask >= 0)).sum((1, 2)))[:, None]  # 0 / 0 is NaN: no mass, excluded

    def settings(self) -> tuple[str, ...]:
        return (*super().settings(), self.sign)


class RelevanceRank(LocalizationMetric):
    """Of the k most relevant pixels, the share on the object, which has k pixels: a random map has the object's share of the image.

    Where equal values straddle the k-th place, the share is the mean over all orders of them.

    Shapes:
        compute(): (), in [0, 1]. Unchanged by any increasing function of the map.

    Source: relevance rank accuracy, Arras et al. 2022. We average over ties; other implementations keep whatever order their sort leaves.
    """

    kind = "relevance_rank"

    def score(self, heat: Tensor, mask: Tensor, explanation: Explanation) -> Tensor:
        ranking = ranking_of(explanation, self.truth, self.reduction)
        k = ranking.positives.long()[:, None].clamp(min=1)
        end = torch.where(ranking.last & (ranking.seen >= k), ranking.seen, ranking.seen.shape[1]).amin(
            1, keepdim=True
        )  # of k's group
        start = torch.where(ranking.last & (ranking.seen < k), ranking.seen, 0).amax(
            1, keepdim=True
        )  # of the group before
        at_end = ranking.positive.gather(1, end - 1)
        at_start = torch.where(start > 0, ranking.positive.gather(1, (start - 1).clamp(min=0)), 0)
        expected = at_start + (at_end - at_start) * (k - start).double() / (end - start)
        return expected / k
