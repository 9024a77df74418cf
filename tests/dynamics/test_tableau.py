"""Tableaus check themselves, and each method converges at the order that it states."""

import math

import numpy as np
import pytest
import torch

from explainode.dynamics.solver import RungeKutta
from explainode.dynamics.tableau import DOPRI5, EULER, RK4, TABLEAUS, Tableau, tableau
from explainode.errors import UserError

METHODS = list(TABLEAUS.values())
EMBEDDED = [Tableau(m.name, m.embedded_order, m.a, m.b_hat, m.c) for m in METHODS if m.adaptive]


def order_conditions(method):
    """What the rooted trees of each order demand of a method (Hairer, Noersett and Wanner 1993, II.2), as residuals."""
    A, b, c = (np.array(part) for part in (method.a, method.b, method.c))
    Ac = A @ c
    return {
        1: [b.sum() - 1],
        2: [b @ c - 1 / 2],
        3: [b @ c**2 - 1 / 3, b @ Ac - 1 / 6],
        4: [b @ c**3 - 1 / 4, b @ (c * Ac) - 1 / 8, b @ A @ c**2 - 1 / 12, b @ A @ Ac - 1 / 24],
        5: [b @ c**4 - 1 / 5, b @ (c**2 * Ac) - 1 / 10, b @ Ac**2 - 1 / 20, b @ (c * (A @ c**2)) - 1 / 15, b @ (c * (A @ Ac)) - 1 / 30,
            b @ A @ c**3 - 1 / 20, b @ A @ (c * Ac) - 1 / 40, b @ A @ A @ c**2 - 1 / 60, b @ A @ A @ Ac - 1 / 120],
        6: [b @ c**5 - 1 / 6, b @ A @ A @ A @ Ac - 1 / 720],
    }  # fmt: skip


@pytest.mark.parametrize("method", METHODS + EMBEDDED, ids=lambda method: f"{method.name}-{method.order}")
def test_order_conditions_hold_up_to_the_stated_order_and_no_further(method):
    conditions = order_conditions(method)
    for order in range(1, method.order + 1):
        np.testing.assert_allclose(conditions[order], 0, atol=2e-14)
    assert np.abs(conditions[method.order + 1]).max() > 1e-4


def logistic(t, x):
    return x * (1 - x) * (1 + torch.cos(t))


def logistic_solution(x0, t):
    return 1 / (1 + (1 / x0 - 1) * math.exp(-t - math.sin(t)))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_measured_order_is_the_stated_one(method):
    """The slope of log error against log step, the next order's share being fitted too: log e = log C + p log h + d h."""
    x0 = torch.tensor([[0.3], [1.4]], dtype=torch.float64)
    counts = [28, 40, 56, 80, 113]
    errors = [float((RungeKutta(method, steps=n)(logistic, x0) - logistic_solution(x0, 1.0)).norm()) for n in counts]
    h = 1 / np.array(counts)
    _, p, _ = np.linalg.lstsq(np.stack((np.ones_like(h), np.log(h), h), 1), np.log(errors))[0]
    assert p == pytest.approx(method.order, abs=0.15)


def test_names_are_those_of_the_documentation():
    assert set(TABLEAUS) == {
        "euler",
        "midpoint",
        "heun2",
        "heun3",
        "ralston",
        "rk4",
        "rk4_38",
        "bosh3",
        "dopri5",
        "tsit5",
        "fehlberg2",
    }
    assert {name for name, method in TABLEAUS.items() if method.fsal} == {"bosh3", "dopri5", "tsit5"}
    assert {name for name, method in TABLEAUS.items() if not method.adaptive} == {"euler", "heun3", "rk4", "rk4_38"}


def test_working_stages_are_those_that_the_step_needs():
    assert tableau("dopri5").working_stages == tuple(
        range(6)
    )  # the second has no weight, but feeds others; the seventh is for the error
    assert tableau("midpoint").working_stages == (0, 1)
    idle = Tableau("idle", 1, a=((), (0.5,), (0.5, 0.5)), b=(0.5, 0.0, 0.5), c=(0.0, 0.5, 1.0))
    assert idle.working_stages == (0, 1, 2)
    assert Tableau("idle", 1, a=((), (0.5,)), b=(1.0, 0.0), c=(0.0, 0.5)).working_stages == (0,)


def test_rows_are_filled_with_zeros():
    assert RK4.a[1] == (0.5, 0.0, 0.0, 0.0)
    assert sum(DOPRI5.error_weights) == pytest.approx(0, abs=1e-15)
    with pytest.raises(UserError, match="no embedded method"):
        _ = EULER.error_weights


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a": ((), (0.4,))}, "row 2 of a sums to 0.4, but c is 0.5"),
        ({"b": (0.5, 0.6)}, "b sums to 1.1"),
        ({"b_hat": (0.5, 0.6), "embedded_order": 1}, "b_hat sums to 1.1"),
        ({"a": ((0.5,), (0.5,)), "c": (0.5, 0.5)}, "stage 1 uses itself"),
        ({"c": (0.0,)}, "b has 2 stages, but c has 1"),
        ({"a": ((),)}, "b has 2 stages, but a has 1"),
        ({"b_hat": (1.0, 0.0)}, "belong together"),
    ],
)
def test_a_wrong_coefficient_cannot_be_constructed(change, words):
    right = {"a": ((), (0.5,)), "b": (0.0, 1.0), "c": (0.0, 0.5)}
    Tableau("mine", 2, **right)
    with pytest.raises(UserError, match=words):
        Tableau("mine", 2, **right | change)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"no tableau named 'dopri54'; the nearest are dopri5"):
        tableau("dopri54")
