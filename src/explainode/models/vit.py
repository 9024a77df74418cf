"""A vision transformer small enough to be trained on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from explainode.dynamics.noise import Noise
from explainode.errors import UserError
from explainode.models.network import complete
from explainode.models.plain import normalize_first


def small_vit(
    num_classes: int = 8,
    image_size: int = 32,
    patch_size: int = 4,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    conv_stem: bool = True,
    noise: Noise | None = None,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.25, 0.25, 0.25),
    weights: str | None = None,
) -> nn.Module:
    """torchvision's vision transformer, its layers under torchvision's names, of any size.

    Args:
        image_size: the side of its images in pixels, a multiple of `patch_size`.
        patch_size: a power of two where there is a convolutional stem.
        width: channels of a token; the hidden layer of each block has four times as many.
        conv_stem: patches are made by 3x3 convolutions of stride 2 with BatchNorm and ReLU (Xiao et al. 2021), with which a transformer learns from
            few images; else by one convolution, as published.
        noise: this network has no noise blocks: None or a magnitude of 0.
        mean, std: of the pixels, per channel.
        weights: path of a state dict or checkpoint.

    Shapes:
        x: (B, 3, image_size, image_size) pixels in [0, 1] -> logits (B, num_classes).

    Raises:
        UserError: if the sizes do not divide, noise is asked for, or weights do not fit.

    Source: Dosovitskiy et al. 2021; Xiao et al. 2021 for the stem.
    """
    from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

    if image_size % patch_size or width % heads:
        raise UserError(
            f"a transformer needs patches that fill the image and heads that fill the width, got patches of {patch_size} in {image_size} pixels "
            f"and {heads} heads in a width of {width}; choose divisors"
        )
    stem: list[Any] | None = None
    if conv_stem:
        halvings = patch_size.bit_length() - 1
        if 2**halvings != patch_size or not halvings:
            raise UserError(
                f"a convolutional stem halves the image, so patch_size must be 2, 4, 8, ..., got {patch_size}; or take conv_stem=false"
            )
        stem = [
            ConvStemConfig(out_channels=width >> (halvings - 1 - i), kernel_size=3, stride=2) for i in range(halvings)
        ]
    network = VisionTransformer(
        image_size, patch_size, depth, heads, width, 4 * width, num_classes=num_classes, conv_stem_configs=stem
    )  # fmt: skip
    nn.init.trunc_normal_(
        network.heads.head.weight, std=0.02
    )  # torchvision's zeros hand nothing back until the first step
    return complete(normalize_first(network, mean, std), image_size, noise, weights)
