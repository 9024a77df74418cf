"""Planted networks: the maps that are called exact are exact, by taking pixels away and by Shapley's definition."""

from __future__ import annotations

import itertools

import pytest
import torch

from explainode.metrics.planted import CLASSES, MAPS, NETWORKS, TwoObjects


@pytest.fixture(params=NETWORKS)
def case(request):
    network = NETWORKS[request.param](seed=1).eval()
    return request.param, network, network.scene(16, seed=5)


def test_the_explained_class_is_the_predicted_one(case):
    _, network, scene = case
    with torch.no_grad():
        assert torch.equal(network(scene.x).argmax(1), scene.label)
    assert scene.x.min() >= 0 and scene.x.max() <= 1 and scene.mask.flatten(1).any(1).all()
    assert set(scene.label.tolist()) == set(range(CLASSES))


def test_scenes_are_keyed(case):
    _, network, scene = case
    assert torch.equal(network.scene(16, seed=5).x, scene.x) and not torch.equal(network.scene(16, seed=6).x, scene.x)


def test_what_contributes_nothing_can_be_taken_away(case):
    """Gray where the truth is 0 changes no logit of the class ."""
    name, network, scene = case
    truth = network.contributions(scene.x, scene.label)
    if name == "attention":  # which reads colors as well: take the gray away and leave those
        kept = torch.where(truth == 0, scene.x - scene.x.mean(1, keepdim=True) + 0.5, scene.x)
    else:
        kept = torch.where(truth == 0, torch.full_like(scene.x, 0.5), scene.x)
    with torch.no_grad():
        before, after = (network(x).gather(1, scene.label[:, None]) for x in (scene.x, kept))
    within = 0.05 if name == "texture" else 1e-4  # where the object goes, a thread or two of the weave is seen anew
    torch.testing.assert_close(after, before, rtol=within, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_contributions_add_up_to_the_logit(name):
    network = NETWORKS[name](seed=2)
    scene = network.scene(8, seed=1)
    with torch.no_grad():
        logit = network(scene.x).gather(1, scene.label[:, None])[:, 0]
    torch.testing.assert_close(network.contributions(scene.x, scene.label).sum((1, 2, 3)), logit, rtol=1e-4, atol=1e-4)


def test_object_and_gate_share_the_product_as_shapley_says():
    """Two players, the object's pixels and the mark's: each gets the mean of its marginal contributions over both orders."""
    network = NETWORKS["gated"](seed=0)
    scene = network.scene(8, seed=3)
    truth = network.contributions(scene.x, scene.label)[:, 0]
    with torch.no_grad():
        for b in range(8):
            parts = _components(truth[b] != 0, network.size)
            assert len(parts) == 2
            worth = {}
            for chosen in itertools.product((False, True), repeat=2):
                keep = torch.zeros(network.size, network.size, dtype=torch.bool)
                for part, taken in zip(parts, chosen, strict=True):
                    keep |= part & taken
                x = torch.where(keep, scene.x[b], torch.tensor(0.5))[None]
                worth[chosen] = float(network(x)[0, scene.label[b]])
            assert worth[True, False] == worth[False, True] == worth[False, False] == 0
            shapley = worth[True, True] / 2
            assert worth[True, True] == pytest.approx(float(network(scene.x[b : b + 1])[0, scene.label[b]]), rel=1e-3)
            sums = [float(truth[b][part].sum()) for part in parts]
            assert sums[0] > 0 and sums == pytest.approx([shapley, shapley], rel=1e-3)


def _components(marked: torch.Tensor, size: int) -> list[torch.Tensor]:
    """The parts of a mask that touch on the torus, within two pixels."""
    left, parts = set(map(tuple, marked.nonzero().tolist())), []
    while left:
        part, front = set(), [left.pop()]
        while front:
            i, j = front.pop()
            part.add((i, j))
            for a, b in itertools.product(range(-2, 3), repeat=2):
                near = ((i + a) % size, (j + b) % size)
                if near in left:
                    left.remove(near)
                    front.append(near)
        mask = torch.zeros(size, size, dtype=torch.bool)
        for i, j in part:
            mask[i, j] = True
        parts.append(mask)
    return parts


def test_the_suppressor_is_used_and_tells_nothing():
    network = NETWORKS["suppressor"](seed=0)
    scene = network.scene(64, seed=2)
    truth = network.contributions(scene.x, scene.label)[:, 0]
    outside = truth * (scene.mask == 0)
    assert (outside.abs().amax((1, 2)) > 0).all()  # the network goes by it
    strength = outside.sum((1, 2))
    assert strength.mean() < 0  # and takes it away


def test_where_the_object_tells_nothing_the_truth_lies_elsewhere():
    network = NETWORKS["texture"](seed=0)
    scene = network.scene(8, seed=2)
    truth = network.contributions(scene.x, scene.label)[:, 0].clamp(min=0)
    assert ((truth * scene.mask).sum((1, 2)) / truth.sum((1, 2))).max() < 0.15


def test_a_class_of_a_disconnected_cell_does_not_see_the_others():
    network = NETWORKS["disconnected"](seed=0)
    scene = network.scene(8, seed=2)
    truth, half = network.contributions(scene.x, scene.label)[:, 0], network.size // 2
    for b, label in enumerate(scene.label.tolist()):
        row, column = label // 2 * half, label % 2 * half
        inside = torch.zeros(network.size, network.size, dtype=torch.bool)
        inside[row : row + half, column : column + half] = True
        assert (truth[b][~inside] == 0).all() and (truth[b][inside] != 0).any()


def test_maps_miss_the_truth_by_one_thing():
    network = TwoObjects(seed=0)
    scene = network.scene(8, seed=2)
    t = network.contributions(scene.x, scene.label)
    u = network.contributions(scene.x, (scene.label + 1) % CLASSES)
    a, b = torch.randn(2, *t.shape, generator=torch.Generator().manual_seed(0))
    made = {name: make(t, u, a, b) for name, make in MAPS.items()}
    assert all(m.shape == t.shape for m in made.values())
    assert torch.equal(made["inverted"], -t) and torch.equal(made["both objects"], t + u)
    assert torch.equal(made["squared"].flatten(1).argsort(1)[:, -5:], t.flatten(1).argsort(1)[:, -5:])
    assert (made["blurred"].amax((1, 2, 3)) < 0.9 * t.amax((1, 2, 3))).all()
    center = made["center"][0, 0]
    torch.testing.assert_close(center, center.flip(0), rtol=1e-4, atol=1e-8)
