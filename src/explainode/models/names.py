"""The names of ImageNet's classes."""

from __future__ import annotations


def imagenet_classes() -> list[str]:
    """The 1000 class names in the order of ImageNet-trained networks, as torchvision carries them; nothing is downloaded."""
    from torchvision.models import ResNet18_Weights

    return list(ResNet18_Weights.DEFAULT.meta["categories"])
