"""Solvers: closed forms, replayed grids, the controller, torchdiffeq as oracle, and a sentence for every way to fail."""

import copy
import dataclasses
import math
import pickle
from itertools import pairwise

import pytest
import torch
from torch import nn

from explainode.dynamics.controller import CONTROLLERS, Controller
from explainode.dynamics.failure import NonFiniteState, SolverError, StepUnderflow, TooManySteps
from explainode.dynamics.solver import RungeKutta
from explainode.dynamics.tableau import BOSH3, DOPRI5, TABLEAUS, Tableau
from explainode.dynamics.torch_diff_eq import TorchDiffEq
from explainode.errors import UserError
from explainode.registry.build import get
from explainode.registry.entries import load, names


class Network(nn.Module):
    def __init__(self, width=4, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(width + 1, 16), nn.Linear(16, width)

    def forward(self, t, x):
        return self.last(torch.tanh(self.first(torch.cat([x, t.expand(len(x), 1)], 1))))


@pytest.fixture
def x0():
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def field():
    return Network().double()


def decay(t, x):
    return -x


# values


def test_one_euler_step_is_a_residual_block_bit_for_bit():
    torch.manual_seed(0)
    branch = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
    x = torch.randn(2, 3, 8, 8)
    for gradient in ("symplectic", "backprop"):
        assert torch.equal(
            RungeKutta("euler", steps=1, gradient=gradient)(lambda t, x: branch(x).detach(), x), x + branch(x)
        )


def test_fixed_steps_evaluate_what_they_need(field, x0):
    for method in TABLEAUS.values():
        solution = RungeKutta(method, steps=5).solve(field, x0, 0.5, 2.0)
        assert solution.evaluations == 5 * len(method.working_stages) and solution.rejected == 0
        assert solution.grid.dtype == torch.float64 and solution.grid.tolist() == pytest.approx(
            [0.5 + 0.3 * n for n in range(6)]
        )
        assert solution.grid[-1] == 2.0


@pytest.mark.parametrize("name", [name for name, method in TABLEAUS.items() if method.adaptive])
def test_adaptive_steps_meet_the_tolerance(name, x0):
    tight = {"rtol": 1e-4, "atol": 1e-6} if TABLEAUS[name].order < 3 else {"rtol": 1e-8, "atol": 1e-10}
    if (
        name == "fehlberg2"
    ):  # its estimate is 1/512 of a slope's change, and far below its error where steps grow quickly
        tight["controller"] = "PI"
    solution = RungeKutta(name, **tight, max_steps=5000).solve(decay, x0, 0.0, 2.0)
    error = (solution.state - x0 * torch.exp(torch.tensor(-2.0))).abs().max()
    assert error < 20 * tight["rtol"]
    method = TABLEAUS[name]
    tried = len(solution.grid) - 1 + solution.rejected
    evaluations = (
        2 + tried * (method.stages - 1) + (0 if method.fsal else len(solution.grid) - 2)
    )  # the first step costs one
    assert solution.evaluations == evaluations


@pytest.mark.parametrize("gradient", ["symplectic", "backprop"])
@pytest.mark.parametrize("name", ["dopri5", "bosh3", "midpoint", "tsit5"])
def test_a_saved_grid_replays_bit_for_bit(name, gradient, field, x0):
    field, x0 = copy.deepcopy(field).float(), x0.float()
    solver = RungeKutta(name, gradient=gradient)
    solution = solver.solve(field, x0, 0.1, 2.3)
    again = solver.solve(field, x0, 0.1, 2.3, grid=solution.grid)
    assert torch.equal(again.state, solution.state) and torch.equal(again.grid, solution.grid)
    with torch.no_grad():
        plain = RungeKutta(name, steps=3).solve(field, x0, 0.1, 2.3, grid=solution.grid.tolist())
    assert torch.equal(plain.state, solution.state) and not plain.state.requires_grad


def test_an_easy_batch_does_not_hide_a_hard_sample():
    rates = torch.tensor([0.01] * 63 + [30.0], dtype=torch.float64)[:, None]
    solver = RungeKutta("dopri5", rtol=1e-5, atol=1e-7, norm="sample")
    together = solver.solve(lambda t, x: -rates * x, torch.ones(64, 1, dtype=torch.float64))
    alone = solver.solve(lambda t, x: -30.0 * x, torch.ones(1, 1, dtype=torch.float64))
    assert torch.equal(together.grid, alone.grid)


def test_the_controller_holds_on_to_what_it_promises():
    controller = Controller(DOPRI5, 1e-3, 1e-6, norm_of="sample")
    assert controller.judge(1.0)[0] and not controller.judge(1.0001)[0]
    assert controller.judge(0.0) == (True, controller.grow)
    accepted, factor = controller.judge(1e9)
    assert not accepted and factor == controller.shrink
    assert controller.judge(float("nan")) == (False, controller.shrink)
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    ones, errors = torch.ones_like(x), torch.tensor([[3e-6, 4e-6], [0.0, 0.0]], dtype=torch.float64)
    for norm_of, size in (("batch", (25 / 4) ** 0.5), ("sample", 12.5**0.5), ("max", 4.0)):
        assert Controller(DOPRI5, 0.0, 1e-6, norm_of=norm_of).norm(errors, x) == pytest.approx(size)
    assert controller.norm(ones, x) == pytest.approx(1e6)


@pytest.mark.parametrize("kind", CONTROLLERS)
@pytest.mark.parametrize("method", [DOPRI5, BOSH3], ids=["dopri5", "bosh3"])
def test_every_controller_steers_to_the_same_error(kind, method):
    """Where the error is C dt^q, it settles at safety^q, whatever the exponents are."""
    controller, dt, accepted = Controller(method, 1e-3, 1e-6, kind), 1e-3, True
    for _ in range(60):
        error = (dt / 0.1) ** controller.q
        accepted, factor = controller.judge(error)
        dt *= factor
    assert accepted and error == pytest.approx(controller.safety**controller.q, rel=1e-3)


def test_adaptive_steps_cost_what_they_cost_elsewhere():
    """At equal tolerances: at most as many evaluations as torchdiffeq and 5 %, and an error like its own."""

    def network(t, x):
        return 5 * net(x) * torch.cos(4 * t)

    def oscillator(t, x):
        return torch.stack([x[:, 1], 3 * (1 - x[:, 0] ** 2) * x[:, 1] - x[:, 0]], 1)

    def prey(t, x):
        return torch.stack([x[:, 0] * (1.5 - x[:, 1]), x[:, 1] * (x[:, 0] - 3)], 1)

    def spread(t, x):
        return -torch.logspace(-1, 1.3, 16, dtype=x.dtype)[:, None] * x

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 8)).double()
    conv = Block(nn.Sequential(nn.Tanh(), nn.Conv2d(3, 3, 3, padding=1))).double()
    ones = torch.ones(16, 1, dtype=torch.float64)
    problems = (
        (network, torch.randn(16, 8, dtype=torch.float64), 2.0),
        (oscillator, torch.tensor([[2.0, 0.0], [1.0, 1.0]], dtype=torch.float64), 6.0),
        (prey, ones[:1].expand(1, 2), 8.0),
        (spread, ones, 1.0),
        (conv, torch.randn(4, 3, 6, 6, dtype=torch.float64), 8.0),
    )
    for field, x, end in problems:
        with torch.no_grad():
            exact = RungeKutta("tsit5", rtol=1e-11, atol=1e-13, max_steps=20000)(field, x, 0.0, end)
            settings = {"rtol": 1e-5, "atol": 1e-7, "max_steps": 5000}
            ours, theirs = (
                solver("dopri5", **settings).solve(field, x, 0.0, end) for solver in (RungeKutta, TorchDiffEq)
            )
        assert ours.evaluations <= 1.05 * theirs.evaluations, field
        error, bound = (float((solution.state - exact).abs().max()) for solution in (ours, theirs))
        # of order 5: with fewer evaluations an error of as much more is the same efficiency; where the last steps end is luck, worth a quarter
        assert error <= 1.25 * bound * (theirs.evaluations / ours.evaluations) ** 5, field


