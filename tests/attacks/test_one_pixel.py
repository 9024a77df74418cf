"""The one-pixel attack against exhaustive search on a network where the best pixel is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from explainode.attacks.one_pixel import OnePixel
from explainode.errors import UserError


class Spot(nn.Module):
    """Class 1 wins as soon as the red value of pixel (5, 2) exceeds 0.9; elsewhere nothing matters, but nearby red helps a little."""

    def __init__(self, size=8):
        super().__init__()
        line, column = torch.arange(size)[:, None], torch.arange(size)
        self.register_buffer("weight", torch.exp(-((line - 5) ** 2 + (column - 2) ** 2) / 8.0))

    def forward(self, x):
        evidence = (self.weight * x[:, 0]).flatten(1).amax(1) - 0.9
        return torch.stack((-evidence, evidence), 1) * 5


def test_finds_the_spot_by_following_the_score():
    """Only 1 of 64 pixels in 1 color of 3 flips; evolution climbs the hill around it."""
    x = torch.zeros(8, 3, 8, 8)
    net = Spot()
    found = OnePixel(population=24, generations=60)(net, x, 0)
    assert found.success.all() and found.steps.max() > 1
    changed = (found.x != x).any(1)
    assert (changed.flatten(1).sum(1) == 1).all() and changed[:, 5, 2].all()
    random = OnePixel(population=24, generations=1)(net, x, 0)  # the first generation is random search
    assert random.success.float().mean() < 0.6


def test_changes_one_pixel_and_only_where_allowed(network, pictures):
    net, x = network(), pictures(6)
    allowed = torch.zeros(6, 1, 8, 8, dtype=torch.bool)
    allowed[:, :, 2:4, 3:] = True
    for mask in (None, allowed):
        found = OnePixel(population=12, generations=4)(net, x, net(x).argmax(1), mask)
        changed = (found.x != x).any(1, keepdim=True)
        assert (changed.flatten(1).sum(1) <= 1).all()
        if mask is not None:
            assert not changed[~allowed].any()


def test_the_score_never_rises(network, pictures):
    net, x = network(), pictures(6)
    target = net(x).argmax(1)
    reached = []
    for generations in (1, 3, 9):
        with torch.no_grad():
            found = OnePixel(population=12, generations=generations)(net, x, target)
            reached.append(net(found.x).softmax(1).gather(1, target[:, None])[:, 0])
    assert (
        (reached[1] <= reached[0] + 1e-6).all()
        and (reached[2] <= reached[1] + 1e-6).all()
        and (reached[2] < reached[0]).any()
    )


def test_forwards_are_counted(network, pictures):
    rows = []

    class Counting(nn.Module):
        def forward(self, x):
            rows.append(len(x))
            return torch.stack((1 + 0 * x[:, 0, 0, 0], x[:, 0, 0, 0] * 0), 1)  # cannot be attacked

    found = OnePixel(population=10, generations=3)(Counting(), pictures(4), 0)
    assert not found.success.any() and (found.steps == 3).all() and sum(rows) == 4 * (1 + 3 * 10)


def test_bad_settings_are_told_in_a_sentence():
    with pytest.raises(UserError, match="at least 4 candidates, got population=3"):
        OnePixel(population=3)
    with pytest.raises(UserError, match="at least one generation"):
        OnePixel(generations=0)
