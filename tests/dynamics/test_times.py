"""States at several times from one solve: the values of solving from one to the next, and the gradient of losses along the way."""

import pytest
import torch
from torch import nn
from torch.autograd import grad

from explainode.dynamics.problem import through
from explainode.dynamics.solver import MEMORIES, RungeKutta
from explainode.errors import UserError


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 16), nn.Linear(16, 4)

    def forward(self, t, x):
        return 2 * self.last(torch.tanh(self.first(torch.cat([x, t.expand(len(x), 1)], 1))))


@pytest.fixture
def field():
    return Network().double()


@pytest.fixture
def x0():
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


FIXED = {"tableau": "rk4", "steps": 10}
ADAPTIVE = {"tableau": "dopri5", "rtol": 1e-6, "atol": 1e-8}


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)], ids=["forward", "backward"])
@pytest.mark.parametrize("settings", [FIXED, ADAPTIVE], ids=["fixed", "adaptive"])
def test_states_and_losses_along_the_way(settings, ends, memory, field, x0):
    at = sorted([0.0, 0.3, 0.35, 0.8, 1.0], reverse=ends[0] > ends[1])
    ours = RungeKutta(memory=memory, **settings).solve(field, x0, *ends, at=at)
    exact = RungeKutta(gradient="backprop", **settings).solve(
        field, x0, *ends, at=torch.tensor(at, dtype=torch.float64)
    )
    assert ours.states.shape == (5, 3, 4) and set(at) <= set(ours.grid.tolist())
    assert torch.equal(ours.states, exact.states) and torch.equal(ours.states[-1], ours.state)
    assert torch.equal(ours.states[0], x0)
    inputs = [x0, *field.parameters()]
    weights = torch.tensor([0.5, 1.0, -2.0, 3.0, 0.0], dtype=torch.float64)
    for loss in (
        lambda s: (s.states.sin().sum((1, 2)) * weights).sum(),
        lambda s: s.states[2].sin().sum(),  # nothing comes from the end
        lambda s: s.states[1].sin().sum() + s.state.cos().sum(),
    ):
        for a, b in zip(*(grad(loss(s), inputs, retain_graph=True) for s in (ours, exact)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    replayed = RungeKutta(memory=memory, **settings).solve(field, x0, *ends, at=at, grid=ours.grid)
    assert torch.equal(replayed.states, ours.states)
    with torch.no_grad():
        assert torch.equal(RungeKutta(**settings).solve(field, x0, *ends, at=at).states, ours.states)


def test_against_solving_from_one_time_to_the_next(field, x0):
    at = [0.25, 0.5, 1.0]
    solution = RungeKutta("rk4", steps=8).solve(field, x0, at=at)
    x, t = x0, 0.0
    for state, end in zip(solution.states, at, strict=True):
        x, t = RungeKutta("rk4", steps=round(8 * (end - t)))(field, x, t, end), end
        torch.testing.assert_close(state, x, rtol=1e-13, atol=1e-13)
    truth = torch.exp(-torch.tensor(at, dtype=torch.float64))
    decay = RungeKutta("tsit5", rtol=1e-9, atol=1e-11).solve(lambda t, x: -x, torch.ones(1, 1).double(), at=at)
    torch.testing.assert_close(decay.states.flatten(), truth, rtol=1e-7, atol=1e-8)


def test_a_stop_does_not_shorten_the_steps_after_it():
    def wave(t, x):
        return torch.cos(t) * x

    x, settings = torch.ones(1, 1, dtype=torch.float64), {"rtol": 1e-6, "atol": 1e-8}
    alone = RungeKutta("dopri5", **settings).solve(wave, x, 0.0, 20.0)
    close = RungeKutta("dopri5", **settings).solve(wave, x, 0.0, 20.0, at=[5.0, 5.001, 10.0])
    assert len(close.grid) <= len(alone.grid) + 2 * 3


def test_a_grid_meets_its_times():
    assert through([0.0, 0.1, 0.2, 0.1 + 0.2, 0.4], [0.3]) == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert through([1.0, 0.5, 0.0], [0.7]) == [1.0, 0.7, 0.5, 0.0]
    assert through([0.0, 1.0], []) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"at": [0.5, 0.2]}, "at must name times that run from t0=0 to t1=1, each once, got"),
        ({"at": [0.5, 0.5]}, "each once"),
        ({"at": [0.5, 1.5]}, "run from t0=0 to t1=1"),
        ({"at": [float("nan")]}, "at must name times"),
        ({"at": []}, "at must name times"),
        ({"at": [0.5], "grid": [0.0, 1.0]}, "a replayed grid must hold the times"),
        ({"at": [0.5], "t1": torch.tensor(1.0, requires_grad=True)}, "have no gradient with respect to t0, t1"),
    ],
)
def test_times_that_do_not_fit_are_one_sentence(arguments, words):
    with pytest.raises(UserError, match=words):
        RungeKutta("euler", steps=2).solve(lambda t, x: -x, torch.ones(2, 3), **arguments)


def test_the_continuous_adjoint_has_the_end_alone():
    with pytest.raises(UserError, match="no states at times between"):
        RungeKutta("euler", steps=2, gradient="adjoint").solve(lambda t, x: -x, torch.ones(2, 3), at=[0.5])