def test_without_a_gradient_nothing_is_remembered(x0):
    graphs = []

    class Closure:
        weight = torch.ones((), dtype=torch.float64)

        def __call__(self, t, x):
            slope = self.weight * x
            graphs.append(slope.requires_grad)
            return slope

    assert RungeKutta(steps=2)(Closure(), x0).grad_fn is None
    assert graphs == [True] + [False] * 7  # only the first evaluation looks at a graph
    with torch.inference_mode():
        assert RungeKutta("dopri5")(decay, torch.ones(2, 3)).shape == (2, 3)


def test_times_are_zero_dimensional_in_the_precision_of_the_state():
    seen = []

    def field(t, x):
        seen.append((t.dtype, t.shape, t.device))
        return x

    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        RungeKutta("euler", steps=1)(field, torch.ones(1, 2, dtype=dtype))
    assert [dtype for dtype, _, _ in seen] == [torch.float64, torch.float32, torch.float32]
    assert {shape for _, shape, _ in seen} == {()}


def test_solvers_are_values():
    solver = RungeKutta("tsit5", rtol=1e-3)
    assert (
        solver == RungeKutta("tsit5", rtol=1e-3) == pickle.loads(pickle.dumps(solver))
        and len({solver, RungeKutta("tsit5", rtol=1e-3)}) == 1
    )
    mine = Tableau("mine", 1, a=((), (0.5,)), b=(0.5, 0.5), c=(0.0, 0.5))
    assert torch.allclose(RungeKutta(mine, steps=200)(decay, torch.ones(1, 1)), torch.tensor(0.3679), atol=3e-3)


