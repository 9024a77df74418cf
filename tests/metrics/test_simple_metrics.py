"""Smoothness, completeness error and cost: closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from explainode.errors import UserError
from explainode.metrics.completeness import CompletenessError
from explainode.metrics.cost import Cost
from explainode.metrics.smoothness import Smoothness, high_frequency_energy, total_variation


def measured(metric, explanation):
    metric.setup(len(explanation))
    metric.update(explanation)
    return metric


def test_total_variation_by_hand():
    heat = torch.tensor([[[1.0, -1.0], [2.0, 0.0]]])
    assert total_variation(heat).item() == pytest.approx((2 + 2 + 1 + 1) / 4)
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 2.0 - 1
    assert total_variation(board[None]).item() == pytest.approx(
        4 * 63 / 64
    )  # each of 2 * 64 * 63 neighbors differs by 2
    noise = torch.randn(20, 64, 64, generator=torch.Generator().manual_seed(0))
    assert total_variation(noise).mean().item() == pytest.approx(2 * math.sqrt(2) * 63 / 64, rel=0.01)


@pytest.mark.parametrize(
    ("cycles", "share"), [((3, 0), 0.0), ((7, 0), 0.0), ((9, 0), 1.0), ((0, 15), 1.0), ((7, 7), 1.0)]
)
def test_energy_of_single_waves(cycles, share):
    """32 pixels: half of Nyquist is 8 cycles, measured radially."""
    phase = 2 * math.pi * (cycles[0] * torch.arange(32)[:, None] + cycles[1] * torch.arange(32)) / 32
    assert high_frequency_energy(5 + torch.cos(phase).double()[None]).item() == pytest.approx(share, abs=1e-9)


def test_energy_of_white_noise():
    noise = torch.randn(50, 64, 64, generator=torch.Generator().manual_seed(0))
    assert high_frequency_energy(noise).mean().item() == pytest.approx(1 - math.pi / 16, rel=0.01)


def test_smoothness_ignores_scale_and_excludes_what_has_none(record, network, pictures):
    heat = torch.randn(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    heat[1] = heat[0] * 1e6
    heat[2] = 0.3
    heat[3, 0, 0, 0] = torch.inf
    metric = measured(Smoothness(), record(network(), pictures(5, 16), heat)[0])
    table = metric.table()
    np.testing.assert_allclose(table[0], table[1], rtol=1e-6)
    assert np.isnan(table[2]).all() and np.isnan(table[3]).all() and np.isfinite(table[4]).all()
    blurred = torch.nn.functional.avg_pool2d(heat[4:], 5, 1, 2)
    smooth = measured(Smoothness(), record(network(), pictures(1, 16), blurred)[0]).table()[0]
    assert (smooth < table[4] * 0.7).all()
    with pytest.raises(UserError, match="no channel reduction"):
        Smoothness("mean")


def test_completeness_error_absolute_and_relative(record, network, pictures):
    attribution = torch.zeros(4, 1, 8, 8)
    attribution[:, 0, 0, 0] = torch.tensor([2.0, -1.0, 0.5, 3.0])
    error = torch.tensor([0.5, -0.25, 0.5, torch.nan])
    explanation, _ = record(network(), pictures(4, 8), attribution, completeness_error=error)
    table = measured(CompletenessError(), explanation).table()
    np.testing.assert_allclose([table[i][0] for i in range(3)], [0.5, 0.25, 0.5])
    np.testing.assert_allclose([table[i][1] for i in range(2)], [0.5 / 1.5, 0.25 / 0.75])
    assert np.isnan(table[2][1]) and np.isnan(table[3]).all()  # nothing to add up to; broken map
    undefined, _ = record(network(), pictures(4, 8), attribution)
    (head, _) = measured(CompletenessError(), undefined).summary()
    assert (head.n, head.excluded) == (0, 4) and np.isnan(head.value)


def test_cost_is_per_image(record, network, pictures):
    explanation, _ = record(network(), pictures(4, 8), forwards=80, backwards=40, seconds=2.0)
    values = measured(Cost(), explanation).compute()
    assert (values["forwards"], values["backwards"], values["seconds"]) == (20, 10, 0.5)
