"""What every network of this room has, however it was built."""

from __future__ import annotations

from torch import nn

from explainode.dynamics.noise import Noise
from explainode.models.residual import inject_noise, scale_residuals
from explainode.models.weights import initialize


def complete(
    network: nn.Module,
    image_size: int,
    noise: Noise | None = None,
    weights: str | None = None,
    name: str | None = None,
    residual_scale: float = 1.0,
) -> nn.Module:
    """The network with noise and scale in its blocks, its weights loaded, and its `image_size`: the side in pixels it was designed for.

    Raises:
        UserError: see `scale_residuals`, `inject_noise` and `initialize`.
    """
    network.image_size = image_size  # type: ignore[assignment]  # a plain attribute: stays with copies, not in the state dict
    return initialize(inject_noise(scale_residuals(network, residual_scale), noise), weights, name)
