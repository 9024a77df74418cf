"""DeepFool on linear classifiers, where one step is the exact projection."""

from __future__ import annotations

import pytest
import torch

from explainode.attacks.deepfool import DeepFool
from explainode.attacks.gradient import PGD
from explainode.errors import UserError


def test_closed_form_on_a_linear_network(linear):
    """The nearest of K - 1 hyperplanes: r = |f_l - f_0| / ||w||^2 w, crossed by the overshoot; one step suffices."""
    net = linear(classes=6)
    x = 0.45 + 0.1 * torch.rand(20, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        net[1].bias -= net(x).mean(0)  # near all boundaries, so that no pixel leaves [0, 1]
    target = net(x).argmax(1)
    w, logits = net[1].weight.detach(), net(x).detach()
    expected = []
    for i in range(20):
        distances = torch.stack(
            [(logits[i, k] - logits[i, target[i]]).abs() / (w[k] - w[target[i]]).norm() for k in range(6)]
        )
        distances[target[i]] = torch.inf
        nearest = int(distances.argmin())
        normal = w[nearest] - w[target[i]]
        expected.append(x[i] + 1.02 * (distances[nearest] * normal / normal.norm()).view(3, 4, 4))
    expected = torch.stack(expected)
    assert expected.min() > 0 and expected.max() < 1
    found = DeepFool()(net, x, target)
    torch.testing.assert_close(found.x, expected, rtol=0, atol=1e-10)
    assert found.success.all() and (found.steps == 1).all()


def test_smaller_than_pgd_and_at_the_boundary(network, pictures):
    net, x = network().double(), pictures(32).double()
    target = net(x).argmax(1)
    found, pgd = DeepFool()(net, x, target), PGD(1.0, 0.05, 60, "l2")(net, x, target)
    both = found.success & pgd.success
    size, other = ((attack.x - x).flatten(1).norm(dim=1)[both] for attack in (found, pgd))
    assert found.success.all() and both.sum() > 20 and size.mean() < other.mean()
    inside = x + (found.x - x) * 0.95  # 1 / 1.02 is the boundary
    assert (net(inside).argmax(1) == target).float().mean() > 0.9


def test_masks_and_candidates(network, pictures):
    net, x = network(), pictures(8)
    target = net(x).argmax(1)
    allowed = torch.zeros(8, 1, 8, 8, dtype=torch.bool)
    allowed[:, :, :4] = True
    found = DeepFool()(net, x, target, allowed)
    assert torch.equal(found.x[:, :, 4:], x[:, :, 4:]) and found.success.any()
    second = net(x).topk(2, dim=1).indices[:, 1]
    to_second = DeepFool(classes=1)(net, x, target)
    assert (net(to_second.x).argmax(1) == second)[to_second.success].float().mean() > 0.7


def test_bad_settings_are_told_in_a_sentence():
    for settings, words in (
        ({"steps": 0}, "at least one step"),
        ({"overshoot": -1}, "overshoot"),
        ({"classes": 0}, "other class"),
    ):
        with pytest.raises(UserError, match=words):
            DeepFool(**settings)
