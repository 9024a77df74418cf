"""States of several tensors: the numbers and gradients of the same equations written as one, and textbook uses."""

import math

import pytest
import torch
from torch import nn
from torch.autograd import grad

from explainode.dynamics.solver import RungeKutta
from explainode.errors import UserError


class Flow(nn.Module):
    """A continuous normalizing flow with its log-density and kinetic energy: d(x, l, e) = (f, -tr df/dx, |f|^2)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()

    def drift(self, t, x):
        return self.net(torch.cat([x, t.expand(len(x), 1)], 1))

    def forward(self, t, state):
        with torch.enable_grad():
            x = state["x"] if state["x"].requires_grad else state["x"].detach().requires_grad_()
            f = self.drift(t, x)
            trace = sum(grad(f[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2))
        return {"energy": f.square().sum(1), "x": f, "log_density": -trace}


def start():
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    return {"x": x, "log_density": torch.zeros(4, dtype=torch.float64), "energy": torch.zeros(4, dtype=torch.float64)}


@pytest.mark.parametrize("settings", [{"steps": 6}, {"tableau": "dopri5"}], ids=["fixed", "adaptive"])
def test_a_flow_with_its_density(settings):
    flow, found = Flow(), []
    for gradient in ("symplectic", "backprop"):
        state = start()
        solution = RungeKutta(gradient=gradient, **settings).solve(flow, state, at=[0.5, 1.0])
        end = solution.state
        assert list(end) == ["x", "log_density", "energy"] and end["energy"].shape == (4,)
        assert solution.states["x"].shape == (2, 4, 2) and torch.equal(solution.states["energy"][-1], end["energy"])
        loss = end["x"].sin().sum() + end["log_density"].sum() + solution.states["energy"][0].sum()
        found.append(grad(loss, [state["x"], *list(flow.parameters())[:-1]]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    x = start()["x"]

    def end_of(x):
        return RungeKutta("rk4", steps=60, gradient="backprop").solve(flow.drift, x[None], parameters=()).state[0]

    for row, log in zip(x, RungeKutta("rk4", steps=60).solve(flow, start()).state["log_density"], strict=True):
        jacobian = torch.autograd.functional.jacobian(end_of, row.detach())
        assert float(log) == pytest.approx(-float(jacobian.det().abs().log()), abs=1e-8)


def test_a_tuple_is_an_oscillator():
    def swing(t, state):
        position, velocity = state
        return velocity, -position

    x, v = torch.ones(2, 3, 4, dtype=torch.float64), torch.zeros(2, 3, 4, dtype=torch.float64)
    end = RungeKutta("tsit5", rtol=1e-9, atol=1e-11)(swing, (x, v), 0.0, 1.0)
    torch.testing.assert_close(end[0], x * math.cos(1), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(end[1], -x * math.sin(1), rtol=1e-8, atol=1e-8)
    joined = RungeKutta("rk4", steps=5)(
        lambda t, s: torch.cat([s[:, 12:], -s[:, :12]], 1), torch.cat([x.flatten(1), v.flatten(1)], 1)
    )
    torch.testing.assert_close(
        torch.cat([part.flatten(1) for part in RungeKutta("rk4", steps=5)(swing, (x, v))], 1), joined
    )


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ((), "got none"),
        (
            (torch.ones(2, 3), torch.ones(3, 3)),
            r"one dtype, device and batch size, got torch.float32 \(2, 3\), torch.float32 \(3, 3\)",
        ),
        ((torch.ones(2, 3), torch.ones(2).double()), "float64"),
        ({"x": torch.ones(2, 3), "n": 3}, "int"),
    ],
)
def test_a_state_that_does_not_fit_is_one_sentence(state, words):
    with pytest.raises(UserError, match=words):
        RungeKutta("euler", steps=2)(lambda t, x: x, state)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (lambda t, s: s["x"], r"returns a dictionary of x, y, each .* got Tensor"),
        (lambda t, s: {"x": s["x"]}, r"a dictionary of x, y, .* got \['x'\]"),
        (lambda t, s: {"x": s["x"], "y": s["x"]}, r"got \[\(2, 3\), \(2, 3\)\]"),
    ],
)
def test_a_slope_of_another_structure_is_one_sentence(field, words):
    with pytest.raises(UserError, match=words):
        RungeKutta("euler", steps=2)(field, {"x": torch.ones(2, 3), "y": torch.ones(2)})
