"""Residual networks built on one block: the six-block CIFAR net, ResNet-20 to 110 for CIFAR, and torchvision's ResNets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from explainode.dynamics.noise import Noise
from explainode.errors import UserError, nearest
from explainode.models.network import complete
from explainode.models.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize
from explainode.models.residual import Residual


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)


def _named(**modules: nn.Module) -> nn.Sequential:
    network = nn.Sequential()
    for name, module in modules.items():
        network.add_module(name, module)
    return network


def _stage(block: Callable[[int, int], Residual], count: int, stride: int, inputs: int, outputs: int) -> nn.Sequential:
    """`count` blocks, the first of which takes `inputs` channels and strides; `block(inputs, stride)` makes one."""
    return nn.Sequential(block(inputs, stride), *(block(outputs, 1) for _ in range(count - 1)))


# --- the six-block net ---------------------------------------------------------------------------------------------------------------


def six_block_resnet(
    in_channels: int = 3,
    num_classes: int = 10,
    width: int = 64,
    blocks: int = 6,
    noise: Noise | None = None,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    weights: str | None = None,
    residual_scale: float = 1.0,
) -> nn.Module:
    """The ResNet of Lei et al. 2023: a stem of three convolutions, six pre-activation blocks of constant shape, a linear head.

    577,930 parameters with 3 input channels and 10 classes (576,778 with 1). The state is a quarter of the image less one pixel in height
    and width: 64x7x7 for 32x32 images.

    Args:
        width: channels of the state.
        blocks: number of residual blocks.
        noise: injected into every block; none with magnitude 0.
        mean, std: of the pixels, per channel.
        weights: path of a state dict or checkpoint.
        residual_scale: of each branch beside an identity shortcut; 1/N makes N blocks a flow by construction.

    Shapes:
        x: (B, in_channels, H, W) pixels in [0, 1], H and W at least 10 -> logits (B, num_classes).

    Raises:
        UserError: if `mean` has another number of channels, or the weights do not fit.

    Source: Lei et al. 2023, Table 2; the network is `odenet_mnist.py` of torchdiffeq (Chen et al. 2018) with residual blocks.
    """
    if len(mean) != in_channels:
        raise UserError(f"mean and std need one number for each of the {in_channels} input channels, got {len(mean)}")

    def norm() -> nn.GroupNorm:
        return nn.GroupNorm(math.gcd(32, width), width)

    def block() -> Residual:
        return Residual(
            _named(
                norm1=norm(),
                relu1=nn.ReLU(),
                conv1=_conv(width, width, 3),
                norm2=norm(),
                relu2=nn.ReLU(),
                conv2=_conv(width, width, 3),
            )
        )

    stem = _named(
        conv1=nn.Conv2d(in_channels, width, 3),
        norm1=norm(),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(width, width, 4, stride=2, padding=1),
        norm2=norm(),
        relu2=nn.ReLU(),
        conv3=nn.Conv2d(width, width, 4, stride=2, padding=1),
    )
    network = _named(
        normalize=Normalize(mean, std),
        stem=stem,
        blocks=nn.Sequential(*(block() for _ in range(blocks))),
        norm=norm(),
        relu=nn.ReLU(),
        avgpool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        linear=nn.Linear(width, num_classes),
    )
    return complete(network, 32, noise, weights, residual_scale=residual_scale)


# --- ResNets for CIFAR ---------------------------------------------------------------------------------------------------------------


class PadShortcut(nn.Module):
    """Option A of He et al. 2016: every `stride`-th pixel, the new channels filled with zeros, half of them on either side."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, new_channels={self.new}"


def cifar_resnet(
    depth: int = 20,
    num_classes: int = 10,
    noise: Noise | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    weights: str | None = None,
    residual_scale: float = 1.0,
) -> nn.Module:
    """ResNet-20, 32, 44, 56, 110 (6n + 2) for CIFAR, with parameter-free shortcuts; the published weights load as they are.

    Args:
        depth: number of weighted layers, 6n + 2.
        noise: injected into every block; none with magnitude 0.
        mean, std: of the pixels, per channel; the published weights were trained with ImageNet's.
        weights: path of a state dict or checkpoint.
        residual_scale: of each branch beside an identity shortcut; 1/N makes N blocks a flow by construction.

    Shapes:
        x: (B, 3, H, W) pixels in [0, 1] -> logits (B, num_classes).

    Raises:
        UserError: if the depth is not 6n + 2, or the weights do not fit.

    Source: He et al. 2016, Sec. 4.2; names of layers and initialization as in Y. Idelbayev's implementation, which published the weights.
    """
    count, rest = divmod(depth - 2, 6)
    if rest or count < 1:
        raise UserError(f"a CIFAR ResNet has 6n + 2 layers, got depth={depth}; choose 20, 32, 44, 56 or 110")

    def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        def block(channels: int, stride: int) -> Residual:
            same = stride == 1 and channels == outputs
            shortcut = None if same else PadShortcut(channels, outputs, stride)
            return Residual(_basic(channels, outputs, stride), shortcut, nn.ReLU())

        return _stage(block, count, stride, inputs, outputs)

    network = _named(
        normalize=Normalize(mean, std),
        conv1=_conv(3, 16, 3),
        bn1=nn.BatchNorm2d(16),
        relu=nn.ReLU(),
        layer1=stage(16, 16, 1),
        layer2=stage(16, 32, 2),
        layer3=stage(32, 64, 2),
        avgpool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        linear=nn.Linear(64, num_classes),
    )
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
    return complete(network, 32, noise, weights, residual_scale=residual_scale)


