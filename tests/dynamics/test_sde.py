"""Stochastic solvers against closed forms, against backprop through the same steps, and against torchsde on the same path."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torchsde
from torch import nn

from explainode.dynamics.brownian import BrownianPath
from explainode.dynamics.diffusion import (
    AdditiveDiffusion,
    Diffusion,
    DropoutDiffusion,
    LearnedDiffusion,
    MultiplicativeDiffusion,
)
from explainode.dynamics.failure import NonFiniteState
from explainode.dynamics.noise import Noise
from explainode.dynamics.sde import EulerMaruyama, Milstein
from explainode.dynamics.torch_sde import TorchSDE
from explainode.errors import UserError
from explainode.randomness import fold_in, noise_scope, normal_like, sample_keys

SOLVERS = [EulerMaruyama, Milstein]


def keys(batch, seed=0):
    return sample_keys(torch.arange(batch), seed)


class Net(nn.Module):
    """A smooth, time-dependent field on (B, 4, 3, 3); `spread` keeps a diffusion away from 0."""

    def __init__(self, spread=0.0, dtype=torch.float64):
        super().__init__()
        self.first = nn.Conv2d(4, 6, 3, padding=1, dtype=dtype)
        self.second = nn.Conv2d(6, 4, 1, dtype=dtype)
        self.spread = spread

    def forward(self, t, x):
        return self.spread + self.second(torch.tanh(self.first(x) + t))


def network(seed, **settings):
    torch.manual_seed(seed)
    return Net(**settings)


def state(batch=3, dtype=torch.float64):
    return torch.randn(batch, 4, 3, 3, dtype=dtype, generator=torch.Generator().manual_seed(5))


def gradients(solver, drift, diffusion, x0, key, parameters=(), **settings):
    """X(t1) and d(loss)/d(x0, every parameter)."""
    x0 = x0.clone().requires_grad_()
    x1 = solver(drift, diffusion, x0, key, parameters=parameters, **settings)
    learned = [p for field in (drift, diffusion) if isinstance(field, nn.Module) for p in field.parameters()] + list(
        parameters
    )
    return [x1.detach(), *torch.autograd.grad(x1.sin().sum(), [x0, *learned])]


def distance(ours, theirs):
    """The largest relative error over tensors."""
    return max(((a - b).norm() / b.norm().clamp_min(1e-300)).item() for a, b in zip(ours, theirs, strict=True))


DIFFUSIONS = {
    "additive": lambda drift: AdditiveDiffusion(0.3),
    "multiplicative": lambda drift: MultiplicativeDiffusion(0.3),
    "learned per channel": lambda drift: LearnedDiffusion(4, 0.3).double(),
    "learned network": lambda drift: LearnedDiffusion(network(2), 0.3),
    "dropout": lambda drift: DropoutDiffusion(drift, 0.2),
    "any network": lambda drift: network(3, spread=0.5),
    "number": lambda drift: lambda t, x: 0.3,
    "broadcast": lambda drift: lambda t, x: 0.1 + x.mean((2, 3), keepdim=True),
}


# --- the gradient ---


@pytest.mark.parametrize("diffusion", DIFFUSIONS.values(), ids=DIFFUSIONS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_discrete_adjoint_equals_backprop_through_the_same_steps(solver, diffusion):
    drift = network(1)
    g = diffusion(drift)
    for settings in ({"steps": 1}, {"steps": 6}, {"steps": 12, "refinement": 2}):
        ours = gradients(solver(**settings), drift, g, state(), keys(3), t0=0.5, t1=1.25)
        backprop = gradients(solver(gradient="backprop", **settings), drift, g, state(), keys(3), t0=0.5, t1=1.25)
        assert torch.equal(ours[0], backprop[0])
        assert distance(ours, backprop) < 1e-13


@pytest.mark.parametrize("solver", SOLVERS)
def test_discrete_adjoint_against_finite_differences(solver):
    drift, diffusion = network(1), LearnedDiffusion(4, 0.3).double()
    x0, key = state(2).requires_grad_(), keys(2)

    def solution(x0, *parameters):
        return solver(3)(drift, diffusion, x0, key)

    assert torch.autograd.gradcheck(solution, (x0, *drift.second.parameters(), *diffusion.parameters()))


@pytest.mark.parametrize("solver", SOLVERS)
def test_in_float32_it_is_as_good_as_backprop(solver):
    exact = gradients(solver(16), network(1), network(3), state(), keys(3))
    single = [network(seed).float() for seed in (1, 3)]
    errors = [
        distance(
            [g.double() for g in gradients(solver(16, gradient=gradient), *single, state().float(), keys(3))], exact
        )
        for gradient in ("discrete", "backprop")
    ]
    assert errors[0] < 2 * errors[1]


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradients_are_given_to_those_who_ask(solver):
    drift, diffusion, x0, key = network(1), network(3), state(), keys(3)
    full = gradients(solver(4), drift, diffusion, x0, key)
    x1 = solver(4)(drift, diffusion, x0, key)  # of the parameters alone
    x1.sin().sum().backward()
    learned = [p.grad for field in (drift, diffusion) for p in field.parameters()]
    assert distance(learned, full[2:]) < 1e-13
    drift.requires_grad_(False)  # of the state and the diffusion alone
    x = x0.clone().requires_grad_()
    found = torch.autograd.grad(solver(4)(drift, diffusion, x, key).sin().sum(), [x, *diffusion.parameters()])
    assert distance(found, [full[1], *full[6:]]) < 1e-13
    diffusion.requires_grad_(False)
    assert not solver(4)(drift, diffusion, x0, key).requires_grad


def test_a_frozen_network_costs_no_products_with_its_parameters(monkeypatch):
    asked, grad = [], torch.autograd.grad

    def counted(outputs, inputs, *rest, **more):
        asked.append(len(inputs))
        return grad(outputs, inputs, *rest, **more)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    x = state().requires_grad_()
    EulerMaruyama(3)(network(1).requires_grad_(False), AdditiveDiffusion(0.1), x, keys(3)).sum().backward()
    assert asked == [1, 1, 1]


def test_one_forward_serves_several_targets():
    drift, diffusion, x = network(1), network(3), state().requires_grad_()
    x1 = EulerMaruyama(4)(drift, diffusion, x, keys(3))
    weights = [torch.randn_like(x1) for _ in range(2)]
    both = [torch.autograd.grad((x1 * w).sum(), x, retain_graph=True)[0] for w in weights]
    again = torch.autograd.grad((x1 * (weights[0] + weights[1])).sum(), x)[0]
    assert torch.allclose(both[0] + both[1], again, rtol=1e-12)


def test_states_are_what_is_stored_and_hooks_see_them():
    seen = []

    def pack(tensor):
        seen.append(tensor.shape)
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        x = state().requires_grad_()
        x1 = EulerMaruyama(7)(network(1), network(3), x, keys(3))
    assert seen[-7:] == [x.shape] * 7  # before them, the one evaluation that is inspected for hidden parameters
    ours = torch.autograd.grad(x1.sin().sum(), x)
    assert (
        distance(ours, gradients(EulerMaruyama(7, "backprop"), network(1), network(3), state(), keys(3))[1:2]) < 1e-13
    )


def test_the_recomputed_noise_is_the_noise(monkeypatch):
    drawn, increment = [], BrownianPath.increment

    def recorded(path, n, *rest):
        drawn.append((n, increment(path, n, *rest)))
        return drawn[-1][1]

    monkeypatch.setattr(BrownianPath, "increment", recorded)
    EulerMaruyama(8, refinement=1)(network(1), network(3), state().requires_grad_(), keys(3)).sum().backward()
    forward, backward = drawn[:8], drawn[8:][::-1]
    assert all(n == m and torch.equal(a, b) for (n, a), (m, b) in zip(forward, backward, strict=True))


def test_second_derivatives_are_refused_or_had_by_backprop():
    drift, diffusion, key = network(1), MultiplicativeDiffusion(0.3), keys(1)
    x = state(1).requires_grad_()
    x1 = EulerMaruyama(3)(drift, diffusion, x, key)
    with pytest.raises(UserError, match=r'twice.*gradient="backprop"'):
        torch.autograd.grad(x1.sum(), x, create_graph=True)
    assert torch.autograd.gradgradcheck(lambda x: Milstein(2, "backprop")(drift, diffusion, x, key), x)


# --- what held in the forward pass holds when it is computed again ---


@pytest.mark.parametrize(
    "solver", [EulerMaruyama(3), Milstein(3), TorchSDE(steps=64, gradient="adjoint")], ids=lambda s: type(s).__name__
)
def test_parameters_that_are_lent_to_the_fields_get_their_gradient(solver):
    """torch.func.functional_call takes them back before the backward pass, which evaluates the fields again."""

    class Model(nn.Module):
        def __init__(self, solver):
            super().__init__()
            self.drift, self.noise, self.solver = network(1), LearnedDiffusion(4, 0.3).double(), solver

        def forward(self, x):
            return self.solver(self.drift, self.noise, x, keys(len(x)))

    x0, lent = (
        state().requires_grad_(),
        {name: p.detach().clone().requires_grad_() for name, p in Model(solver).named_parameters()},
    )
    exact = dataclasses.replace(solver, gradient="backprop")
    found, expected = (
        torch.autograd.grad(torch.func.functional_call(Model(way), lent, (x0,)).sin().sum(), [x0, *lent.values()])
        for way in (solver, exact)
    )
    assert distance(found, expected) < (
        0.3 if isinstance(solver, TorchSDE) else 1e-13
    )  # torchsde's adjoint is approximate


def test_torch_func_goes_through_backprop_and_is_told_so_elsewhere():
    drift, x0, key = network(1), state(), keys(3)
    noise = AdditiveDiffusion(0.3)
    expected = gradients(EulerMaruyama(4), drift, noise, x0, key)[1]
    found = torch.func.grad(lambda x: EulerMaruyama(4, "backprop")(drift, noise, x, key).sin().sum())(x0)
    assert distance([found], [expected]) < 1e-13
    with pytest.raises(UserError, match=r'torch\.func.*choose gradient="backprop"'):
        torch.func.grad(lambda x: EulerMaruyama(4)(drift, noise, x, key).sum())(x0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_compiled_fields(solver):
    drift, noise, x0, key = network(1), LearnedDiffusion(4, 0.3).double(), state(), keys(3)
    compiled = [torch.compile(field, backend="aot_eager") for field in (drift, noise)]
    assert (
        distance(gradients(solver(3), *compiled, x0, key), gradients(solver(3, "backprop"), drift, noise, x0, key))
        < 1e-13
    )


@pytest.mark.parametrize(
    "solver", [EulerMaruyama(2), Milstein(2), TorchSDE(steps=2)], ids=lambda solver: type(solver).__name__
)
def test_a_compiled_network_around_the_solver(solver):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.drift, self.noise = network(1), AdditiveDiffusion(0.3)

        def forward(self, x):
            return solver(self.drift, self.noise, 2 * x, keys(len(x))).sin()

    model, x0 = Model(), state().requires_grad_()
    inputs = [x0, *model.parameters()]
    expected = torch.autograd.grad(model(x0).sum(), inputs)
    assert distance(torch.autograd.grad(torch.compile(model, backend="eager")(x0).sum(), inputs), expected) < 1e-13


@pytest.mark.parametrize("solver", SOLVERS)
def test_noise_scope_is_restored(solver):
    class Noisy(Net):
        def __init__(self):
            super().__init__()
            self.noise = Noise(0.5)
            self.noise.block = 0

        def forward(self, t, x):
            y = super().forward(t, x)
            noise = self.noise(x)
            return y if noise is None else y + noise

    torch.manual_seed(1)
    drift, found = Noisy(), {}
    for gradient in ("discrete", "backprop"):
        x = state().requires_grad_()
        with noise_scope(torch.arange(3), seed=3):
            x1 = solver(4, gradient)(drift, MultiplicativeDiffusion(0.3), x, keys(3))
        found[gradient] = torch.autograd.grad(x1.sin().sum(), [x, *drift.parameters()])  # outside of the scope
    assert distance(found["discrete"], found["backprop"]) < 1e-13


def test_torchs_generator_is_replayed_and_left_alone():
    def drift(t, x):
        return x * torch.rand_like(x)

    found = {}
    for gradient in ("discrete", "backprop"):
        torch.manual_seed(0)
        x = state().requires_grad_()
        x1 = Milstein(4, gradient)(drift, MultiplicativeDiffusion(0.3), x, keys(3))
        before = torch.get_rng_state()
        found[gradient] = torch.autograd.grad(x1.sin().sum(), x)
        assert torch.equal(torch.get_rng_state(), before)
    assert distance(found["discrete"], found["backprop"]) < 1e-13


def test_autocast_is_replayed_and_later_layers_keep_their_gradient():
    drift, x0, key = network(1, dtype=torch.float32), state(dtype=torch.float32), keys(3)
    exact = gradients(EulerMaruyama(4), drift, MultiplicativeDiffusion(0.3), x0, key)
    errors = {}
    for gradient in ("discrete", "backprop"):
        x = x0.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            x1 = EulerMaruyama(4, gradient)(drift, MultiplicativeDiffusion(0.3), x, key)
            assert x1.dtype == torch.float32
            later = drift(torch.zeros(()), x1.detach())
        errors[gradient] = distance(torch.autograd.grad(x1.sin().sum(), [x, *drift.parameters()]), exact[1:])
        assert all(torch.count_nonzero(g) for g in torch.autograd.grad(later.sum(), list(drift.parameters())))
    assert (
        errors["discrete"] < 1.5 * errors["backprop"] < 0.1
    )  # bfloat16 keeps 8 bits: the forward pass alone is 1e-2 off


def test_parameters_that_change_between_the_passes_are_noticed():
    drift = network(1)
    x1 = EulerMaruyama(2)(drift, AdditiveDiffusion(0.1), state(), keys(3))
    with torch.no_grad():
        drift.first.weight.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        x1.sum().backward()


def test_hidden_parameters_are_refused_and_named_ones_found():
    drift, key, x0 = network(1), keys(3), state()
    log_rate = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    rate = log_rate.exp()  # a tensor that is no leaf may be named as well

    def diffusion(t, x):
        return rate * x

    with pytest.raises(UserError, match=r"parameters=\(\.\.\.\)"):
        EulerMaruyama(2)(drift, diffusion, x0.clone().requires_grad_(), key).sum().backward()
    found = {}
    for gradient in ("discrete", "backprop"):
        x1 = EulerMaruyama(3, gradient)(drift.forward, diffusion, x0, key, parameters=[rate])
        found[gradient] = torch.autograd.grad(x1.sin().sum(), [log_rate, *drift.parameters()], retain_graph=True)
    assert distance(found["discrete"], found["backprop"]) < 1e-13
    # where nothing known needs a gradient, autograd records the plain loop and nothing is lost
    x1 = EulerMaruyama(3)(lambda t, x: -x, diffusion, x0, key)
    assert torch.autograd.grad(x1.sum(), log_rate, retain_graph=True)[0] != 0


# --- convergence ---


def slope(steps, errors):
    """The order: regression of log error on log h."""
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


PATHS = (64, 512)  # 32,768 paths
GRIDS = [(steps, level) for level, steps in enumerate((4, 8, 16, 32, 64, 128))]  # one path, base grid of 4


def geometric_brownian_motion(mu, sigma):
    """Drift, diffusion, and the solution X(1) = exp((mu - sigma^2/2) + sigma W(1)) from X(0) = 1 along a path."""
    path, like = BrownianPath(keys(PATHS[0]), 4), torch.ones(PATHS, dtype=torch.float64)
    brownian = sum(path.increment(n, like) for n in range(4))
    return lambda t, x: mu * x, lambda t, x: sigma * x, (mu - sigma**2 / 2 + sigma * brownian).exp()


@pytest.mark.parametrize("solver", SOLVERS)
def test_strong_order_on_geometric_brownian_motion(solver):
    """The error is a mean over 32,768 paths, shared by all grids: 0.1 covers the terms of higher order at h = 1/4, not the sampling."""
    drift, diffusion, exact = geometric_brownian_motion(mu=0.5, sigma=0.7)
    x0, key = torch.ones_like(exact), keys(PATHS[0])
    errors = [
        (solver(steps, refinement=level)(drift, diffusion, x0, key) - exact).abs().mean().item()
        for steps, level in GRIDS
    ]
    assert abs(slope([steps for steps, _ in GRIDS], errors) - solver.strong_order) < 0.1


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("moment", [1, 2])
def test_weak_order_on_geometric_brownian_motion(solver, moment):
    """E X^k(1) = exp(k mu + k (k-1) sigma^2 / 2). The exact solution on the same paths is the control variate, which leaves an error of
    the difference of at most 3 % at the finest grid; the rest of 0.15 is for terms of higher order at h = 1/4."""
    mu, sigma = 1.0, 0.4
    drift, diffusion, exact = geometric_brownian_motion(mu, sigma)
    x0, key, errors = torch.ones_like(exact), keys(PATHS[0]), []
    for steps, level in GRIDS:
        difference = solver(steps, refinement=level)(drift, diffusion, x0, key) ** moment - exact**moment
        errors.append(difference.mean().abs().item())
        assert difference.std().item() / math.sqrt(difference.numel()) < 0.03 * errors[-1]
    assert abs(slope([steps for steps, _ in GRIDS], errors) - solver.weak_order) < 0.15
    assert exact.pow(moment).mean().item() == pytest.approx(
        math.exp(moment * mu + moment * (moment - 1) * sigma**2 / 2), rel=0.02
    )


def test_euler_maruyama_has_the_moments_of_its_own_recursion():
    """X_{n+1} = X_n (1 + mu h + sigma dW): E X_N = (1 + mu h)^N and E X_N^2 = ((1 + mu h)^2 + sigma^2 h)^N, within five standard errors."""
    mu, sigma, steps = 0.5, 0.7, 8
    x0 = torch.ones(PATHS, dtype=torch.float64)
    x = EulerMaruyama(steps)(lambda t, x: mu * x, lambda t, x: sigma * x, x0, keys(PATHS[0]))
    for power, expected in ((1, (1 + mu / steps) ** steps), (2, ((1 + mu / steps) ** 2 + sigma**2 / steps) ** steps)):
        assert abs((x**power).mean().item() - expected) < 5 * (x**power).std().item() / math.sqrt(x.numel())


THETA, SIGMA = 1.5, 0.8


def ornstein_uhlenbeck(level):
    """X(1) of dX = -theta X dt + sigma dW from X(0) = 1, exact in joint law with the path on the grid of 4 * 2^level.

    Over one interval the integral of e^{-theta (h - s)} dW(s), given dW, is normal with mean dW (1 - e^{-theta h}) / (theta h) and variance
    (1 - e^{-2 theta h}) / (2 theta) - (1 - e^{-theta h})^2 / (theta^2 h).
    """
    path, x = BrownianPath(keys(PATHS[0]), 4), torch.ones(PATHS, dtype=torch.float64)
    h = 1 / (4 << level)
    decay = -math.expm1(-THETA * h)
    rest = -math.expm1(-2 * THETA * h) / (2 * THETA) - decay**2 / (THETA**2 * h)
    for n in range(4 << level):
        fresh = normal_like(x, fold_in(path.key, "rest", n))
        x = x * math.exp(-THETA * h) + SIGMA * (
            path.increment(n, x, level) * decay / (THETA * h) + math.sqrt(rest) * fresh
        )
    return x


@pytest.mark.parametrize("solver", SOLVERS)
def test_strong_order_is_1_where_the_noise_is_additive(solver):
    exact = ornstein_uhlenbeck(5)
    variance = SIGMA**2 * (1 - math.exp(-2 * THETA)) / (2 * THETA)
    assert exact.mean().item() == pytest.approx(math.exp(-THETA), abs=5 * math.sqrt(variance / exact.numel()))
    assert exact.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / exact.numel()))
    errors = [
        (
            solver(steps, refinement=level)(
                lambda t, x: -THETA * x, AdditiveDiffusion(SIGMA), torch.ones_like(exact), keys(PATHS[0])
            )
            - exact
        )
        .abs()
        .mean()
        .item()
        for steps, level in GRIDS
    ]
    assert abs(slope([steps for steps, _ in GRIDS], errors) - 1) < 0.1  # as above


@pytest.mark.parametrize("solver", SOLVERS)
def test_weak_order_on_ornstein_uhlenbeck(solver):
    """E X(1) = e^{-theta}, and E X_N = (1 - theta h)^N for these solvers: with no noise in the mean, the order needs no samples."""
    x0 = torch.ones(4, 1, dtype=torch.float64)
    errors = [
        abs(solver(n)(lambda t, x: -THETA * x, lambda t, x: 0.0, x0, keys(4))[0].item() - math.exp(-THETA))
        for n in (16, 32, 64, 128)
    ]
    assert abs(slope([16, 32, 64, 128], errors) - 1) < 0.1
    x = solver(8)(
        lambda t, x: -THETA * x, AdditiveDiffusion(SIGMA), torch.ones(PATHS, dtype=torch.float64), keys(PATHS[0])
    )
    variance = SIGMA**2 / 8 * sum((1 - THETA / 8) ** (2 * n) for n in range(8))
    assert x.mean().item() == pytest.approx((1 - THETA / 8) ** 8, abs=5 * math.sqrt(variance / x.numel()))
    assert x.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / x.numel()))


def test_milstein_is_euler_maruyama_where_the_noise_is_additive():
    drift, x0 = network(1), state()
    assert torch.equal(*(solver(5)(drift, AdditiveDiffusion(0.3), x0, keys(3)) for solver in SOLVERS))


# --- the path ---


def test_a_step_of_length_1_is_a_stochastic_residual_block():
    drift, diffusion, x, key = network(1), network(3), state(), keys(3)
    t = torch.zeros((), dtype=torch.float64)
    dW = BrownianPath(key, 1).increment(0, x)
    assert torch.equal(EulerMaruyama(1)(drift, diffusion, x, key), x + (drift(t, x) + diffusion(t, x) * dW))


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_number_and_what_broadcasts_are_diffusions(solver):
    drift, x, key = network(1), state(), keys(3)
    full = solver(3)(drift, lambda t, x: torch.full_like(x, 0.3), x, key)
    for g in (0.3, torch.tensor(0.3, dtype=torch.float64), torch.full((4, 1, 1), 0.3, dtype=torch.float64)):
        assert torch.equal(solver(3)(drift, lambda t, x, g=g: g, x, key), full)


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_on_one_base_grid_share_the_path(solver):
    x0, path = state(), BrownianPath(keys(3), 4)
    brownian = sum(path.increment(n, x0) for n in range(4))
    for steps, level in GRIDS:
        x1 = solver(steps, refinement=level)(lambda t, x: 0 * x, lambda t, x: 1.0, x0, keys(3))
        assert torch.allclose(x1, x0 + brownian, rtol=0, atol=1e-13)
    assert not torch.allclose(solver(8)(lambda t, x: 0 * x, lambda t, x: 1.0, x0, keys(3)), x0 + brownian)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_samples_solution_does_not_depend_on_its_batch(solver, dtype):
    """Bit for bit with elementwise fields; a convolution may itself add in another order for another batch."""
    x0, key = torch.randn(64, 3, 5, dtype=dtype), keys(64)

    def run(rows):
        return solver(8, refinement=1)(lambda t, x: x - x * x * x, lambda t, x: 0.2 + 0.1 * x, x0[rows], key[rows])

    whole = run(torch.arange(64))
    shards = [torch.arange(rank, 64, 2) for rank in range(2)]
    for rows in ([5], torch.arange(7), torch.randperm(64), *shards):
        assert torch.equal(run(rows), whole[rows])


def test_the_noise_keeps_to_the_first_states_memory_order():
    """A field that answers in channels_last would else permute the noise from the second step on."""
    x0 = state()
    one, other = (
        EulerMaruyama(3)(
            lambda t, x, order=order: (-x).contiguous(memory_format=order), AdditiveDiffusion(1.0), x0, keys(3)
        )
        for order in (torch.contiguous_format, torch.channels_last)
    )
    assert torch.equal(one, other)


def test_global_generators_are_neither_read_nor_moved():
    drift, diffusion = network(1), network(3)
    before = torch.get_rng_state()
    first = EulerMaruyama(3)(drift, diffusion, state(), keys(3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(EulerMaruyama(3)(drift, diffusion, state(), keys(3)), first)


# --- fields ---


def test_time_runs_over_the_grid_in_the_states_precision():
    for dtype, expected in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        times = []
        EulerMaruyama(4)(
            lambda t, x, times=times: times.append(t) or x,
            lambda t, x: 0.1,
            torch.ones(2, 3, dtype=dtype),
            keys(2),
            t0=1.0,
            t1=2.0,
        )
        assert [t.item() for t in times] == [1.0, 1.25, 1.5, 1.75]
        assert all(t.shape == () and t.dtype == expected for t in times)


def test_the_three_diffusions_and_dropouts():
    t, x = torch.zeros(()), torch.randn(2, 4, 3)
    assert AdditiveDiffusion(0.5)(t, x) == 0.5
    assert torch.equal(MultiplicativeDiffusion(0.5)(t, x), 0.5 * x)
    learned = LearnedDiffusion(4, 0.5)
    assert torch.equal(learned(t, x), torch.full_like(x, 0.5))  # at first
    nn.init.normal_(learned.network.weight)
    assert torch.allclose(learned(t, x), torch.sigmoid(learned.network.weight.view(4, 1) * x))
    assert (learned(t, 1e6 * x) <= 1.0).all()
    assert torch.allclose(DropoutDiffusion(lambda t, x: -x, 0.2)(t, x), -0.5 * x)  # sqrt(0.2 / 0.8)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: AdditiveDiffusion(-1.0), "at least 0, got -1"),
        (lambda: MultiplicativeDiffusion(math.nan), "finite number"),
        (lambda: DropoutDiffusion(nn.Identity(), 1.0), r"in \[0, 1\), got 1.0"),
        (lambda: LearnedDiffusion(0), "at least 1 channel, got 0"),
    ],
)
def test_bad_diffusions(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


# --- bad input ---


WRONG = [
    ({"gradient": "discret"}, "no gradient called 'discret'; the nearest are"),
    ({"steps": 0}, "at least 1 step, got steps=0"),
]
WRONG_REFINEMENTS = [
    ({"steps": 12, "refinement": 3}, r"refinement=3 .* got steps=12"),
    ({"refinement": -1}, "refinement=-1"),
]


@pytest.mark.parametrize(
    ("solver", "settings", "sentence"),
    [
        *((solver, *wrong) for solver in (*SOLVERS, TorchSDE) for wrong in WRONG),
        *((solver, *wrong) for solver in SOLVERS for wrong in WRONG_REFINEMENTS),
    ],
)
def test_bad_settings(solver, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        solver(**settings)


@pytest.mark.parametrize("solver", [*SOLVERS, TorchSDE])
@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"key": None}, "noise without key.*noise_scope"),
        ({"key": keys(2)}, r"one row per key, got torch.float64 of shape \(3, 4, 3, 3\) for 2 keys"),
        ({"t0": 1.0}, "forward from t0 to t1.*t0=1 and t1=1"),
        ({"t1": -1.0}, "t0=0 and t1=-1"),
        ({"t1": torch.tensor(1.0, requires_grad=True)}, "no gradient with respect to t0 and t1"),
        ({"x0": torch.ones(3, 4, dtype=torch.int64)}, "floating tensor.*int64"),
        ({"drift": lambda t, x: x[:, :2]}, r"\(3, 2, 3, 3\)"),
        ({"drift": lambda t, x: x.float()}, "float32"),
        ({"diffusion": lambda t, x: x[:, :2]}, r"\(3, 2, 3, 3\)"),
        ({"diffusion": lambda t, x: x.float()}, "float32"),
        ({"drift": nn.Sequential(nn.BatchNorm2d(4))}, "BatchNorm2d '0' is in train mode"),
        ({"diffusion": nn.Sequential(nn.BatchNorm2d(4))}, "BatchNorm2d '0' is in train mode"),
    ],
)
def test_bad_problems(solver, changed, sentence):
    problem = {"drift": lambda t, x: -x, "diffusion": lambda t, x: 0.1, "x0": state(), "key": keys(3)} | changed
    with pytest.raises(UserError, match=sentence):
        solver()(**problem)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
def test_a_state_that_leaves_the_numbers_says_when(solver, gradient):
    def drift(t, x):
        return torch.where(t >= 0.5, torch.full_like(x, math.inf), -x)

    with pytest.raises(NonFiniteState, match=r"t=0.5 \(step 0.25, \d+ evaluations") as caught:
        solver(4, gradient)(drift, AdditiveDiffusion(0.1), state().requires_grad_(), keys(3))
    assert (caught.value.t, caught.value.dt) == (0.5, 0.25)
    assert caught.value.evaluations == 3 * sum(solver.evaluations_per_step)


# --- torchsde ---


class _OurPath(torchsde.BaseBrownian):
    """Our increments, handed to torchsde."""

    shape, dtype, device, levy_area_approximation = (6, 5), torch.float64, torch.device("cpu"), "none"

    def __init__(self, steps):
        self.path, self.steps = BrownianPath(keys(6), steps), steps

    def __call__(self, ta, tb=None, return_U=False, return_A=False):
        return self.path.increment(round(float(ta) * self.steps), torch.empty(self.shape, dtype=self.dtype))

    def __repr__(self):
        return "our path"


class _Equation:
    noise_type, sde_type = "diagonal", "ito"

    def f(self, t, y):
        return torch.sin(y) - t * y

    def g(self, t, y):
        return 0.3 + 0.2 * torch.cos(y)


@pytest.mark.parametrize(
    ("solver", "method", "options"), [(EulerMaruyama, "euler", {}), (Milstein, "milstein", {"grad_free": True})]
)
def test_on_one_path_torchsde_gives_the_same(solver, method, options):
    y0, equation = torch.randn(6, 5, dtype=torch.float64), _Equation()
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    theirs = torchsde.sdeint(equation, y0, times, bm=_OurPath(8), method=method, dt=1 / 8, options=options)[-1]
    assert torch.allclose(solver(8)(equation.f, equation.g, y0, keys(6)), theirs, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("method", "mean"), [("euler", (5 / 6) ** 6), ("milstein", (5 / 6) ** 6), ("srk", math.exp(-1))]
)
def test_torchsde_behind_our_call(method, mean):
    """States of any shape, as many steps as asked for, the mean of an Ornstein-Uhlenbeck process, and a path for each sample."""
    times = set()

    def drift(t, x):
        times.add(round(t.item(), 6))
        return -x

    solver, x0 = TorchSDE(method, steps=6), torch.ones(40, 4, 5, 5, dtype=torch.float64)
    x1 = solver(drift, AdditiveDiffusion(0.5), x0, keys(40))
    assert x1.shape == x0.shape and x1.dtype == x0.dtype
    assert len(times - {1.0}) == (12 if method == "srk" else 6)  # srk looks at the middles and at the end as well
    assert x1.mean().item() == pytest.approx(mean, abs=5 * x1.std().item() / math.sqrt(x1.numel()))
    rows = torch.tensor([7, 3, 3, 21])
    assert torch.equal(solver(drift, AdditiveDiffusion(0.5), x0[rows], keys(40)[rows]), x1[rows])


def test_torchsdes_gradients():
    """Backprop is exact; its adjoint is not, and comes closer with more steps."""
    drift, diffusion, x0, key = network(1), LearnedDiffusion(4, 0.3).double(), state(), keys(3)
    exact = gradients(TorchSDE("euler", 8), drift, diffusion, x0, key)
    adjoint = gradients(TorchSDE("euler", 8, gradient="adjoint"), drift, diffusion, x0, key)
    assert torch.equal(adjoint[0], exact[0])
    coarse = distance(adjoint[1:2], exact[1:2])
    fine = distance(
        gradients(TorchSDE("euler", 64, gradient="adjoint"), drift, diffusion, x0, key)[1:2],
        gradients(TorchSDE("euler", 64), drift, diffusion, x0, key)[1:2],
    )
    assert 1e-4 < fine < coarse < 0.5


def test_torchsdes_adjoint_refuses_hidden_parameters():
    rate = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def drift(t, x):
        return -rate * x

    solver = TorchSDE("euler", 4, gradient="adjoint")
    with pytest.raises(UserError, match=r"parameters=\(\.\.\.\)"):
        solver(drift, AdditiveDiffusion(0.1), state(), keys(3))
    x1 = solver(drift, AdditiveDiffusion(0.1), state(), keys(3), parameters=[rate])
    assert torch.autograd.grad(x1.sum(), rate)[0] != 0


def test_an_unknown_method_of_torchsde():
    with pytest.raises(UserError, match=r"milstien.*milstein"):
        TorchSDE("milstien")


def test_diffusions_are_profiles():
    with pytest.raises(NotImplementedError):
        Diffusion(0.1)(torch.zeros(()), torch.zeros(1))
