"""Protocols that remove parts, held against networks whose exact contributions are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from explainode.errors import UserError
from explainode.metrics.fidelity import RobustFidelity
from explainode.metrics.irof import IROF
from explainode.metrics.removal_correlation import FaithfulnessCorrelation, SensitivityN, SinglePatchDeletion, pearson


class Linear(nn.Module):
    """Logits (s, 0), s = sum of w x over all values."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x):
        s = (self.weight * x).flatten(1).sum(1)
        return torch.stack((s, torch.zeros_like(s)), 1)


@pytest.fixture
def linear():
    return Linear(torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(1)) + 0.1)


CORRELATIONS = [
    FaithfulnessCorrelation(draws=20, baseline="zero"),
    SensitivityN(draws=10, baseline="zero"),
    SinglePatchDeletion(baseline="zero"),
]


@pytest.mark.parametrize("metric", CORRELATIONS, ids=lambda m: m.kind)
def test_exact_contributions_of_a_linear_network_correlate_perfectly(metric, linear, record, pictures):
    x = pictures(4, 12)
    target = torch.zeros(4, dtype=torch.int64)
    truth, _ = record(linear, x, linear.weight * x, target=target)
    torch.testing.assert_close(metric.measure(truth)[:, 0], torch.ones(4, dtype=torch.float64), atol=1e-5, rtol=0)
    inverted, _ = record(linear, x, -linear.weight * x, target=target)
    torch.testing.assert_close(metric.measure(inverted)[:, 0], -torch.ones(4, dtype=torch.float64), atol=1e-5, rtol=0)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    assert metric.measure(record(linear, x, noise, target=target)[0]).abs().max() < 0.9


def test_sets_against_other_baselines(linear, record, pictures):
    """Contributions are those against the baseline: w (x - baseline)."""
    from explainode.metrics.baselines import baseline_image

    x = pictures(3, 12)
    for baseline in ("mean", "blur", "noise"):
        explanation, _ = record(linear, x, torch.zeros_like(x), target=torch.zeros(3, dtype=torch.int64))
        explanation.attribution = linear.weight * (x - baseline_image(explanation, baseline))
        found = SinglePatchDeletion(baseline=baseline).measure(explanation)
        torch.testing.assert_close(found[:, 0], torch.ones(3, dtype=torch.float64), atol=1e-4, rtol=0)


def test_pearson_is_numpys():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(9, 4, generator=generator), torch.randn(9, 4, generator=generator)
    expected = [np.corrcoef(a[:, k], b[:, k])[0, 1] for k in range(4)]
    np.testing.assert_allclose(pearson(a, b), expected, atol=1e-6)
    assert pearson(torch.ones(9, 1), b[:, :1]) == 0 and torch.isnan(pearson(a[:, :1], torch.ones(9, 1)))


def test_forwards_are_shared_by_explainers(linear, record, pictures):
    x = pictures(2, 12)
    first, spy = record(linear, x, torch.randn(2, 3, 12, 12))
    SinglePatchDeletion().measure(first)
    assert spy.forwards == 2 * 16
    second, other = record(linear, x, torch.randn(2, 3, 12, 12), shared=first.shared)
    SinglePatchDeletion().measure(second)
    assert other.forwards == 0


def test_irof_is_the_area_over_the_curve_by_hand(linear, record, pictures):
    x = pictures(3, 12)
    explanation, _ = record(linear, x, linear.weight * x)
    metric = IROF(grid=5, baseline="zero")  # 12 pixels in 5 segments: sizes differ
    heat = (linear.weight * x).sum(1)
    cut = np.arange(12) * 5 // 12
    for b in range(3):
        label = int(linear(x)[b].argmax())
        segments = [(i, j) for i in range(5) for j in range(5)]
        masks = [torch.from_numpy((cut[:, None] == i) & (cut[None] == j)) for i, j in segments]
        order = sorted(range(25), key=lambda k: -float(heat[b][masks[k]].mean()))
        state, left = x[b].clone(), []
        clean = linear(x[b : b + 1]).softmax(1)[0, label]
        for k in order:
            state = torch.where(masks[k], 0.0, state)
            left.append(float(linear(state[None]).softmax(1)[0, label] / clean))
        assert float(metric.measure(explanation)[b]) == pytest.approx(1 - np.mean(left), abs=1e-5)


def test_robust_fidelity_puts_the_truth_above_its_inverse(linear, record, pictures):
    x = pictures(4, 12)
    target = torch.zeros(4, dtype=torch.int64)
    metric = RobustFidelity(baseline="zero", score="logit", target="explained")
    truth = metric.measure(record(linear, x, linear.weight * x, target=target)[0])
    inverted = metric.measure(record(linear, x, -linear.weight * x, target=target)[0])
    assert (truth[:, 0] > 0).all() and (inverted[:, 0] < 0).all()
    torch.testing.assert_close(truth[:, 0], truth[:, 1] - truth[:, 2])


def test_robust_fidelity_removes_no_more_than_its_bound(record, pictures):
    """Of a network that counts what is left of a white picture, 10 % of the pixels take 10 % of the score on both sides, whatever the map."""
    white = torch.ones(2, 3, 10, 10)
    network = Linear(torch.full((3, 10, 10), 1 / 300))
    explanation, _ = record(network, white, torch.randn(2, 1, 10, 10, generator=torch.Generator().manual_seed(0)))
    found = RobustFidelity(baseline="zero", score="logit", bound=10).measure(explanation)
    torch.testing.assert_close(found, torch.tensor([[0, 0.1, 0.1]] * 2, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FaithfulnessCorrelation(draws=2),
        lambda: FaithfulnessCorrelation(percent=0),
        lambda: SensitivityN(percent=[30, 10]),
        lambda: SinglePatchDeletion(grid=1),
        lambda: SinglePatchDeletion(baseline="inpaint"),
        lambda: IROF(grid=1),
        lambda: IROF(baseline="inpaint"),
        lambda: RobustFidelity(bound=0),
        lambda: RobustFidelity(draws=0),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(UserError):
        make()


def test_more_patches_than_pixels_are_refused(linear, record, pictures):
    with pytest.raises(UserError, match="grid of 20"):
        SinglePatchDeletion(grid=20).measure(record(linear, pictures(1, 12))[0])
