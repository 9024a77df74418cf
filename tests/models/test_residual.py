"""The block against its equation, and a network against its noise-injected twin."""

import copy

import pytest
import torch
from torch import nn

from explainode.dynamics.noise import Noise, number_noise_blocks
from explainode.errors import UserError
from explainode.models.residual import Residual, inject_noise, torchvision_key
from explainode.randomness import noise_rows, noise_scope


def x(batch=4):
    return torch.randn(batch, 3, 5, 5, generator=torch.Generator().manual_seed(1))


def numbered(**settings):
    noise = Noise(**settings)
    noise.block = 0
    return noise


def test_the_equation():
    branch, shortcut = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1)
    assert torch.equal(Residual(branch, shortcut, nn.ReLU())(x()), torch.relu(branch(x()) + shortcut(x())))
    same = nn.Conv2d(3, 3, 3, padding=1)
    assert torch.equal(Residual(same)(x()), x() + same(x()))


@pytest.mark.parametrize("where", ["before", "after"])
def test_noise_is_drawn_for_the_sum_before_or_after_the_activation(where):
    branch, noise = nn.Conv2d(3, 3, 3, padding=1), numbered(magnitude=0.5, where=where)
    block = Residual(branch, activation=nn.ReLU(), noise=noise)
    with noise_scope(torch.arange(4)):
        y = branch(x()) + x()
        expected = torch.relu(y + noise(y)) if where == "before" else torch.relu(y) + noise(torch.relu(y))
        assert torch.equal(block(x()), expected)
        assert bool((block(x()) < 0).any()) is (where == "after")
    assert torch.equal(block.eval()(x()), torch.relu(branch(x()) + x()))


def test_neither_input_nor_branch_output_is_overwritten():
    kept = []
    block = Residual(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), activation=nn.ReLU(), noise=Noise())
    handle = block.branch.register_forward_hook(lambda module, inputs, output: kept.append((output, output.clone())))
    given = x()
    block(given)
    handle.remove()
    assert torch.equal(given, x()) and torch.equal(*kept[0])


def test_a_branch_may_return_its_input():
    block = Residual(nn.Identity())
    given = x().requires_grad_()
    block(given).sum().backward()
    assert torch.equal(given.grad, torch.full_like(given, 2.0)) and torch.equal(given, x())


def network():
    torch.manual_seed(0)
    blocks = [
        Residual(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)), activation=nn.ReLU())
        for _ in range(3)
    ]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(75, 2))


def test_the_twin_has_its_own_numbered_noise_in_every_block():
    noise = Noise(0.5)
    twin = inject_noise(network(), noise)
    injected = [m for m in twin.modules() if isinstance(m, Noise)]
    assert [m.block for m in injected] == [0, 1, 2] and noise not in injected and noise.block is None
    assert list(twin.state_dict()) == list(network().state_dict())


def test_the_twin_without_noise_is_the_network():
    plain, twin = network().eval(), inject_noise(network(), Noise(0.5)).eval()
    assert torch.equal(plain(x()), twin(x()))
    with noise_scope(torch.arange(4), active=False):
        assert torch.equal(plain(x()), twin(x()))
    with noise_scope(torch.arange(4)):
        assert not torch.allclose(plain(x()), twin(x()))


@pytest.mark.parametrize("silent", [None, Noise(0.0)])
def test_silent_noise_is_no_noise_block(silent):
    assert not [m for m in inject_noise(network(), silent).modules() if isinstance(m, Noise)]
    assert not [m for m in inject_noise(inject_noise(network(), Noise(0.5)), silent).modules() if isinstance(m, Noise)]


def test_a_sample_keeps_its_path_through_the_network():
    """Alone, in a batch, in another order: the same noise at every block; 1e-5 for the convolutions' own rounding."""
    twin = inject_noise(network(), Noise(0.5)).eval()
    with noise_scope(torch.tensor([10, 11, 12, 13]), seed=3):
        whole = twin(x())
        for rows in (torch.tensor([2]), torch.tensor([3, 0, 0])):
            with noise_rows(rows):
                assert torch.allclose(twin(x()[rows]), whole[rows], atol=1e-5)
    with noise_scope(torch.tensor([12]), seed=3):
        assert torch.allclose(twin(x()[2:3]), whole[2:3], atol=1e-5)


def test_a_copy_of_the_twin_draws_the_same():
    twin = inject_noise(network(), Noise(0.5)).eval()
    with noise_scope(torch.arange(4)):
        assert torch.equal(copy.deepcopy(twin)(x()), twin(x()))


def test_noise_needs_a_block():
    with pytest.raises(UserError, match="class Residual, and this network has none"):
        inject_noise(nn.Linear(2, 2), Noise(0.5))
    inject_noise(nn.Linear(2, 2), Noise(0.0))


def test_torchvision_keys():
    assert torchvision_key("layer1.0.branch.conv1.weight") == "layer1.0.conv1.weight"
    assert torchvision_key("layer2.0.shortcut.1.running_var") == "layer2.0.downsample.1.running_var"
    assert torchvision_key("fc.bias") == "fc.bias"


def test_dropout_noise_drops_elements_of_the_change():
    torch.manual_seed(0)
    block = Residual(nn.Linear(50, 50), noise=Noise(0.3, kind="dropout"))
    number_noise_blocks(block)
    x = torch.randn(8, 50)
    f = block.branch(x)
    with noise_scope(torch.arange(8)):
        change = block(x) - x
    dropped = change.abs() < 1e-6
    assert 0.2 < dropped.float().mean() < 0.4
    assert torch.allclose(change[~dropped], f[~dropped] / 0.7, atol=1e-5)
