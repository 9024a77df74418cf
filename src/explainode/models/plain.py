"""Other people's networks, as they are: any of torchvision's or timm's by name, with the normalization in front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from explainode.dynamics.noise import Noise
from explainode.errors import UserError, nearest
from explainode.models.network import complete
from explainode.models.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize


def torchvision_model(
    name: str = "vgg16_bn",
    num_classes: int = 1000,
    noise: Noise | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    weights: str | None = None,
) -> nn.Module:
    """torchvision's classifier of this name, its layers under torchvision's names (`features.28`, `encoder.layers.encoder_layer_11`).

    Args:
        name: one of `torchvision.models`, such as "vgg16_bn", "densenet121" or "vit_b_16".
        noise: these networks have no noise blocks: None or a magnitude of 0.
        mean, std: of the pixels, per channel.
        weights: path of a state dict or checkpoint; "torchvision" downloads torchvision's own.

    Shapes:
        x: (B, 3, H, W) pixels in [0, 1] -> logits (B, num_classes); H = W = 224 for the vision transformers.

    Raises:
        UserError: for an unknown name, noise, or weights that do not fit.
    """
    from torchvision import models

    known = torchvision_names()
    if name not in known:
        raise UserError(f"no torchvision classifier named {name!r}; the nearest are {nearest(name, known)}")
    network = normalize_first(models.get_model(name, weights=None, num_classes=num_classes), mean, std)
    return complete(network, 224, noise, weights, name)


def torchvision_names() -> list[str]:
    """The classifiers that torchvision has; GoogLeNet and Inception return tuples while they train, which is no classifier's contract."""
    from torchvision import models

    return [name for name in models.list_models(module=models) if name not in ("googlenet", "inception_v3")]


def timm_names() -> list[str]:
    """The classifiers that timm has; none where it is not installed."""
    try:
        import timm
    except ImportError:
        return []
    return list(timm.list_models())


def timm_model(
    name: str = "resnet18",
    num_classes: int = 1000,
    noise: Noise | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights: str | None = None,
) -> nn.Module:
    """timm's classifier of this name, its layers under timm's names.

    Args:
        name: one of `timm.list_models()`, with or without a pretrained tag ("vit_base_patch16_224.augreg_in1k").
        noise: these networks have no noise blocks: None or a magnitude of 0.
        mean, std: of the pixels, per channel; None takes what timm records for the network.
        weights: path of a state dict or checkpoint; "timm" downloads timm's own.

    Shapes:
        x: (B, 3, H, W) pixels in [0, 1] -> logits (B, num_classes).

    Raises:
        UserError: without timm, for an unknown name, noise, or weights that do not fit or cannot be downloaded.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError(f"model {name!r} is one of timm's, which is not installed; pip install timm") from error

    if not timm.is_model(name):
        raise UserError(f"no timm model named {name!r}; the nearest are {nearest(name, timm.list_models())}")
    network: Any = (
        _pretrained(name, num_classes) if weights == "timm" else timm.create_model(name, num_classes=num_classes)
    )
    recorded = network.pretrained_cfg
    normalize_first(network, recorded["mean"] if mean is None else mean, recorded["std"] if std is None else std)
    return complete(network, recorded["input_size"][-1], noise, None if weights == "timm" else weights)


def _pretrained(name: str, num_classes: int) -> Any:
    import timm

    try:
        network = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError) as error:  # no network; no weights of that name
        raise UserError(
            f"timm's weights for {name} cannot be downloaded ({error}); give the path of a file instead"
        ) from error
    if network.num_classes != num_classes:  # timm would put a random head in place without a word
        raise UserError(
            f"timm's weights for {name} are for {network.num_classes} classes, not {num_classes}; give num_classes or a file"
        )
    return network


def normalize_first(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The network, in place, with `Normalize` applied to its input.

    By a pre-hook and not by a wrapper, so that layers and parameters keep the names that their authors gave them.
    """
    network.add_module("normalize", Normalize(mean, std))
    network.register_forward_pre_hook(_normalize)
    return network


def _normalize(network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (network.get_submodule("normalize")(inputs[0]), *inputs[1:])
