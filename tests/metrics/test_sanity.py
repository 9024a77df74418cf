"""Sanity checks: maps that follow the network fall apart with it, maps that do not are found out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from explainode.errors import UserError
from explainode.metrics.sanity import (
    ClassSensitivity,
    DataRandomization,
    ParameterRandomization,
    layers_from_the_top,
    likeness,
    randomize,
)
from explainode.models.weights_of import WeightsOf


def measured(metric, explanation):
    metric.setup(len(explanation))
    metric.update(explanation)
    return metric


def of_the_image(model, x, rows):
    """A map that never looks at the network."""
    return x.mean(1, keepdim=True)


def test_layers_are_listed_from_the_output(network):
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.ReLU(), nn.Linear(4, 2))
    assert layers_from_the_top(net) == ["2", "0.1", "0.0"]


def test_randomizing_keeps_scale_and_the_rest(network):
    """Keyed by name: the same draws on every rank and in every order; mean and deviation of the parameter stay."""
    net = nn.Sequential(nn.Linear(300, 200), nn.BatchNorm1d(200), nn.Linear(200, 10))
    with torch.no_grad():
        net[0].weight.add_(0.5)
        net[1].running_mean.fill_(3.0)
    before = copy.deepcopy(net)
    state = torch.get_rng_state()
    randomize(net, ["0"], seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(net[2].weight, before[2].weight) and torch.equal(net[1].running_mean, before[1].running_mean)
    assert net[0].weight.mean().item() == pytest.approx(before[0].weight.mean().item(), abs=1e-3)
    assert net[0].weight.std().item() == pytest.approx(before[0].weight.std().item(), rel=0.02)
    correlation = torch.corrcoef(torch.stack((net[0].weight.flatten(), before[0].weight.flatten())))[0, 1]
    assert abs(correlation) < 0.02  # 60,000 values: 5 standard errors
    twice, other = copy.deepcopy(before), copy.deepcopy(before)
    randomize(twice, ["2", "0"], seed=1)
    randomize(other, ["0"], seed=2)
    assert torch.equal(twice[0].weight, net[0].weight) and not torch.equal(other[0].weight, net[0].weight)


def test_map_of_the_network_falls_map_of_the_image_stays(record, network, pictures):
    net, x = network(), pictures(8, 12)
    before = copy.deepcopy(net.state_dict())
    learned, spy = record(net, x)
    blind, _ = record(net, x, attribute=of_the_image)
    for mode in ("cascading", "independent"):
        metric = measured(ParameterRandomization(mode, stages=3), learned)
        assert metric.compute()[""] < 0.6 and (mode == "independent" or abs(metric.compute()["end"]) < 0.3)
        assert metric.curve().mean.shape == (3,) and metric.curve().x[-1] == (
            1 if mode == "cascading" else pytest.approx(2 / 3)
        )
        stays = measured(ParameterRandomization(mode, stages=3), blind)
        assert stays.compute()[""] == pytest.approx(1) and stays.compute()["end"] == pytest.approx(1)
    assert spy.explained == 6 * 8  # `stages` explanations an image, each mode
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_cascading_against_steps_taken_by_hand(record, network, pictures):
    """Stage k: all layers above are random too; independent: one group at a time."""
    net, x = network(), pictures(4, 12)
    explanation, _ = record(net, x)
    groups = [["7"], ["3"], ["0"]]
    found = {
        mode: measured(ParameterRandomization(mode, 3), explanation).curves(explanation)
        for mode in ("cascading", "independent")
    }
    for stage in range(3):
        for mode, layers in (
            ("cascading", [name for group in groups[: stage + 1] for name in group]),
            ("independent", groups[stage]),
        ):
            copied = copy.deepcopy(net)
            randomize(copied, layers, seed=0)
            expected = likeness(explanation, explanation.explain(x, model=copied), "spearman", "sum")
            torch.testing.assert_close(found[mode][:, stage], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stages", [1, 2, 5])
def test_any_number_of_stages(record, network, pictures, stages):
    """Three layers in five stages: a stage that randomizes nothing new costs nothing; the last stage has randomized everything."""
    explanation, spy = record(network(), pictures(3, 12))
    metric = measured(ParameterRandomization(stages=stages), explanation)
    assert spy.explained <= 3 * min(stages, 4) and metric.curves(explanation).shape == (3, stages)
    all_random = copy.deepcopy(explanation.model)
    randomize(all_random, layers_from_the_top(all_random), seed=0)
    expected = likeness(explanation, explanation.explain(explanation.x, model=all_random), "spearman", "sum")
    torch.testing.assert_close(metric.curves(explanation)[:, -1], expected, rtol=0, atol=1e-5)


def test_a_dead_map_is_unlike_and_a_broken_one_excluded(record, network, pictures):
    x = pictures(3, 12)

    def dead(model, x, rows):
        return torch.zeros_like(x)

    heat = torch.randn(3, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    heat[1], heat[2, 0, 0, 0] = 2.0, torch.nan
    explanation, _ = record(network(), x, heat, attribute=dead)
    metric = measured(ParameterRandomization(stages=2), explanation)
    assert metric.per_image()[""] == {0: 0.0} and metric.summary()[0].excluded == 2


def test_a_measure_without_meaning_is_no_good_result(record, network, pictures):
    """SSIM needs 11 pixels: on smaller pictures nothing was measured, so nothing is reported as unlike."""
    explanation, _ = record(network(), pictures(2, 8))
    for metric in (ClassSensitivity(similarity="ssim"), ParameterRandomization(stages=1, similarity="ssim")):
        (found, *_) = measured(metric, explanation).summary()
        assert found.excluded == 2 and found.n == 0


def test_class_sensitivity_of_known_maps(record, network, pictures):
    """The gradient of p_0 - p_1 of a two-class network: the other class' map is its negative, -1; a map of the image gets 1."""
    two = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    with torch.no_grad():
        two[1].weight[1] = -two[1].weight[0]
    x = pictures(5, 8)
    explanation, spy = record(two, x)
    for other in ("least", "random"):
        assert measured(ClassSensitivity(other), explanation).compute()[""] == pytest.approx(-1)
    assert spy.explained == 10
    explanation.explain = lambda x, target=None: of_the_image(None, x, None)
    explanation.attribution = of_the_image(None, x, None)
    explanation._own.clear()
    assert measured(ClassSensitivity(), explanation).compute()[""] == pytest.approx(1)


