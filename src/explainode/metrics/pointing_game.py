"""Does the most relevant pixel lie on the object?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from explainode.attribution import Explanation
from explainode.errors import UserError, nearest
from explainode.metrics.localization import LocalizationMetric

TIES = ("mean", "any", "first")


def distance_in_row(mask: Tensor) -> Tensor:
    """(B, H, W) bool -> (B, H, W) float: columns to the nearest true pixel of the same row, inf in an empty row."""
    column = torch.arange(mask.shape[2], device=mask.device, dtype=torch.float32)
    before = torch.where(mask, column, -torch.inf).cummax(2).values
    after = torch.where(mask, column, torch.inf).flip(2).cummin(2).values.flip(2)
    return torch.minimum(column - before, after - column)


def near_object(point: tuple[Tensor, Tensor, Tensor], mask: Tensor, radius: float) -> Tensor:
    """Points (image, row, column), (M,) each -> (M,) bool: on a true pixel of mask (B, H, W), or closer to one than `radius`."""
    image, row, column = point
    height = mask.shape[1]
    across = distance_in_row(mask)
    near = mask[image, row, column]
    for step in range(-math.ceil(radius) + 1, math.ceil(radius)):
        there = row + step
        inside = (there >= 0) & (there < height)
        squared = across[image, there.clamp(0, height - 1), column].square() + step**2
        near = near | (inside & (squared < radius**2))
    return near


class PointingGame(LocalizationMetric):
    """Share of images whose most relevant pixel lies on the object, or closer to it than the tolerance: higher is better.

    A random map hits as often as the object, grown by the tolerance, covers the image; a center prior wins wherever objects are centered.

    Args:
        truth, reduction: see `LocalizationMetric`.
        tolerance: in pixels; strictly closer is a hit. 0 asks for the object itself.
        reference_side: the shorter side of the image for which the tolerance is meant, with which it scales; None for pixels as they are.
        ties: of several equally relevant pixels, the "mean" of their hits, "any" of them, or the "first" in raster order.

    Shapes:
        compute(): (), in [0, 1].

    Raises:
        UserError: if the tolerance is negative, or a setting unknown.

    Source: Zhang et al. 2018 (excitation backprop); TorchRay's tolerance of 15 pixels at 224. We average over images, TorchRay over
    classes. We score ties by their mean, so that a map that is saturated, or clipped at 0, does not hit by luck.
    """

    kind = "pointing_game"

    def __init__(
        self,
        truth: str = "mask",
        reduction: str = "sum",
        tolerance: float = 15,
        reference_side: int | None = 224,
        ties: str = "mean",
    ) -> None:
        if not 0 <= tolerance < math.inf:
            raise UserError(f"tolerance must be a number of pixels, 0 or more, got {tolerance}")
        if reference_side is not None and reference_side < 1:
            raise UserError(f"reference_side must be a number of pixels, or null for none, got {reference_side}")
        if ties not in TIES:
            raise UserError(f"ties must be mean, any or first, got {ties!r}; the nearest are {nearest(ties, TIES)}")
        self.tolerance = tolerance
        self.reference_side = reference_side
        self.ties = ties
        super().__init__(truth, reduction)

    def score(self, heat: Tensor, mask: Tensor, explanation: Explanation) -> Tensor:
        radius = (
            self.tolerance
            if self.reference_side is None
            else self.tolerance * min(heat.shape[1:]) / self.reference_side
        )
        highest = heat == heat.amax((1, 2), keepdim=True)
        highest &= (heat.amin((1, 2)) < heat.amax((1, 2)))[
            :, None, None
        ]  # of constant maps, which are excluded, no point is asked
        if self.ties == "first":
            highest &= highest.flatten(1).cumsum(1).view_as(highest) == 1
        image, row, column = highest.nonzero(as_tuple=True)
        hit = near_object((image, row, column), mask == 1, radius).double()
        hits = torch.zeros(len(heat), dtype=torch.float64, device=heat.device).index_add_(0, image, hit)
        return ((hits > 0).double() if self.ties == "any" else hits / highest.flatten(1).sum(1))[:, None]

    def settings(self) -> tuple[str, ...]:
        scale = "px" if self.reference_side is None else f"px/{self.reference_side}"
        return (*super().settings(), f"{self.tolerance:g}{scale}", self.ties)
