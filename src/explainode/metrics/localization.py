"""Do the relevant pixels lie on the object? What all metrics of localization share, and agreement with segmentation masks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from explainode.attribution import Explanation, check_reduction, normalize
from explainode.errors import UserError, nearest
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.cuts import check_cut, foreground
from explainode.metrics.ranking import Ranking

TRUTHS = ("mask", "boxes")
DEGENERATE = ("exclude", "background")


def fill_boxes(boxes: list[Tensor], size: tuple[int, int] | torch.Size) -> Tensor:
    """One (n, 4) tensor of x0, y0, x1, y1 per image -> (B, H, W) int64, 1 where the center of a pixel lies in a box: x0 <= x + 1/2 < x1."""
    mask = torch.zeros(len(boxes), *size, dtype=torch.int64, device=boxes[0].device if boxes else None)
    y, x = (torch.arange(pixels, device=mask.device) + 0.5 for pixels in size)
    for row, box in zip(mask, boxes, strict=True):
        x0, y0, x1, y1 = box[:, :, None].unbind(1)
        inside_y, inside_x = (y0 <= y) & (y < y1), (x0 <= x) & (x < x1)  # (n, H), (n, W)
        row |= (inside_y[:, :, None] & inside_x[:, None, :]).any(0).long()
    return mask


def bounding_boxes(mask: Tensor) -> Tensor:
    """(B, H, W) bool -> (B, 4) float x0, y0, x1, y1 around all that is true (the last row and column included); NaN where nothing is."""
    sides = []
    for dim in (1, 2):  # columns, then rows
        any_ = mask.any(dim)
        count = any_.shape[1]
        place = torch.arange(count, device=mask.device)
        first = torch.where(any_, place, count).amin(1)
        last = torch.where(any_, place, -1).amax(1) + 1
        sides.append((first, last))
    (x0, x1), (y0, y1) = sides
    box = torch.stack((x0, y0, x1, y1), 1).float()
    return torch.where((x1 > x0)[:, None], box, torch.nan)


def object_mask(explanation: Explanation, truth: str) -> Tensor:
    """(B, H, W) int64, 1 object, 0 background, -1 ignored: the record's mask, or its boxes filled.

    Raises:
        UserError: if the masks have another size than the images.
    """
    size = explanation.x.shape[2:]
    if truth == "boxes":
        assert explanation.boxes is not None
        return explanation.memo("filled boxes", lambda: fill_boxes(explanation.boxes, size), shared=True)  # type: ignore[arg-type]
    mask = explanation.mask
    assert mask is not None
    if mask.shape[1:] != size:
        raise UserError(
            f"masks must have the size of the images, {tuple(size)}, got {tuple(mask.shape[1:])}; resize them together"
        )
    return mask


def object_boxes(explanation: Explanation, truth: str) -> list[Tensor]:
    """One (n, 4) tensor per image: the record's boxes, or the box around the mask's object; n = 0 without an object."""
    if truth == "boxes":
        assert explanation.boxes is not None
        return explanation.boxes
    around = bounding_boxes(object_mask(explanation, truth) == 1)
    return [box[None] if torch.isfinite(box).all() else box[None][:0] for box in around]


class LocalizationMetric(ExplanationMetric):
    """Skeleton of metrics that hold a map against the place of the object: higher is better.

    The map is upsampled bilinearly to the pixels of x. Excluded and counted, never a hit: maps that are constant or not finite, and images
    that show no object.

    Args:
        truth: "mask", the record's segmentation mask (pixels of -1 are left out), or "boxes", the union of its boxes.
        reduction: of the channels, see `attribution.reduce_channels`.

    Raises:
        UserError: for an unknown truth or reduction; on update if the record lacks the truth, or has masks of another size than x.
    """

    role = "localization"

    higher_is_better = True
    needs = frozenset({"mask"})

    def __init__(self, truth: str = "mask", reduction: str = "sum") -> None:
        if truth not in TRUTHS:
            raise UserError(f"truth must be mask or boxes, got {truth!r}; the nearest are {nearest(truth, TRUTHS)}")
        self.truth = truth
        self.reduction = check_reduction(reduction)
        self.needs = frozenset({truth})
        super().__init__()

    def score(self, heat: Tensor, mask: Tensor, explanation: Explanation) -> Tensor:
        """Finite maps (B, H, W) against object masks (B, H, W) -> (B, len(columns)); rows without meaning are excluded afterwards."""
        raise NotImplementedError

    def measure(self, explanation: Explanation) -> Tensor:
        heat, usable = explanation.memo(
            ("usable heatmap", self.reduction), lambda: usable_heatmap(explanation, self.reduction)
        )
        mask = object_mask(explanation, self.truth)
        present = (mask == 1).flatten(1).any(1)
        return torch.where((usable & present)[:, None], self.score(heat, mask, explanation), torch.nan)

    def settings(self) -> tuple[str, ...]:
        return self.truth, self.reduction


def usable_heatmap(explanation: Explanation, reduction: str) -> tuple[Tensor, Tensor]:
    """The heatmap (B, H, W), 0 where it is not finite, and which maps say anything (B,): all values finite and not all the same."""
    raw = explanation.heatmap(reduction)
    finite = torch.isfinite(raw).flatten(1).all(1)
    heat = torch.where(finite[:, None, None], raw, 0.0)
    return heat, heat.amax((1, 2)) > heat.amin((1, 2))


def ranking_of(explanation: Explanation, truth: str, reduction: str) -> Ranking:
    """The pixels ranked by the map, object against background: sorted once for all metrics that read it."""

    def rank() -> Ranking:
        heat, _ = explanation.memo(("usable heatmap", reduction), lambda: usable_heatmap(explanation, reduction))
        mask = object_mask(explanation, truth).flatten(1)
        return Ranking.of(heat.flatten(1), mask == 1, mask >= 0)

    return explanation.memo(("ranking", truth, reduction), rank)


def confusion(foreground: Tensor, mask: Tensor) -> Tensor:
    """Predicted foreground (B, H, W) bool against mask (B, H, W) of 1, 0 and -1 (ignored) -> (B, 4) pixels: tp, fp, fn, tn."""
    object_, rest = mask == 1, mask == 0
    tp, fp = ((foreground & side).flatten(1).sum(1) for side in (object_, rest))
    return torch.stack((tp, fp, object_.flatten(1).sum(1) - tp, rest.flatten(1).sum(1) - fp), dim=1).double()


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


class SegmentationAgreement(LocalizationMetric):
    """Agreement of the map, cut into foreground and background, with the object's mask: higher is better.

    The map is upsampled bilinearly, scaled to [0, 1] per image and cut. Counts of tp, fp, fn and tn are summed over the whole data (dataset
    level), ignored pixels (-1) left out. The published protocol rewards contrast: squaring a map moves its mean and so the cut, not the
    ranking. Read it beside `PixelAUROC` and `BestAreaMIoU`.

    Results: the headline is the mean IoU of object and background; `pixel_accuracy` (micro), `macro_pixel_accuracy` (mean recall of
    both classes), `foreground_recall`, `foreground_iou`, all at dataset level; `miou_per_image` (the mean over images that show an
    object, the one to test in pairs); `map` (average precision of each image over both classes); `constant`, the share of constant maps.

    Args:
        truth, reduction: see `LocalizationMetric`.
        cut: where the map is cut, see `cuts.foreground`.
        degenerate: "exclude" leaves out constant maps and images without an object; "background" counts them at dataset level as the
            reference code does, a constant map as all background. Maps that are not finite are excluded in any case.

    Shapes:
        compute(): eight scalars in [0, 1].

    Raises:
        UserError: for unknown settings; on update if the record has no masks, or masks of another size than x.

    Source: Chefer et al. 2021 (protocol); root inference (anonymous), Table 1. We report macro accuracy and foreground recall separately, since the
    paper's "mPA" lies below its mIoU in places, which no pixel accuracy can. We read the paper's "below the mean set to zero" as a cut that
    keeps the mean itself.
    """

    columns = ("tp", "fp", "fn", "tn", "miou_per_image", "map", "constant")
    results = (
        "",
        "pixel_accuracy",
        "macro_pixel_accuracy",
        "foreground_recall",
        "foreground_iou",
        "miou_per_image",
        "map",
        "constant",
    )
    higher_is_better = dict.fromkeys(results, True) | {"constant": None}  # type: ignore[assignment]
    kind = "segmentation_agreement"
    version = 2  # constant maps and images without an object are excluded unless asked for

    def __init__(
        self, truth: str = "mask", reduction: str = "sum", cut: str = ">mean", degenerate: str = "exclude"
    ) -> None:
        self.cut = check_cut(cut)
        if degenerate not in DEGENERATE:
            raise UserError(
                f"degenerate must be exclude or background, got {degenerate!r}; the nearest are {nearest(degenerate, DEGENERATE)}"
            )
        self.degenerate = degenerate
        super().__init__(truth, reduction)

    def measure(self, explanation: Explanation) -> Tensor:
        heat, usable = explanation.memo(
            ("usable heatmap", self.reduction), lambda: usable_heatmap(explanation, self.reduction)
        )
        finite = torch.isfinite(explanation.heatmap(self.reduction)).flatten(1).all(1)
        mask = object_mask(explanation, self.truth)
        present = (mask == 1).flatten(1).any(1)
        # a constant map marks nothing
        counts = confusion(foreground(heat, self.cut) & usable[:, None, None], mask)
        per_image = torch.from_numpy(agreement(counts.cpu().numpy()))[:, 0].to(counts.device)
        numbers = torch.stack((per_image, _both_classes_precision(normalize(heat), mask)), 1)
        scored = usable & present
        if self.degenerate == "exclude":
            counts = torch.where(scored[:, None], counts, torch.nan)
            numbers = torch.where(scored[:, None], numbers, torch.nan)
        else:
            numbers[:, 0] = torch.where(present, numbers[:, 0], torch.nan)
        table = torch.cat((counts, numbers, (~usable).double()[:, None]), dim=1)
        return torch.where(finite[:, None], table, torch.nan)

    def combine(self, means: np.ndarray) -> np.ndarray:
        return np.concatenate((agreement(means[..., :4]), means[..., 4:]), axis=-1)

    def settings(self) -> tuple[str, ...]:
        return self.truth, self.reduction, self.cut, "bilinear", self.degenerate


def _both_classes_precision(heat: Tensor, mask: Tensor) -> Tensor:
    """(B, H, W) in [0, 1] -> (B,) average precision over the pairs (1 - heat, background) and (heat, object) of all pixels together."""
    flat, object_, counted = heat.flatten(1), (mask == 1).flatten(1), (mask >= 0).flatten(1)
    scores, truths = torch.cat((1 - flat, flat), 1), torch.cat((~object_, object_), 1)
    return Ranking.of(scores, truths, torch.cat((counted, counted), 1)).average_precision()