def test_a_map_that_only_turns_its_sign_is_alike_in_magnitude(record, pictures):
    two = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    with torch.no_grad():
        two[1].weight[1] = -two[1].weight[0]
    explanation, _ = record(two, pictures(5, 8))
    found = {name: float(value) for name, value in measured(ClassSensitivity(), explanation).compute().items()}
    assert found[""] == pytest.approx(-1) and found["absolute"] == pytest.approx(1)
    assert found["magnitude"] == pytest.approx(1)
    assert measured(ClassSensitivity(reduction="abs_sum"), explanation).compute()[""] == pytest.approx(1)


def test_a_sign_that_is_random_does_not_hide_that_the_places_stay(record, network, pictures):
    """The map's places come from the image, its sign from a parameter: unlike in every stage, alike in magnitude."""
    net, x = network(), pictures(16, 12)

    def signed_by_a_parameter(model, x, rows):
        last = [p for p in model.parameters() if p.dim() > 1][-1]
        return torch.where(last.sum() > 0, 1.0, -1.0) * of_the_image(None, x, None)

    explanation, _ = record(net, x, attribute=signed_by_a_parameter)
    found = measured(ParameterRandomization(stages=6), explanation).compute()
    assert float(found["magnitude"]) > 0.99 and float(found["absolute"]) > 0.99
    assert float(found[""]) <= float(found["absolute"])


def test_which_other_class(record, network, pictures):
    x = pictures(64, 8)
    explanation, _ = record(network(), x)
    least = ClassSensitivity("least").classes(explanation)
    assert torch.equal(least, explanation.logits.argmin(1))
    random = ClassSensitivity("random").classes(explanation)
    assert (random != explanation.target).all() and len(random.unique()) >= 4
    alone, _ = record(network(), x[9:10], sample_ids=torch.tensor([9]))
    assert ClassSensitivity("random").classes(alone) == random[9]
    explanation.target = explanation.logits.argmin(1)  # the user explained the least likely class
    assert (ClassSensitivity("least").classes(explanation) != explanation.target).all()


def test_bad_settings_are_told_in_a_sentence(record, pictures):
    with pytest.raises(UserError, match="'cascading' or 'independent'"):
        ParameterRandomization("top_down")
    with pytest.raises(UserError, match="at least one stage"):
        ParameterRandomization(stages=0)
    with pytest.raises(UserError, match="no measure of agreement named 'spearmn'"):
        ClassSensitivity(similarity="spearmn")
    with pytest.raises(UserError, match="'least' or 'random'"):
        ClassSensitivity("second")

    class Plain(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))[:, :1]

    explanation, _ = record(Plain(), pictures(2, 8))
    with pytest.raises(UserError, match="no parameters"):
        measured(ParameterRandomization(), explanation)
    with pytest.raises(UserError, match="single output"):
        measured(ClassSensitivity(), explanation)


# ---- a twin that was trained on other labels


def test_twin_against_the_map_made_by_hand(record, network, pictures, tmp_path):
    net, x = network(), pictures(5, 12)
    twin = copy.deepcopy(net)
    randomize(twin, layers_from_the_top(twin), seed=4)
    torch.save(twin.state_dict(), tmp_path / "twin.pt")
    torch.save(net.state_dict(), tmp_path / "same.pt")
    before = copy.deepcopy(net.state_dict())
    explanation, spy = record(net, x)
    metric = DataRandomization(WeightsOf(str(tmp_path / "twin.pt")))
    found = measured(metric, explanation).per_image()[""]
    expected = likeness(explanation, explanation.explain(x, model=twin), "spearman", "sum")
    assert [found[k] for k in range(5)] == pytest.approx(expected.tolist(), abs=1e-6) and spy.explained == 10
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert measured(
        DataRandomization(WeightsOf(str(tmp_path / "same.pt"))), record(net, x)[0]
    ).compute() == pytest.approx(1)
    assert metric.protocol_hash != DataRandomization(WeightsOf(str(tmp_path / "same.pt"))).protocol_hash
    blind, _ = record(net, x, attribute=of_the_image)
    assert measured(metric, blind).compute() == pytest.approx(1)


def test_a_twin_of_another_kind_is_refused(record, network, pictures, tmp_path):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "other.pt")
    explanation, _ = record(network(), pictures(2, 12))
    with pytest.raises(UserError, match="holds weights of another network"):
        measured(DataRandomization(WeightsOf(str(tmp_path / "other.pt"))), explanation)
    with pytest.raises(UserError, match="there is no weights file"):
        measured(DataRandomization(WeightsOf(str(tmp_path / "none.pt"))), explanation)
    with pytest.raises(UserError, match="no measure of agreement"):
        DataRandomization(WeightsOf("x"), "alike")
