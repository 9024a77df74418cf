"""Secants against double precision and closed forms: near, far, and at the same number."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from explainode.relevance.operations import TABLE
from explainode.relevance.rules.deeplift import REVEALED
from explainode.relevance.secant import PIECEWISE, log_mean, relu_secant, secant
from explainode.relevance.tape import record

FUNCTIONS = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": F.relu6,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "sin": torch.sin,
    "abs": torch.abs,
    "square": torch.square,
    "cube": lambda x: x**3,
    "maximum": lambda x: torch.maximum(x, torch.full((), 0.25, dtype=x.dtype)),
}
POSITIVE = {
    "log": torch.log,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "quotient": lambda x: torch.full((), 2.0, dtype=x.dtype) / x,
    "power": lambda x: x**1.7,
    "root": lambda x: x**0.5,
    "inverse_root": lambda x: x**-0.5,
}


class Alone(nn.Module):
    """One function as a network: the pixels of one row are the logits."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x).flatten(1)


def secant_of(function, x, x0):
    """Of images (1, 1, 1, N), recorded as the engine records them."""
    tape, reference = record(Alone(function), x), record(Alone(function), x0)
    first, second = (next(op for op in t.operations if op.kind == "activation") for t in (tape, reference))
    return secant(first, x, x0, first.output.data, second.output.data)[0, 0, 0]


@pytest.mark.parametrize("name", [*FUNCTIONS, *POSITIVE])
def test_single_precision_equals_double_precision_near_and_far(name):
    function = (FUNCTIONS | POSITIVE)[name]
    at = torch.linspace(0.1, 6, 60) if name in POSITIVE else torch.linspace(-6, 6, 121)
    x0 = at[:, None].expand(-1, 11)
    x = x0 + torch.tensor([0, 1e-7, 1e-5, 1e-4, 1e-3, 4e-3, 6e-3, 0.02, 0.3, 3, 20])
    x, x0 = x.reshape(1, 1, 1, -1), x0.reshape(1, 1, 1, -1)
    found = secant_of(function, x, x0)
    a, b = x.double().requires_grad_(), x0.double()
    d = a - b
    slope = torch.autograd.grad(function(a).sum(), a)[0]
    exact = torch.where(d == 0, slope, (function(a) - function(b)) / torch.where(d == 0, 1.0, d)).detach()[0, 0, 0]
    if name in PIECEWISE:  # their quotient is as exact as the difference that it stands for
        error = ((found - exact) * d[0, 0, 0]).abs()
        assert (error <= 4e-7 * (1 + function(a)[0, 0, 0].abs())).all()
        return
    error = (found - exact).abs()
    # eps |x| / d at d = eps^(1/3), where functions are computed to eps |x| only (x times a probability near 0)
    allowed = 2e-4 * slope.abs().max() if name in FUNCTIONS and name not in ("exp", "cube", "square") else 0
    assert (error <= 1e-3 * exact.abs() + allowed).all()
    assert (error / exact.abs().clamp(min=1e-2)).median() <= 1e-5


def test_the_same_numbers_give_the_slope_in_double_precision():
    x = torch.linspace(-4, 4, 41, dtype=torch.float64)[None, None, None]
    for name, function in FUNCTIONS.items():
        leaf = x.clone().requires_grad_()
        slope = torch.autograd.grad(function(leaf).sum(), leaf)[0][0, 0, 0]
        assert (secant_of(function, x, x.clone()) - slope).abs().max() <= 1e-12 * slope.abs().max(), name


def test_a_kink_between_close_numbers_is_seen():
    """The slope halfway would be 0 or 1."""
    x, x0 = torch.tensor([[[[1e-5]]]]), torch.tensor([[[[-3e-5]]]])
    assert secant_of(F.relu, x, x0).item() == pytest.approx(0.25)
    assert secant_of(F.leaky_relu, x, x0).item() == pytest.approx(0.25 + 0.75 * 0.01)
    assert relu_secant(x, x0).item() == pytest.approx(0.25)


def test_the_root_of_nothing_contributes_nothing():
    zero = torch.zeros(1, 1, 1, 2)
    assert secant_of(torch.sqrt, zero, zero.clone()).tolist() == [0, 0]


def test_logarithmic_means_lie_between():
    a, b = torch.rand(2, 1000, dtype=torch.float64) + 1e-3
    k = log_mean(a, b, a.log() - b.log())
    assert (k >= torch.minimum(a, b) - 1e-15).all() and (k <= torch.maximum(a, b) + 1e-15).all()
    torch.testing.assert_close(k, (a - b) / (a.log() - b.log()), rtol=1e-9, atol=0)
    assert log_mean(a[:1], a[:1], torch.zeros(1)) == a[0]
    assert log_mean(torch.tensor(0.0), torch.tensor(1.0), torch.tensor(-400.0)) == pytest.approx(1 / 400)


def test_names_are_those_of_the_table():
    assert set(TABLE) >= PIECEWISE | REVEALED
