"""Do the relevant pixels lie on the object? Agreement with segmentation masks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from explainode.attribution import Explanation, check_reduction, normalize
from explainode.errors import UserError
from explainode.metrics.base import ExplanationMetric


def confusion(foreground: Tensor, mask: Tensor) -> Tensor:
    """Predicted foreground (B, H, W) bool against mask (B, H, W) of 1, 0 and -1 (ignored) -> (B, 4) pixels: tp, fp, fn, tn."""
    object_, rest = mask == 1, mask == 0
    parts = (foreground & object_, foreground & rest, ~foreground & object_, ~foreground & rest)
    return torch.stack([part.flatten(1).sum(1) for part in parts], dim=1).double()


def average_precision(score: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
    """(B, N) scores, truths and which entries count (bool) -> (B,) area under the precision-recall steps; NaN without a positive.

    Equal scores form one threshold, as in scikit-learn's `average_precision_score`.
    """
    score, order = torch.sort(score.masked_fill(~counted, -torch.inf), dim=1, descending=True, stable=True)
    counted = counted.gather(1, order)
    positive = (truth.gather(1, order) & counted).double().cumsum(1)
    seen = counted.double().cumsum(1)
    last = torch.ones_like(counted)  # the last entry of each group of equal scores
    last[:, :-1] = score[:, :-1] != score[:, 1:]
    reached = torch.where(last, positive, 0.0).cummax(1).values
    gained = reached.diff(dim=1, prepend=torch.zeros_like(reached[:, :1]))
    return torch.where(last, gained * positive / seen.clamp(min=1), 0.0).sum(1) / positive[:, -1]


def agreement(counts: np.ndarray) -> np.ndarray:
    """(..., 4) tp, fp, fn, tn (sums or means over images) -> (..., 5) numbers of `SegmentationAgreement`; NaN without pixels."""
    tp, fp, fn, tn = np.moveaxis(counts, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, background_recall = tp / (tp + fn), tn / (tn + fp)
        iou, background_iou = tp / (tp + fp + fn), tn / (tn + fp + fn)
        pixel_accuracy = (tp + tn) / (tp + fp + fn + tn)
    return np.stack(
        ((iou + background_iou) / 2, pixel_accuracy, (recall + background_recall) / 2, recall, iou),
        axis=-1,
    )


class SegmentationAgreement(ExplanationMetric):
    """Agreement of the map, cut at its own mean, with the object's mask: higher is better.

    The map is upsampled bilinearly, scaled to [0, 1] per image and cut at `> mean`. Counts of tp, fp, fn and tn are summed over the whole
    data (dataset level), ignored pixels (-1) left out. A constant map marks nothing (all background) and is flagged in `constant`; maps
    that are not finite are excluded.

    Results: the headline is the mean IoU of object and background; `pixel_accuracy` (micro), `macro_pixel_accuracy` (mean recall of
    both classes), `foreground_recall`, `foreground_iou`, all at dataset level; `miou_per_image` (the mean over images that show an
    object, the one to test in pairs); `map` (average precision of each image over both classes); `constant`, the share of constant maps.

    Args:
        reduction: of the channels, see `attribution.reduce_channels`.

    Shapes:
        explanation.mask: (B, H, W), 1 object, 0 background, -1 ignored, at the size of x.
        compute(): eight scalars in [0, 1].

    Raises:
        UserError: if the record has no masks, or masks of another size than x.

    Source: Chefer et al. 2021 (protocol); paper 002, Table 1. We report macro accuracy and foreground recall separately, since the
    paper's "mPA" lies below its mIoU in places, which no pixel accuracy can.
    """

    columns = ("tp", "fp", "fn", "tn", "miou_per_image", "map", "constant")
    results = ("", "pixel_accuracy", "macro_pixel_accuracy", "foreground_recall", "foreground_iou", "miou_per_image", "map", "constant")
    higher_is_better = dict.fromkeys(results, True) | {"constant": None}
    needs = frozenset({"mask"})
    kind = "segmentation_agreement"

    def __init__(self, reduction: str = "sum") -> None:
        self.reduction = check_reduction(reduction)
        super().__init__()

    def measure(self, explanation: Explanation) -> Tensor:
        mask = explanation.mask
        if mask is None or mask.shape[1:] != explanation.x.shape[2:]:
            shape = None if mask is None else tuple(mask.shape[1:])
            raise UserError(f"masks must have the size of the images, {tuple(explanation.x.shape[2:])}, got {shape}; resize them together")
        raw = explanation.heatmap(self.reduction)
        finite = torch.isfinite(raw).flatten(1).all(1)
        heat = normalize(torch.where(finite[:, None, None], raw, 0.0))
        counts = confusion(heat > heat.mean((1, 2), keepdim=True), mask)
        per_image = torch.from_numpy(agreement(counts.cpu().numpy()))[:, 0].to(counts.device)
        per_image = torch.where((mask == 1).flatten(1).any(1), per_image, torch.nan)
        flat = heat.flatten(1)
        counted = (mask >= 0).flatten(1)
        object_ = (mask == 1).flatten(1)
        both = average_precision(torch.cat((1 - flat, flat), 1), torch.cat((~object_, object_), 1), torch.cat((counted, counted), 1))
        constant = (heat.amax((1, 2)) == 0).double()
        numbers = torch.cat((counts, torch.stack((per_image, both, constant), 1)), dim=1)
        return torch.where(finite[:, None], numbers, torch.nan)

    def combine(self, means: np.ndarray) -> np.ndarray:
        return np.concatenate((agreement(means[..., :4]), means[..., 4:]), axis=-1)

    def settings(self) -> tuple[str, ...]:
        return self.reduction, ">mean", "bilinear"
