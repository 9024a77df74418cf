"""Attacks on maps: second derivatives against theirs in closed form, the ball, the class, and networks on which nothing can move."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from explainode.attacks.map_attack import CenterAttack, TargetMapAttack, TopPixelsAttack, center, importance
from explainode.attacks.softened import SoftRectifiers
from explainode.attribution import begin_graph, graph_is_kept, keep_graph
from explainode.errors import UserError
from explainode.randomness import noise_scope

ATTACKS = [TopPixelsAttack, CenterAttack, TargetMapAttack]


def saliency(net):
    """x, rows -> |gradient of the winning logit|, summed over channels; with a graph where one is asked for."""

    def heatmap(x, rows):
        with torch.enable_grad():
            x = begin_graph(x)
            return torch.autograd.grad(net(x).amax(1).sum(), x, create_graph=graph_is_kept())[0].abs().sum(1)

    return heatmap


def run(attack, net, x, ids=None):
    with noise_scope(torch.arange(len(x)) if ids is None else ids, active=False):
        return attack(x, saliency(net), lambda x, rows: net(x).detach())


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 100, 4)
        )
        for parameter in net.parameters():
            parameter.requires_grad_(False)
        net[-1].weight.mul_(5)
    return net.eval()


@pytest.fixture
def pictures():
    return torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1


def test_rectifiers_are_softened_in_every_spelling():
    x = torch.linspace(-2, 8, 41, dtype=torch.float64)
    soft = torch.log1p(torch.exp(3 * x)) / 3
    with SoftRectifiers(3.0):
        for spelled in (
            F.relu(x),
            torch.relu(x),
            x.relu(),
            nn.ReLU()(x),
            nn.ReLU(inplace=True)(x.clone()),
            F.relu(x, inplace=True),
        ):
            torch.testing.assert_close(spelled, soft)
        torch.testing.assert_close(nn.ReLU6()(x), soft - torch.log1p(torch.exp(3 * (x - 6))) / 3)
        torch.testing.assert_close(
            nn.Hardtanh(-1, 2)(x),
            -1 + torch.log1p(torch.exp(3 * (x + 1))) / 3 - torch.log1p(torch.exp(3 * (x - 2))) / 3,
        )
        assert torch.equal(torch.exp(x), x.exp()) and torch.equal(
            F.conv1d(x[None, None], x[None, None]), (x @ x).view(1, 1, 1)
        )
    assert torch.equal(F.relu(x), x.clamp(min=0))
    with SoftRectifiers(1e4):
        torch.testing.assert_close(F.relu(x), x.clamp(min=0), rtol=0, atol=1e-4)


def test_second_derivative_in_closed_form():
    """f = sum_k w_k softplus(a_k . x) / beta: the gradient's own derivative is sum_k w_k beta s (1 - s) a_k a_k^T, s the logistic function."""
    generator = torch.Generator().manual_seed(0)
    a, w = torch.randn(6, 3 * 4, generator=generator).double(), torch.randn(6, generator=generator).double()
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 6, bias=False), nn.ReLU(), nn.Linear(6, 1, bias=False)).double()
    with torch.no_grad():
        net[1].weight.copy_(a)
        net[3].weight.copy_(w[None])
    x = torch.randn(1, 3, 2, 2, generator=generator).double().requires_grad_()
    with SoftRectifiers(10.0), keep_graph() as graph:
        point = begin_graph(x)
        gradient = torch.autograd.grad(net(point).sum(), point, create_graph=True)[0]
    assert graph.kept and point is x
    hessian = torch.stack([torch.autograd.grad(g, x, retain_graph=True)[0].flatten() for g in gradient.flatten()])
    s = torch.sigmoid(10 * (a @ x.detach().flatten()))
    torch.testing.assert_close(hessian, torch.einsum("k,ki,kj->ij", w * 10 * s * (1 - s), a, a))


