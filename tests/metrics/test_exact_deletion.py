"""Deletion by redrawing, on a network whose score is the share of pixels that are still the old ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from explainode.errors import UserError
from explainode.metrics.exact_deletion import ExactDeletion


class Remembers(nn.Module):
    """Logits (s, 0), s the share of white pixels, each by its weight."""

    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", weight / weight.sum())

    def forward(self, x):
        s = (x[:, 0] * self.weight).sum((1, 2))
        return torch.stack((s, torch.zeros_like(s)), 1)


def blacken(x, sample_ids, removed, seed, draw):
    return torch.where(removed[:, None], 0.0, x)


def test_area_by_hand(record):
    """Of equal weights a tenth of the score goes with each tenth of the pixels: the area is 1/2; of all weight in the first tenth, 1/20."""
    white = torch.ones(2, 3, 10, 10)
    order = torch.arange(100, 0, -1.0).view(1, 1, 10, 10).expand(2, -1, -1, -1)
    metric = ExactDeletion(blacken, score="logit")
    even, _ = record(Remembers(torch.ones(10, 10)), white, order)
    torch.testing.assert_close(metric.measure(even)[:, 0], torch.full((2,), 0.5, dtype=torch.float64))
    first = torch.zeros(10, 10)
    first[0] = 1
    found = metric.measure(record(Remembers(first), white, order)[0])[:, 0]
    torch.testing.assert_close(found, torch.full((2,), 0.05, dtype=torch.float64), atol=1e-6, rtol=0)


def test_draws_are_averaged(record):
    white = torch.ones(2, 3, 10, 10)
    seen = []

    def by_draw(x, sample_ids, removed, seed, draw):
        seen.append(draw)
        return torch.where(removed[:, None], float(draw), x)

    order = torch.arange(100, 0, -1.0).view(1, 1, 10, 10).expand(2, -1, -1, -1)
    found = ExactDeletion(by_draw, draws=2, score="logit").measure(
        record(Remembers(torch.ones(10, 10)), white, order)[0]
    )
    torch.testing.assert_close(found[:, 0], torch.full((2,), 0.75, dtype=torch.float64))  # one keeps all, one loses all
    assert seen == [0, 1] * 10


@pytest.mark.parametrize("settings", [{"points": "adaptive"}, {"points": 1}, {"draws": 0}, {"score": "p"}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(UserError):
        ExactDeletion(blacken, **settings)
