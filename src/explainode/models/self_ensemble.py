"""Ensembles that noise makes: random self-ensemble (one network, many draws) and EnResNet (several noisy networks, trained together)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainode.dynamics.block import is_random, number_stochastic_blocks
from explainode.dynamics.noise import Noise, number_noise_blocks
from explainode.errors import UserError
from explainode.models.normalize import IMAGENET_MEAN, IMAGENET_STD
from explainode.models.resnet import cifar_resnet
from explainode.models.weights import initialize
from explainode.randomness import current_scope, noise_draw

# --- random self-ensemble ------------------------------------------------------------------------------------------------------------


class NoisyConv2d(nn.Conv2d):
    """conv(x + noise(x)). `inject_noise_layers` makes them of plain convolutions, whose names, parameters and hooks stay as they are."""

    noise: Noise

    def forward(self, input: Tensor) -> Tensor:
        noise = self.noise(input)
        return super().forward(input if noise is None else input + noise)


def inject_noise_layers(network: nn.Module, first: float = 0.2, inner: float = 0.1) -> nn.Module:
    """Put a noise layer before every convolution, in place: additive noise of standard deviation `inner`, before the first one `first`.

    The standard deviations are absolute, in units of what the convolution is given. A magnitude of 0 leaves the convolution plain, and makes
    it plain again: (0, 0) takes all noise layers out.

    Raises:
        UserError: if the network has no plain convolution, or for a negative magnitude.

    Source: Liu et al. 2018 (RSE). The defaults 0.2 and 0.1 are ours to begin with: published runs use several pairs.
    """
    convolutions = [module for module in network.modules() if type(module) in (nn.Conv2d, NoisyConv2d)]
    if not convolutions:
        raise UserError(
            f"noise layers go before convolutions (nn.Conv2d), and {type(network).__name__} has none; choose a convolutional network"
        )
    noises = [Noise(first if n == 0 else inner, normalize=False) for n in range(len(convolutions))]
    for conv, noise in zip(convolutions, noises, strict=True):
        if isinstance(conv, NoisyConv2d):
            del conv.noise
        conv.__class__ = NoisyConv2d if noise.magnitude > 0 else nn.Conv2d  # as torch's own parametrizations do
        if isinstance(conv, NoisyConv2d):
            conv.noise = noise.train(conv.training)
    number_noise_blocks(network)
    return network


class SelfEnsemble(nn.Module):
    """The mean prediction of one noisy network over draws of its noise.

    In train mode one draw, as it is trained. In eval mode, inside an active noise scope, `draws` of them, numbered after the scope's own draw;
    the probabilities are averaged, and the logits returned are their logarithms. Where noise is silent, the network's own logits: noise=path
    explains and measures the ensemble, noise=off the network beneath it.

    Args:
        network: with noise in it, from `inject_noise` or `inject_noise_layers`, or a `NeuralSDE`.
        draws: forward passes per prediction; 10 in the source.

    Shapes:
        x: (B, C, H, W) pixels in [0, 1] -> logits (B, K).

    Raises:
        UserError: if `draws` is below 1, or the network has no noise of a magnitude above 0.

    Source: Liu et al. 2018 (RSE).
    """

    def __init__(self, network: nn.Module, draws: int = 10) -> None:
        super().__init__()
        if draws < 1:
            raise UserError(f"a self-ensemble needs at least 1 draw, got {draws}")
        if not is_random(network):
            raise UserError(
                "a self-ensemble draws from a network's noise, and this network has none; inject it with a magnitude above 0, or take a neural SDE"
            )
        self.network, self.draws = network, draws
        self.image_size = getattr(network, "image_size", None)

    def forward(self, x: Tensor) -> Tensor:
        scope = current_scope()
        if self.training or scope is None or not scope.active:
            return self.network(x)
        drawn = []
        for draw in range(self.draws):
            with noise_draw(scope.draw * self.draws + draw):
                drawn.append(F.log_softmax(self.network(x), -1))
        return torch.logsumexp(torch.stack(drawn), 0) - math.log(self.draws)

    def extra_repr(self) -> str:
        return f"draws={self.draws}"


def random_self_ensemble(
    network: nn.Module, draws: int = 10, first: float = 0.2, inner: float = 0.1, weights: str | None = None
) -> nn.Module:
    """`network` with a noise layer before every convolution, its predictions averaged over `draws`.

    Args:
        draws: see `SelfEnsemble`.
        first, inner: see `inject_noise_layers`; not both 0.
        weights: path of a state dict or checkpoint of the self-ensemble.

    Raises:
        UserError: see `inject_noise_layers` and `SelfEnsemble`.

    Source: Liu et al. 2018 (RSE).
    """
    return initialize(SelfEnsemble(inject_noise_layers(network, first, inner), draws), weights)


# --- EnResNet ------------------------------------------------------------------------------------------------------------------------


class Ensemble(nn.Module):
    """The mean of several networks' logits; trained as one network. Noise and stochastic blocks are numbered through, so that no two members share theirs.

    Shapes:
        x: (B, C, H, W) pixels in [0, 1] -> logits (B, K).

    Raises:
        UserError: without members.

    Source: Wang et al. 2019 (EnResNet).
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        if not len(self.members):
            raise UserError("an ensemble needs at least 1 member, got none")
        self.image_size = getattr(self.members[0], "image_size", None)
        number_noise_blocks(self)
        number_stochastic_blocks(self)

    def forward(self, x: Tensor) -> Tensor:
        total = self.members[0](x)
        for member in self.members[1:]:
            total = total + member(x)
        return total / len(self.members)


def enresnet(
    members: int = 5,
    depth: int = 20,
    num_classes: int = 10,
    noise: Noise | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    weights: str | None = None,
) -> nn.Module:
    """EnResNet: `members` ResNets for CIFAR with noise in every block, averaged.

    Args:
        members: networks; 5 in EnResNet5-20, the paper's first.
        depth: of each, 6n + 2.
        noise: injected into every block; magnitude 0.1, normalized by the batch, is the source's.
        mean, std: of the pixels, per channel.
        weights: path of a state dict or checkpoint of the ensemble.

    Raises:
        UserError: for fewer than one member; see `cifar_resnet`.

    Source: Wang et al. 2019. Their blocks are pre-activated; we take ours (He et al. 2016a), so that a member compares with the ResNet alone.
    """
    return initialize(Ensemble(cifar_resnet(depth, num_classes, noise, mean, std) for _ in range(members)), weights)
