"""The pair of networks in the package: a small ResNet and its noise-injected twin, trained on drawn shapes, for a machine that has no run."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import torch
from torch import nn

from explainode.data.shapes import CLASS_NAMES, ShapesDataset
from explainode.dynamics.noise import Noise
from explainode.models.resnet import six_block_resnet
from explainode.models.weights import fit_state_dict

SIZE, WIDTH = 48, 32
MAGNITUDES = {"resnet": 0.0, "sde": 0.25}  # of the noise in each block, while training
PICTURES_SEED = 11


def demo_networks() -> dict[str, nn.Module]:
    """{"resnet": the ResNet, "sde": its twin}, in eval mode, from 48x48 pixels in [0, 1] to eight classes.

    Example:
        >>> {name: tuple(net(torch.zeros(1, 3, SIZE, SIZE)).shape) for name, net in demo_networks().items()}
        {'resnet': (1, 8), 'sde': (1, 8)}
    """
    found = {}
    for name, magnitude in MAGNITUDES.items():
        noise = Noise(magnitude=magnitude) if magnitude else None
        network = six_block_resnet(width=WIDTH, num_classes=len(CLASS_NAMES), noise=noise)
        with resources.files("explainode.models").joinpath("demo", f"{name}.pt").open("rb") as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
        fit_state_dict(network, {key: value.float() for key, value in state.items()}, f"the demo's {name}")
        network.image_size = SIZE  # type: ignore[assignment]
        found[name] = network.eval()
    return found


def demo_pictures(count: int) -> list[tuple[str, torch.Tensor]]:
    """`count` shapes that the pair has not seen: (what is drawn, (3, 48, 48) pixels in [0, 1])."""
    batch = ShapesDataset(10**8, size=SIZE, split="test", seed=PICTURES_SEED).__getitems__(list(range(count)))
    return [(CLASS_NAMES[int(label)], image) for label, image in zip(batch.label, batch.image, strict=True)]


def demo_seeds() -> list[dict[str, Any]]:
    """What each seed of the training reached: one network is one network, not a recipe."""
    text = resources.files("explainode.models").joinpath("demo", "seeds.json").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = json.loads(text)
    return rows
