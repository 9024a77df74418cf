"""Infidelity: zero for linear networks, captum given our draws, a scale that does not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.metrics import infidelity
from torch import nn

from explainode.errors import UserError
from explainode.metrics.baselines import baseline_image
from explainode.metrics.infidelity import Infidelity


def measured(metric, explanation):
    metric.setup(len(explanation))
    metric.update(explanation)
    return np.stack([metric.table()[i] for i in range(len(explanation))])


PERTURBATIONS = [("square", 0.25), ("normal", 0.1), ("baseline", 0.1)]


@pytest.mark.parametrize(("perturbation", "size"), PERTURBATIONS)
def test_captum_given_our_perturbations(record, network, pictures, perturbation, size):
    """Acceptance check 3, with and without its normalization."""
    net, x = network(normalized=True), pictures(5, 12)
    explanation, _ = record(net, x)
    metric = Infidelity(perturbation, size, draws=12, baseline="mean")
    ours = measured(metric, explanation)
    for normalize, column in ((True, 0), (False, 1)):
        draws = iter(range(12))

        def perturb(inputs, draws=draws):
            step = metric.step(explanation, next(draws))
            return step, inputs - step

        expected = infidelity(net, perturb, x, explanation.attribution, target=explanation.target, n_perturb_samples=12,
                              max_examples_per_batch=5, normalize=normalize)  # fmt: skip
        assert expected.min() > 1e-5
        np.testing.assert_allclose(ours[:, column], expected.detach().numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("perturbation", "size"), PERTURBATIONS)
def test_the_gradient_of_a_linear_network_is_faithful(record, pictures, perturbation, size):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    x = pictures(4, 8)
    explanation, _ = record(linear, x)
    found = measured(Infidelity(perturbation, size, draws=20), explanation)
    assert np.abs(found[:, :2]).max() < 1e-9 and found[:, 2].max() < 1e-6
    # any other scale: only the unscaled one minds
    doubled, _ = record(linear, x, 2 * explanation.attribution)
    other = measured(Infidelity(perturbation, size, draws=20), doubled)
    assert np.abs(other[:, 0]).max() < 1e-9 < 1e-7 < other[:, 1].min()
    # a map that predicts nothing: beta 0, all of the power is left
    blank, _ = record(linear, x, torch.zeros_like(x))
    nothing = measured(Infidelity(perturbation, size, draws=20), blank)
    np.testing.assert_allclose(nothing[:, 2], 1.0)
    np.testing.assert_allclose(nothing[:, 0], nothing[:, 1])


def test_squares_are_squares_of_the_baseline(record, network, pictures):
    x, ids = pictures(6, 16), torch.tensor([5, 1, 9, 0, 2, 7])
    explanation, _ = record(network(), x, sample_ids=ids)
    metric = Infidelity("square", 0.25, baseline="zero")
    corners = set()
    for draw in range(40):
        step = metric.step(explanation, draw)
        touched = (step != 0).any(1)
        for i in range(6):
            rows, columns = torch.nonzero(touched[i].any(1))[:, 0], torch.nonzero(touched[i].any(0))[:, 0]
            assert len(rows) == len(columns) == 4 and touched[i].sum() == 16
            assert int(rows[-1] - rows[0]) == int(columns[-1] - columns[0]) == 3
            assert torch.equal((x - step)[i][:, touched[i]], baseline_image(explanation, "zero")[i][:, touched[i]])
            corners.add((int(rows[0]), int(columns[0])))
    assert len(corners) > 100 and max(c[0] for c in corners) == 12 and min(c[1] for c in corners) == 0
    alone, _ = record(network(), x[2:3], sample_ids=ids[2:3])
    assert torch.equal(metric.step(alone, 3), metric.step(explanation, 3)[2:3])


def test_forwards_are_shared_by_explainers(record, network, pictures):
    explanation, spy = record(network(), pictures(5, 12))
    measured(Infidelity(draws=10), explanation)
    assert spy.forwards == 50  # the blurred image is looked at, not evaluated
    other, other_spy = record(network(), explanation.x, -explanation.attribution, shared=explanation.shared)
    measured(Infidelity(draws=10), other)
    assert other_spy.forwards == 0


def test_maps_of_one_channel_count_for_all(record, network, pictures):
    """A map (B, 1, h, w) is brought to the image's size and multiplies the sum of the step over channels."""
    x = pictures(3, 12)
    heat = torch.randn(3, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    narrow, _ = record(network(), x, heat)
    wide, _ = record(network(), x, heat.expand(-1, 3, -1, -1).clone())
    np.testing.assert_allclose(measured(Infidelity(draws=8), narrow), measured(Infidelity(draws=8), wide), rtol=1e-5)


def test_nan_maps_are_excluded(record, network, pictures):
    explanation, _ = record(network(), pictures(3, 12))
    explanation.attribution[1, 0, 0, 0] = torch.nan
    metric = Infidelity(draws=8).setup(3)
    metric.update(explanation)
    assert sorted(metric.per_image()[""]) == [0, 2] and metric.summary()[0].excluded == 1


def test_bad_settings_are_told_in_a_sentence():
    for settings, words in (
        ({"perturbation": "gauss"}, "one of normal, square, baseline, got 'gauss'"),
        ({"size": 0}, "size must be positive"),
        ({"size": 2.0}, "at most 1 for squares"),
        ({"draws": 1}, "at least two draws"),
        ({"baseline": "blurr"}, "no baseline named"),
        ({"score": "loss"}, "probability, logit, margin"),
    ):
        with pytest.raises(UserError, match=words):
            Infidelity(**settings)


def test_maps_are_read_as_what_they_are(record, pictures):
    """f = w . x: the gradient is w, the exact contributions against black are w x; each fails in the other's reading, and either's negative in both."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    x = pictures(6, 8)
    gradient = record(linear, x)[0].attribution
    relative = {}
    for name, attribution in (("gradient", gradient), ("contribution", gradient * x)):
        for sign in (1, -1):
            explanation, _ = record(linear, x, sign * attribution)
            for reading in ("sensitivity", "contribution"):
                metric = Infidelity("square", 0.25, draws=20, baseline="zero", map=reading)
                relative[name, sign, reading] = measured(metric, explanation)[:, 2]
    for name, reading, other in (
        ("gradient", "sensitivity", "contribution"),
        ("contribution", "contribution", "sensitivity"),
    ):
        assert relative[name, 1, reading].max() < 1e-9
        assert relative[name, 1, other].mean() > 1e-3
        np.testing.assert_allclose(relative[name, -1, reading], 1.0)  # beta 0: it predicts the opposite


def test_contributions_need_pixels_that_are_gone():
    with pytest.raises(UserError, match="map=contribution needs perturbation=square, got normal"):
        Infidelity("normal", 0.1, map="contribution")
    with pytest.raises(UserError, match="map must be one of sensitivity, contribution, got 'local'"):
        Infidelity(map="local")
