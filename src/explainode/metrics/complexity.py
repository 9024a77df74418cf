"""Is the relevance spread over the image, or in few pixels?"""

from __future__ import annotations

import torch
from torch import Tensor

from explainode.attribution import Explanation, check_reduction
from explainode.metrics.base import ExplanationMetric


def gini(heatmap: Tensor) -> Tensor:
    """(B, H, W) -> (B,) Gini index of |values|, in [0, 1 - 1 / N]: 0 if all are equal, largest if one pixel has everything; NaN for a zero map."""
    size = heatmap.flatten(1).abs().double().sort(1).values
    n = size.shape[1]
    place = torch.arange(1, n + 1, device=size.device, dtype=torch.float64)
    return 1 - 2 * (size * (n - place + 0.5)).sum(1) / (n * size.sum(1))


def entropy(heatmap: Tensor) -> Tensor:
    """(B, H, W) -> (B,) entropy of |values| scaled to sum 1, in nats, in [0, log N]; NaN for a zero map."""
    size = heatmap.flatten(1).abs().double()
    return torch.special.entr(size / size.sum(1, keepdim=True)).sum(1)


class Complexity(ExplanationMetric):
    """How concentrated the map is: facts, not merits, for a map of one wrong pixel is the simplest of all.

    Results: `gini` index, larger for fewer pixels; `entropy` in nats, smaller for fewer pixels; `effective_pixels` = exp(entropy), the
    number of equally relevant pixels with the same entropy; `effective_share`, this number as a share of the image. Of |relevance|, at the
    pixels of x: a coarse map is never simple after upsampling. Maps that are 0 or not finite are excluded.

    Args:
        reduction: of the channels, see `attribution.reduce_channels`.

    Shapes:
        compute(): four scalars.

    Source: Gini: Hurley and Rickard 2009, Chalasani et al. 2020 (sparseness); entropy: Bhatt et al. 2020 (complexity).
    """

    columns = ("gini", "entropy", "effective_pixels", "effective_share")
    higher_is_better = None
    role = "complexity"
    kind = "complexity"

    def __init__(self, reduction: str = "sum") -> None:
        self.reduction = check_reduction(reduction)
        super().__init__()

    def measure(self, explanation: Explanation) -> Tensor:
        heat = explanation.heatmap(self.reduction)
        finite = torch.isfinite(heat).flatten(1).all(1)
        nats = entropy(heat)
        numbers = torch.stack((gini(heat), nats, nats.exp(), nats.exp() / heat[0].numel()), 1)
        return torch.where(finite[:, None], numbers, torch.nan)

    def settings(self) -> tuple[str, ...]:
        return (self.reduction,)