ORDINARY = ("explainode.dynamics.solver.", "explainode.dynamics.torch_diff_eq.")


@pytest.mark.parametrize(
    "name", [name for name in names("solver") if load(f"solver/{name}")["_target_"].startswith(ORDINARY)]
)
def test_every_entry_of_conf_solves(name):
    solver = get(f"solver/{name}")
    assert torch.allclose(solver(decay, torch.ones(2, 2), 0.0, 1.0), torch.full((2, 2), 0.3679), atol=0.05)


# backward in time


@pytest.mark.parametrize(
    "solver", [RungeKutta("rk4", steps=8), RungeKutta("dopri5"), RungeKutta("bosh3"), TorchDiffEq("dopri5")]
)
def test_backward_in_time(solver, field, x0):
    x0 = x0.requires_grad_()
    forced = solver.solve(lambda t, x: x + t, torch.ones(1, 1, dtype=torch.float64), 1.0, 0.0)
    assert float(forced.state) == pytest.approx(3 / math.e - 1, abs=1e-4)  # x(t) = 3 e^(t - 1) - 1 - t
    assert forced.grid[0] == 1 and forced.grid[-1] == 0 and bool((forced.grid.diff() < 0).all())
    t0, t1 = (torch.tensor(t, dtype=torch.float64, requires_grad=True) for t in (1.2, 0.1))
    there = solver.solve(field, x0, t0, t1)
    assert torch.allclose(solver(field, there.state, 0.1, 1.2), x0, atol=2e-3)
    inputs = [x0, t0, t1, *field.parameters()]
    found = torch.autograd.grad(there.state.sin().sum(), inputs)
    if isinstance(solver, RungeKutta):  # the same with time mirrored by hand
        exact = dataclasses.replace(solver, gradient="backprop")
        grid = [-t for t in there.grid.tolist()]
        mirrored = exact.solve(
            lambda t, x: -field(-t, x), x0, -t0, -t1, grid=grid, parameters=tuple(field.parameters())
        )
        torch.testing.assert_close(there.state, mirrored.state, rtol=1e-13, atol=1e-13)
        for a, b in zip(found, torch.autograd.grad(mirrored.state.sin().sum(), inputs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


# torchdiffeq

METHODS = {"euler": "euler", "midpoint": "midpoint", "heun2": "heun2", "heun3": "heun3", "rk4": "rk4_38"}


@pytest.mark.parametrize("theirs", METHODS)
def test_fixed_steps_agree_with_torchdiffeq(theirs, field, x0):
    x0.requires_grad_()
    t1 = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    inputs = [x0, t1, *field.parameters()]
    other, ours = (
        TorchDiffEq(theirs, steps=6).solve(field, x0, 0.1, t1),
        RungeKutta(METHODS[theirs], steps=6).solve(field, x0, 0.1, t1),
    )
    torch.testing.assert_close(other.state, ours.state, rtol=0, atol=1e-14)
    assert torch.equal(other.grid, ours.grid) and other.evaluations == ours.evaluations
    for theirs_, ours_ in zip(*(torch.autograd.grad(s.state.sin().sum(), inputs) for s in (other, ours)), strict=True):
        torch.testing.assert_close(theirs_, ours_, rtol=1e-12, atol=1e-13)


def test_adaptive_steps_agree_with_torchdiffeq(field, x0):
    ours = RungeKutta("dopri5", rtol=1e-9, atol=1e-11)(field, x0, 0.1, 1.3)
    for method in ("dopri5", "dopri8"):
        theirs = TorchDiffEq(method, rtol=1e-9, atol=1e-11).solve(field, x0, 0.1, 1.3)
        torch.testing.assert_close(theirs.state, ours, rtol=0, atol=1e-6)  # they interpolate to the end
        assert (
            theirs.grid[0] == 0.1 and theirs.grid[-1] == 1.3 and all(a < b for a, b in pairwise(theirs.grid.tolist()))
        )


@pytest.mark.parametrize(("name", "steps"), [("rk4_38", 8), ("midpoint", 8), ("dopri5", None)])
def test_the_continuous_adjoint_is_near_the_exact_gradient_and_not_equal(name, steps, field, x0):
    x0.requires_grad_()
    found = {}
    for gradient in ("symplectic", "adjoint"):
        state = RungeKutta(name, steps=steps, gradient=gradient)(field, x0, 0.0, 2.0)
        found[gradient] = torch.cat(
            [g.flatten() for g in torch.autograd.grad(state.square().sum(), [x0, *field.parameters()])]
        )
    gap = (found["adjoint"] - found["symplectic"]).norm() / found["symplectic"].norm()
    assert 1e-9 < gap < 2e-2


def test_torchdiffeq_fails_with_our_errors():
    with pytest.raises(TooManySteps, match="max_steps was reached at t="):
        TorchDiffEq("dopri5", max_steps=3, rtol=1e-10, atol=1e-12)(lambda t, x: torch.cos(40 * t) * x, torch.ones(1, 1))
    with pytest.raises(NonFiniteState):
        TorchDiffEq("euler", steps=3)(lambda t, x: x * float("nan"), torch.ones(1, 1))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "dopri6"}, "no method 'dopri6' here; the nearest are dopri"),
        ({"method": "rk4"}, "takes fixed steps"),
        ({"method": "dopri5", "steps": 4}, "chooses its steps"),
        ({"rtol": 0.0}, "must be positive"),
    ],
)
def test_torchdiffeq_settings_that_do_not_fit_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        TorchDiffEq(**settings)


