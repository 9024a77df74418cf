"""Penalties that keep a residual network near a flow while it trains, so that a neural ODE can stand for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from explainode.dynamics.block import ode_blocks
from explainode.errors import UserError
from explainode.models.residual import Residual


class DepthConditioning:
    """What is added to the loss so that the blocks of a ResNet become steps of a flow.

    Refinement: the class probabilities p of the network and q of the network whose blocks are taken in two half steps each must agree,

        refinement * (KL(p || q) + KL(q || p)) / 2.

    It is what refining the steps changes first.

    Depth smoothness: smoothness * 2 |theta_{l+1} - theta_l|^2 / (|theta_l|^2 + |theta_{l+1}|^2), averaged over neighbours of one shape.

    Both look at the blocks whose shortcut is the identity. BatchNorm is frozen: train a network first, then condition it, or take one with GroupNorm.
    (With statistics of the batch in the loss and running ones in the penalty, the penalty alone decided what the running ones did: within
    100 steps a published ResNet-20 predicted one class for everything, which refines perfectly.)

    Args:
        refinement, smoothness: weights of the two, 0 or more.
        images: refinement is taken of so many images of a batch, the first ones; it costs two or three more passes for each.

    Raises:
        UserError: for a negative weight or no images; when called, for a network without such a block.

    Source: Sander et al. 2022 (residual networks approach ODEs only if they are smooth in depth); Lei et al. 2023, Theorem 1, which presumes it. The
    refinement penalty is ours: |g(x + g(x)/2) - g(x)|^2 / |x|^2 of each block, which needs no further pass, cost more accuracy at a
    larger kappa (docs/dynamics.md).
    """

    def __init__(self, refinement: float = 0.0, smoothness: float = 0.0, images: int = 64) -> None:
        if refinement < 0 or smoothness < 0 or images < 1:
            raise UserError(
                f"conditioning needs weights of 0 or more and at least 1 image, got refinement={refinement}, smoothness={smoothness}, "
                f"images={images}"
            )
        self.refinement, self.smoothness, self.images = refinement, smoothness, images

    def __call__(self, network: nn.Module, image: Tensor, logits: Tensor | None = None) -> dict[str, Tensor]:
        """The weighted penalties by name, scalars, for images (B, C, H, W); `logits` (B, K) of the network, if they are known, save a pass."""
        blocks = flow_blocks(network)
        penalties = {}
        if self.refinement:
            p = (network(image[: self.images]) if logits is None else logits[: self.images]).log_softmax(1)
            with refined(network, 2):
                q = network(image[: self.images]).log_softmax(1)
            divergence = F.kl_div(p, q, reduction="batchmean", log_target=True) + F.kl_div(
                q, p, reduction="batchmean", log_target=True
            )
            penalties["refinement"] = self.refinement * divergence / 2
        if self.smoothness:
            penalties["smoothness"] = self.smoothness * depth_smoothness(blocks)
        return penalties


def flow_blocks(network: nn.Module) -> list[Residual]:
    """The blocks that a flow can stand for, in order.

    Raises:
        UserError: if there are none, or the network solves equations.
    """
    if ode_blocks(network):
        raise UserError(
            "conditioning is for ResNets, and this network solves equations already; condition its teacher (model=resnet20)"
        )
    blocks = [module for module in network.modules() if isinstance(module, Residual) and module.continuous]
    if not blocks:
        raise UserError(
            "conditioning needs blocks with an identity shortcut, and this network has none; choose one of our ResNets"
        )
    return blocks


@contextmanager
def refined(network: nn.Module, steps: int) -> Iterator[None]:
    """Context in which every block that a flow can stand for is taken in so many Euler steps, inside its own hooks."""

    def euler(block: Residual, x: Tensor) -> Tensor:
        for _ in range(steps):
            x = x + block.field(x) / steps
        return x

    blocks = flow_blocks(network)
    for block in blocks:
        block.forward = partial(euler, block)  # type: ignore[method-assign]  # on this module alone
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def freeze_batchnorm(network: nn.Module) -> None:
    """Put every BatchNorm layer into evaluation mode, so that a block is one function whatever the batch.

    Raises:
        UserError: if the layers have never seen an image, so that their statistics mean nothing.
    """
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if layers and all(_untouched(layer) for layer in layers):
        raise UserError(
            "conditioning freezes BatchNorm, whose statistics have never seen an image here; train the network first and give its weights "
            "(model.weights=...), or choose one with GroupNorm (model=six_block)"
        )
    for layer in layers:
        layer.eval()


def _untouched(layer: _BatchNorm) -> bool:
    mean, variance = layer.running_mean, layer.running_var
    return mean is not None and variance is not None and bool((mean == 0).all() and (variance == 1).all())


def depth_smoothness(blocks: list[Residual]) -> Tensor:
    """The mean of 2 |theta_{l+1} - theta_l|^2 / (|theta_l|^2 + |theta_{l+1}|^2) over neighbours of one shape, between 0 and 4; the sizes are held constant.

    0 where no two blocks are alike, and for two blocks of zeros.
    """
    changes = []
    for before, after in pairwise(blocks):
        first, second = list(before.parameters()), list(after.parameters())
        if first and [p.shape for p in first] == [q.shape for q in second]:
            size = torch.stack([p.detach().square().sum() for p in (*first, *second)]).sum() / 2
            change = torch.stack([(q - p).square().sum() for p, q in zip(first, second, strict=True)]).sum()
            changes.append(change / size.clamp_min(torch.finfo(size.dtype).tiny))
    if changes:
        return torch.stack(changes).mean()
    device = next((p.device for block in blocks for p in block.parameters()), None)
    return torch.zeros((), device=device)
