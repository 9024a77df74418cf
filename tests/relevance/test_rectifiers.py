"""A rectifier is what it does: every spelling of max(x, 0) gives the maps of relu, for every method that bends at rectifiers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from explainode import get
from explainode.explainers.guard import guard
from explainode.relevance.tape import record

SPELLINGS = {
    "clamp": lambda t: t.clamp(min=0),
    "clamp, in place": lambda t: t.clamp_(min=0),
    "clamp_min": lambda t: t.clamp_min(0),
    "clamp by a tensor": lambda t: t.clamp(min=torch.zeros(())),
    "maximum": lambda t: torch.maximum(t, torch.zeros((), dtype=t.dtype)),
    "maximum of zeros": lambda t: torch.maximum(torch.zeros_like(t), t),
    "where": lambda t: torch.where(t > 0, t, 0.0),
    "where, at least": lambda t: torch.where(t >= 0, t, torch.zeros_like(t)),
    "where, turned round": lambda t: torch.where(t < 0, 0.0, t),
    "where, seen from zero": lambda t: torch.where(t > 0, t, 0.0),
    "where not": lambda t: torch.where(~(t > 0), 0.0, t),
    "masked_fill": lambda t: t.masked_fill(t < 0, 0.0),
    "masked_fill, in place": lambda t: t.masked_fill_(t <= 0, 0.0),
    "mean with the absolute value": lambda t: (t + t.abs()) / 2,
    "half of the sum": lambda t: 0.5 * (t.abs() + t),
    "times the condition": lambda t: t * (t > 0),
    "times a mask": lambda t: (t > 0).to(t.dtype) * t,
    "threshold": lambda t: F.threshold(t, 0, 0),
}
METHODS = ("guided_backprop", "deconvnet", "deep_lift_reveal_cancel", "root_inference", "lrp_gamma", "lrp_epsilon")


class Net(nn.Module):
    def __init__(self, rectifier) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.f = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 4)
        self.double().rectifier = rectifier

    def forward(self, x):
        return self.f(self.rectifier(self.b(self.rectifier(self.a(x)))).mean((2, 3)))


X = torch.rand(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def by_relu():
    return {name: get(f"explainer/{name}")(Net(torch.relu), X, 1) for name in METHODS}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_rectifier_is_one(spelling, by_relu):
    net = Net(SPELLINGS[spelling])
    for name, expected in by_relu.items():
        torch.testing.assert_close(get(f"explainer/{name}")(net, X, 1), expected, rtol=1e-10, atol=1e-14, msg=name)


def test_a_leaky_rectifier_by_where_is_one():
    by_where, by_name = Net(lambda t: torch.where(t > 0, t, 0.1 * t)), Net(lambda t: F.leaky_relu(t, 0.1))
    for name in ("guided_backprop", "deconvnet", "lrp_epsilon"):
        explainer = get(f"explainer/{name}")
        torch.testing.assert_close(explainer(by_where, X, 1), explainer(by_name, X, 1), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    "other",
    [
        lambda t: t.clamp(min=-0.1),
        lambda t: torch.where(t > 0.1, t, 0.0),
        lambda t: torch.where(t > 0, -t, 0.0),
        lambda t: t.masked_fill(t > 0, 0.0),
        lambda t: t * (t.roll(1, 0) > 0),
        lambda t: (t - t.abs()) / 2,
    ],
)
def test_what_is_no_rectifier_is_none(other):
    net = Net(other)
    with guard(net):
        assert all(operation.name != "relu" for operation in record(net, X).operations)