def test_torchdiffeq_in_half_precision():
    x = torch.ones(2, 3, dtype=torch.float16, requires_grad=True)
    for adjoint in (False, True):
        with pytest.raises(UserError, match=r"float16 has too little for it.*float32"):
            TorchDiffEq("dopri5", adjoint=adjoint)(lambda t, x: -x, x)
        fixed = TorchDiffEq("rk4", steps=8, adjoint=adjoint)(lambda t, x: -x, x)
        assert float(torch.autograd.grad(fixed.sum(), x)[0][0, 0]) == pytest.approx(math.exp(-1), abs=2e-3)


def test_torchdiffeq_refuses_what_it_would_lose(x0):
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    with pytest.raises(UserError, match="gradient would be lost"):
        TorchDiffEq("euler", steps=2, adjoint=True)(lambda t, x: weight * x, x0)
    with pytest.raises(UserError, match="cannot replay a grid"):
        TorchDiffEq().solve(decay, x0, grid=[0.0, 1.0])


# bad input


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tableau": "rk5"}, "no tableau named 'rk5'; the nearest are rk4"),
        (
            {"gradient": "backprob"},
            "gradient must be one of symplectic, backprop, adjoint, got 'backprob'; the nearest is backprop",
        ),
        ({"memory": "steps"}, "memory must be one of step, stage, sqrt, got 'steps'; the nearest is step"),
        ({"norm": "rms"}, "norm must be one of batch, sample, max, got 'rms'"),
        ({"controller": "P"}, "controller must be one of I, PI, PID, got 'P'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 4, "max_steps": 0}, "max_steps must be at least 1"),
        ({"steps": 4, "fallback_steps": 0}, "fallback_steps must be at least 1"),
        ({"tableau": "dopri5", "rtol": 0.0}, "rtol and atol must be positive"),
        ({"tableau": "rk4", "steps": None}, "rk4 has no error estimate to choose steps by; set steps"),
        (
            {"tableau": "rk4", "steps": 4, "gradient": "adjoint"},
            r"torchdiffeq has no rk4 with fixed steps.*take rk4_38",
        ),
        ({"tableau": "tsit5", "gradient": "adjoint"}, "torchdiffeq has no tsit5 with adaptive steps"),
    ],
)
def test_a_bad_setting_is_one_sentence(settings, words):
    with pytest.raises(UserError, match=words) as caught:
        RungeKutta(**settings)
    assert "\n" not in str(caught.value)


