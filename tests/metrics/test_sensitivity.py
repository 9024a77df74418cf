"""Sensitivity and change: captum as oracle, closed forms for linear networks, noise told apart from input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.metrics import sensitivity_max
from torch import nn

from explainode.errors import UserError
from explainode.metrics.change import ExpansionRatio, TotalAttributionChange
from explainode.metrics.input_perturbation import Steps, perturbation, perturbed
from explainode.metrics.sensitivity import LocalLipschitz, MaxSensitivity, MeanSensitivity
from explainode.randomness import input_keys, noise_scope, uniform_like


def measured(metric, explanation, n=None):
    metric.setup(len(explanation) if n is None else n)
    metric.update(explanation)
    return metric


@pytest.mark.parametrize("units", ["pixel", "network"])
def test_captum_given_our_perturbations(record, network, pictures, units):
    """Acceptance check 3."""
    x = pictures(5, 12)
    explanation, spy = record(network(normalized=True), x)
    steps = Steps(0.05, 10, units)
    draws = iter(range(10))
    expected = sensitivity_max(
        lambda inputs: (spy.explain(inputs[0]),) if isinstance(inputs, tuple) else spy.explain(inputs),
        x,
        perturb_func=lambda _: perturbed(explanation, steps, next(draws)),
        n_perturb_samples=10,
        max_examples_per_batch=5,
    )
    found = measured(MaxSensitivity(radius=0.05, units=units), explanation).per_image()[""]
    assert expected.min() > 1e-3
    np.testing.assert_allclose([found[i] for i in range(5)], expected.numpy(), rtol=0, atol=1e-6)


def test_network_units_step_after_normalization(record, network, pictures):
    net = network(normalized=True)
    explanation, _ = record(net, pictures(4, 8))
    step = perturbation(explanation, Steps(0.1, 1, "network"), 0)
    after = net[0](perturbed(explanation, Steps(0.1, 1, "network"), 0)) - net[0](explanation.x)
    torch.testing.assert_close(after, step, rtol=0, atol=1e-6)
    assert step.abs().max() <= 0.1 and step.std() == pytest.approx(0.1 / 3**0.5, rel=0.05)
    plain, _ = record(network(), explanation.x)  # a network without normalization takes pixels: both units agree
    assert torch.equal(perturbed(plain, Steps(0.1, 1, "network"), 0), perturbed(plain, Steps(0.1, 1, "pixel"), 0))


def test_perturbations_are_those_of_the_sample(record, network, pictures):
    x, ids = pictures(6, 8), torch.tensor([3, 9, 4, 1, 0, 7])
    explanation, _ = record(network(), x, sample_ids=ids)
    part, _ = record(network(), x[2:4], sample_ids=ids[2:4])
    steps = Steps(0.02, 3)
    assert torch.equal(perturbation(explanation, steps, 2)[2:4], perturbation(part, steps, 2))
    assert not torch.equal(perturbation(part, steps, 1), perturbation(part, steps, 2))
    with noise_scope(ids, seed=0):  # the stream of draws about inputs, as explainers use it
        keys = input_keys(x, "input perturbation", 2)
    assert torch.equal(perturbation(explanation, steps, 2), uniform_like(x, keys) * 0.04 - 0.02)


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_one_explanation_per_draw(record, network, pictures, batch):
    """P + 1 with the record's own; memory is bounded: a call never holds more than 64 rows or one batch."""
    explanation, spy = record(network(), pictures(batch, 8))
    measured(MaxSensitivity(draws=10), explanation)
    assert spy.explained == 10 * batch and max(rows for rows, _ in spy.calls) <= 64
    assert len(spy.calls) == -(-10 // max(1, 64 // batch))
    measured(TotalAttributionChange(draws=10), explanation)
    assert spy.explained == 10 * batch  # the same steps, one pass
    repeated, spy = record(network(), pictures(batch, 8))
    measured(MaxSensitivity(draws=10, repetitions=5), repeated)
    assert spy.explained == 50 * batch


def test_batch_size_changes_nothing(record, network, pictures):
    x, ids = pictures(70, 8), torch.arange(70)
    tables = []
    for size in (1, 7, 64):
        metric = MaxSensitivity(draws=4).setup(70)
        for rows in ids.split(size):
            metric.update(record(network(), x[rows], sample_ids=rows, noise=0.05)[0])
        tables.append(np.stack(list(metric.table().values())))
    for table in tables[1:]:
        np.testing.assert_allclose(table, tables[0], rtol=0, atol=2e-6)


def test_noise_is_told_apart_from_input(record, network, pictures):
    """The finding behind the three numbers: with fresh noise most of the value is noise, and is there at radius 0 as well."""
    x = pictures(16, 8)
    explanation, spy = record(network(), x, noise=0.3)
    still = measured(MaxSensitivity(radius=0.0, draws=6), explanation).compute()
    assert still[""] == 0 and still["floor"] > 0.05 and still["fresh"] == still["floor"]
    moved = measured(MaxSensitivity(radius=0.02, draws=6), explanation).compute()
    assert 0 < moved[""] < moved["floor"] and moved["fresh"] > moved["floor"] * 0.8
    assert {draw for _, draw in spy.calls} == {None, 1, 2, 3, 4, 5, 6}  # fresh paths never repeat the record's own (0)


def test_without_noise_the_floor_is_free_and_zero(record, network, pictures):
    explanation, spy = record(network(), pictures(8, 8))
    metric = measured(MaxSensitivity(draws=3), explanation)
    values = metric.compute()
    assert values["fresh"] == values[""] > 0 and values["floor"] == 0
    assert {draw for _, draw in spy.calls} == {None}
    assert metric.direction("floor") is None and metric.direction() is False


def test_linear_network_has_constant_maps(record, pictures):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    linear[1].bias.data[0] = 10.0  # the winning class, which the stand-in explains, is the same after every step
    explanation, _ = record(linear, pictures(4, 8))
    assert measured(MaxSensitivity(), explanation).compute()[""] == 0


def test_repetitions_average_maxima(record, network, pictures):
    explanation, _ = record(network(), pictures(3, 8))
    singles = []
    for draw in range(6):
        difference = explanation.explain(perturbed(explanation, Steps(0.02, 6), draw)) - explanation.attribution
        singles.append(difference.flatten(1).norm(dim=1) / explanation.attribution.flatten(1).norm(dim=1))
    expected = (torch.stack(singles[:3]).amax(0) + torch.stack(singles[3:]).amax(0)) / 2
    found = measured(MaxSensitivity(draws=3, repetitions=2), explanation).per_image()[""]
    np.testing.assert_allclose(list(found.values()), expected.numpy(), atol=1e-6)


def test_zero_and_broken_maps(record, network, pictures):
    x = pictures(3, 8)

    def constant(model, x, rows):
        out = torch.full_like(x, 0.0)
        out[rows == 2] = torch.nan
        return out

    explanation, _ = record(network(), x, constant(None, x, torch.arange(3)), attribute=constant)
    found = measured(MaxSensitivity(), explanation)
    assert found.per_image()[""] == {0: 0.0, 1: 0.0}  # 0 / (0 -> 1)
    assert found.summary()[0].excluded == 1


def test_total_change_of_input_times_gradient_is_the_change_of_score(record, pictures):
    """Eq. 9 on a network without bias or curvature: the attribution is complete, so its total moves with the score."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 3, bias=False))
    x = pictures(4, 8)

    def complete(model, x, rows):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return leaf.detach() * torch.autograd.grad(model(leaf).gather(1, winners[rows][:, None]).sum(), leaf)[0]

    winners = linear(x).argmax(1)
    explanation, _ = record(linear, x, complete(linear, x, torch.arange(4)), attribute=complete)
    total = measured(TotalAttributionChange(radius=0.1), explanation).per_image()[""]
    scores = torch.stack([linear(perturbed(explanation, Steps(0.1, 10), d)) for d in range(10)]).detach()
    moved = (scores - explanation.logits.detach())[:, torch.arange(4), winners].abs().amax(0)
    np.testing.assert_allclose(list(total.values()), moved.numpy(), atol=1e-5)


def test_expansion_ratio_of_a_scaled_isometry(record, pictures):
    """F = 3 x flattened: every step expands by exactly 3; one logit by 3 |step of that value| / ||step||."""

    class Triple(nn.Module):
        def forward(self, x):
            return 3 * x.flatten(1)

    explanation, spy = record(Triple(), pictures(4, 4), pictures(4, 4))
    metric = measured(ExpansionRatio(radius=0.05), explanation)
    assert metric.compute()[""].item() == pytest.approx(3.0, rel=1e-4)
    assert spy.forwards == 40
    steps = torch.stack([perturbation(explanation, Steps(0.05, 10), d).flatten(1) for d in range(10)])
    single = 3 * steps[:, torch.arange(4), explanation.target].abs() / steps.norm(dim=2)
    np.testing.assert_allclose(list(metric.per_image()["score"].values()), single.amax(0).numpy(), rtol=1e-3)
    other, other_spy = record(Triple(), pictures(4, 4), pictures(4, 4), shared=explanation.shared)
    measured(ExpansionRatio(radius=0.05), other)
    assert other_spy.forwards == 0  # a fact about the network, shared by all explainers of the batch


def test_bad_settings_are_told_in_a_sentence():
    with pytest.raises(UserError, match="'pixel' or 'network', got 'raw'"):
        MaxSensitivity(units="raw")
    with pytest.raises(UserError, match="must not be negative"):
        TotalAttributionChange(radius=-1)
    with pytest.raises(UserError, match="at least one repetition"):
        MaxSensitivity(repetitions=0)
    with pytest.raises(UserError, match="at least one draw"):
        MaxSensitivity(draws=0)
    with pytest.raises(UserError, match="radius must be positive"):
        ExpansionRatio(radius=0.0)


def test_mean_and_lipschitz_share_the_pass_of_the_maximum(record, network, pictures):
    """P + 1 explanations for all three; values from their definitions."""
    explanation, spy = record(network(), pictures(4, 8))
    table = {
        metric.kind: measured(metric, explanation).per_image()
        for metric in (MaxSensitivity(), MeanSensitivity(), LocalLipschitz())
    }
    assert spy.explained == 40
    norm = explanation.attribution.flatten(1).norm(dim=1)
    moved, length = [], []
    for draw in range(10):
        x = perturbed(explanation, Steps(0.02, 10), draw)
        moved.append((explanation.explain(x) - explanation.attribution).flatten(1).norm(dim=1))
        length.append((x - explanation.x).flatten(1).norm(dim=1))
    moved, length = torch.stack(moved), torch.stack(length)
    for kind, name, expected in (
        ("max_sensitivity", "", (moved / norm).amax(0)),
        ("mean_sensitivity", "", (moved / norm).mean(0)),
        ("local_lipschitz", "", (moved / length).amax(0)),
        ("local_lipschitz", "relative", (moved / length).amax(0) / norm),
    ):
        np.testing.assert_allclose(list(table[kind][name].values()), expected.numpy(), rtol=1e-4)


def test_lipschitz_of_a_scaled_isometry(record, pictures):
    """A(x) = 5 x: every step is stretched by exactly 5."""

    def stretched(model, x, rows):
        return 5 * x

    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    explanation, _ = record(linear, pictures(3, 8), attribute=stretched)
    metric = measured(LocalLipschitz(radius=0.1), explanation)
    np.testing.assert_allclose(list(metric.per_image()[""].values()), 5.0, rtol=1e-4)
    with pytest.raises(UserError, match="radius must be positive"):
        LocalLipschitz(radius=0)


def test_quantus_given_our_perturbations(record, network, pictures):
    """Measured with Quantus 0.6.0: 3e-8 for the maximum, 4e-8 for the mean, 3e-8 for the Lipschitz estimate."""
    quantus = pytest.importorskip("quantus", reason="Quantus is an optional oracle")
    net, x = network(normalized=True), pictures(5, 12)
    explanation, spy = record(net, x)
    steps = Steps(0.05, 10)
    pairs = [
        (quantus.MaxSensitivity, MaxSensitivity(radius=0.05)),
        (quantus.AvgSensitivity, MeanSensitivity(radius=0.05)),
        (quantus.LocalLipschitzEstimate, LocalLipschitz(radius=0.05)),
    ]
    for peer, ours in pairs:
        draws = iter(range(10))
        made = peer(
            nr_samples=10,
            perturb_func=lambda arr, draws=draws, **_: (
                perturbed(explanation, steps, next(draws)).numpy().reshape(arr.shape)
            ),
            perturb_func_kwargs={},
            disable_warnings=True,
            display_progressbar=False,
            return_nan_when_prediction_changes=False,
            abs=False,
            normalise=False,
        )
        theirs = made(
            model=net,
            x_batch=x.numpy(),
            y_batch=explanation.target.numpy(),
            a_batch=explanation.attribution.numpy(),
            explain_func=lambda model, inputs, targets, **_: spy.explain(torch.as_tensor(inputs).float()).numpy(),
            device="cpu",
            batch_size=5,
        )
        np.testing.assert_allclose(
            list(measured(ours, explanation).per_image()[""].values()), theirs, rtol=0, atol=1e-6
        )
