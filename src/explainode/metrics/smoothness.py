"""Is the map sharp or noisy? What Jha et al. 2021 shows as pictures, as two numbers that do not depend on the map's scale."""

from __future__ import annotations

import torch
from torch import Tensor

from explainode.attribution import Explanation, check_reduction
from explainode.metrics.base import ExplanationMetric


def total_variation(heatmap: Tensor) -> Tensor:
    """(B, H, W) -> (B,): sum of |differences of neighbors| along both axes over sum of |values|; NaN for a zero map.

    Between 0 and 4, since each value enters up to four differences: 0 for a constant map, 4 for isolated pixels and checkerboards, about
    2 sqrt(2) = 2.83 for white Gaussian noise.
    """
    across = heatmap.diff(dim=2).abs().sum((1, 2))
    down = heatmap.diff(dim=1).abs().sum((1, 2))
    return (across + down) / heatmap.abs().sum((1, 2))


def high_frequency_energy(heatmap: Tensor) -> Tensor:
    """(B, H, W) -> (B,) in [0, 1]: share of the spectral energy, mean removed, above half the Nyquist frequency; NaN for a constant map.

    The frequency is radial, (fx^2 + fy^2)^(1/2) > 1/4 cycle per pixel; white noise has about 1 - pi / 16 = 0.80.
    """
    height, width = heatmap.shape[-2:]
    energy = torch.fft.fft2(heatmap - heatmap.mean((1, 2), keepdim=True)).abs().square()
    fy = torch.fft.fftfreq(height, device=heatmap.device, dtype=heatmap.dtype)
    fx = torch.fft.fftfreq(width, device=heatmap.device, dtype=heatmap.dtype)
    high = (fy[:, None].square() + fx.square()).sqrt() > 0.25
    flat = heatmap.amax((1, 2)) == heatmap.amin((1, 2))  # rounding leaves energy in a constant map
    return torch.where(flat, torch.nan, (energy * high).sum((1, 2)) / energy.sum((1, 2)))


class Smoothness(ExplanationMetric):
    """Total variation and high-frequency energy of the map: lower is smoother, which is a fact about the map and not a merit in itself.

    Results: `total_variation` of the map divided by its L1 norm; `high_frequency`, the share of energy above half the Nyquist frequency.
    Constant maps and maps that are not finite are excluded. A coarse map (Grad-CAM) is smooth because it was upsampled.

    Args:
        reduction: of the channels, see `attribution.reduce_channels`.

    Shapes:
        compute(): two scalars, total variation in [0, 4], energy share in [0, 1].

    Source: our reading of "sharper, less noisy" in Jha et al. 2021, Sec. 4.1, which gives no number.
    """

    columns = ("total_variation", "high_frequency")
    higher_is_better = None
    role = "complexity"
    kind = "smoothness"

    def __init__(self, reduction: str = "sum") -> None:
        self.reduction = check_reduction(reduction)
        super().__init__()

    def measure(self, explanation: Explanation) -> Tensor:
        heat = explanation.heatmap(self.reduction).double()
        numbers = torch.stack((total_variation(heat), high_frequency_energy(heat)), dim=1)
        flat = heat.amax((1, 2)) == heat.amin((1, 2))
        return torch.where((torch.isfinite(heat).all(2).all(1) & ~flat)[:, None], numbers, torch.nan)

    def settings(self) -> tuple[str, ...]:
        return (self.reduction,)
