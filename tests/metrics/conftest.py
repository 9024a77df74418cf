"""Records made by hand, so that metrics are tested without the rooms that usually make them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from explainode.attribution import Explanation, begin_graph, graph_is_kept
from explainode.randomness import normal_like, sample_keys


@dataclass
class Spy:
    """Counts the rows that a record's `forward` and `explain` evaluate."""

    model: nn.Module
    attribute: Callable[..., Tensor]
    sample_ids: Tensor
    noise: float = 0.0
    forwards: int = 0
    explained: int = 0
    calls: list[tuple[int, int | None]] = field(default_factory=list)

    def _noisy(self, x: Tensor, rows: Tensor | None, draw: int | None) -> Tensor:
        """x plus keyed noise, so that the "network" is as stochastic as one with noise blocks: each sample and draw has its own."""
        if self.noise == 0:
            return x
        ids = self.sample_ids if rows is None else self.sample_ids[rows]
        return x + self.noise * normal_like(x, sample_keys(ids, 0, draw or 0))

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        self.forwards += len(x)
        with torch.no_grad():
            return self.model(self._noisy(x, rows, None))

    def explain(
        self,
        x: Tensor,
        rows: Tensor | None = None,
        draw: int | None = None,
        *,
        model: nn.Module | None = None,
        target: Tensor | None = None,
    ) -> Tensor:
        self.explained += len(x)
        self.calls.append((len(x), draw))
        rows = torch.arange(len(x)) if rows is None else rows
        network = self.model if model is None else model
        attribute = self.attribute if target is None else partial(class_gradient, target=target)
        return attribute(network, self._noisy(x, rows, draw), rows)


def gradient(model: nn.Module, x: Tensor, rows: Tensor) -> Tensor:
    """Gradient of the winning logit of each row's own image; the stand-in explainer."""
    with torch.enable_grad():
        x = begin_graph(x)
        return torch.autograd.grad(model(x).amax(1).sum(), x, create_graph=graph_is_kept())[0]


def class_gradient(model: nn.Module, x: Tensor, rows: Tensor, target: Tensor) -> Tensor:
    """Gradient of the logits of `target`, one class per image of the batch."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(model(x).gather(1, target[rows][:, None]).sum(), x)[0]


def make_record(
    model: nn.Module,
    x: Tensor,
    attribution: Tensor | None = None,
    *,
    attribute: Callable[..., Tensor] = gradient,
    sample_ids: Tensor | None = None,
    noise: float = 0.0,
    **fields: Any,
) -> tuple[Explanation, Spy]:
    ids = torch.arange(len(x)) if sample_ids is None else sample_ids
    spy = Spy(model, attribute, ids, noise)
    logits = spy.forward(x)
    given = attribution if attribution is not None else spy.explain(x)
    spy.forwards, spy.explained, spy.calls = 0, 0, []
    facts: dict[str, Any] = {
        "x": x,
        "target": logits.argmax(1),
        "attribution": given,
        "logits": logits,
        "score": logits.amax(1),
        "completeness_error": None,
        "forwards": 0,
        "backwards": 0,
        "noise": "off" if noise == 0 else "path",
        "seed": 0,
        "stochastic": noise > 0,
        "sample_ids": ids,
        "label": None,
        "mask": None,
        "boxes": None,
        "seconds": 0.0,
        "forward": spy.forward,
        "explain": spy.explain,
        "model": model,
    }
    return Explanation(**(facts | fields)), spy


class Normalize(nn.Module):
    """The same name and buffers as the network's own first part."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def make_network(normalized: bool = False, classes: int = 5, gain: float = 6.0) -> nn.Sequential:
    """A small random network whose probabilities are far from uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = [
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(128, classes),
        ]
        net = nn.Sequential(*([Normalize((0.48, 0.45, 0.40), (0.22, 0.23, 0.24))] if normalized else []), *layers)
        with torch.no_grad():
            layers[-1].weight.mul_(gain)  # type: ignore[operator, union-attr]
    return net.eval()


def images(n: int, size: int = 16, seed: int = 0) -> Tensor:
    """(n, 3, size, size) pixels with coarse structure, so that a blur is another image but not another world."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 4, 4, generator=generator)
    return (
        0.8 * nn.functional.interpolate(coarse, size=(size, size), mode="nearest")
        + 0.2 * torch.rand(n, 3, size, size, generator=generator)
    ).clamp(0, 1)


class Planted(nn.Module):
    """Two classes; the evidence is a sum over pixels, large on a planted patch, tiny elsewhere: every pixel's contribution is known.

    A pixel contributes w_p tanh(3 x_p): the gradient, which an explainer sees, only resembles the contribution.
    """

    def __init__(self, size: int = 12) -> None:
        super().__init__()
        weight = 0.05 * torch.randn(size, size, generator=torch.Generator().manual_seed(0))
        weight[3:7, 4:8] += 0.6
        self.register_buffer("weight", weight)

    def contributions(self, x: Tensor) -> Tensor:
        return self.weight * torch.tanh(3 * x.mean(1))

    def forward(self, x: Tensor) -> Tensor:
        evidence = self.contributions(x).sum((1, 2)) - 3.0
        return torch.stack((evidence, -evidence), dim=1)


@pytest.fixture
def planted() -> type[Planted]:
    return Planted


@pytest.fixture
def record() -> Callable[..., tuple[Explanation, Spy]]:
    return make_record


@pytest.fixture
def network() -> Callable[..., nn.Sequential]:
    return make_network


@pytest.fixture
def pictures() -> Callable[..., Tensor]:
    return images
