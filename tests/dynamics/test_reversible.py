"""Reversible solvers: closed forms, the order of their method, backpropagation through the same steps, and memory that does not grow."""

import math

import pytest
import torch
from torch import nn
from torch.autograd import grad
from torch.autograd.graph import saved_tensors_hooks

from explainode.dynamics.failure import NonFiniteState
from explainode.dynamics.reversible import Reversible
from explainode.dynamics.solver import RungeKutta
from explainode.dynamics.tableau import TABLEAUS
from explainode.errors import UserError


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 16), nn.Linear(16, 4)
        self.factor = 1.0

    def forward(self, t, x):
        return 2 * self.factor * self.last(torch.tanh(self.first(torch.cat([x, t.expand(len(x), 1)], 1))))


@pytest.fixture
def field():
    return Network().double()


@pytest.fixture
def x0():
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("name", TABLEAUS)
def test_equals_backpropagation_through_the_same_steps(name, field, x0):
    inputs = [x0, *field.parameters()]
    for steps, ends in ((1, (0.0, 1.0)), (7, (0.2, 1.3)), (5, (1.0, 0.0))):
        ours, exact = (Reversible(name, steps, gradient=g)(field, x0, *ends) for g in ("reversible", "backprop"))
        assert torch.equal(ours, exact)
        for a, b in zip(*(grad(y.sin().sum(), inputs) for y in (ours, exact)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_long_solutions_stay_exact(field, x0):
    inputs = [x0, *field.parameters()]
    for coupling in (0.99, 1.0):
        ours, exact = (Reversible("rk4", 256, coupling, g)(field, x0) for g in ("reversible", "backprop"))
        for a, b in zip(*(grad(y.sin().sum(), inputs) for y in (ours, exact)), strict=True):
            assert float((a - b).norm() / b.norm()) <= 1e-12


@pytest.mark.parametrize("name", ["euler", "midpoint", "heun3", "rk4"])
def test_it_has_the_order_of_its_method(name):
    """dx/dt = x cos(t): the slope of the error against the step, on both axes logarithmic."""
    x, truth = torch.ones(1, 1, dtype=torch.float64), math.exp(math.sin(2))
    counts = [16, 32, 64, 128]
    errors = [abs(float(Reversible(name, n)(lambda t, x: x * torch.cos(t), x, 0.0, 2.0)) - truth) for n in counts]
    slope = math.log(errors[0] / errors[-1]) / math.log(counts[-1] / counts[0])
    assert slope > TABLEAUS[name].order - 0.25


def test_one_solution_keeps_three_states(field, x0):
    for steps in (4, 64):
        shapes = []
        with saved_tensors_hooks(lambda t, s=shapes: s.append(t.shape) or t, lambda t: t):
            y = Reversible("rk4", steps)(field, x0)
        assert shapes == [x0.shape] * 3
        y.relu_().sum().backward()


def test_random_numbers_are_drawn_again(field, x0):
    found = []
    for gradient in ("reversible", "backprop"):
        torch.manual_seed(3)
        y = (
            Reversible("rk4", 4, gradient=gradient)
            .solve(lambda t, x: nn.functional.dropout(field(t, x), 0.3), x0, parameters=tuple(field.parameters()))
            .state
        )
        torch.rand(5)
        found.append(grad(y.sin().sum(), [x0, *field.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_a_field_that_was_changed_does_not_lead_back(field, x0):
    for change in (lambda: setattr(field, "factor", 1.5), lambda: field.first.weight.data.mul_(1.1)):
        y = Reversible("rk4", 6)(field, x0)
        change()
        with pytest.raises(UserError, match="come out otherwise"):
            y.sum().backward()
    y = Reversible("rk4", 6)(field, x0)
    field.eval().first.weight.detach().mul_(2)
    with pytest.raises(UserError, match="was changed in place"):
        y.sum().backward()


def test_bad_input_is_one_sentence(field, x0):
    for settings, words in (
        ({"gradient": "exact"}, "gradient must be one of reversible, backprop, got 'exact'"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"coupling": 0.0}, r"coupling must lie in \(0, 1\], got 0.0"),
        ({"tableau": "rk5"}, "no tableau named 'rk5'"),
    ):
        with pytest.raises(UserError, match=words):
            Reversible(**settings)
    with pytest.raises(UserError, match="no gradient with respect to t0 and t1"):
        Reversible()(field, x0, 0.0, torch.tensor(1.0, requires_grad=True))
    with pytest.raises(NonFiniteState, match=r"not finite at t=0\.5"):
        Reversible("euler", 4).solve(lambda t, x: torch.where(t < 0.4, x, x * math.inf), x0.detach())
    y = Reversible("rk4", 2)(field, x0)
    with pytest.raises(UserError, match="first derivatives only"):
        grad(y.sum(), x0, create_graph=True)[0].sum().backward()


def test_it_solves_what_its_method_solves(field, x0):
    torch.testing.assert_close(Reversible("rk4", 64)(field, x0), RungeKutta("rk4", 64)(field, x0), rtol=1e-6, atol=1e-6)
