"""The symplectic adjoint against backpropagation, against Lei et al. 2023's equations as printed, and under everything that training does to it."""

import copy
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

from explainode.dynamics import adjoint
from explainode.dynamics.solver import MEMORIES, RungeKutta
from explainode.dynamics.tableau import TABLEAUS
from explainode.errors import UserError
from explainode.randomness import current_scope, noise_scope, normal_like

ADAPTIVE = [name for name, method in TABLEAUS.items() if method.adaptive]


class Network(nn.Module):
    """A smooth field that depends on time."""

    def __init__(self, width=4, seed=0, scale=2.0):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last, self.scale = nn.Linear(width + 1, 16), nn.Linear(16, width), scale
        self.evaluations = 0

    def forward(self, t, x):
        self.evaluations += 1
        return self.scale * self.last(torch.tanh(self.first(torch.cat([x, t.expand(len(x), 1)], 1))))


class ConvNetwork(nn.Module):
    """The field of torchdiffeq's odenet_mnist, small: ReLU, group norm, and the time as a channel."""

    def __init__(self, channels=4, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.norms = nn.ModuleList(nn.GroupNorm(2, channels) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(channels + 1, channels, 3, padding=1) for _ in range(2))

    def forward(self, t, x):
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = conv(torch.cat([torch.full_like(x[:, :1], 1.0) * t, torch.relu(norm(x))], 1))
        return self.norms[-1](x)


@pytest.fixture
def x0():
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


@pytest.fixture
def field():
    return Network().double()


def loss(state):
    return (state.square() * torch.linspace(1, 2, state.numel(), dtype=state.dtype).view_as(state)).sum()


def errors(found, expected):
    """The relative error of each gradient."""
    return [float((a - b).detach().norm() / b.detach().norm()) for a, b in zip(found, expected, strict=True)]


def number(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


# exactness


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("name", TABLEAUS)
def test_equals_backpropagation_through_the_same_steps(name, memory, field, x0):
    for steps in [1, 2, 9] + [None] * (name in ADAPTIVE):
        for network, x, tolerance in (
            (field, x0, 1e-13),
            (ConvNetwork().double(), torch.randn(2, 4, 3, 3).double().requires_grad_(), 1e-13),
        ):
            if steps is None and network is not field:
                continue  # a ReLU field at tight tolerance takes long; test_adaptive_relu has it
            t0, t1 = number(0.1), number(1.3)
            inputs = [x, t0, t1, *network.parameters()]
            exact = RungeKutta(name, steps=steps, gradient="backprop").solve(network, x, t0, t1)
            ours = RungeKutta(name, steps=steps, memory=memory).solve(network, x, t0, t1)
            torch.testing.assert_close(ours.state, exact.state, rtol=1e-13, atol=1e-13)
            found, expected = grad(loss(ours.state), inputs), grad(loss(exact.state), inputs)
            assert max(errors(found, expected)) <= tolerance


@pytest.mark.parametrize("name", ["dopri5", "bosh3"])
def test_adaptive_relu(name):
    network, x = ConvNetwork().double(), torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    inputs = [x, *network.parameters()]
    exact = RungeKutta(name, rtol=1e-3, atol=1e-3, gradient="backprop").solve(network, x)
    ours = RungeKutta(name, rtol=1e-3, atol=1e-3).solve(network, x)
    assert torch.equal(ours.grid, exact.grid) and torch.equal(ours.state, exact.state) and len(ours.grid) > 4
    assert max(errors(grad(loss(ours.state), inputs), grad(loss(exact.state), inputs))) <= 1e-13


def lei_2023(method, f, theta, states, grid, alpha):
    """Eq. 19-20 as printed, by explicit Jacobians, for a state (d,): alpha_0 and dL/dtheta.

    The printed recursion runs forward from an alpha_l that is not known yet. Going backward we put Eq. 19's first line into its third,
    alpha_l = alpha_{l+1} - lambda sum_j b~_j phi_j, so that xi_i needs later stages only; and check the printed lines afterward.
    """
    a, b, c, s = method.a, method.b, method.c, method.stages
    I_0 = {i for i in range(s) if b[i] == 0}
    of_theta = torch.zeros_like(theta)
    for l in reversed(range(len(grid) - 1)):
        lam = grid[l + 1] - grid[l]
        b_tilde = [lam if i in I_0 else b[i] for i in range(s)]  # Eq. (20)
        k, X = [], []
        for i in range(s):  # Eq. (16)
            X.append(states[l] + lam * sum((a[i][j] * k[j] for j in range(i)), torch.zeros_like(alpha)))
            k.append(f(grid[l] + c[i] * lam, X[i], theta))
        phi, xi = [torch.zeros_like(alpha)] * s, [torch.zeros_like(alpha)] * s
        for i in reversed(range(s)):
            later = sum((b_tilde[j] * a[j][i] * phi[j] for j in range(i + 1, s)), torch.zeros_like(alpha))
            xi[i] = -later if i in I_0 else alpha - lam * later / b[i]
            of_x, of_p = torch.autograd.functional.jacobian(
                lambda x, p, t=grid[l] + c[i] * lam: f(t, x, p), (X[i], theta)
            )
            phi[i] = -of_x.T @ xi[i]
            of_theta = of_theta + lam * b_tilde[i] * (of_p.T @ xi[i])
        before = alpha - lam * sum(b_tilde[i] * phi[i] for i in range(s))
        for i in set(range(s)) - I_0:  # the third line of Eq. (19), as printed
            printed = before + lam * sum(b_tilde[j] * (1 - a[j][i] / b[i]) * phi[j] for j in range(s))
            torch.testing.assert_close(xi[i], printed, rtol=1e-10, atol=1e-10)
        alpha = before
    return alpha, of_theta


@pytest.mark.parametrize("name", TABLEAUS)
def test_equals_the_equations_of_the_paper(name):
    method = TABLEAUS[name]
    generator = torch.Generator().manual_seed(3)
    theta = torch.randn(12, generator=generator, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, generator=generator, dtype=torch.float64)

    def f(t, x, theta):
        return torch.tanh(theta[:9].view(3, 3) @ x + theta[9:] * torch.as_tensor(t, dtype=torch.float64).cos())

    grid = [0.0, 0.3, 0.8, 1.0]  # unequal steps, as adaptive ones are
    batch = x[None].clone().requires_grad_()
    solution = RungeKutta(name, steps=1).solve(
        lambda t, x: f(t, x[0], theta)[None], batch, grid=grid, parameters=(theta,)
    )
    found = grad(solution.state.square().sum(), [batch, theta])
    states = [x]
    for start, end in pairwise(grid):
        states.append(
            RungeKutta(name, steps=1)(lambda t, x: f(t, x[0], theta.detach())[None], states[-1][None], start, end)[0]
        )
    alpha, of_theta = lei_2023(method, f, theta.detach(), states, grid, 2 * states[-1])
    # at most 1e-12: Eq. 19 divides by weights that may be small, and cancels
    torch.testing.assert_close(found[0][0], alpha, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[1], of_theta, rtol=1e-12, atol=1e-12)


def test_in_float32_no_worse_than_backpropagation():
    network, x = ConvNetwork(), torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    found = {}
    for gradient, dtype in (("backprop", torch.float64), ("backprop", torch.float32), ("symplectic", torch.float32)):
        f, start = copy.deepcopy(network).to(dtype), x.to(dtype).requires_grad_()
        state = RungeKutta("rk4", steps=16, gradient=gradient)(f, start)
        parts = grad(state.square().sum(), [start, *f.parameters()])
        found[gradient, dtype] = torch.cat([part.double().flatten() for part in parts])
    truth = found["backprop", torch.float64]
    naive, ours = ((found[gradient, torch.float32] - truth).norm() for gradient in ("backprop", "symplectic"))
    assert ours <= 2 * naive


def test_gradcheck(field, x0):
    t0, t1 = number(0.2), number(1.1)
    for name, memory in (("midpoint", "step"), ("rk4", "sqrt"), ("dopri5", "stage")):
        assert gradcheck(partial(RungeKutta(name, steps=3, memory=memory), field), (x0, t0, t1))
    weight, bias = (
        torch.randn(4, 4, dtype=torch.float64, requires_grad=True),
        torch.randn(3, 4, dtype=torch.float64, requires_grad=True),
    )

    def solve(x, weight, bias):
        solver = RungeKutta("heun3", steps=3)
        return solver.solve(lambda t, x: torch.tanh(x @ weight) + bias, x, parameters=(weight, bias)).state

    assert gradcheck(solve, (x0, weight, bias))


def test_terms_that_share_memory(x0):
    """The gradient of x + bias with respect to either is the very tensor that arrives."""
    bias = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    unused = torch.randn(2, dtype=torch.float64, requires_grad=True)
    for field in (lambda t, x: x, lambda t, x: x + bias, lambda t, x: bias + 0 * t, lambda t, x: torch.ones_like(x)):
        for name in ("rk4", "heun3", "dopri5"):
            results = []
            for gradient in ("backprop", "symplectic"):
                state = RungeKutta(name, steps=4, gradient=gradient).solve(field, x0, parameters=(bias, unused)).state
                results.append(grad(loss(state), [x0, bias, unused], allow_unused=True))
            for a, b in zip(*results, strict=True):
                torch.testing.assert_close(
                    torch.zeros(()) if a is None else a, torch.zeros(()) if b is None else b, check_dtype=False
                )


# what training and explaining do to it


@pytest.mark.parametrize("memory", MEMORIES)
def test_several_targets_from_one_forward(memory, field, x0):
    state = RungeKutta("rk4", steps=6, memory=memory)(field, x0)
    exact = RungeKutta("rk4", steps=6, gradient="backprop")(field, x0)
    first = grad(state.sum(), x0, retain_graph=True)[0]
    for target in range(4):
        found, expected = (
            grad(y[:, target].sum(), [x0, *field.parameters()], retain_graph=True) for y in (state, exact)
        )
        assert max(errors(found, expected)) < 1e-13
    assert torch.equal(grad(state.sum(), x0)[0], first)
    with pytest.raises(RuntimeError, match="a second time"):
        grad(state.sum(), x0)


def test_hooks_on_saved_tensors_see_the_checkpoints(field, x0):
    for memory, count in (("step", 36), ("stage", 36 * 4), ("sqrt", 5)):  # sqrt: every eighth
        shapes = []

        def pack(tensor, shapes=shapes):
            shapes.append(tuple(tensor.shape))
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            state = RungeKutta("rk4", steps=36, memory=memory)(field, x0)
        assert shapes == [(3, 4)] * count and state.requires_grad
    with save_on_cpu():
        state = RungeKutta("rk4", steps=5)(field, x0)
    assert torch.equal(grad(loss(state), x0)[0], grad(loss(RungeKutta("rk4", steps=5)(field, x0)), x0)[0])


def test_checkpoints_are_given_back_on_the_way(field, x0):
    """One node per step: when backward is through a step, its checkpoint is freed."""
    alive = [0]

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor
            alive[0] += 1

        def __del__(self):
            alive[0] -= 1

    seen = []
    x0 = x0.detach()  # so that the field alone is differentiated
    with saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        state = RungeKutta("euler", steps=8)(field, x0)
    hook = field.register_forward_pre_hook(lambda *_: seen.append(alive[0]))
    grad(state.sum(), list(field.parameters()))
    hook.remove()
    assert alive == [0] and max(seen) == 8 and seen[-1] <= 2


def test_work_is_counted(field, x0, monkeypatch):
    """rk4 evaluates 4 stages forward and 3 + 4 backward; graphs that fit into freed memory save the 3, `stage` too; without parameters that
    require grad nothing is multiplied by their derivatives."""
    products = []
    original = torch.autograd.grad

    def counted(outputs, inputs, *others, **settings):
        products.append(len(inputs))
        return original(outputs, inputs, *others, **settings)

    monkeypatch.setattr(adjoint.torch.autograd, "grad", counted)

    def backward(**settings):
        state = RungeKutta("rk4", steps=5, **settings)(field, x0)
        field.evaluations = 0
        products.clear()
        original(state.sum(), x0)
        return field.evaluations / 5

    monkeypatch.setattr(adjoint, "SPARE_STATES", -100.0)
    assert backward() == 7 and set(products) == {1 + 4} and len(products) == 20
    monkeypatch.setattr(adjoint, "SPARE_STATES", 1e9)
    assert backward() == 4
    assert backward(memory="stage") == 4
    monkeypatch.setattr(adjoint, "SPARE_STATES", -100.0)
    assert backward(memory="sqrt") > 7
    field.requires_grad_(False)
    backward()
    assert set(products) == {1}


def test_second_derivatives_are_refused_by_the_adjoint_and_given_by_backprop(x0):
    field = Network(scale=0.5).double()
    inputs = [x0, *field.parameters()]
    first = grad(loss(RungeKutta("rk4", steps=2)(field, x0)), inputs, create_graph=True)
    with pytest.raises(UserError, match=r'first derivatives only; choose gradient="backprop"'):
        sum(part.square().sum() for part in first).backward()
    solver = RungeKutta("rk4", steps=2, gradient="backprop")
    assert gradgradcheck(lambda x: solver(field, x), (x0[:1].detach().requires_grad_(),), atol=1e-4)


def test_random_numbers_are_drawn_again():
    class Noisy(Network):
        def forward(self, t, x):
            return super().forward(t, x) + 0.3 * x * torch.randn_like(x)

    field, x = Noisy().double(), torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    for settings in (
        {"steps": 6},
        {"tableau": "dopri5", "max_steps": 8, "rtol": 1.0, "atol": 10.0},
        {"tableau": "bosh3", "steps": 7},
    ):
        for memory in MEMORIES:
            results = []
            for gradient in ("backprop", "symplectic"):
                torch.manual_seed(5)
                state = RungeKutta(gradient=gradient, memory=memory, **settings)(field, x)
                torch.rand(3)  # the world goes on between forward and backward
                before = torch.get_rng_state()
                results.append((state, *grad(loss(state), [x, *field.parameters()])))
                assert torch.equal(torch.get_rng_state(), before)
            assert max(errors(*results)) < 1e-13, (settings, memory)


def test_the_noise_scope_is_that_of_the_forward_pass():
    def field(t, x):
        scope = current_scope()
        assert scope is not None
        return torch.sin(x) * normal_like(x, scope.keys(len(x), x.device, 0))

    x = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    with noise_scope(torch.tensor([5, 6, 9]), seed=3):
        state, exact = (RungeKutta(steps=3, gradient=gradient)(field, x) for gradient in ("symplectic", "backprop"))
        expected = grad(loss(exact), x)[0]
    with noise_scope(torch.tensor([1, 2, 4]), seed=8):
        inside_another = grad(loss(state), x, retain_graph=True)[0]
    assert max(errors([inside_another, grad(loss(state), x)[0]], [expected] * 2)) < 1e-13


def test_autocast_is_replayed():
    network, x = ConvNetwork(), torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    found = {}
    for gradient, precision in (("backprop", "full"), ("backprop", "half"), ("symplectic", "half")):
        start = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "half"):
            state = RungeKutta("rk4", steps=4, gradient=gradient)(network, start)
        assert state.dtype == torch.float32
        found[gradient, precision] = torch.cat(
            [part.flatten() for part in grad(state.square().sum(), [start, *network.parameters()])]
        )
    truth = found["backprop", "full"]
    naive, ours = ((found[gradient, "half"] - truth).norm() / truth.norm() for gradient in ("backprop", "symplectic"))
    assert 1e-4 < ours <= 1.05 * naive
    # the other way around: a backward pass inside autocast belongs to a forward pass outside
    state = RungeKutta("rk4", steps=4)(network, start)
    with torch.autocast("cpu", torch.bfloat16):
        inside = grad(state.square().sum(), start, retain_graph=True)[0]
    torch.testing.assert_close(inside, grad(state.square().sum(), start)[0], rtol=1e-6, atol=1e-6)


def test_weights_that_are_cast_in_the_solver_keep_their_gradient_outside():
    layer, x = nn.Linear(4, 4), torch.ones(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        RungeKutta("euler", steps=1).solve(lambda t, x: layer(x), x, parameters=tuple(layer.parameters()))
        layer(x).sum().backward()
    assert layer.weight.grad is not None


def test_a_compiled_field(x0):
    field = Network().double()
    compiled = torch.compile(field, backend="aot_eager")
    inputs = [x0, *field.parameters()]
    found = grad(loss(RungeKutta("rk4", steps=3)(compiled, x0)), inputs)
    assert max(errors(found, grad(loss(RungeKutta("rk4", steps=3, gradient="backprop")(field, x0)), inputs))) < 1e-13


def test_a_compiled_network_around_the_solver(x0):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.field, self.head = Network(), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(RungeKutta("rk4", steps=2)(self.field, 2 * x))

    model = Model().double()
    inputs = [x0, *model.parameters()]
    expected = grad(model(x0).sum(), inputs)
    assert max(errors(grad(torch.compile(model, backend="eager")(x0).sum(), inputs), expected)) < 1e-13


def test_hooks_inside_a_field_run_again_in_the_backward_pass(field, x0):
    """As the docstring of RungeKutta says; under backprop they do not."""
    calls = []
    field.first.register_forward_hook(lambda *_: calls.append(torch._C._current_autograd_node() is not None))
    for gradient, again in (("symplectic", True), ("backprop", False)):
        calls.clear()
        state = RungeKutta("rk4", steps=2, gradient=gradient)(field, x0)
        assert calls == [False] * 8
        loss(state).backward()
        assert (len(calls) > 8) is again and calls[8:] == [True] * (len(calls) - 8)


@pytest.mark.parametrize("memory", MEMORIES)
def test_parameters_that_are_lent_to_the_field_get_their_gradient(field, x0, memory):
    """torch.func.functional_call takes them back before the backward pass, which evaluates the field again."""
    field.register_buffer("shift", torch.tensor(0.5, dtype=torch.float64))
    field.register_forward_hook(lambda module, args, slope: slope * module.shift)
    lent = {name: torch.randn_like(p).requires_grad_() for name, p in field.named_parameters()} | {
        "shift": torch.tensor(2.0).double()
    }
    inputs = [x0, *(tensor for tensor in lent.values() if tensor.requires_grad)]

    def gradients(**settings):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.field = field

            def forward(self, x):
                return RungeKutta("rk4", steps=3, **settings)(self.field, x)

        state = torch.func.functional_call(Model(), {f"field.{name}": tensor for name, tensor in lent.items()}, (x0,))
        return grad(loss(state), inputs)

    assert max(errors(gradients(memory=memory), gradients(gradient="backprop"))) < 1e-13
    assert float(field.shift) == 0.5 and all(isinstance(p, nn.Parameter) for p in field.parameters())


def test_torch_func_goes_through_backprop_and_is_told_so_elsewhere(field, x0):
    def total(x, gradient):
        return loss(RungeKutta("rk4", steps=2, gradient=gradient)(field, x))

    x0 = x0.detach()
    expected = grad(total(x := x0.clone().requires_grad_(), "backprop"), x)
    assert max(errors([torch.func.grad(total)(x0, "backprop")], expected)) < 1e-13
    for frozen in (False, True):
        field.requires_grad_(not frozen)
        for transform in (torch.func.grad, torch.func.jacrev):
            with pytest.raises(UserError, match=r'torch\.func.*choose gradient="backprop"'):
                transform(total)(x0, "symplectic")


def test_an_optimizer_between_forward_and_backward_is_noticed(field, x0):
    state = RungeKutta(steps=2)(field, x0)
    with torch.no_grad():
        field.last.bias.add_(1)
    with pytest.raises(RuntimeError, match="changed in place between forward and backward"):
        state.sum().backward()


def test_a_gradient_that_would_be_lost_is_refused(field, x0):
    solver = RungeKutta(steps=2)
    for x in (x0, x0.detach()):
        with pytest.raises(
            UserError, match=r"a tensor of shape \(4, 16\) that requires grad and is not among its parameters"
        ):
            solver(lambda t, x: field(t, x), x)
    with pytest.raises(UserError, match="name it in parameters="):
        solver.solve(field, x0, parameters=list(field.parameters())[:3])
    with torch.no_grad():
        assert not solver(lambda t, x: field(t, x), x0).requires_grad
    expected = grad(loss(solver(field, x0)), [x0, *field.parameters()])
    for wrapped, named in ((lambda t, x: field(t, x), tuple(field.parameters())), (field.forward, None)):
        found = grad(loss(solver.solve(wrapped, x0, parameters=named).state), [x0, *field.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_field_under_a_condition_that_is_learned_too(x0):
    weight = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    x0 = x0.detach()

    def solve(gradient):
        condition = x0 @ weight  # not a leaf
        return (
            RungeKutta("rk4", steps=3, gradient=gradient)
            .solve(lambda t, x: torch.tanh(x + condition), x0, parameters=(condition,))
            .state
        )

    found, expected = (grad(loss(solve(gradient)), weight)[0] for gradient in ("symplectic", "backprop"))
    assert max(errors([found], [expected])) < 1e-13


def test_a_field_that_is_a_gradient_itself(field, x0):
    """Hamiltonian and gradient flows differentiate inside the field."""

    def flow(t, x):
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            return -grad(field(t, x).square().sum(), x, create_graph=True)[0]

    def solve(gradient):
        solver = RungeKutta("rk4", steps=3, gradient=gradient)
        return grad(
            loss(solver.solve(flow, x0, 0.0, 0.1, parameters=tuple(field.parameters())).state),
            [x0, *field.parameters()][:-1],
        )

    assert max(errors(solve("symplectic"), solve("backprop"))) < 1e-13


def test_batch_norm_in_eval_mode_is_a_field():
    field = nn.Module()
    field.layers = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()).double().eval()
    field.forward = lambda t, x: field.layers(x)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    inputs = [x, *field.parameters()]
    found, expected = (
        grad(loss(RungeKutta("rk4", steps=3, gradient=g)(field, x)), inputs) for g in ("symplectic", "backprop")
    )
    assert max(errors(found, expected)) < 1e-13


DISTRIBUTED = """
import sys, torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from explainode.dynamics.solver import RungeKutta

class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(5, 4, 3, padding=1), nn.GroupNorm(2, 4)
    def forward(self, t, x):
        return self.norm(self.conv(torch.cat([t.expand_as(x[:, :1]), torch.relu(x)], 1)))

class Model(nn.Module):
    def __init__(self, solver):
        super().__init__()
        self.stem, self.field, self.head, self.solver = nn.Conv2d(3, 4, 3, padding=1), Field(), nn.Linear(4, 2), solver
    def forward(self, x):
        return self.head(self.solver(self.field, self.stem(x)).mean((2, 3)))

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
x = torch.randn(8, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
saved = {}
grid = [0.0, 0.2, 0.7, 1.0]  # what an adaptive solver accepted, the same on both ranks
cases = {"fixed": dict(tableau="rk4", steps=4), "sqrt": dict(tableau="heun3", steps=5, memory="sqrt"), "adaptive": dict(tableau="dopri5")}
for case, settings in cases.items():
    def make(gradient):
        torch.manual_seed(0)
        solver = RungeKutta(gradient=gradient, **settings)
        if case == "adaptive":
            return Model(lambda f, x: solver.solve(f, x, grid=grid).state).double()
        return Model(solver).double()
    both = DistributedDataParallel(make("symplectic"))
    both(x[rank::2]).square().mean().backward()
    alone = make("backprop")
    alone(x).square().mean().backward()
    for (name, p), q in zip(alone.named_parameters(), both.module.parameters(), strict=True):
        error = float((p.grad - q.grad).norm() / p.grad.norm().clamp_min(1e-3))
        assert error <= 1e-13, (case, name, error)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.ddp
def test_two_ranks_get_the_gradient_of_one(tmp_path: Path):
    script = tmp_path / "two.py"
    script.write_text(DISTRIBUTED)
    workers = [
        subprocess.Popen([sys.executable, str(script), str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        results = [worker.communicate(timeout=180) for worker in workers]
        assert [worker.returncode for worker in workers] == [0, 0], results
    finally:
        for worker in workers:
            worker.kill()  # the other waits for one that failed
