"""What a pixel is replaced with when it is taken away: blur, flat colors, noise, or what its neighbors suggest.

Every baseline maps pixels (B, C, H, W) in [0, 1] to pixels of the same shape and range, image by image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from explainode.attribution import Explanation
from explainode.blur import blur, gaussian_kernel, separable_filter
from explainode.errors import UserError, nearest
from explainode.metrics.units import normalization
from explainode.randomness import normal_like, sample_keys, uniform_like

INPAINTING_NOISE = 0.01  # of ROAD


def folded_kernel(size: int, sigma: float) -> Tensor:
    """(size,) float64: an impulse filtered inside a window of `size` with half-sample reflection, so that the tails fold back in.

    This is what RISE's `gkern` yields: nearly flat (center over corner 1.14 in two dimensions for 11 / 5), unlike a cut Gaussian (2.72).
    """
    reach = int(4 * sigma + 0.5)
    weights = gaussian_kernel(2 * reach + 1, sigma)
    place = (torch.arange(size)[:, None] + torch.arange(-reach, reach + 1)) % (2 * size)
    place = torch.where(place < size, place, 2 * size - 1 - place)
    return torch.where(place == size // 2, weights, 0.0).sum(1)


def _blur(explanation: Explanation) -> Tensor:
    """A Gaussian that scales with the image."""
    return blur(explanation.x)


def _rise(explanation: Explanation) -> Tensor:
    """RISE's blur: 11 / 5, folded kernel, zero padded in the network's units (so with the normalization's mean color in pixels)."""
    mean, _ = normalization(explanation.model, explanation.x)
    return separable_filter(explanation.x - mean, folded_kernel(11, 5.0), "zero") + mean


def _groupcam(explanation: Explanation) -> Tensor:
    """Group-CAM's blur: 51 / 50, made for 224 pixels."""
    return separable_filter(explanation.x, gaussian_kernel(51, 50.0), "reflect")


def _zero(explanation: Explanation) -> Tensor:
    """Black pixels."""
    return torch.zeros_like(explanation.x)


def _network_zero(explanation: Explanation) -> Tensor:
    """Zero in the network's units: the normalization's mean color."""
    mean, _ = normalization(explanation.model, explanation.x)
    return torch.zeros_like(explanation.x) + mean


def _min(explanation: Explanation) -> Tensor:
    """The smallest value of the image, in all channels."""
    return explanation.x.amin((1, 2, 3), keepdim=True).expand_as(explanation.x)


def _mean(explanation: Explanation) -> Tensor:
    """The mean color of the image."""
    return explanation.x.mean((2, 3), keepdim=True).expand_as(explanation.x)


def _noise(explanation: Explanation) -> Tensor:
    """Uniform noise in [0, 1], keyed by seed and sample id."""
    keys = sample_keys(explanation.sample_ids.to(explanation.x.device), explanation.seed, "noise baseline")
    return uniform_like(explanation.x, keys)


def _inpaint(explanation: Explanation) -> Tensor:
    """Where everything is gone there is nothing to fill in from: the mean color and the noise. `perturbation` fills in smaller holes."""
    return (_mean(explanation) + inpainting_noise(explanation)).clamp(0, 1)


def inpainting_noise(explanation: Explanation) -> Tensor:
    """(B, C, H, W) normal noise of ROAD, 0.01 in the network's units, keyed by seed and sample id: filled holes shall not show by smoothness."""
    keys = sample_keys(explanation.sample_ids.to(explanation.x.device), explanation.seed, "inpainting noise")
    return normal_like(explanation.x, keys) * INPAINTING_NOISE * normalization(explanation.model, explanation.x)[1]


BASELINES: dict[str, Callable[[Explanation], Tensor]] = {
    "blur": _blur,
    "rise": _rise,
    "groupcam": _groupcam,
    "zero": _zero,
    "network_zero": _network_zero,
    "min": _min,
    "mean": _mean,
    "noise": _noise,
    "inpaint": _inpaint,
}


def check_baseline(name: str) -> str:
    """`name` if there is such a baseline.

    Raises:
        UserError: with the nearest names.
    """
    if name not in BASELINES:
        raise UserError(f"no baseline named {name!r}; the nearest are {nearest(name, BASELINES)}")
    return name


def baseline_image(explanation: Explanation, name: str) -> Tensor:
    """(B, C, H, W): x with everything taken away; made once for all explanations of the batch."""
    return explanation.memo(("baseline", name), lambda: BASELINES[name](explanation), shared=True)


def baseline_logits(explanation: Explanation, name: str) -> Tensor:
    """(B, K) logits of the baseline images; evaluated once for all explanations of the batch."""
    return explanation.memo(
        ("baseline logits", name), lambda: explanation.forward(baseline_image(explanation, name)), shared=True
    )
