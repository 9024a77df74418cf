"""DeepLIFT: multipliers of differences from a baseline, exact for every operation of the table.

A multiplier m of a unit says what it contributes to the difference of the scores: m times its own difference. Linear maps hand multipliers back
by their transpose, as they hand back gradients; functions of one number by their secant; functions of several numbers are taken apart into such.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from explainode.errors import UserError
from explainode.relevance.comparison import Comparison
from explainode.relevance.operations import Affine, Length, Linear, Operation, Slot, Softmax, Sum
from explainode.relevance.rule import KINDS, Relevance, Rule, fit
from explainode.relevance.rules.gradient import Gradient
from explainode.relevance.secant import log_mean, reciprocal_of_sum, relu_secant, secant
from explainode.relevance.walk import Walk

CHAIN = Gradient(stop_at_detach=False)
# functions of any number that grow no faster than it: x0 plus a part of the difference is as good an input as x
REVEALED = {
    "relu", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus", "hardswish", "hardsigmoid", "hardtanh", "sigmoid", "tanh",
    "clamp", "clamp_min", "clamp_max", "threshold", "maximum", "minimum", "erf", "abs",
}  # fmt: skip


@dataclass(frozen=True)
class Rescale(Rule):
    """m_x = m_y (y - y0) / (x - x0), and the gradient where x and x0 are the same. Walks along a `Comparison`.

    - A product: delta(a b) = (a + a0) / 2 delta b + (b + b0) / 2 delta a, for numbers and for matrices.
    - A quotient y = a / b: the two ways of telling the product a = y b apart, weighed by b and b0.
    - A maximum: max(a, b) = b + relu(a - b); in a pooling window the winner of the larger maximum, on the image or on the baseline, takes the
      difference; it moved at least as far, so its multiplier is between 0 and 1.
    - Softmax: s = exp(x - log sum exp x).
    - Normalization: c / sqrt(mean c^2 + epsilon) with c = x - mean x, by square, root and quotient.

    The sum of m (x - x0) over the pixels is the difference of the scores, whatever the network and the baseline.

    Raises:
        UserError: on the walk, at a `where` that is neither a maximum nor a minimum and chooses otherwise on the baseline, or where a constant
            is another one there.

    Source: Shrikumar et al. 2017 (linear, rescale); Chen et al. 2022 justify it per operation; the midpoint of a product is its Shapley value.
    We take neither a quotient as a times 1 / b nor softmax as e / sum e by midpoints. Both would be complete, but with exploding multipliers: a flat
    baseline has deviations near 0, which multiply by 1 / sqrt(epsilon) at every normalization until the sum is lost in rounding (a = y b by its
    midpoint would still double them), and scores that rise together by t get multipliers of the order of sinh t for an output that has not moved.
    """

    kinds = KINDS

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        assert isinstance(walk, Comparison)
        walk.check(operation)
        halves = tuple(walk.halves.pop(id(output), None) for output in operation.outputs)
        walk.forget(operation)
        shares = self.multipliers(operation, relevance, walk)
        if all(half is None for half in halves):
            return shares
        back = _halves(operation, halves, walk)
        if isinstance(operation, Linear):  # its inputs count as wholes
            (m,), (half,), (x,) = shares, back, operation.inputs
            assert m is not None and half is not None
            return (m + walk.delta(x).sign() * half,)
        return tuple(
            m if m is None or half is None else m + walk.carry(value, half)
            for value, m, half in zip(operation.inputs, shares, back, strict=True)
        )

    def multipliers(self, operation: Operation, relevance: Relevance, walk: Comparison) -> Relevance:
        """m of each input from m of each output."""
        if operation.kind in ("linear", "average", "affine", "rearrangement"):
            return CHAIN.propagate(operation, relevance, walk)
        (m,) = relevance
        assert m is not None
        if isinstance(operation, Sum):
            return tuple(
                fit(sign * m, value.data.shape) for sign, value in zip(operation.signs, operation.inputs, strict=True)
            )
        if operation.kind == "activation":
            return (self.activation(operation, m, walk),)
        if operation.kind in ("product", "bilinear"):
            return _product(operation, m, walk)
        if isinstance(operation, Softmax):
            return (_softmax(operation, m, walk),)
        if operation.kind == "norm":
            return (_norm(operation, m, walk),)
        if isinstance(operation, Length):
            return (_length(operation, m, walk),)
        return _maximum(operation, m, walk)

    def activation(self, operation: Operation, m: Tensor, walk: Comparison) -> Tensor:
        """m of the input of a function of each element alone."""
        x, y = operation.inputs[0], operation.output
        slope = secant(operation, x.data, walk.before(x), y.data, walk.before(y))
        return fit(m * slope, x.data.shape)


@dataclass(frozen=True)
class RevealCancel(Rescale):
    """What speaks for a unit and what speaks against it get multipliers of their own, m+- = delta y+- / delta t+-, with

        delta y+ = 1/2 (f(t0 + t+) - f(t0)) + 1/2 (f(t0 + t+ + t-) - f(t0 + t-))        Eq. (23)
        delta y- = 1/2 (f(t0 + t-) - f(t0)) + 1/2 (f(t0 + t+ + t-) - f(t0 + t+))        Eq. (24)

    where t+ and t- add up the positive and the negative contributions to the difference of t: of the inputs of the linear map that made it, seen
    through sums, scales and rearrangements. Where no linear map made it there is one part, and this is `Rescale`, as it is for functions that
    are not defined everywhere or grow without bound (roots, powers, exponentials) and for functions of several numbers.

    Source: Shrikumar et al. 2017, Eq. 23-24 and Sec. 3.5.3. Where t+ or t- vanishes, the secants of the two steps become slopes.
    """

    def activation(self, operation: Operation, m: Tensor, walk: Comparison) -> Tensor:
        value = operation.inputs[0]
        x, x0, y, y0 = value.data, walk.before(value), operation.output.data, walk.before(operation.output)
        if operation.name not in REVEALED or x.shape != y.shape or not walk.has_parts(value):
            return super().activation(operation, m, walk)
        delta, spread = walk.delta(value), walk.spread(value)
        x_plus, x_minus = x0 + (delta + spread) / 2, x0 + (delta - spread) / 2  # x0 + t+, x0 + t-
        (y_plus,), (y_minus,) = operation.call(x_plus), operation.call(x_minus)
        m_plus = (secant(operation, x_plus, x0, y_plus, y0) + secant(operation, x, x_minus, y, y_minus)) / 2
        m_minus = (secant(operation, x_minus, x0, y_minus, y0) + secant(operation, x, x_plus, y, y_plus)) / 2
        return m * (m_plus + m_minus) / 2 + walk.carry(value, m * (m_plus - m_minus) / 2)


def _halves(operation: Operation, halves: Relevance, walk: Comparison) -> Relevance:
    """h of each input of a linear map from h of its outputs: |A|^T h, as a negative entry makes of what speaks for what speaks against."""
    if not isinstance(operation, Affine | Sum | Linear):
        return CHAIN.propagate(operation, halves, walk)
    (half,) = halves
    assert half is not None
    if isinstance(operation, Linear):
        return (operation.map.entries(torch.abs).transpose(half, operation.inputs[0].data),)
    if isinstance(operation, Affine):
        return (fit(operation.slope.abs() * half, operation.inputs[0].data.shape),)
    return tuple(
        fit(abs(sign) * half, value.data.shape) for sign, value in zip(operation.signs, operation.inputs, strict=True)
    )


def _product(operation: Operation, m: Tensor, walk: Comparison) -> Relevance:
    """delta(a b) = (a + a0) / 2 delta b + (b + b0) / 2 delta a."""
    (a, a0), (b, b0) = ((value.data, walk.before(value)) for value in operation.inputs)
    if operation.name == "div":
        m_a, m_b = _quotient(m, a / b, a0 / b0, b, b0)
    elif operation.name == "mul":
        m_a, m_b = m * (b + b0) / 2, m * (a + a0) / 2
    else:  # linear in each factor: the gradient at the midpoints
        return operation.vjp([(a + a0) / 2, (b + b0) / 2], [m])
    return fit(m_a, a.shape), fit(m_b, b.shape)


def _quotient(m: Tensor, y: Tensor, y0: Tensor, b: Tensor, b0: Tensor) -> tuple[Tensor, Tensor]:
    """m of a and of b for y = a / b, by (b^2 + b0^2) delta y = (b + b0) delta a - (b y0 + b0 y) delta b.

    The product a = y b differs by b delta y + y0 delta b, and as well by b0 delta y + y delta b: the sum of the two, weighed by b and b0. So the multiplier
    of a is never above 1.21 over the larger of |b| and |b0|, whatever the smaller is.
    """
    m = m / (b.square() + b0.square())
    return m * (b + b0), -m * (b * y0 + b0 * y)


def _softmax(operation: Softmax, m: Tensor, walk: Comparison) -> Tensor:
    """s = exp(x - L) with L = log Z, Z = sum exp x.

    m_i = k_i m_i - w_i sum_j k_j m_j with the secants k of exp at x - L, and w of L: those of exp at x over that of log at Z, all of them
    logarithmic means: k_i lies between s_i and s0_i, and the w_i add up to no more than 1.
    """
    value, dim = operation.inputs[0], operation.dim
    x, x0, s, s0 = value.data, walk.before(value), operation.output.data, walk.before(operation.output)
    L, L0 = (torch.logsumexp(scores, dim, keepdim=True) for scores in (x, x0))
    L, L0 = (torch.where(log.isinf(), 0.0, log) for log in (L, L0))  # every score masked: nothing to share
    delta, shift = walk.delta(value), L - L0
    k = log_mean(s, s0, delta - shift)
    c = torch.maximum(L, L0)  # any constant: it cancels
    w = log_mean((x - c).exp(), (x0 - c).exp(), delta) / log_mean((L - c).exp(), (L0 - c).exp(), shift)
    return k * m - w * (k * m).sum(dim, keepdim=True)


def _norm(operation: Operation, m: Tensor, walk: Comparison) -> Tensor:
    """y = weight c / sigma + bias, with c = x - mean x and sigma = sqrt(mean c^2 + epsilon) over the elements of one statistic.

    The quotient as `_product` has it, sigma by the secants of root and square, 1 / (sigma + sigma0) and c + c0.
    """
    value, weight, epsilon = operation.inputs[0], operation.args[1], operation.args[-1]
    x, x0 = value.data, walk.before(value)
    if operation.name == "native_layer_norm":
        shape, weight = operation.args[1], operation.args[2]
        grouped, dims = x.shape, tuple(range(-len(shape), 0))
    else:
        if weight is not None:
            weight = weight.view(-1, *[1] * (x.dim() - 2))
        groups = operation.args[6] if operation.name == "native_group_norm" else 0
        grouped = torch.Size((len(x), groups, x[0].numel() // groups)) if groups else x.shape
        dims = (-1,) if groups else (0, *range(2, x.dim()))
    g = (m if weight is None else m * weight).reshape(grouped)
    x, x0 = x.reshape(grouped), x0.reshape(len(x0), *grouped[1:])
    c, c0 = (part - part.mean(dims, keepdim=True) for part in (x, x0))
    sigma, sigma0 = ((part.square().mean(dims, keepdim=True) + epsilon).sqrt() for part in (c, c0))
    m_c, m_sigma = _quotient(g, c / sigma, c0 / sigma0, sigma, sigma0)
    elements = c.numel() // sigma.numel()
    m_c = m_c + m_sigma.sum(dims, keepdim=True) * (c + c0) / (elements * (sigma + sigma0))
    return (m_c - m_c.mean(dims, keepdim=True)).reshape(value.data.shape)


def _length(operation: Length, m: Tensor, walk: Comparison) -> Tensor:
    """n = sqrt(sum x^2): m_x = m (x + x0) / (n + n0), and 0 where both are 0."""
    x, n = operation.inputs[0], operation.output
    scaled = m * reciprocal_of_sum(n.data, walk.before(n))
    return operation.spread(scaled) * (x.data + walk.before(x))


def _maximum(operation: Operation, m: Tensor, walk: Comparison) -> Relevance:
    if operation.name == "where":
        return _where(operation, m, walk)
    if operation.name in ("maximum", "minimum") or len(operation.inputs) > 1:
        a, b = (_both(arg, operation, walk) for arg in operation.args[:2])
        return _larger(operation, m, a, b, smaller=operation.name == "minimum")
    return (_pool(operation, m, walk),)


def _both(argument: Any, operation: Operation, walk: Comparison) -> tuple[Any, Any]:
    """An argument of an operation on the image and on the baseline."""
    if not isinstance(argument, Slot):
        return argument, argument
    value = operation.inputs[argument.index]
    return value.data, walk.before(value)


def _larger(operation: Operation, m: Tensor, a: tuple[Any, Any], b: tuple[Any, Any], smaller: bool) -> Relevance:
    """max(a, b) = b + relu(a - b), min(a, b) = a - relu(a - b), shared out to those of a and b that are explained."""
    k = relu_secant(a[0] - b[0], a[1] - b[1])
    of_a, of_b = ((1 - k) * m, k * m) if smaller else (k * m, (1 - k) * m)
    start = 1 if operation.name == "where" else 0
    shares = zip(operation.args[start : start + 2], (of_a, of_b), strict=True)
    return _to_inputs(operation, [(argument, share) for argument, share in shares])


def _to_inputs(operation: Operation, shares: list[tuple[Any, Tensor]]) -> Relevance:
    found: list[Tensor | None] = [None] * len(operation.inputs)
    for argument, share in shares:
        if isinstance(argument, Slot):
            found[argument.index] = fit(share, operation.inputs[argument.index].data.shape)
    return tuple(found)


def _where(operation: Operation, m: Tensor, walk: Comparison) -> Relevance:
    """The same choice on both is linear; else it must be a maximum or a minimum of the two.

    Raises:
        UserError: if it is neither.
    """
    condition, first, second = operation.args
    condition0 = walk.partner(operation).args[0]
    if condition.shape == condition0.shape and torch.equal(condition, condition0):
        return _to_inputs(
            operation, [(first, torch.where(condition, m, 0.0)), (second, torch.where(condition, 0.0, m))]
        )
    a, b = (
        tuple(torch.as_tensor(part, dtype=m.dtype, device=m.device) for part in _both(arg, operation, walk))
        for arg in (first, second)
    )
    y = operation.output.data, walk.before(operation.output)
    for smaller, function in ((False, torch.maximum), (True, torch.minimum)):
        if all(bool((function(a[i], b[i]) == y[i]).all()) for i in range(2)):
            return _larger(operation, m, a, b, smaller)  # type: ignore[arg-type]
    raise UserError(
        f"{operation} chooses otherwise on the baseline than on the image, and is neither the maximum nor the minimum of its two values; "
        "write it with relu or maximum, or use a gradient method (ig)"
    )


def _pool(operation: Operation, m: Tensor, walk: Comparison) -> Tensor:
    """The winner of the larger maximum takes the difference, m (y - y0) / (x - x0) of its own; windows that share it add up."""
    value, output = operation.inputs[0], operation.output
    delta, y, y0 = walk.delta(value), output.data, walk.before(output)
    if "max_pool" in operation.name:
        axes = tuple(range(-2 if "2d" in operation.name else -3, 0))
        rows, places = delta.flatten(axes[0]), operation.extra[0].flatten(axes[0])
        places0 = walk.partner(operation).extra[0].flatten(axes[0])
    else:
        dims = operation.args[1] if len(operation.args) > 1 else ()
        axes = tuple(dim % delta.dim() for dim in ([dims] if isinstance(dims, int) else dims)) or tuple(
            range(delta.dim())
        )
        last = tuple(range(-len(axes), 0))
        rows, x, x0 = (part.movedim(axes, last).flatten(-len(axes)) for part in (delta, value.data, walk.before(value)))
        places, places0 = x.argmax(-1, keepdim=True), x0.argmax(-1, keepdim=True)
    of_images = 0 not in axes  # a baseline of one image may stand beside all of them
    m, y, y0 = (part.reshape(len(part) if of_images else places.shape[0], *places.shape[1:]) for part in (m, y, y0))
    chosen = torch.where(y >= y0, places, places0)
    moved = rows.gather(-1, chosen)
    share = m * torch.where(moved == 0, 1.0, (y - y0) / torch.where(moved == 0, 1.0, moved))
    routed = torch.zeros_like(rows).scatter_add(-1, chosen, share)
    if "max_pool" in operation.name:
        return routed.view(delta.shape)
    return routed.unflatten(-1, [delta.shape[axis] for axis in axes]).movedim(last, axes)
