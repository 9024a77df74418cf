"""The first part of every network: pixels in [0, 1] become what the network was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from explainode.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Normalize(nn.Module):
    """(x - mean) / std per channel, inside the network so that attacks, baselines and metrics work in pixel units.

    The buffers are not persistent: published state dicts load as they are. With mean 0 and std 1 it is the identity, bit for bit.

    Args:
        mean, std: one number per channel, in units of pixels in [0, 1].

    Shapes:
        x: (B, C, H, W) -> (B, C, H, W); `mean` and `std` are kept as (C, 1, 1).

    Raises:
        UserError: if the lengths differ or a std is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = (0.0, 0.0, 0.0), std: Sequence[float] = (1.0, 1.0, 1.0)) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise UserError(f"mean and std need one number per channel each, got {len(mean)} and {len(std)}")
        if min(std) <= 0:
            raise UserError(f"std must be positive in every channel, got {list(std)}")
        self.register_buffer("mean", torch.tensor([float(m) for m in mean]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([float(s) for s in std]).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        mean, std = (", ".join(f"{v:g}" for v in buffer.flatten().tolist()) for buffer in (self.mean, self.std))
        return f"mean=({mean}), std=({std})"
