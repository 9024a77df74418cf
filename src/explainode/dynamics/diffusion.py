"""Diffusions of a stochastic differential equation: how strongly each element of the state is disturbed."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from explainode.errors import UserError


class Diffusion(nn.Module):
    """g(t, x) = magnitude * profile(t, x): a subclass is its profile.

    Args:
        magnitude: standard deviation of the noise that gathers in one unit of time where the profile is 1; 0 or more.

    Shapes:
        t: (), x: (B, *S) -> (B, *S) or what broadcasts to it.

    Raises:
        UserError: for a magnitude that is negative or not finite.

    Source: Jha et al. 2021, Eq. 6; Liu et al. 2019 (Neural SDE) for the additive, multiplicative and dropout profiles.
    """

    constant_in_relevance = True  # relevance passes the noise by, as it passes a bias

    def __init__(self, magnitude: float = 0.1) -> None:
        super().__init__()
        if not (math.isfinite(magnitude) and magnitude >= 0):
            raise UserError(f"the magnitude of a diffusion must be a finite number of at least 0, got {magnitude}")
        self.magnitude = float(magnitude)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.magnitude * self.profile(t, x)

    def profile(self, t: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"magnitude={self.magnitude:g}"


class AdditiveDiffusion(Diffusion):
    """profile = 1: the same noise wherever the state is."""

    def profile(self, t: Tensor, x: Tensor) -> Tensor:
        return x.new_ones(())


class MultiplicativeDiffusion(Diffusion):
    """profile = x: noise in proportion to the state."""

    def profile(self, t: Tensor, x: Tensor) -> Tensor:
        return x


class DropoutDiffusion(Diffusion):
    """profile = f(t, x), magnitude = sqrt(rate / (1 - rate)): what dropout of the drift becomes in continuous time.

    Dropout multiplies every element of f by Bernoulli(1 - rate) / (1 - rate), of mean 1 and variance rate / (1 - rate); the noise of the
    same variance is Gaussian here. The drift is evaluated once more per step. It mixes elements of the state: `Milstein` gains nothing.

    Args:
        drift: f; the module that the solver is given.
        rate: probability of dropping, in [0, 1).

    Raises:
        UserError: for a rate outside [0, 1).

    Source: Liu et al. 2019.
    """

    def __init__(self, drift: Callable[[Tensor, Tensor], Tensor], rate: float = 0.1) -> None:
        if not 0 <= rate < 1:
            raise UserError(f"the rate of dropout must lie in [0, 1), got {rate}")
        super().__init__(math.sqrt(rate / (1 - rate)))
        self.drift = drift

    def profile(self, t: Tensor, x: Tensor) -> Tensor:
        return self.drift(t, x)


class LearnedDiffusion(Diffusion):
    """profile = 2 sigmoid(network(t, x)), between 0 and 2: noise that learns where to speak, and cannot grow without bound.

    Args:
        network: any `network(t, x)` of the state's shape; or the number of channels C of a state (B, C, *S), for a weight and a bias per
            channel applied to each element alone. These start at 0, so that the diffusion starts as `AdditiveDiffusion(magnitude)`,
            and element i of g depends on element i of the state, as `Milstein` asks for.
        magnitude: see `Diffusion`.

    Source: the bound keeps g Lipschitz and of linear growth, which solutions need (Kloeden and Platen 1992). The profile is ours.
    """

    def __init__(self, network: nn.Module | int, magnitude: float = 0.1) -> None:
        super().__init__(magnitude)
        self.network = ChannelwiseAffine(network) if isinstance(network, int) else network

    def profile(self, t: Tensor, x: Tensor) -> Tensor:
        return 2 * torch.sigmoid(self.network(t, x))


class ChannelwiseAffine(nn.Module):
    """(t, x) -> weight x + bias with a weight and a bias per channel, 0 at first; x: (B, C, *S)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 1:
            raise UserError(f"a learned diffusion needs at least 1 channel, got {channels}")
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        shape = (-1, *(1,) * (x.dim() - 2))
        return self.weight.view(shape) * x + self.bias.view(shape)
