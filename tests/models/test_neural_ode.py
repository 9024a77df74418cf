"""Neural ODEs and SDEs made of ResNets: the conversion is exact, the parameter counts are the paper's, noise is keyed."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import explainode
from explainode.dynamics.block import ODEBlock, ode_blocks
from explainode.dynamics.diffusion import AdditiveDiffusion
from explainode.dynamics.failure import NonFiniteState
from explainode.dynamics.noise import Noise
from explainode.dynamics.sde import EulerMaruyama
from explainode.dynamics.solver import RungeKutta
from explainode.errors import UserError
from explainode.models.neural_ode import NeuralODE, NeuralSDE, TimeConditionedField, teacher_states
from explainode.models.residual import Residual
from explainode.models.resnet import cifar_resnet, six_block_resnet
from explainode.randomness import noise_scope

EULER = RungeKutta("euler", steps=1)
NETWORKS = [
    ("six_block", 32),
    ("resnet20", 32),
    ("resnet32", 32),
    ("resnet44", 32),
    ("resnet56", 32),
    ("tv_resnet18", 64),
    ("tv_resnet50", 64),
]


def lived_in(name: str) -> nn.Module:
    """A network of conf/ whose BatchNorm has seen something."""
    torch.manual_seed(0)
    network = explainode.get(f"model/{name}").eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


@pytest.fixture
def resnet():
    torch.manual_seed(0)
    return six_block_resnet(width=16, blocks=3).eval()


@pytest.fixture
def x():
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "size"), NETWORKS, ids=[name for name, _ in NETWORKS])
def test_euler_with_one_step_is_the_resnet_bit_for_bit(name, size):
    """And its input gradient to rounding: the adjoint adds the same terms in another order."""
    resnet = lived_in(name)
    ode = NeuralODE.from_resnet(resnet, EULER)
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1), requires_grad=True)
    logits, others = resnet(x), ode(x)
    assert torch.equal(logits, others)
    gradient, other = (torch.autograd.grad(y[:, 1].sum(), x)[0] for y in (logits, others))
    assert (gradient - other).norm() <= 1e-5 * gradient.norm()


def test_the_gradient_is_the_resnets_in_float64():
    resnet = lived_in("resnet20").double()
    ode = NeuralODE.from_resnet(resnet, EULER)
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    gradient, other = (torch.autograd.grad(network(x)[:, 1].sum(), x)[0] for network in (resnet, ode))
    assert (gradient - other).norm() <= 1e-13 * gradient.norm()


def test_the_rectified_field_hides_no_nan():
    block = Residual(nn.Identity(), activation=nn.ReLU())
    assert torch.isnan(block.field(torch.tensor([[float("nan")]]))).all()


def test_the_rectified_field_keeps_a_state_that_would_turn_negative_at_zero():
    block = Residual(nn.Linear(1, 1, bias=False), activation=nn.ReLU())
    nn.init.constant_(block.branch.weight, -2.0)
    x = torch.tensor([[3.0], [0.0]])
    assert torch.equal(x + block.field(x), block(x)) and (block(x) == 0).all()


def test_parameter_counts_of_lei_2023():
    assert sum(p.numel() for p in NeuralODE.from_resnet(six_block_resnet(), EULER).parameters()) == 577_930
    assert sum(p.numel() for p in NeuralODE.from_resnet(six_block_resnet(), EULER, tied=True).parameters()) == 209_418
    assert sum(p.numel() for p in TimeConditionedField(64).parameters()) == 75_392


def test_the_resnet_stays_as_it_was(resnet, x):
    before = resnet(x)
    ode = NeuralODE.from_resnet(resnet, EULER)
    with torch.no_grad():
        for parameter in ode.parameters():
            parameter.zero_()
    assert torch.equal(resnet(x), before) and not ode_blocks(resnet)


def test_runs_follow_each_other_directly():
    """ResNet-20 has three stages; the first block of two of them changes the shape and stays discrete."""
    network = cifar_resnet(20)
    assert [block.replaces for block in ode_blocks(NeuralODE.from_resnet(network, EULER, tied=True)).values()] == [
        ("layer1.0", "layer1.2"),
        ("layer2.1", "layer2.2"),
        ("layer3.1", "layer3.2"),
    ]
    assert len(ode_blocks(NeuralODE.from_resnet(network, EULER))) == 7


def test_the_tied_field_sees_the_time():
    torch.manual_seed(0)
    field, x = TimeConditionedField(8), torch.randn(2, 8, 5, 5)
    assert not torch.allclose(field(torch.tensor(0.0), x), field(torch.tensor(1.0), x))


def test_refining_converges(resnet, x):
    """Halving the steps halves Euler's distance from the solution, within what ReLU's kinks leave of the order."""
    ode = NeuralODE.from_resnet(resnet, RungeKutta("rk4", steps=64))
    with torch.no_grad():
        limit = ode(x)
        errors = [float((ode.with_solver(RungeKutta("euler", steps=k))(x) - limit).norm()) for k in (4, 8, 16)]
    assert all(1.5 < a / b < 2.6 for a, b in pairwise(errors)), errors


def test_another_solver_shares_the_parameters(resnet):
    ode = NeuralODE.from_resnet(resnet, EULER)
    other = ode.with_solver(RungeKutta("rk4", steps=2))
    assert all(a is b for a, b in zip(ode.parameters(), other.parameters(), strict=True))
    assert {block.solver.tableau for block in ode_blocks(ode).values()} == {"euler"}


def test_batchnorm_stays_frozen():
    ode = NeuralODE.from_resnet(cifar_resnet(20), EULER).train()
    assert ode.training and not any(module.training for module in ode.modules() if isinstance(module, nn.BatchNorm2d))


def test_noise_of_the_teacher_is_left_out(x):
    torch.manual_seed(0)
    ode = NeuralODE.from_resnet(six_block_resnet(width=16, blocks=2, noise=Noise(0.5)), EULER).train()
    assert torch.equal(ode(x), ode(x))


def test_a_network_without_blocks_is_refused():
    with pytest.raises(UserError, match=r"no block that a flow can stand for.*resnet20"):
        NeuralODE.from_resnet(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), EULER)
    with pytest.raises(UserError, match="no ODEBlock"):
        NeuralODE(nn.Sequential(nn.Flatten()))


def test_a_failure_names_its_block(resnet, x):
    ode = NeuralODE.from_resnet(resnet, RungeKutta("rk4", steps=2))
    with torch.no_grad():
        ode.network.blocks[1].field.block.branch.conv2.weight.fill_(float("inf"))
    with pytest.raises(NonFiniteState, match=r"blocks\.1") as caught:
        ode(x)
    assert caught.value.block == "blocks.1" and caught.value.evaluations > 0


def test_teacher_states_are_what_the_blocks_read_and_write(resnet, x):
    ode = NeuralODE.from_resnet(resnet, EULER)
    states, logits = teacher_states(resnet, [block.replaces for block in ode_blocks(ode).values()], x)
    assert len(states) == 3 and torch.equal(states[0][1], states[1][0]) and torch.equal(logits, resnet(x))
    for block, (start, end) in zip(ode_blocks(ode).values(), states, strict=True):
        assert torch.equal(block(start), end)


def test_residual_scale_makes_smaller_steps(x):
    torch.manual_seed(0)
    plain = six_block_resnet(width=16, blocks=4).eval()
    torch.manual_seed(0)
    scaled = six_block_resnet(width=16, blocks=4, residual_scale=0.25).eval()
    block, small = plain.blocks[0], scaled.blocks[0]
    state = torch.randn(2, 16, 4, 4)
    assert torch.allclose(small(state) - state, 0.25 * (block(state) - state), atol=1e-6)
    with pytest.raises(UserError, match="residual_scale"):
        six_block_resnet(residual_scale=-1.0)


class TestNeuralSDE:
    @pytest.fixture
    def sde(self, resnet):
        return NeuralSDE.from_resnet(resnet, EulerMaruyama(steps=2), diffusion=AdditiveDiffusion(0.3)).eval()

    def test_silent_it_is_the_neural_ode_of_the_same_steps(self, sde, resnet, x):
        ode = NeuralODE.from_resnet(resnet, RungeKutta("euler", steps=2))
        assert torch.equal(sde(x), ode(x))
        with noise_scope(torch.arange(4), active=False):
            assert torch.equal(sde.train()(x), ode(x))

    def test_a_samples_path_depends_on_the_sample_alone(self, sde, x):
        ids = torch.tensor([9, 4, 7, 0])
        with noise_scope(ids, seed=3):
            batch = sde(x)
        with noise_scope(ids.flip(0), seed=3):
            assert torch.allclose(sde(x.flip(0)).flip(0), batch, atol=1e-6)
        for i in range(4):
            with noise_scope(ids[i : i + 1], seed=3):
                assert torch.allclose(
                    sde(x[i : i + 1]), batch[i : i + 1], atol=1e-6
                )  # convolutions of other batch sizes round otherwise

    def test_blocks_and_draws_have_their_own_noise(self, sde, x):
        assert [block.number for block in ode_blocks(sde).values()] == [0, 1, 2]
        with noise_scope(torch.arange(4), draw=0):
            first = sde(x)
        with noise_scope(torch.arange(4), draw=1):
            assert not torch.allclose(sde(x), first)

    def test_in_a_users_own_loop_torchs_generator_decides(self, sde, x):
        sde.train()
        torch.manual_seed(5)
        first = sde(x)
        assert not torch.equal(sde(x), first)
        torch.manual_seed(5)
        assert torch.equal(sde(x), first)

    def test_gradients_reach_every_parameter(self, sde, x):
        with noise_scope(torch.arange(4)):
            sde.train()(x).square().sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in sde.parameters())

    def test_a_solver_of_ordinary_equations_is_refused(self, resnet):
        with pytest.raises(UserError, match="stochastic solver"):
            NeuralSDE.from_resnet(resnet, EULER, diffusion=AdditiveDiffusion(0.1))
        with pytest.raises(UserError, match="needs a diffusion"):
            NeuralSDE.from_resnet(resnet, EulerMaruyama(2))


def test_a_block_says_its_solver():
    assert "euler" in repr(ODEBlock(TimeConditionedField(4), EULER))


def test_what_cannot_be_converted_is_said(resnet):
    from explainode.models.self_ensemble import inject_noise_layers

    with pytest.raises(UserError, match="continuous already"):
        NeuralODE.from_resnet(NeuralODE.from_resnet(resnet, EULER), EULER)
    with pytest.raises(UserError, match="needs a solver, got 'rk4'"):
        NeuralODE.from_resnet(resnet, "rk4")
    with pytest.raises(UserError, match="noise layers"):
        NeuralODE.from_resnet(inject_noise_layers(resnet), EULER)
