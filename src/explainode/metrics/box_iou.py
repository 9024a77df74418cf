"""Does a box around the relevant pixels match the object's box?"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from explainode.attribution import Explanation
from explainode.errors import UserError, nearest
from explainode.metrics.cuts import check_cut, foreground
from explainode.metrics.localization import LocalizationMetric, bounding_boxes, object_boxes

REGIONS = ("largest", "all")


def components(foreground: Tensor) -> Tensor:
    """(B, H, W) bool -> (B, H, W) int64: a number for each region connected over edges and corners, rising in raster order; -1 outside.

    Pixels are gathered into horizontal runs, and runs that touch are joined: each joint hangs the higher number under the lower one, all
    at once, until no joint connects two numbers. The rounds grow with the logarithm of a region's length.
    """
    above, below = foreground[:, :-1], foreground[:, 1:]
    starts = foreground.clone()
    starts[:, :, 1:] &= ~foreground[:, :, :-1]
    run = starts.flatten().cumsum(0).view(foreground.shape) - 1  # of every pixel; means nothing outside

    both = above & below
    joints = [(both & ~F.pad(both, (1, 0))[:, :, :-1], 0, 0)]  # where two runs begin to overlap
    for left, right in ((0, 1), (1, 0)):  # where they only touch at a corner: above left of below, above right of below
        a, b = (slice(None, -1), slice(1, None)) if right else (slice(1, None), slice(None, -1))
        joints.append((above[:, :, a] & below[:, :, b] & ~above[:, :, b] & ~below[:, :, a], left, right))
    pairs = []
    for joint, left, right in joints:
        image, row, column = joint.nonzero(as_tuple=True)
        pairs.append(torch.stack((run[image, row, column + left], run[image, row + 1, column + right])))
    first, second = torch.cat(pairs, 1)

    name = torch.arange(int(starts.sum()), device=foreground.device)
    while not torch.equal(name[first], name[second]):
        low, high = torch.minimum(name[first], name[second]), torch.maximum(name[first], name[second])
        name = name.scatter_reduce(0, high, low, "amin")
        while not torch.equal(name, name[name]):
            name = name[name]
    return torch.where(foreground, name[run.clamp(min=0)] if len(name) else run, -1)


def largest_component(foreground: Tensor) -> Tensor:
    """(B, H, W) bool -> (B, H, W) bool: the region with most pixels, of equal ones the one that begins first in raster order."""
    label = components(foreground)
    image = torch.arange(len(label), device=label.device)[:, None, None].expand_as(label)[foreground]
    size = label[foreground].bincount(minlength=1)
    rank = size * len(size) - torch.arange(len(size), device=size.device)  # larger first, then earlier
    best = torch.full((len(label),), -1, device=label.device).scatter_reduce(0, image, rank[label[foreground]], "amax")
    return foreground & (rank[label.clamp(min=0)] == best[:, None, None])


def intersection_over_union(box: Tensor, others: list[Tensor]) -> Tensor:
    """One box (B, 4) per image against its boxes, (n, 4) each -> (B,) the best IoU; NaN without boxes."""
    most = max((len(other) for other in others), default=0)
    if most == 0:
        return torch.full((len(box),), torch.nan, dtype=torch.float64, device=box.device)
    padded = torch.stack(
        [F.pad(other.double(), (0, 0, 0, most - len(other)), value=torch.nan) for other in others]
    )  # (B, n, 4)
    own = box.double()[:, None]
    sides = torch.minimum(own[..., 2:], padded[..., 2:]) - torch.maximum(own[..., :2], padded[..., :2])
    shared = sides.clamp(min=0).prod(-1)
    area, areas = ((b[..., 2:] - b[..., :2]).prod(-1) for b in (own, padded))
    iou = (shared / (area + areas - shared)).nan_to_num(nan=-1.0).amax(1)
    return torch.where(iou < 0, torch.nan, iou)


class BoxIoU(LocalizationMetric):
    """IoU of the box around the relevant region with the object's box, the best of several: higher is better.

    The map is cut, and a box drawn around its largest connected region. Two boxes that know nothing of the picture stand beside it: where
    objects fill half of the image, as they do in many data sets, the whole image is hard to beat.

    Results: the headline is the mean IoU; `localized`, the share of images with IoU of at least one half; `whole_image` and `centre_box`,
    the mean IoU of these two boxes.

    Args:
        truth: "boxes", or "mask": the box around the mask's object.
        reduction: of the channels, see `attribution.reduce_channels`.
        cut: where the map is cut, see `cuts.foreground`.
        region: "largest", the largest region connected over edges and corners, or "all" of the foreground.
        centre_share: the share of the image's area that the centre box covers, in (0, 1).

    Shapes:
        explanation.boxes: one (n, 4) tensor of x0, y0, x1, y1 in pixels per image; the last row and column of a region are included.
        compute(): four scalars in [0, 1].

    Raises:
        UserError: for unknown settings; on update if the record has no boxes.

    Source: Zhou et al. 2016 (CAM: `peak:0.2`, largest region); Otsu and mean cuts: ours. The baselines follow the advice of
    Choi et al. 2020.
    """

    columns = ("", "localized", "whole_image", "centre_box")
    higher_is_better = {"": True, "localized": True, "whole_image": None, "centre_box": None}  # type: ignore[assignment]
    kind = "box_iou"

    def __init__(
        self,
        truth: str = "boxes",
        reduction: str = "sum",
        cut: str = "otsu",
        region: str = "largest",
        centre_share: float = 0.5,
    ) -> None:
        if region not in REGIONS:
            raise UserError(
                f"region must be largest or all, got {region!r}; the nearest are {nearest(region, REGIONS)}"
            )
        if not 0 < centre_share < 1:
            raise UserError(f"centre_share must lie between 0 and 1, got {centre_share}; 0.5 is half of the image")
        self.cut = check_cut(cut)
        self.region = region
        self.centre_share = centre_share
        super().__init__(truth, reduction)

    def score(self, heat: Tensor, mask: Tensor, explanation: Explanation) -> Tensor:
        boxes = object_boxes(explanation, self.truth)
        marked = foreground(heat, self.cut)
        found = bounding_boxes(largest_component(marked) if self.region == "largest" else marked)
        iou = intersection_over_union(found, boxes)
        height, width = heat.shape[1:]
        margin = (1 - math.sqrt(self.centre_share)) / 2
        whole = found.new_tensor([0, 0, width, height])
        centre = found.new_tensor([margin * width, margin * height, (1 - margin) * width, (1 - margin) * height])
        baselines = (intersection_over_union(box.expand(len(heat), 4), boxes) for box in (whole, centre))
        numbers = torch.stack((iou, (iou >= 0.5).double(), *baselines), 1)
        return torch.where(iou.isnan()[:, None], torch.nan, numbers)

    def settings(self) -> tuple[str, ...]:
        return (*super().settings(), self.cut, self.region)
