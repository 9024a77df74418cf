"""Reference images: what stands for "nothing there"."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from explainode.errors import UserError, nearest

Baseline = str | float | Tensor

NAMES = ("black", "white", "gray", "mean", "blur")


def gaussian_blur(x: Tensor, size: int, sigma: float) -> Tensor:
    """x (B, C, H, W) convolved with a Gaussian of `size` (odd) pixels; borders are reflected, in images too small for that repeated."""
    ramp = torch.arange(size, dtype=x.dtype, device=x.device) - size // 2
    kernel = torch.exp(-ramp.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, size)
    half = size // 2
    mode = "reflect" if half < min(x.shape[-2:]) else "replicate"
    x = F.pad(x, (half, half, half, half), mode=mode)
    return F.conv2d(F.conv2d(x, kernel, groups=x.shape[1]), kernel.transpose(2, 3), groups=x.shape[1])


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
            raise UserError(f"a baseline of shape {tuple(baseline.shape)} does not fit images {tuple(x.shape[1:])}; give (C, H, W)")
        return baseline.to(x).expand_as(x)
    if isinstance(baseline, (int, float)):
        return torch.full_like(x, baseline)
    if baseline in (levels := {"black": 0.0, "gray": 0.5, "white": 1.0}):
        return torch.full_like(x, levels[baseline])
    if baseline == "mean":
        return x.mean((-2, -1), keepdim=True).expand_as(x)
    if baseline == "blur":
        side = min(x.shape[-2:])
        return gaussian_blur(x, 2 * math.floor(11 * side / 64) + 1, 5 * side / 32)
    raise UserError(f"no baseline named {baseline!r}; the nearest are {nearest(baseline, NAMES)} (or give a gray level in [0, 1])")
