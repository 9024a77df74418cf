"""How alike are two maps? Pure functions of pairs of heatmaps (B, H, W), each answering (B,) float64, NaN where it has no meaning.

A map may be a method's, another method's, or where people looked. Source of the fixation measures: Bylinskii et al. 2019 and the
MIT saliency benchmark's formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from explainode.attribution import normalize, reduce_channels, upsample
from explainode.errors import UserError, nearest
from explainode.metrics.cuts import check_cut, foreground
from explainode.metrics.ranking import Ranking
from explainode.metrics.results import Maps

EPSILON = 2.220446049250313e-16  # MATLAB's eps, which the benchmark adds


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Linear correlation (PCC, CC) over pixels, in [-1, 1]; NaN if one map is constant."""
    a, b = (_centered(m.double()) for m in (a, b))
    constant = (a == 0).all(1) | (b == 0).all(1)
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return torch.where(constant, torch.nan, cosine.clamp(-1, 1))


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation over pixels, ties at their mean rank, in [-1, 1]; NaN if one map is constant."""
    return pearson(mean_ranks(a.flatten(1)), mean_ranks(b.flatten(1)))


def mean_ranks(values: Tensor) -> Tensor:
    """(B, N) -> (B, N) float64 ranks from 1, lowest first, equal values at the mean of their places; NaN for a row that holds one."""
    ordered, order = torch.sort(values, dim=1)
    places = torch.arange(1, values.shape[1] + 1, device=values.device, dtype=torch.float64)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    start = torch.where(new, places, 0).cummax(1).values
    end = (
        torch.where(new.roll(-1, 1), places, torch.inf).flip(1).cummin(1).values.flip(1)
    )  # `new[:, 0]` rolls to the last place
    ranks = torch.empty_like(start).scatter_(1, order, (start + end) / 2)
    return torch.where(torch.isnan(values).any(1, keepdim=True), torch.nan, ranks)


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Histogram intersection (SIM) of both maps, scaled to [0, 1] and then to sum 1, in [0, 1]; NaN if one map is constant.

    Source: MIT benchmark, which scales before it sums: without the scaling a map on a pedestal looks alike to any other.
    """
    p, q = (_distribution(normalize(m)) for m in (a, b))
    return torch.minimum(p, q).sum(1)


def kullback_leibler(prediction: Tensor, truth: Tensor) -> Tensor:
    """sum q log(eps + q / (p + eps)) of two maps >= 0, scaled to sum 1, truth q from prediction p; NaN if one is 0 or has negative values.

    Zeros of the prediction where the truth is not cost log(1 / eps) = 36 each: the measure is about what is missed.
    """
    p, q = (_distribution(m) for m in (prediction, truth))
    return (q * torch.log(EPSILON + q / (p + EPSILON))).sum(1)


def normalized_scanpath_saliency(prediction: Tensor, points: Tensor) -> Tensor:
    """Mean at the fixated points (bool) of the map with mean 0 and sample standard deviation 1 (NSS); NaN for a constant map or no point."""
    heat, points = prediction.flatten(1).double(), points.flatten(1)
    spread = heat.std(1, correction=1, keepdim=True)
    standard = torch.where(_flat(heat)[:, None], torch.nan, (heat - heat.mean(1, keepdim=True)) / spread)
    return (standard * points).sum(1) / points.sum(1)


def auc_judd(prediction: Tensor, points: Tensor, benchmark: bool = False) -> Tensor:
    """Area under the ROC curve of fixated points (bool) against all other pixels, ties counting half; NaN without either kind.

    Args:
        benchmark: the MIT benchmark's number instead, in the mean over its random jitter: its curve joins the fixations by straight lines
            and so adds (false positive rate at the lowest fixation) / (2 * fixations). Only for comparison.
    """
    ranking = Ranking.of(prediction.flatten(1), points.flatten(1))
    area = ranking.auroc()
    if not benchmark:
        return area
    positives, negatives = ranking.positives, ranking.negatives
    below = ranking.last & (
        ranking.positive < positives.long()[:, None]
    )  # cuts above the group that holds the lowest fixation
    zero = torch.zeros_like(ranking.seen)
    before, before_true = (torch.where(below, count, zero).amax(1) for count in (ranking.seen, ranking.positive))
    at = (
        (ranking.last & (ranking.positive == positives.long()[:, None])).long().argmax(1, keepdim=True)
    )  # where that group ends
    group_true = positives - before_true
    group_false = ranking.seen.gather(1, at)[:, 0] - before - group_true
    # of n in random order with p hits, p / (p + 1) of the others stand before the last hit
    false = (before - before_true) + group_false * group_true / (group_true + 1)
    return area + false / negatives / (2 * positives)


def dice(a: Tensor, b: Tensor, cut: str = ">mean") -> Tensor:
    """2 |A and B| / (|A| + |B|) of the foregrounds under one cut (see `cuts.foreground`), in [0, 1]; NaN if one map is constant."""
    check_cut(cut)
    A, B = (foreground(m, cut).flatten(1) for m in (a, b))
    overlap = 2.0 * (A & B).sum(1).double() / (A.sum(1) + B.sum(1))
    return torch.where(_flat(a.flatten(1)) | _flat(b.flatten(1)), torch.nan, overlap)


