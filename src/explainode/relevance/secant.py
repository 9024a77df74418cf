"""Secants (f(x) - f(x0)) / (x - x0) of functions of one number, exact also where x and x0 are close."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from explainode.relevance.operations import Operation, Slot

# straight or bent at single points: a slope between x and x0 may belong to neither
PIECEWISE = {
    "relu", "leaky_relu", "hardtanh", "clamp", "clamp_min", "clamp_max", "threshold", "hardsigmoid", "hardswish", "abs", "elu", "celu", "selu",
    "maximum", "minimum", "_prelu_kernel",
}  # fmt: skip
# bend within |x|, where other smooth functions bend within 1
RELATIVE = {"log", "pow"}


def secant(operation: Operation, x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """(y - y0) / (x - x0) of an activation y = f(x), y0 = f(x0), and the slope where x and x0 are the same.

    The difference of two values of f has an error of about eps |y|, so its quotient by d = x - x0 has one of eps |y| / d. Where f is smooth, the
    slope halfway has an error of f''' d^2 / 24. The two are equal near d = eps^(1/3) times the length on which f bends: below it (5e-3 in
    single, 6e-6 in double precision) we take the slope halfway, which misses the difference by f''' d^3 / 24, less than its rounding. Functions
    with kinks keep the quotient until x and x0 are the same to rounding; it lies between their slopes. Roots, powers and exponentials have
    closed forms.
    """
    form = _FORMS.get(_form(operation))
    if form is not None:
        return form(x, x0, y, y0)
    d = x - x0
    eps = torch.finfo(x.dtype).eps
    if operation.name in PIECEWISE:
        at, near = x, d.abs() <= 4 * eps * torch.maximum(x.abs(), x0.abs())
    else:
        at = (x + x0) / 2
        near = d.abs() <= eps ** (1 / 3) * (at.abs() if operation.name in RELATIVE else 1.0)
    quotient = (y - y0) / torch.where(near, 1.0, d)
    if not bool(near.any()):
        return quotient
    return torch.where(near, operation.vjp([at], [torch.ones_like(at)])[0], quotient)


def log_mean(a: Tensor, b: Tensor, d: Tensor) -> Tensor:
    """(a - b) / d for positive a, b with d = log a - log b: the secant of exp, between a and b; 0 where both are 0."""
    d = d.abs()
    none = d == 0
    return torch.maximum(a, b) * torch.where(none, 1.0, -torch.expm1(-d) / torch.where(none, 1.0, d))


def relu_secant(x: Tensor, x0: Tensor) -> Tensor:
    """Of max(x, 0): exact for any two numbers, the slope at x where they are the same."""
    return _relu(x, x0, x.clamp(min=0), x0.clamp(min=0))


def _relu(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    d = x - x0
    same = d == 0
    return torch.where(same, (x > 0).to(x.dtype), (y - y0) / torch.where(same, 1.0, d))


def reciprocal_of_sum(a: Tensor, b: Tensor) -> Tensor:
    """1 / (a + b), the secant of the root of a and b; 0 where both roots are 0, as nothing came of them."""
    none = a + b == 0
    return torch.where(none, 0.0, 1 / torch.where(none, 1.0, a + b))


def _rsqrt(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    return -((y * y0) ** 2) / (y + y0)


_FORMS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "relu": _relu,
    "exp": lambda x, x0, y, y0: log_mean(y, y0, x - x0),
    "square": lambda x, x0, y, y0: x + x0,
    "sqrt": lambda x, x0, y, y0: reciprocal_of_sum(y, y0),
    "rsqrt": _rsqrt,
    "reciprocal": lambda x, x0, y, y0: -y * y0,
    "div": lambda x, x0, y, y0: -y / x0,  # c / x
}
_POWERS = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}


def _form(operation: Operation) -> str:
    """Which closed form, if any: powers by their exponent."""
    if operation.name != "pow":
        return operation.name
    base, exponent = operation.args[:2]
    return _POWERS.get(exponent, "") if isinstance(base, Slot) and isinstance(exponent, int | float) else ""
