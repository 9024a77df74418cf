"""Does the network look where people look?"""

from __future__ import annotations

import torch
from torch import Tensor

from explainode.attribution import Explanation, check_reduction, normalize
from explainode.errors import UserError
from explainode.metrics.agreement import (
    auc_judd,
    kullback_leibler,
    normalized_scanpath_saliency,
    pearson,
    similarity,
    spearman,
)
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.localization import usable_heatmap


def _checked(name: str, human: Tensor | None, explanation: Explanation) -> Tensor:
    if human is None or human.shape != (len(explanation), *explanation.x.shape[2:]):
        shape, size = None if human is None else tuple(human.shape[1:]), tuple(explanation.x.shape[2:])
        raise UserError(f"{name} must have the size of the images, {size}, got {shape}; resize them together")
    return human


class FixationMapAgreement(ExplanationMetric):
    """Agreement of the map with the density of human fixations: what people look at, which need not be what the network uses.

    The map is upsampled to x, and scaled to [0, 1] for `similarity` and, if it has negative values, for `kl`. Constant maps and maps that
    are not finite are excluded, as are images without fixations. A Gaussian in the middle agrees well with most such data: read the value
    beside the centre prior's.

    Results: the headline is Pearson's correlation (PCC, CC); `spearman`, rank correlation; `similarity` (SIM) and `kl`
    (Kullback-Leibler divergence of the map from the fixations, lower is better).

    Args:
        reduction: of the channels, see `attribution.reduce_channels`.

    Shapes:
        explanation.fixation_map: (B, H, W) float, >= 0, at the size of x.
        compute(): four scalars; PCC and rank correlation in [-1, 1], SIM in [0, 1], KL >= 0.

    Source: MIT saliency benchmark; Bylinskii et al. 2019; named in Ayyar et al. 2021. We scale maps with negative values before KL, which
    the benchmark's maps do not need.
    """

    columns = ("", "spearman", "similarity", "kl")
    higher_is_better = {"": True, "spearman": True, "similarity": True, "kl": False}  # type: ignore[assignment]
    needs = frozenset({"fixation_map"})
    role = "agreement"
    kind = "fixation_map_agreement"
    version = 2  # kl leaves maps without negative values as they are

    def __init__(self, reduction: str = "sum") -> None:
        self.reduction = check_reduction(reduction)
        super().__init__()

    def measure(self, explanation: Explanation) -> Tensor:
        human = _checked("fixation maps", explanation.fixation_map, explanation)
        heat, usable = explanation.memo(
            ("usable heatmap", self.reduction), lambda: usable_heatmap(explanation, self.reduction)
        )
        numbers = (
            pearson(heat, human),
            spearman(heat, human),
            similarity(heat, human),
            kullback_leibler(torch.where((heat < 0).flatten(1).any(1)[:, None, None], normalize(heat), heat), human),
        )
        usable = usable & (human.amax((1, 2)) > human.amin((1, 2)))
        return torch.where(usable[:, None], torch.stack(numbers, 1), torch.nan)

    def settings(self) -> tuple[str, ...]:
        return (self.reduction,)


class FixationPointAgreement(ExplanationMetric):
    """Agreement of the map with the points that people fixated.

    Constant maps and maps that are not finite are excluded, as are images without fixations.

    Results: the headline is AUC-Judd, the chance that a fixated pixel is more relevant than another, 0.5 for a random map; `nss`, the
    mean standardized map at the fixations, 0 for a random map.

    Args:
        reduction: of the channels, see `attribution.reduce_channels`.
        benchmark: AUC-Judd as the MIT benchmark's trapezoids have it, in the mean over its jitter (see `agreement.auc_judd`).

    Shapes:
        explanation.fixation_points: (B, H, W) bool at the size of x.
        compute(): two scalars, AUC in [0, 1].

    Source: MIT saliency benchmark; Bylinskii et al. 2019. We average over ties instead of jittering the map.
    """

    columns = ("", "nss")
    higher_is_better = True
    needs = frozenset({"fixation_points"})
    role = "agreement"
    kind = "fixation_point_agreement"

    def __init__(self, reduction: str = "sum", benchmark: bool = False) -> None:
        self.reduction = check_reduction(reduction)
        self.benchmark = benchmark
        super().__init__()

    def measure(self, explanation: Explanation) -> Tensor:
        points = _checked("fixation points", explanation.fixation_points, explanation)
        heat, usable = explanation.memo(
            ("usable heatmap", self.reduction), lambda: usable_heatmap(explanation, self.reduction)
        )
        numbers = torch.stack((auc_judd(heat, points, self.benchmark), normalized_scanpath_saliency(heat, points)), 1)
        return torch.where((usable & points.flatten(1).any(1))[:, None], numbers, torch.nan)

    def settings(self) -> tuple[str, ...]:
        return self.reduction, "trapezoids" if self.benchmark else "exact"
