"""Pixel units and network units: what a network's own normalization does to a step in pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def normalization(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, std), each (C, 1, 1) on x's device, of the first submodule called `Normalize`; 0 and 1 where the network takes pixels as is.

    Found by name and attributes, not by class: metrics know no models.
    """
    for module in model.modules():
        mean, std = getattr(module, "mean", None), getattr(module, "std", None)
        if type(module).__name__ == "Normalize" and isinstance(mean, Tensor) and isinstance(std, Tensor):
            return mean.to(x).reshape(-1, 1, 1), std.to(x).reshape(-1, 1, 1)
    one = torch.ones(1, 1, 1, device=x.device, dtype=x.dtype)
    return one - 1, one
