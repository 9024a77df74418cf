"""The block: at once a layer of a ResNet, an Euler step of a neural ODE and an Euler-Maruyama step of a neural SDE."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from explainode.dynamics.noise import Noise, number_noise_blocks
from explainode.errors import UserError


class Residual(nn.Module):
    """activation(shortcut(x) + branch(x) + noise), the noise being drawn for the sum.

    Nothing works in place, so that hooks may keep what they see; torchvision's blocks overwrite it.

    Args:
        branch: f, from the state to its change.
        shortcut: how the state is carried on; the identity if None.
        activation: applied to the sum; none if None.
        noise: `Noise`, injected before or after the activation as it says; none if None.

    Shapes:
        x: (B, *S) -> (B, *S'), whatever branch and shortcut agree on.

    Source: He et al. 2016; with noise, paper 001 (Jha et al. 2021), Eq. 5.
    """

    def __init__(
        self, branch: nn.Module, shortcut: nn.Module | None = None, activation: nn.Module | None = None, noise: Noise | None = None
    ) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.activation = nn.Identity() if activation is None else activation
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x) + self.shortcut(x)
        y = self.activation(self.inject(y, "before"))
        return self.inject(y, "after")

    def inject(self, y: Tensor, place: str) -> Tensor:
        """y with the block's noise, if it belongs in this place and speaks."""
        if self.noise is None or self.noise.where != place:
            return y
        noise = self.noise(y)
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


def torchvision_key(key: str) -> str:
    """A parameter's name in torchvision's layout (`layer1.0.conv1.weight`) from its name here (`layer1.0.branch.conv1.weight`)."""
    return key.replace(".branch.", ".").replace(".shortcut.", ".downsample.")
