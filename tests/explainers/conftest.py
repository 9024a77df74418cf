"""Small networks with all that may go wrong: BatchNorm, dropout, in-place ReLU, attention, noise, forwards that draw random numbers and fail."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from explainode.dynamics.noise import Noise
from explainode.models.residual import Residual


class Fuse(nn.Module):
    """The identity, which draws from every generator and raises at a chosen call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls_left: int | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.rand(1), np.random.rand(1), random.random()
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise RuntimeError("the fuse blew")
        return x


class SmallNet(nn.Module):
    """(B, 3, H, W) -> (B, 5); its last spatial feature map is `body`, (B, 8, H/2, W/2)."""

    def __init__(self, magnitude: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.fuse = Fuse()
        self.block = Residual(nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1)))
        self.noise = Noise(magnitude)
        self.noise.block = 0
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fuse(self.block(self.stem(x)))
        noise = self.noise(x)
        if noise is not None:
            x = x + noise
        return self.head(self.drop(self.body(x)).mean((2, 3)))


class SmallViT(nn.Module):
    """(B, 3, 12, 12) -> (B, 5): two blocks on 3 x 3 patches and a class token."""

    def __init__(self, magnitude: float = 0.0) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.class_token = nn.Parameter(torch.randn(1, 1, 8))
        self.fuse = Fuse()
        self.noise = Noise(magnitude)
        self.noise.block = 0
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(8, 2, 16, 0.5, nn.GELU(), batch_first=True, norm_first=True) for _ in range(2))
        )
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fuse(self.patches(x).flatten(2).transpose(1, 2))
        noise = self.noise(x)
        if noise is not None:
            x = x + noise
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        return self.head(self.norm(self.blocks(x))[:, 0])


def make_vit(magnitude: float = 0.0) -> SmallViT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SmallViT(magnitude)
        for parameter in net.parameters():
            nn.init.normal_(parameter, 0, 0.5)  # attention that is far from even
    return net.eval()


def make_net(magnitude: float = 0.0) -> SmallNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SmallNet(magnitude)
        for module in net.modules():
            if isinstance(
                module, nn.BatchNorm2d
            ):  # statistics that differ from any batch's, so that train mode gives other maps
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.05, 0.2)
        nn.init.zeros_(
            net.head.bias
        )  # else constants dominate the scores, and differences of scores are mostly rounding
    return net.eval()


@pytest.fixture
def small_net() -> SmallNet:
    return make_net()


@pytest.fixture
def net() -> SmallNet:
    return make_net()


@pytest.fixture
def noisy_net() -> SmallNet:
    return make_net(0.5)


@pytest.fixture
def vit() -> SmallViT:
    return make_vit()


@pytest.fixture
def noisy_vit() -> SmallViT:
    return make_vit(0.5)


@pytest.fixture
def x() -> torch.Tensor:
    """Four images (3, 12, 12) in [0, 1]: patches of 4 x 4 pixels with grain, so that hiding a part changes the score."""
    generator = torch.Generator().manual_seed(1)
    patches = torch.rand(4, 3, 3, 3, generator=generator).repeat_interleave(4, -1).repeat_interleave(4, -2)
    return 0.8 * patches + 0.2 * torch.rand(4, 3, 12, 12, generator=generator)


@pytest.fixture
def target() -> torch.Tensor:
    return torch.tensor([0, 3, 1, 4])
