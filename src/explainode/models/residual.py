"""The block: at once a layer of a ResNet, an Euler step of a neural ODE and an Euler-Maruyama step of a neural SDE."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from explainode.dynamics.noise import Noise, number_noise_blocks
from explainode.errors import UserError


class Residual(nn.Module):
    """activation(shortcut(x) + scale * branch(x) + noise), the noise being drawn for the sum.

    Nothing works in place, so that hooks may keep what they see; torchvision's blocks overwrite it.

    Args:
        branch: f, from the state to its change.
        shortcut: how the state is carried on; the identity if None.
        activation: applied to the sum; none if None.
        noise: `Noise`, injected before or after the activation as it says; none if None.
        scale: of the branch: 1/N in each of N blocks keeps the whole near a flow (Sander et al. 2022).

    Shapes:
        x: (B, *S) -> (B, *S'), whatever branch and shortcut agree on.

    Source: He et al. 2016; with noise, Jha et al. 2021, Eq. 5.
    """

    def __init__(
        self,
        branch: nn.Module,
        shortcut: nn.Module | None = None,
        activation: nn.Module | None = None,
        noise: Noise | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.activation = nn.Identity() if activation is None else activation
        self.noise = noise
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        f = self.change(x)
        y = f + self.shortcut(x)
        y = self.activation(self.inject(y, f, "before"))
        return self.inject(y, f, "after")

    def change(self, x: Tensor) -> Tensor:
        """(B, *S): scale * branch(x)."""
        f = self.branch(x)
        return f if self.scale == 1.0 else self.scale * f

    @property
    def continuous(self) -> bool:
        """Whether the block is a step of a flow: the state is carried on as it is, and the activation is none or ReLU."""
        return isinstance(self.shortcut, nn.Identity) and isinstance(self.activation, (nn.Identity, nn.ReLU))

    def field(self, x: Tensor) -> Tensor:
        """The vector field g whose Euler step of length 1 is the block without noise: x + g(x) = activation(x + f(x)), bit for bit.

        After an activation g = max(f, -x) = relu(x + f) - x, which is continuous but not smooth: solvers of high order gain nothing there.
        """
        f = self.change(x)
        return (
            torch.where(f <= -x, -x, f) if isinstance(self.activation, nn.ReLU) else f
        )  # this way round a NaN stays one

    def extra_repr(self) -> str:
        return "" if self.scale == 1.0 else f"scale={self.scale:g}"

    def inject(self, y: Tensor, f: Tensor, place: str) -> Tensor:
        """y with the block's noise, if it belongs in this place and speaks; f is the change that led to y."""
        if self.noise is None or self.noise.where != place:
            return y
        noise = self.noise(y, f)
        return y if noise is None else y + noise


def inject_noise(network: nn.Module, noise: Noise | None) -> nn.Module:
    """Make `network` its noise-injected twin, in place: every `Residual` gets its own numbered copy of `noise`.

    None or a magnitude of 0 takes the noise out again.

    Raises:
        UserError: if there is noise to inject, but the network has no `Residual`.
    """
    silent = noise is None or noise.magnitude == 0
    blocks = [module for module in network.modules() if isinstance(module, Residual)]
    if not silent and not blocks:
        raise UserError(
            "noise is injected into blocks of class Residual, and this network has none; choose one of our ResNets or magnitude 0"
        )
    for block in blocks:
        block.noise = None if silent else copy.deepcopy(noise)
    number_noise_blocks(network)
    return network


def scale_residuals(network: nn.Module, scale: float) -> nn.Module:
    """Set the scale of every branch beside an identity shortcut, in place; branches of blocks that change the shape stay as they are.

    Raises:
        UserError: if the scale is not a positive number.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise UserError(f"residual_scale must be a positive number such as 1.0 or 1/N, got {scale}")
    for module in network.modules():
        if isinstance(module, Residual) and isinstance(module.shortcut, nn.Identity):
            module.scale = scale
    return network


def torchvision_key(key: str) -> str:
    """A parameter's name in torchvision's layout (`layer1.0.conv1.weight`) from its name here (`layer1.0.branch.conv1.weight`)."""
    return key.replace(".branch.", ".").replace(".shortcut.", ".downsample.")