def grows(t, x):
    return torch.cat([x, x], 1)


def in_place(t, x):
    return x.mul_(2)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(
    ("field", "words"),
    [
        (grows, r"returns shape \(2, 6\) for a state of shape \(2, 3\)"),
        (lambda t, x: x.double(), "returns float64 for a state in float32"),
        (lambda t, x: (x,), "returns tuple for a state"),
        (in_place, "changes its input in place"),
    ],
)
def test_a_field_that_is_none_is_refused(field, words, requires_grad):
    for gradient in ("symplectic", "backprop"):
        with pytest.raises(UserError, match=words):
            RungeKutta(steps=2, gradient=gradient)(field, torch.ones(2, 3, requires_grad=requires_grad))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"t0": 1.0, "t1": 1.0}, "t0 and t1 must be finite and differ, got t0=1 and t1=1"),
        ({"t1": float("inf")}, "t0 and t1 must be finite"),
        ({"t0": 1.0, "t1": 0.0, "grid": [0.0, 1.0]}, "grid must fall from t0=1 to t1=0, got 2 times from 0 to 1"),
        ({"t1": torch.ones(1)}, r"t1 must be a number or a 0-dim tensor, got shape \(1,\)"),
        (
            {"x0": torch.ones(2, 3, dtype=torch.int64)},
            r"x0 must be a floating-point tensor \(B, \*S\), got torch.int64",
        ),
        ({"x0": torch.tensor(1.0)}, "x0 must be"),
        ({"grid": [0.0, 0.5]}, "grid must rise from t0=0 to t1=1, got 2 times from 0 to 0.5"),
        ({"grid": [0.0, 0.7, 0.5, 1.0]}, "grid must rise"),
        ({"grid": []}, "grid must rise from t0=0 to t1=1, got 0 times"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, words):
    with pytest.raises(UserError, match=words):
        RungeKutta(steps=2).solve(decay, **{"x0": torch.ones(2, 3)} | arguments)


class Block(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 3, 1), layer)

    def forward(self, t, x):
        return self.body(x)


