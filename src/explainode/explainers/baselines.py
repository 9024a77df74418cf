"""Reference images: what stands for "nothing there"."""

from __future__ import annotations

import torch
from torch import Tensor

from explainode.blur import blur
from explainode.errors import UserError, nearest

Baseline = str | float | Tensor

NAMES = ("black", "white", "gray", "mean", "blur")


def make_baseline(baseline: Baseline, x: Tensor) -> Tensor:
    """The reference of each image of x (B, C, H, W), in pixels.

    Args:
        baseline: "black" (0), "gray" (0.5), "white" (1), "mean" (each image's own mean color), "blur" (Gaussian of size odd(11 s / 32) and
            sigma 5 s / 32 for the shorter side s), a gray level, or a tensor (C, H, W) shared by all images.

    Raises:
        UserError: for any other name, or a tensor that does not fit an image.
    """
    if isinstance(baseline, Tensor):
        if baseline.shape != x.shape[1:]:
            raise UserError(
                f"a baseline of shape {tuple(baseline.shape)} does not fit images {tuple(x.shape[1:])}; give (C, H, W)"
            )
        return baseline.to(x).expand_as(x)
    if isinstance(baseline, (int, float)):
        return torch.full_like(x, baseline)
    if baseline in (levels := {"black": 0.0, "gray": 0.5, "white": 1.0}):
        return torch.full_like(x, levels[baseline])
    if baseline == "mean":
        return x.mean((-2, -1), keepdim=True).expand_as(x)
    if baseline == "blur":
        return blur(x)
    raise UserError(
        f"no baseline named {baseline!r}; the nearest are {nearest(baseline, NAMES)} (or give a gray level in [0, 1])"
    )
