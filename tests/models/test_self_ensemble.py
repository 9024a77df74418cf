"""Ensembles by noise: what is averaged, over which draws, and that the network beneath stays what it was."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from explainode.dynamics.block import ode_blocks
from explainode.dynamics.diffusion import AdditiveDiffusion
from explainode.dynamics.noise import Noise
from explainode.dynamics.sde import EulerMaruyama
from explainode.errors import UserError
from explainode.models.neural_ode import neural_sde
from explainode.models.resnet import cifar_resnet, six_block_resnet
from explainode.models.self_ensemble import (
    Ensemble,
    NoisyConv2d,
    SelfEnsemble,
    enresnet,
    inject_noise_layers,
    random_self_ensemble,
)
from explainode.randomness import noise_draw, noise_rows, noise_scope


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()


def images(batch=4):
    return torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))


# --- noise layers ---


def test_a_noise_layer_stands_before_every_convolution():
    plain, x = network(), images()
    noisy = inject_noise_layers(copy.deepcopy(plain), first=0.2, inner=0.1)
    assert [conv.noise.magnitude for conv in noisy.modules() if isinstance(conv, NoisyConv2d)] == [0.2, 0.1]
    assert list(noisy.state_dict()) == list(plain.state_dict())
    with noise_scope(torch.arange(4), seed=3):
        first = x + noisy[0].noise(x)
        hidden = plain[0](first).relu()
        expected = plain[2](hidden + noisy[2].noise(hidden)).mean((2, 3))
        assert torch.allclose(noisy(x), expected, atol=1e-6)
    assert torch.equal(noisy(x), plain(x))  # silent outside of a scope in eval mode
    assert not torch.equal(noisy.train()(x), plain(x))


def test_noise_layers_can_be_changed_and_taken_out():
    plain, x = network(), images()
    noisy = inject_noise_layers(inject_noise_layers(copy.deepcopy(plain)), first=0.0, inner=0.3)
    assert [type(noisy[n]) for n in (0, 2)] == [nn.Conv2d, NoisyConv2d] and noisy[2].noise.magnitude == 0.3
    inject_noise_layers(noisy, 0.0, 0.0)
    assert not any(isinstance(module, (NoisyConv2d, Noise)) for module in noisy.modules())
    with noise_scope(torch.arange(4)):
        assert torch.equal(noisy(x), plain(x))


def test_a_copy_of_a_noisy_network_is_noisy():
    noisy, x = inject_noise_layers(network()), images()
    with noise_scope(torch.arange(4), seed=3):
        assert torch.equal(copy.deepcopy(noisy)(x), noisy(x))


# --- self-ensemble ---


def test_probabilities_are_averaged_over_draws():
    noisy, x = inject_noise_layers(network()), images()
    ensemble = SelfEnsemble(noisy, draws=3).eval()
    for outer in (0, 2):
        with noise_scope(torch.arange(4), seed=5, draw=outer):
            logits = ensemble(x)
            probabilities = []
            for draw in range(3):
                with noise_draw(3 * outer + draw):  # another draw of the scope shares none of these
                    probabilities.append(F.softmax(noisy(x), 1))
        assert torch.allclose(F.softmax(logits, 1), torch.stack(probabilities).mean(0), atol=1e-6)


def test_where_noise_is_silent_the_network_speaks_and_in_training_one_draw_does():
    noisy, x = inject_noise_layers(network()), images()
    ensemble = SelfEnsemble(noisy, draws=3).eval()
    assert torch.equal(ensemble(x), noisy(x))
    with noise_scope(torch.arange(4), active=False):
        assert torch.equal(ensemble(x), noisy(x))
    ensemble.train()
    with noise_scope(torch.arange(4), seed=2, draw=7):
        assert torch.equal(ensemble(x), noisy(x))


def neural_sde_net(magnitude=0.3):
    torch.manual_seed(0)
    return neural_sde(six_block_resnet(width=16, blocks=2), AdditiveDiffusion(magnitude), EulerMaruyama(steps=2)).eval()


def test_a_neural_sde_is_averaged_over_its_paths():
    sde, x = neural_sde_net(), torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    ensemble = SelfEnsemble(sde, draws=2).eval()
    with noise_scope(torch.arange(3), seed=5):
        found = F.softmax(ensemble(x), 1)
        paths = []
        for draw in range(2):
            with noise_draw(draw):
                paths.append(F.softmax(sde(x), 1))
    assert not torch.allclose(*paths) and torch.allclose(found, sum(paths) / 2, atol=1e-6)
    assert torch.equal(ensemble(x), sde(x))  # silent: the neural ODE beneath
    with pytest.raises(UserError, match="this network has none"):
        SelfEnsemble(neural_sde_net(magnitude=0.0))


def test_a_prediction_does_not_depend_on_batch_mates():
    ensemble, x = SelfEnsemble(inject_noise_layers(network()), draws=2).eval(), images()
    with noise_scope(torch.arange(4), seed=5):
        whole = ensemble(x)
        with noise_rows(torch.tensor([2])):
            assert torch.allclose(ensemble(x[2:3]), whole[2:3], atol=1e-6)


def test_weights_of_a_self_ensemble_are_found_again(tmp_path):
    first = random_self_ensemble(cifar_resnet(8), draws=2)
    torch.save(first.state_dict(), tmp_path / "weights.pt")
    second = random_self_ensemble(cifar_resnet(8), draws=2, weights=str(tmp_path / "weights.pt"))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert second.image_size == 32


# --- EnResNet ---


def test_members_are_different_have_noise_of_their_own_and_are_averaged():
    torch.manual_seed(0)
    net = enresnet(members=2, depth=8, noise=Noise(0.1, normalize="batch"), mean=(0.0,) * 3, std=(1.0,) * 3).eval()
    blocks = [module.block for module in net.modules() if isinstance(module, Noise)]
    assert blocks == list(range(2 * 3)) and net.image_size == 32
    x = torch.rand(3, 3, 16, 16)
    with noise_scope(torch.arange(3), seed=1):
        one, other = (member(x) for member in net.members)
        assert torch.allclose(net(x), (one + other) / 2)
    assert not torch.allclose(one, other)
    net.train()(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_members_that_are_neural_sdes_have_paths_of_their_own():
    member, x = neural_sde_net(), torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    net = Ensemble([member, copy.deepcopy(member)]).eval()
    assert [block.number for block in ode_blocks(net).values()] == [0, 1, 2, 3]
    with noise_scope(torch.arange(3), seed=1):
        assert not torch.allclose(net.members[0](x), net.members[1](x))


# --- bad input ---


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: inject_noise_layers(nn.Sequential(nn.Linear(2, 2))), "Sequential has none"),
        (lambda: inject_noise_layers(network(), first=-1.0), "at least 0, got -1"),
        (lambda: inject_noise_layers(network(), inner=math.nan), "got nan"),
        (lambda: SelfEnsemble(network()), "this network has none"),
        (lambda: SelfEnsemble(inject_noise_layers(network()), draws=0), "at least 1 draw, got 0"),
        (lambda: random_self_ensemble(network(), first=0.0, inner=0.0), "this network has none"),
        (lambda: Ensemble([]), "at least 1 member"),
        (lambda: enresnet(members=0), "at least 1 member"),
    ],
)
def test_bad_ensembles(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()
