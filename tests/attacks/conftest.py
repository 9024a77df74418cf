"""Small networks and pictures whose predictions an attack can change."""

from __future__ import annotations

import pytest
import torch
from torch import nn


@pytest.fixture
def network():
    """Convolutions with batch norm (whose statistics must not move) and dropout (which must be silent)."""

    def make(classes=5, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.AvgPool2d(2),
                nn.Flatten(),
                nn.Linear(8 * 16, classes),
            )
            x = torch.rand(256, 3, 8, 8)
            net(x)  # batch norm's statistics
            net.eval()
            with torch.no_grad():
                net[-1].weight *= 3
                net[-1].bias -= net(x).mean(0)  # all classes occur
        return net

    return make


@pytest.fixture
def pictures():
    def make(n=12, size=8, seed=0):
        return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def linear():
    """Logits W x + b of flattened pixels."""

    def make(classes=4, size=4, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, classes)).double()

    return make