def test_layers_in_train_mode_are_refused_by_name():
    x = torch.randn(2, 3, 4, 4)
    for layer, name in (
        (nn.BatchNorm2d(3), "BatchNorm2d"),
        (nn.Dropout(0.5), "Dropout"),
        (nn.SyncBatchNorm(3), "SyncBatchNorm"),
    ):
        block = Block(layer)
        with pytest.raises(UserError, match=f"{name} 'body.1' is in train mode"):
            RungeKutta(steps=2)(block, x)
        with pytest.raises(UserError, match="eval mode"):
            RungeKutta(steps=2)(block.forward, x)
    for layer in (nn.BatchNorm2d(3), nn.Dropout(0.5), nn.GroupNorm(1, 3).train(), nn.Dropout(0.0).train()):
        block = Block(layer)
        RungeKutta(steps=2)(block.train(isinstance(layer, nn.GroupNorm)), x)


# failure


def test_a_state_that_is_not_finite_names_the_step():
    def explodes(t, x):
        return torch.where(t < 0.6, x, x * float("inf"))

    with pytest.raises(NonFiniteState) as caught:
        RungeKutta("euler", steps=4)(explodes, torch.ones(1, 1))
    assert (
        caught.value.t == 0.75
        and caught.value.dt == 0.25
        and caught.value.evaluations == 4
        and caught.value.block is None
    )
    assert "not finite at t=0.75 (step 0.25, 4 evaluations of the field)" in str(caught.value)
    caught.value.block = "layer2.0"
    assert "in block 'layer2.0' at t=0.75" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(NonFiniteState):
        RungeKutta("dopri5")(lambda t, x: x * float("nan"), torch.ones(1, 1))
    with pytest.raises(NonFiniteState):
        RungeKutta("dopri5")(explodes, torch.ones(1, 1))


def test_a_sum_that_overflows_is_still_finite():
    x = torch.full((4, 2), 3e38)
    assert torch.equal(RungeKutta("euler", steps=1)(lambda t, x: torch.zeros_like(x), x), x)


def blows_up(t, x):
    return x**2  # x(t) = 1 / (1 - t)


def test_a_stiff_or_exploding_field_underflows():
    with pytest.raises(StepUnderflow) as caught:
        RungeKutta("dopri5")(blows_up, torch.ones(1, 1), 0.0, 2.0)
    assert 0.99 < caught.value.t < 1.001 and caught.value.dt < 1e-5 and caught.value.evaluations > 20
    assert "the step became too small" in str(caught.value)


def test_too_many_steps():
    with pytest.raises(TooManySteps, match="raise max_steps") as caught:
        RungeKutta("dopri5", max_steps=5)(lambda t, x: torch.cos(50 * t) * x, torch.ones(1, 1))
    assert caught.value.evaluations == 32 and 0 < caught.value.t < 1
    assert RungeKutta("dopri5", max_steps=200)(lambda t, x: torch.cos(50 * t) * x, torch.ones(1, 1)).isfinite()


@pytest.mark.parametrize("gradient", ["symplectic", "backprop"])
def test_fixed_steps_where_adaptive_ones_fail(gradient):
    x0 = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    solver = RungeKutta("dopri5", max_steps=5, fallback_steps=40, gradient=gradient)

    def field(t, x):
        return torch.cos(50 * t) * x

    solution = solver.solve(field, x0)
    assert (
        len(solution.grid) == 41 and isinstance(solution.failure, TooManySteps) and solution.failure.evaluations == 32
    )
    assert solution.evaluations == 32 + 40 * 6
    fixed = RungeKutta("dopri5", steps=40).solve(field, x0)
    assert torch.equal(solution.state, fixed.state) and fixed.failure is None
    assert torch.equal(*(torch.autograd.grad(s.state, x0)[0] for s in (solution, fixed)))
    with pytest.raises(NonFiniteState):
        RungeKutta("dopri5", fallback_steps=4)(lambda t, x: x * float("nan"), torch.ones(1, 1))


def test_failures_travel_between_processes():
    error = StepUnderflow(0.5, 1e-9, 12)
    error.block = "layer3"
    again = pickle.loads(pickle.dumps(error))
    assert (
        type(again) is StepUnderflow
        and isinstance(again, SolverError)
        and str(again) == str(error)
        and again.block == "layer3"
    )