@pytest.mark.parametrize("cls", ATTACKS)
def test_the_map_moves_further_than_under_noise_and_the_class_stays(network, pictures, cls):
    attack = cls(epsilon=0.05, alpha=0.01)
    found = run(attack, network, pictures)
    heat = saliency(network)
    before, after = importance(heat(pictures, None)), importance(heat(found.x, None))
    assert (found.x - pictures).abs().max() <= 0.05 + 1e-6 and found.x.amin() >= 0 and found.x.amax() <= 1
    assert torch.equal(network(found.x).argmax(1), network(pictures).argmax(1))
    torch.testing.assert_close(attack.progress(before, after), found.progress)
    gained = attack.gain(before, after) - attack.gain(before, before)
    for seed in range(5):
        noise = 0.1 * torch.rand(pictures.shape, generator=torch.Generator().manual_seed(seed)) - 0.05
        shaken = importance(heat((pictures + noise).clamp(0, 1), None))
        assert (gained > attack.gain(before, shaken) - attack.gain(before, before)).all()


@pytest.mark.parametrize("cls", ATTACKS)
def test_an_image_is_attacked_by_itself(network, pictures, cls):
    together = run(cls(steps=3), network, pictures)
    order = [3, 0]
    others = run(cls(steps=3), network, pictures[order], torch.tensor(order))
    torch.testing.assert_close(others.x, together.x[order], rtol=0, atol=1e-6)


@pytest.mark.parametrize("cls", ATTACKS)
def test_nothing_moves_on_a_linear_network(pictures, cls):
    net = nn.Sequential(nn.Flatten(), nn.Linear(432, 3))
    found = run(cls(), net, pictures)
    assert torch.equal(found.x, pictures) and (found.progress == 0).all()


def test_a_point_of_another_class_is_never_taken(network, pictures):
    """A network whose prediction changes with the slightest step: the image itself is the answer."""
    clean = pictures.clone()

    def predict(x, rows):
        return torch.stack([torch.zeros(len(x)), (x - clean[rows]).abs().flatten(1).amax(1)], 1)

    with noise_scope(torch.arange(5), active=False):
        found = TopPixelsAttack(steps=3)(pictures, saliency(network), predict)
    assert torch.equal(found.x, pictures) and (found.progress == 0).all()


def test_the_output_drifts_no_further_than_allowed(network, pictures):
    clean = network(pictures).softmax(1)
    kept = clean.argmax(1, keepdim=True)

    def attacked(drift):
        found = run(TopPixelsAttack(epsilon=0.05, alpha=0.01, drift=drift), network, pictures)
        return found.progress, (network(found.x).softmax(1) - clean).gather(1, kept).abs()[:, 0]

    free, moved = attacked(1.0)
    limit = float(moved.max()) / 2
    bound, less = attacked(limit)
    assert (less <= limit + 1e-6).all() and (bound <= free).all() and (bound > 0).any()
    assert (bound < free)[moved > limit + 1e-6].all() and (moved > limit + 1e-6).any()


def test_centers_and_targets_by_hand():
    heat = torch.zeros(1, 5, 7)
    heat[0, 1, 2], heat[0, 3, 6] = 0.75, 0.25
    assert center(heat).tolist() == [[1.5, 3.0]]
    target = TargetMapAttack().target(heat)
    assert target[0, 3, 4] == 0.75 and target[0, 1, 0] == 0.25
    assert (
        TargetMapAttack().progress(heat, target).item() == pytest.approx(1)
        and TargetMapAttack().progress(heat, heat).item() == 0
    )
    moved = torch.zeros(1, 5, 7)
    moved[0, 4, 6] = 1
    assert CenterAttack().progress(heat, moved).item() == pytest.approx(math.hypot(2.5, 3))
    assert TopPixelsAttack(top=1 / 35).progress(heat, moved).item() == 1


def test_refusals(network, pictures):
    with pytest.raises(UserError, match=r"share of the pixels in \(0, 1\), got 1"):
        TopPixelsAttack(top=1)
    with pytest.raises(UserError, match="beta must be positive"):
        CenterAttack(beta=0)
    with pytest.raises(UserError, match=r"drift is a change of a probability in \[0, 1\], got 2"):
        CenterAttack(drift=2)
    with pytest.raises(UserError, match="epsilon must not be negative"):
        TargetMapAttack(epsilon=-1)
    with (
        noise_scope(torch.arange(5), active=False),
        pytest.raises(UserError, match="only methods made of gradients can"),
    ):
        TopPixelsAttack()(pictures, lambda x, rows: x.mean(1), lambda x, rows: network(x))
