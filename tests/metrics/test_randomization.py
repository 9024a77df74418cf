"""Randomization and stability of maps whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from explainode.errors import UserError
from explainode.metrics.randomization import EfficientRandomization, SmoothRandomization, histogram_entropy
from explainode.metrics.relative_stability import RelativeStability


def test_histogram_entropy_by_hand():
    heat = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[0.0, 1.0], [2.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]]])
    found = histogram_entropy(heat, 4)
    assert found[0] == pytest.approx(math.log(2)) and found[1] == pytest.approx(math.log(4)) and torch.isnan(found[2])


def test_a_map_that_ignores_the_network_rises_by_nothing_and_stays_alike(network, record, pictures):
    x = pictures(3)
    net = network()
    ignorant, _ = record(net, x, attribute=lambda model, x, rows: x.sum(1, keepdim=True))
    assert (EfficientRandomization().measure(ignorant) == 0).all()
    torch.testing.assert_close(
        SmoothRandomization(draws=2).measure(ignorant), torch.ones(3, 1, dtype=torch.float64), atol=1e-6, rtol=0
    )
    learned, _ = record(net, x)
    assert EfficientRandomization().measure(learned).abs().max() > 0
    assert SmoothRandomization(draws=2).measure(learned).abs().max() < 0.9


def test_a_network_without_parameters_is_refused(record, pictures):
    bare = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UserError, match="no parameters"):
        EfficientRandomization().measure(record(bare, pictures(1))[0])


def test_stability_of_a_map_in_proportion_to_the_picture_is_one(record, pictures):
    """Relative changes of x and of a map 3 x are the same, so their ratio is 1; of a constant map it is 0."""
    x = pictures(3) * 0.8 + 0.1
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 2))
    same, _ = record(net, x, attribute=lambda model, x, rows: 3 * x)
    found = RelativeStability(draws=3).measure(same)
    torch.testing.assert_close(found[:, 0], torch.ones(3, dtype=torch.float64), atol=1e-4, rtol=0)
    still, _ = record(net, x, attribute=lambda model, x, rows: torch.ones_like(x))
    assert (RelativeStability(draws=3).measure(still) == 0).all()


def test_stability_does_not_depend_on_the_scale_of_the_map(network, record, pictures):
    x, net = pictures(3), network()

    def gradient(model, x, rows, gain=1.0):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            return gain * torch.autograd.grad(model(x)[:, 0].sum(), x)[0]

    small = record(net, x, attribute=lambda m, x, r: gradient(m, x, r, 1e-4))[0]
    large = record(net, x, attribute=lambda m, x, r: gradient(m, x, r, 1e4))[0]
    metric = RelativeStability(draws=3)
    torch.testing.assert_close(metric.measure(small), metric.measure(large), rtol=1e-3, atol=1e-6)