# --- torchvision's ResNets -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """What tells torchvision's ResNets apart: blocks per stage, kind of block, and the bottleneck's groups and channels per group."""

    depths: tuple[int, int, int, int]
    bottleneck: bool = True
    groups: int = 1
    width_per_group: int = 64

    @property
    def expansion(self) -> int:
        """Output channels of a block per plane."""
        return 4 if self.bottleneck else 1

    def branch(self, inputs: int, planes: int, stride: int) -> nn.Sequential:
        if not self.bottleneck:
            return _basic(inputs, planes, stride)
        width = planes * self.width_per_group // 64 * self.groups
        return _bottleneck(inputs, width, planes * self.expansion, stride, self.groups)


LAYOUTS = {
    "resnet18": Layout((2, 2, 2, 2), bottleneck=False),
    "resnet34": Layout((3, 4, 6, 3), bottleneck=False),
    "resnet50": Layout((3, 4, 6, 3)),
    "resnet101": Layout((3, 4, 23, 3)),
    "resnet152": Layout((3, 8, 36, 3)),
    "resnext50_32x4d": Layout((3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": Layout((3, 4, 23, 3), groups=32, width_per_group=8),
    "resnext101_64x4d": Layout((3, 4, 23, 3), groups=64, width_per_group=4),
    "wide_resnet50_2": Layout((3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": Layout((3, 4, 23, 3), width_per_group=128),
}


def _basic(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return _named(
        conv1=_conv(inputs, outputs, 3, stride),
        bn1=nn.BatchNorm2d(outputs),
        relu1=nn.ReLU(),
        conv2=_conv(outputs, outputs, 3),
        bn2=nn.BatchNorm2d(outputs),
    )


def _bottleneck(inputs: int, width: int, outputs: int, stride: int, groups: int) -> nn.Sequential:
    return _named(
        conv1=_conv(inputs, width, 1),
        bn1=nn.BatchNorm2d(width),
        relu1=nn.ReLU(),
        conv2=_conv(width, width, 3, stride, groups),
        bn2=nn.BatchNorm2d(width),
        relu2=nn.ReLU(),
        conv3=_conv(width, outputs, 1),
        bn3=nn.BatchNorm2d(outputs),
    )


def torchvision_resnet(
    name: str = "resnet18",
    num_classes: int = 1000,
    noise: Noise | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    weights: str | None = None,
    residual_scale: float = 1.0,
) -> nn.Module:
    """torchvision's ResNet, WideResNet or ResNeXt of this name: the same outputs and gradients, bit for bit, and with noise its twin.

    Args:
        name: a key of `LAYOUTS`.
        noise: injected into every block; none with magnitude 0.
        mean, std: of the pixels, per channel.
        weights: path of a state dict or checkpoint, in torchvision's names or ours; "torchvision" downloads torchvision's own.
        residual_scale: of each branch beside an identity shortcut; 1/N makes N blocks a flow by construction.

    Shapes:
        x: (B, 3, H, W) pixels in [0, 1] -> logits (B, num_classes).

    Raises:
        UserError: for an unknown name, or weights that do not fit.

    Source: He et al. 2016, Zagoruyko and Komodakis 2016, Xie et al. 2017, in torchvision's version
    (stride in the bottleneck's 3x3 convolution), with its initialization: the same seed gives the same weights.
    """
    if name not in LAYOUTS:
        raise UserError(f"no torchvision ResNet named {name!r}; the nearest are {nearest(name, LAYOUTS)}")
    layout = LAYOUTS[name]

    def stage(inputs: int, planes: int, count: int, stride: int) -> nn.Sequential:
        outputs = planes * layout.expansion

        def block(channels: int, stride: int) -> Residual:
            same = stride == 1 and channels == outputs
            shortcut = None if same else nn.Sequential(_conv(channels, outputs, 1, stride), nn.BatchNorm2d(outputs))
            return Residual(layout.branch(channels, planes, stride), shortcut, nn.ReLU())

        return _stage(block, count, stride, inputs, outputs)

    e, depths = layout.expansion, layout.depths
    network = _named(
        normalize=Normalize(mean, std),
        conv1=nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
        bn1=nn.BatchNorm2d(64),
        relu=nn.ReLU(),
        maxpool=nn.MaxPool2d(3, stride=2, padding=1),
        layer1=stage(64, 64, depths[0], 1),
        layer2=stage(64 * e, 128, depths[1], 2),
        layer3=stage(128 * e, 256, depths[2], 2),
        layer4=stage(256 * e, 512, depths[3], 2),
        avgpool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(512 * e, num_classes),
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return complete(network, 224, noise, weights, name, residual_scale)