def l1_similarity(a: Tensor, b: Tensor) -> Tensor:
    """1 - mean |a - b| of both maps scaled to [0, 1], in [0, 1]; NaN if one map is constant.

    Source: named, not defined, in Ayyar et al. 2021. We scale each map by its own range; maps scaled to sum 1 would give SIM again.
    """
    p, q = (normalize(m.double()).flatten(1) for m in (a, b))
    return torch.where(_flat(p) | _flat(q), torch.nan, 1 - (p - q).abs().mean(1))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity of both maps scaled to [0, 1], in [-1, 1]; NaN if one map is constant or smaller than the window.

    Source: Wang et al. 2004 with its constants: Gaussian window of 11 pixels and sigma 1.5, K1 = .01, K2 = .03, population moments. We
    leave out the border where the window does not fit.
    """
    if min(a.shape[1:]) < 11:
        return torch.full((len(a),), torch.nan, dtype=torch.float64, device=a.device)
    p, q = (normalize(m.double())[:, None] for m in (a, b))
    distance = torch.arange(11, dtype=torch.float64, device=a.device) - 5
    window = torch.exp(-distance.square() / (2 * 1.5**2))
    window = window / window.sum()

    def local(m: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(m, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    mean_p, mean_q = local(p), local(q)
    variance_p, variance_q = local(p * p) - mean_p**2, local(q * q) - mean_q**2
    covariance = local(p * q) - mean_p * mean_q
    c1, c2 = 0.01**2, 0.03**2
    index = ((2 * mean_p * mean_q + c1) * (2 * covariance + c2)) / (
        (mean_p**2 + mean_q**2 + c1) * (variance_p + variance_q + c2)
    )
    return torch.where(_flat(p.flatten(1)) | _flat(q.flatten(1)), torch.nan, index.flatten(1).mean(1))


def _centered(heatmap: Tensor) -> Tensor:
    flat = heatmap.flatten(1)
    return torch.where(_flat(flat)[:, None], 0.0, flat - flat.mean(1, keepdim=True))


def _flat(values: Tensor) -> Tensor:
    """(B, N) -> (B,) whether all values are the same."""
    return values.amax(1) == values.amin(1)


def _distribution(heatmap: Tensor) -> Tensor:
    """(B, H, W) >= 0 -> (B, N) float64 of sum 1; NaN for a map that is 0 or has negative values."""
    flat = heatmap.flatten(1).double()
    return torch.where((flat.amin(1) < 0)[:, None], torch.nan, flat / flat.sum(1, keepdim=True))


MEASURES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pearson": pearson,
    "spearman": spearman,
    "similarity": similarity,
    "dice": dice,
    "l1_similarity": l1_similarity,
    "ssim": ssim,
}


def check_measure(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The symmetric measure of that name.

    Raises:
        UserError: with the nearest names.
    """
    if name not in MEASURES:
        raise UserError(f"no measure of agreement named {name!r}; the nearest are {nearest(name, MEASURES)}")
    return MEASURES[name]


@dataclass(frozen=True)
class AgreementMatrix:
    """Mean agreement of each pair of E explainers over the images where it is defined.

    Attributes:
        explainers: names of the rows; mean: (E, E), symmetric; n: (E, E) images that count.
    """

    measure: str
    explainers: tuple[str, ...]
    mean: np.ndarray
    n: np.ndarray


def agreement_matrix(heatmaps: Mapping[str, Tensor], measure: str = "spearman") -> AgreementMatrix:
    """{explainer: (N, H, W)} of the same images -> how alike the explainers' maps are, in pairs.

    Raises:
        UserError: if the heatmaps differ in shape, or the measure has no such name.
    """
    compare = check_measure(measure)
    shapes = {name: tuple(heat.shape) for name, heat in heatmaps.items()}
    if len(set(shapes.values())) > 1:
        raise UserError(f"heatmaps to compare must show the same images at the same size, got shapes {shapes}")
    names = tuple(heatmaps)
    mean, n = np.full((len(names), len(names)), np.nan), np.zeros((len(names), len(names)), dtype=int)
    for i, a in enumerate(names):
        for j, b in enumerate(names[: i + 1]):
            values = compare(heatmaps[a], heatmaps[b])
            values = values[~torch.isnan(values)]
            n[i, j] = n[j, i] = len(values)
            mean[i, j] = mean[j, i] = float(values.mean()) if len(values) else np.nan
    return AgreementMatrix(measure, names, mean, n)


def explainer_agreement(
    maps: Sequence[Maps], model: str, measure: str = "spearman", reduction: str = "sum"
) -> AgreementMatrix:
    """The agreement of all explainers of one model, from the maps that an evaluation kept of its panel (`Results.maps`).

    Raises:
        UserError: if there are no maps of that model, or they show different images.
    """
    own = {m.explainer: m for m in maps if m.model == model}
    if not own:
        raise UserError(
            f"no maps of a model named {model!r}; the nearest are {nearest(model, {m.model for m in maps})}"
        )
    if len({tuple(m.sample_id.tolist()) for m in own.values()}) > 1:
        raise UserError("the explainers' maps show different images; measure them on one panel")
    size = next(iter(own.values())).image.shape[1:3]
    heat = {
        name: upsample(reduce_channels(torch.from_numpy(m.attribution).float(), reduction), size)
        for name, m in own.items()
    }
    return agreement_matrix(heat, measure)
