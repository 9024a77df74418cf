"""Concentration by closed forms.

Compared once with Quantus 0.6 on 30 random maps: `Sparseness` 9e-8 and `Complexity` 7e-7 (float32 there).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from explainode.metrics.complexity import Complexity, entropy, gini


def test_one_pixel_and_all_pixels():
    one, all_ = torch.zeros(1, 6, 7), torch.full((1, 6, 7), -2.0)
    one[0, 2, 3] = -5
    assert gini(one).item() == pytest.approx(1 - 1 / 42) and gini(all_).item() == pytest.approx(0, abs=1e-12)
    assert entropy(one).item() == 0 and entropy(all_).item() == pytest.approx(math.log(42))
    assert gini(torch.zeros(1, 3, 3)).isnan().all() and entropy(torch.zeros(1, 3, 3)).isnan().all()


def test_gini_is_half_the_relative_mean_difference():
    """Its other definition: mean |a - b| over all pairs, over twice the mean."""
    heat = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    for found, own in zip(gini(heat), heat.abs().double().flatten(1).numpy(), strict=True):
        assert found.item() == pytest.approx(np.abs(own[:, None] - own).mean() / (2 * own.mean()), abs=1e-12)


def test_known_distributions():
    """Exponential values: Gini 1/2, entropy log N - (1 - Euler's gamma)."""
    heat = -torch.rand(1, 300, 300, generator=torch.Generator().manual_seed(0)).double().log()
    assert gini(heat).item() == pytest.approx(0.5, abs=0.01)
    assert entropy(heat).item() == pytest.approx(math.log(90_000) - (1 - np.euler_gamma), abs=0.02)


def test_scale_does_not_matter_and_k_equal_pixels_count_as_k(record, network, pictures):
    heat = torch.zeros(3, 8, 8)
    heat[0, :2, :5], heat[1] = 0.3, torch.nan
    explanation, _ = record(network(), pictures(3, 8), 7 * heat[:, None])
    metric = Complexity().setup(3)
    metric.update(explanation)
    found = {r.name: r for r in metric.summary()}
    assert found["effective_pixels"].value == pytest.approx(10) and found["effective_share"].value == pytest.approx(
        10 / 64
    )
    assert found["gini"].value == pytest.approx(1 - 10 / 64)
    assert all((r.n, r.excluded) == (1, 2) for r in found.values())  # NaN and the zero map
    assert metric.direction("gini") is None
