"""Every entry of conf/attack keeps the promises of an attack, by itself."""

from __future__ import annotations

import copy
import importlib
import inspect
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from explainode.attacks.base import Attack
from explainode.dynamics.noise import Noise, number_noise_blocks
from explainode.errors import UserError
from explainode.randomness import noise_scope

ENTRIES = sorted((Path(__file__).parents[2] / "conf" / "attack").glob("*.yaml"))


@pytest.fixture(params=ENTRIES, ids=lambda path: path.stem)
def attack(request):
    body = yaml.safe_load(request.param.read_text())
    module, name = body.pop("_target_").rsplit(".", 1)
    cls = getattr(importlib.import_module(module), name)
    assert set(body) == set(inspect.signature(cls).parameters)
    made = cls(**body)
    assert isinstance(made, Attack) and "Source:" in cls.__doc__ and "Args:" in cls.__doc__
    return made


def extra(attack, x):
    """The heat map of those attacks that need one."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(9)) if hasattr(attack, "top") else None


def test_results_are_true_and_in_range(attack, network, pictures):
    net, x = network(), pictures()
    target = net(x).argmax(1)
    target[3] = (target[3] + 1) % 5  # the network is wrong about this one from the start
    found = attack(net, x, target, extra(attack, x))
    assert found.x.shape == x.shape and found.x.min() >= 0 and found.x.max() <= 1 and not found.x.requires_grad
    with torch.no_grad():
        assert torch.equal(found.success, net(found.x).argmax(1) != target)
    assert found.success.any() and found.steps.dtype == torch.int64 and (found.steps >= 0).all()
    if not getattr(attack, "random_start", False):
        assert found.success[3] and found.steps[3] == 0 and torch.equal(found.x[3], x[3])


def test_batch_equals_singles(attack, network, pictures):
    net, x = network(), pictures(6)
    ids, heat = torch.tensor([7, 3, 9, 0, 4, 2]), extra(attack, x)
    target = net(x).argmax(1)
    with noise_scope(ids, seed=5, active=False):
        whole = attack(net, x, target, heat)
    for i in range(6):
        with noise_scope(ids[i : i + 1], seed=5, active=False):
            one = attack(net, x[i : i + 1], target[i : i + 1], None if heat is None else heat[i : i + 1])
        torch.testing.assert_close(one.x, whole.x[i : i + 1], rtol=0, atol=1e-5)
        assert one.success[0] == whole.success[i] and one.steps[0] == whole.steps[i]


def test_the_world_stays_as_it_was(attack, network, pictures):
    net, x = network().train(), pictures()
    net[3].eval()
    net[0].bias.requires_grad_(False)
    before, x_before = copy.deepcopy(net.state_dict()), x.clone()
    with torch.random.fork_rng():
        state = torch.get_rng_state()
        first = attack(net, x, 0, extra(attack, x))
        assert torch.equal(torch.get_rng_state(), state)
    assert net.training and net[1].training and not net[3].training
    assert not net[0].bias.requires_grad and net[0].weight.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items()) and torch.equal(
        x, x_before
    )
    with torch.inference_mode():
        again = attack(nn.DataParallel(net), x, 0, extra(attack, x))  # a wrapper, in a validation loop
    assert torch.equal(first.x, again.x)

    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("broken")

    broken = nn.Sequential(net, Broken())
    with pytest.raises(RuntimeError, match="broken"):
        attack(broken, x, 0, extra(attack, x))
    assert net.training and net[0].weight.requires_grad


def test_noise_belongs_to_the_images(attack, network, pictures):
    """Rows that are still attacked keep their own noise when others have left the batch."""

    class Jitter(nn.Module):
        def __init__(self):
            super().__init__()
            self.noise = Noise(0.3)

        def forward(self, x):
            noise = self.noise(x)
            return x if noise is None else x + noise

    net, x = nn.Sequential(Jitter(), network()), pictures(6)
    number_noise_blocks(net)
    ids, heat = torch.arange(6), extra(attack, x)
    with noise_scope(ids, seed=1):
        target = net(x).argmax(1)
        whole = attack(net, x, target, heat)
        assert torch.equal(net(whole.x).argmax(1) != target, whole.success)
    with noise_scope(ids[4:], seed=1):
        part = attack(net, x[4:], target[4:], None if heat is None else heat[4:])
    torch.testing.assert_close(part.x, whole.x[4:], rtol=0, atol=1e-5)


def test_empty_batch(attack, network, pictures):
    x = pictures(1)[:0]
    assert len(attack(network(), x, torch.zeros(0, dtype=torch.int64), extra(attack, x))) == 0


def test_bad_input_is_told_in_a_sentence(attack, network, pictures):
    net, x = network(), pictures(3)
    for bad, words in (
        (x * 3 - 1, r"pixels must lie in \[0, 1\]"),
        (x[0], "must be a float tensor"),
        (x * torch.nan, "pixels must lie"),
    ):
        with pytest.raises(UserError, match=words):
            attack(net, bad, 0, extra(attack, x))
    with pytest.raises(UserError, match=r"target must have shape \(3,\), got \(2,\)"):
        attack(net, x, torch.zeros(2, dtype=torch.int64), extra(attack, x))
    with pytest.raises(UserError, match="expected class indices"):
        attack(net, x, torch.zeros(3), extra(attack, x))
    with pytest.raises(UserError, match=r"expected logits \(B, K\)"):
        attack(net[:4], x, 0, extra(attack, x))
