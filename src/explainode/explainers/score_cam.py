"""Class activation maps weighted by what the network says of the image seen through each map: no gradient decides, forwards do.

Letters: A feature maps (B, K, h, w), M masks, G groups, s scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from explainode.attribution import normalize, upsample
from explainode.errors import UserError, nearest
from explainode.explainers.base import Explainer
from explainode.explainers.baselines import Baseline, make_baseline
from explainode.explainers.cam import weighted
from explainode.explainers.layers import activation, activation_and_gradient, find_layer
from explainode.explainers.passes import each_copy, predict
from explainode.explainers.targets import select_score

WEIGHTS = ("probability", "softmax")


def is_constant(M: Tensor) -> Tensor:
    """(B, n, h, w) -> (B, n): maps that hide nothing or all, and cannot be scaled to [0, 1]."""
    return M.amax((-2, -1)) == M.amin((-2, -1))


def seen_through(M: Tensor, x: Tensor, baseline: Tensor) -> Iterator[Tensor]:
    """For each mask of M (B, n, h, w), upsampled and scaled to [0, 1], the images: x where it is 1, the baseline where it is 0.

    A constant mask counts as 0. One mask of every image at a time, (B, C, H, W).
    """
    for mask in M.unbind(1):
        share = normalize(upsample(mask, x.shape[-2:]))[:, None]
        yield baseline + share * (x - baseline)


def scores(model: nn.Module, copies: Iterable[Tensor], target: Tensor, probability: bool) -> Tensor:
    """(B, n) float64, since their differences may be small: the target's probability, or its logit, in each of n copies of the batch."""

    def score(rows: Tensor, classes: Tensor) -> tuple[Tensor]:
        logits = predict(model, rows).double()
        return (select_score(logits.softmax(1) if probability else logits, classes),)

    return torch.stack([s for (s,) in each_copy(score, copies, target)], 1)


@dataclass(frozen=True)
class ScoreCAM(Explainer):
    """Feature maps of one layer, each weighted by the score of the image seen through it; as many forwards as the layer has channels, and one.

    Args:
        layer: its name; None finds the last spatial feature map of the network. If a layer is called several times, the last call counts.
        weights: "probability" takes the target's probability through each map, and 0 for a constant map; "softmax" takes the softmax of the
            target's logits over all maps.
        baseline: what a map hides (see `make_baseline`).
        relu: keep only what speaks for the class.

    Returns (B, 1, h, w) at the layer's resolution, in [0, inf) with `relu`.

    Raises:
        UserError: if there is no such layer or such weights, or the layer returns no feature map.

    Source: Wang et al. 2020. They subtract a baseline's score and apply a softmax over channels; of the code in use, one takes the bare
    probability and the other the softmax of logits, and so do we. We hide pixels, so what is hidden turns black, not the mean color of the
    data (give that color as `baseline`). The ReLU is taken at the layer's resolution, before anybody upsamples.
    """

    layer: str | None = None
    weights: str = "probability"
    baseline: Baseline = "black"
    relu: bool = True

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise UserError(
                f"Score-CAM's weights are {' or '.join(WEIGHTS)}, got {self.weights!r}; the nearest is {nearest(self.weights, WEIGHTS, 1)}"
            )

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        A = activation(model, x, find_layer(model, x, self.layer))
        s = scores(model, seen_through(A, x, make_baseline(self.baseline, x)), target, self.weights == "probability")
        w = s.softmax(1) if self.weights == "softmax" else torch.where(is_constant(A), 0, s)
        return weighted(w.to(A)[:, :, None, None], A, self.relu)


@dataclass(frozen=True)
class GroupCAM(Explainer):
    """Grad-CAM's weighted maps in groups of channels, each group weighted by how much of the class it brings back into a blurred image.

    One forward and backward and `groups` + 1 forwards. A group that is constant or raises no probability does not count; if there is no other,
    the map is 0 everywhere.

    Args:
        layer: its name; None finds the last spatial feature map of the network. If a layer is called several times, the last call counts.
        groups: of neighboring channels, as equal as can be; at most one per channel.
        percentile: values of a group's mask up to this percentile of it, in [0, 100), are set to 0; None keeps all.
        baseline: what a mask hides (see `make_baseline`).

    Returns (B, 1, h, w) at the layer's resolution, in [0, inf).

    Raises:
        UserError: if there is no such layer, it returns no feature map, or a parameter is out of range.

    Source: Zhang et al. 2021; Lei et al. 2023 compares with it. Its code changed: we weight the masks as they are, not scaled to [0, 1], and leave out
    groups that lower the probability, one by one. We blur with a kernel that scales with the image (theirs is 51 pixels, sigma 50, at any
    size); whether before or after normalization makes no difference. They set `percentile` to 70 in one version; the others have none.
    """

    layer: str | None = None
    groups: int = 32
    percentile: float | None = None
    baseline: Baseline = "blur"

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise UserError(f"groups must be at least 1, got {self.groups}")
        if self.percentile is not None and not 0 <= self.percentile < 100:
            raise UserError(f"percentile must lie in [0, 100) or be null, got {self.percentile}")

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        A, gradient, _ = activation_and_gradient(model, x, target, find_layer(model, x, self.layer))
        M = self.masks(A, gradient)
        baseline = make_baseline(self.baseline, x)
        s = scores(model, seen_through(M, x, baseline), target, probability=True)
        gain = (s - scores(model, [baseline], target, probability=True)).relu()
        return weighted(torch.where(is_constant(M), 0, gain).to(M)[:, :, None, None], M, relu=False)

    def masks(self, A: Tensor, gradient: Tensor) -> Tensor:
        """(B, G, h, w): the positive part of each group's share in Grad-CAM."""
        shares = gradient.mean((-2, -1), keepdim=True) * A
        M = torch.stack([group.sum(1).relu() for group in shares.tensor_split(min(self.groups, A.shape[1]), 1)], 1)
        if self.percentile is None:
            return M
        least = M.flatten(2).quantile(self.percentile / 100, dim=2)[:, :, None, None]
        return torch.where(least < M, M, 0)
