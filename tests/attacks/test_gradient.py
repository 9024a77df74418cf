"""Gradient attacks: closed forms on linear networks, norms, masks, a second derivation, torchattacks where it is installed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from explainode.attacks.gradient import FGSM, PGD, GuidedPGD, top_values
from explainode.errors import UserError


def plain_pgd(net, x, target, epsilon, alpha, steps, norm="linf"):
    """The method again, one image at a time, written from its definition; the whole trajectory."""
    path = [x.clone()]
    for _ in range(steps):
        point = path[-1].clone().requires_grad_()
        g = torch.stack(
            [
                torch.autograd.grad(F.cross_entropy(net(p[None]), t[None]), p)[0]
                for p, t in zip(point, target, strict=True)
            ]
        )
        if norm == "linf":
            delta = (path[-1] + alpha * g.sign() - x).clamp(-epsilon, epsilon)
        else:
            delta = path[-1] - x + alpha * g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            delta = torch.where(length > epsilon, delta * epsilon / length, delta)
        path.append((x + delta).clamp(0, 1).detach())
    return torch.stack(path)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_equals_a_second_derivation_and_freezes_at_success(network, pictures, norm):
    net, x = network().double(), pictures(16).double()
    target = net(x).argmax(1)
    epsilon, alpha = (0.03, 0.004) if norm == "linf" else (0.25, 0.03)
    path = plain_pgd(net, x, target, epsilon, alpha, 12, norm)
    free = PGD(epsilon, alpha, 12, norm, stop=False)(net, x, target)
    torch.testing.assert_close(free.x, path[-1], rtol=0, atol=1e-12)
    stopped = PGD(epsilon, alpha, 12, norm)(net, x, target)
    wrong = torch.stack([net(state).argmax(1) != target for state in path])  # (13, B)
    assert 2 < wrong.any(0).sum() < 16 and torch.equal(stopped.success, wrong.any(0))
    for i in range(16):
        first = int(wrong[:, i].int().argmax()) if wrong[:, i].any() else 12
        assert stopped.steps[i] == first
        torch.testing.assert_close(stopped.x[i], path[first, i], rtol=0, atol=1e-12)
    assert len(stopped.steps[stopped.success].unique()) > 1


def test_fgsm_of_a_linear_network(linear):
    """Two classes: the sign of the loss' gradient is the sign of the weights' difference, wherever one stands."""
    net = linear(classes=2)
    x = 0.2 + 0.6 * torch.rand(5, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = net(x).argmax(1)
    w = net[1].weight
    away = (w[1 - target] - w[target]).view(5, 3, 4, 4)
    found = FGSM(0.1)(net, x, target)
    torch.testing.assert_close(found.x, x + 0.1 * away.sign(), rtol=0, atol=1e-12)
    # and so the margin shrinks by epsilon times the weights' L1 norm
    margin = (net(x) - net(found.x)).gather(1, target[:, None]) - (net(x) - net(found.x)).gather(1, 1 - target[:, None])
    torch.testing.assert_close(margin[:, 0], 0.1 * away.flatten(1).abs().sum(1), rtol=0, atol=1e-10)
    assert torch.equal(FGSM(0.0)(net, x, target).x, x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("random_start", [False, True])
def test_norms_are_respected(network, pictures, norm, random_start):
    net, x = network(), pictures(16)
    allowed = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.3
    found = PGD(0.07, 0.03, 9, norm, random_start, stop=False)(net, x, net(x).argmax(1), allowed)
    delta = found.x - x
    size = delta.abs().flatten(1).amax(1) if norm == "linf" else delta.flatten(1).norm(dim=1)
    assert (size <= 0.07 + 1e-6).all() and size.max() > 0.05
    assert not delta[~allowed.expand_as(delta)].any() and delta[allowed.expand_as(delta)].any()


def test_random_starts_belong_to_samples_and_fill_the_ball(network, pictures):
    x = 0.5 + 0 * pictures(200)
    frozen = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    nn.init.zeros_(frozen[1].weight)  # a constant network: the start stays (the gradient is 0)
    start = PGD(0.1, 0.01, 1, "linf", True)(frozen, x, frozen(x).argmax(1)).x - x
    assert start.abs().max() <= 0.1 + 1e-6 and start.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.02)
    assert len(start.flatten(1)[:, 0].unique()) > 150  # each sample its own


def test_full_mask_is_plain_pgd(network, pictures):
    """As many values open as there are: guidance by any map is no guidance, bit for bit."""
    net, x = network(), pictures(10)
    target = net(x).argmax(1)
    heat = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    guided, plain = GuidedPGD(top=192)(net, x, target, heat), PGD()(net, x, target)
    assert (
        torch.equal(guided.x, plain.x)
        and torch.equal(guided.steps, plain.steps)
        and torch.equal(guided.success, plain.success)
    )


def test_guided_pgd_changes_only_the_highest_values(network, pictures):
    net, x = network(), pictures(10)
    heat = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    found = GuidedPGD(top=17, stop=False)(net, x, net(x).argmax(1), heat)
    changed = (found.x != x).flatten(1)
    assert (changed.sum(1) <= 17).all() and changed.sum(1).max() >= 15 and (found.x - x).abs().max() <= 8 / 255 + 1e-6
    threshold = heat.flatten(1).sort(1, descending=True).values[:, 16:17]
    assert not changed[heat.flatten(1) < threshold].any()


def test_gradient_map_guides_better_than_a_random_one(network, pictures):
    """Ceiling and floor of the metric: |gradient| of the loss against noise."""
    net, x = network(), pictures(64)
    target = net(x).argmax(1)
    leaf = x.clone().requires_grad_()
    heat = torch.autograd.grad(F.cross_entropy(net(leaf), target, reduction="sum"), leaf)[0].abs()
    rate = {}
    for name, relevance in {
        "ceiling": heat,
        "floor": torch.rand(x.shape, generator=torch.Generator().manual_seed(0)),
    }.items():
        rate[name] = GuidedPGD(epsilon=0.1, alpha=0.02, top=40)(net, x, target, relevance).success.float().mean()
    assert rate["ceiling"] > rate["floor"] + 0.1


def test_top_values_units_and_ties():
    x = torch.zeros(1, 2, 2, 2)
    relevance = torch.tensor([[[[1.0, 5.0], [2.0, 2.0]], [[4.0, -9.0], [2.0, 0.0]]]])
    assert top_values(relevance, x, 2)[0].int().flatten().tolist() == [0, 1, 0, 0, 1, 0, 0, 0]
    assert top_values(relevance, x, 4)[0].int().flatten().tolist() == [
        0,
        1,
        1,
        1,
        1,
        0,
        0,
        0,
    ]  # of three 2s the first two
    assert top_values(relevance, x, 1, "pixel")[0].int().tolist() == [[[1, 0], [0, 0]]] * 2  # 5, -4, 4, 2
    coarse = top_values(
        torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]]), torch.zeros(1, 3, 4, 4), 3
    )  # one channel stands for all
    assert coarse[0, :, 0, 0].all() and coarse.sum() == 3


def test_torchattacks_agrees(network, pictures):
    """Measured with torchattacks 3.5.1: 0 difference for FGSM, PGD and PGDL2 without a random start."""
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is an optional oracle")
    net, x = network(), pictures(16)
    target = net(x).argmax(1)
    pairs = [
        (torchattacks.FGSM(net, eps=0.05), FGSM(0.05)),
        (torchattacks.PGD(net, eps=0.05, alpha=0.01, steps=7, random_start=False), PGD(0.05, 0.01, 7, stop=False)),
        (torchattacks.PGDL2(net, eps=0.5, alpha=0.1, steps=7, random_start=False), PGD(0.5, 0.1, 7, "l2", stop=False)),
    ]
    for peer, ours in pairs:
        torch.testing.assert_close(ours(net, x, target).x, peer(x, target), rtol=0, atol=1e-6)


def test_bad_settings_are_told_in_a_sentence(network, pictures):
    with pytest.raises(UserError, match="epsilon must not be negative"):
        FGSM(-0.1)
    with pytest.raises(UserError, match="alpha must be positive"):
        PGD(alpha=0)
    with pytest.raises(UserError, match="at least one step"):
        PGD(steps=0)
    with pytest.raises(UserError, match="'linf' or 'l2', got 'l1'"):
        PGD(norm="l1")
    with pytest.raises(UserError, match="'value' or 'pixel'"):
        GuidedPGD(unit="patch")
    with pytest.raises(UserError, match="top=0"):
        GuidedPGD(top=0)
    net, x = network(), pictures(2)
    with pytest.raises(UserError, match="needs a relevance map"):
        GuidedPGD()(net, x, 0)
    with pytest.raises(UserError, match="NaN"):
        GuidedPGD()(net, x, 0, x * torch.nan)
    with pytest.raises(UserError, match="bool mask, got float32"):
        PGD()(net, x, 0, x)
    with pytest.raises(UserError, match="allowed must have shape"):
        PGD()(net, x, 0, torch.ones(2, 1, 4, 4, dtype=torch.bool))

    class Detached(nn.Module):
        def forward(self, x):
            return net(x).detach()

    with pytest.raises(UserError, match="carry no gradient"):
        PGD()(Detached(), x, net(x).argmax(1))
