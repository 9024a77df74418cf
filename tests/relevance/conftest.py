"""Walks along small networks, without an explainer in between."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from explainode.explainers.guard import guard
from explainode.registry.build import get
from explainode.relevance.composite import Composite
from explainode.relevance.tape import record
from explainode.relevance.walk import Walk, seed


@pytest.fixture(scope="session")
def composite() -> Callable[[str], Composite]:
    """The composite of an explainer of conf/, by its name."""
    return lambda name: get(f"explainer/{name}").composite


@pytest.fixture(scope="session")
def walked() -> Callable[..., tuple[Tensor, Walk]]:
    """(network, x, target, composite) -> the relevance of the pixels, and the walk."""

    def walk(network: nn.Module, x: Tensor, target: Tensor, composite: Composite) -> tuple[Tensor, Walk]:
        with guard(network) as network:
            tape = record(network, x)
            way = Walk(tape)
            return way.back({tape.output: seed(tape, target, composite.seed)}, composite), way

    return walk


@pytest.fixture(scope="session")
def by_autograd() -> Callable[..., Tensor]:
    """(network, x, target) -> the gradient of the summed target logits."""

    def gradient(network: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        with guard(network) as network:
            leaf = x.detach().clone().requires_grad_()
            return torch.autograd.grad(network(leaf).gather(1, target[:, None]).sum(), leaf)[0]

    return gradient
