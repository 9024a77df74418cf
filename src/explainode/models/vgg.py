"""A small VGG: stages of 3x3 convolutions between max pools, then dense layers; for pictures of 32 to 64 pixels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from explainode.dynamics.noise import Noise
from explainode.errors import UserError
from explainode.models.network import complete
from explainode.models.normalize import Normalize


def small_vgg(
    num_classes: int = 10,
    widths: Sequence[int] = (32, 64, 128),
    depth: int = 2,
    hidden: int = 128,
    noise: Noise | None = None,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    weights: str | None = None,
) -> nn.Module:
    """Stages of `depth` times Conv3x3-BatchNorm-ReLU and a max pool, one per width; then 2 x 2 averages, a hidden dense layer and the logits.

    Nothing is added to anything: the plain counterpart of a ResNet where a method treats residual sums in a way of its own.

    Args:
        noise: there are no residual blocks to put noise into: None or a magnitude of 0.
        mean, std: of the pixels, per channel.
        weights: path of a state dict or checkpoint.

    Shapes:
        x: (B, 3, H, W) pixels in [0, 1], H and W at least 2^(stages + 1) -> logits (B, num_classes).

    Raises:
        UserError: without a stage, for a size below 1, noise, or weights that do not fit.

    Source: the layout of Simonyan and Zisserman 2015 at the size of a CIFAR net. We normalize by batch statistics.
    """
    if not widths or min([*widths, depth, hidden]) < 1:
        raise UserError(
            f"widths, depth and hidden must be at least 1, got {list(widths)}, {depth} and {hidden}; try [32, 64, 128], 2 and 128"
        )
    features = nn.Sequential()
    channels = 3
    for stage, width in enumerate(widths, start=1):
        for layer in range(1, depth + 1):
            features.add_module(f"conv{stage}_{layer}", nn.Conv2d(channels, width, 3, padding=1, bias=False))
            features.add_module(f"norm{stage}_{layer}", nn.BatchNorm2d(width))
            features.add_module(f"relu{stage}_{layer}", nn.ReLU(inplace=True))
            channels = width
        features.add_module(f"pool{stage}", nn.MaxPool2d(2))
    network = nn.Sequential()
    network.add_module("normalize", Normalize(mean, std))
    network.add_module("features", features)
    network.add_module("pool", nn.AdaptiveAvgPool2d(2))
    network.add_module("flatten", nn.Flatten())
    network.add_module("hidden", nn.Linear(4 * channels, hidden))
    network.add_module("relu", nn.ReLU(inplace=True))
    network.add_module("head", nn.Linear(hidden, num_classes))
    return complete(network, 32, noise, weights)
