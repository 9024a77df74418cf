"""Layer-wise relevance propagation through linear maps y = A x (+ b).

Every rule chooses contributions q_ij of input i to output j and shares out R_i = sum_j q_ij / (sum_i q_ij) R_j. A unit whose contributions vanish
but that has relevance hands it out evenly (`spread`), so that nothing is lost; the amount is noted.

Notation: x+ and x- are the positive and negative parts of x; the same for A. z_j is the sum of the contributions.
Source of the rules: Bach et al. 2015; Montavon et al. 2017, 2019; Ayyar et al. 2021 Sec. on LRP.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from explainode.errors import UserError, nearest
from explainode.relevance.linear import Convolution, LinearMap
from explainode.relevance.operations import Linear, Operation
from explainode.relevance.rule import Relevance, Rule, divide, ratio, split_signs, stabilized, vanishing
from explainode.relevance.walk import Walk

BIASES = ("drop", "absorb", "distribute")
Part = tuple[Tensor, LinearMap | None]  # x or a part of it, and the map by which it contributes


def check_bias(bias: str) -> None:
    """Raises a UserError unless `bias` is one of `BIASES`."""
    if bias not in BIASES:
        raise UserError(
            f"bias must be one of {', '.join(BIASES)}, got {bias!r}; the nearest are {nearest(bias, BIASES)}"
        )


def joined(parts: list[Part]) -> list[Part]:
    """The same parts side by side, as one convolution of as many times the channels, where these are few: pixels.

    Kernels take channels in blocks of 8 or 16, so that for the first layer two parts cost what one does.
    """
    maps = [A for _, A in parts if isinstance(A, Convolution) and A.groups == 1 and not A.transposed]
    if len(maps) < max(2, len(parts)) or sum(A.weight.shape[1] for A in maps) > 16:
        return parts
    return [(torch.cat([x for x, _ in parts], 1), replace(maps[0], weight=torch.cat([A.weight for A in maps], 1)))]


def contributions(parts: list[Part]) -> Tensor:
    """z: what the parts contribute to each output together."""
    total: Tensor | None = None
    for x, A in joined(parts):
        if A is not None:
            z = A(x)
            total = z if total is None else total.add_(z)
    assert total is not None
    return total


def hand_back(parts: list[Part], s: Tensor, x: Tensor) -> Tensor:
    """sum over the parts of x * A^T s, with s = R / z."""
    total: Tensor | None = None
    for part, A in joined(parts):
        if A is not None:
            share = A.transpose(s, part).mul_(part)
            if share.shape != x.shape:
                share = share.unflatten(1, (-1, x.shape[1])).sum(1)
            total = share if total is None else total.add_(share)
    assert total is not None
    return total


@dataclass(frozen=True)
class LinearRule(Rule):
    """What the rules for linear maps share: the treatment of the bias and of units without contributions.

    Args:
        bias: `drop`: z is without b, all relevance goes to the inputs; `absorb`: b belongs to z and keeps its share;
            `distribute`: b belongs to z and its share is handed out evenly to the inputs.

    Raises:
        UserError: for any other word.
    """

    kinds = ("linear", "average")
    bias: str = field(default="drop", kw_only=True)

    def __post_init__(self) -> None:
        check_bias(self.bias)

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        assert isinstance(operation, Linear)
        (R,) = relevance
        assert R is not None
        return (self.share(operation, R, walk),)

    def share(self, operation: Linear, R: Tensor, walk: Walk) -> Tensor:
        """The relevance of the input from that of the output."""
        raise NotImplementedError

    def hand_out(
        self, operation: Linear, R: Tensor, z: Tensor, parts: list[Part], walk: Walk, bias: Tensor | None = None
    ) -> Tensor:
        """R_i = sum_j q_ij / z_j R_j with the parts' contributions q; `bias` is the bias's own contribution to z."""
        x = operation.inputs[0].data
        if bias is not None and self.bias != "drop":
            z = z + bias
        s, lost = divide(R, z)
        share = hand_back(parts, s, x)
        return self.hand_out_rest(operation, share, s, lost, walk, bias)

    def hand_out_rest(
        self, operation: Linear, share: Tensor, s: Tensor, lost: Tensor | None, walk: Walk, bias: Tensor | None
    ) -> Tensor:
        """`share` and, spread evenly, what units without contributions had (`lost`) and what a distributed bias takes of s = R / z."""
        if lost is not None:
            walk.note("spread", operation.output, lost)
            share += spread(operation, lost)
        if bias is not None and self.bias == "distribute":
            share += spread(operation, s * bias)
        return share


def spread(operation: Linear, R: Tensor) -> Tensor:
    """R handed out evenly to all inputs that are connected with each output."""
    return operation.map.spread(R, operation.inputs[0].data)


@dataclass(frozen=True)
class Epsilon(LinearRule):
    """q_ij = x_i a_ij, with epsilon sign(z_j) added to z_j, which absorbs a part of what is uncertain.

    Args:
        epsilon: absolute, or with `relative` a multiple of the root mean square of z over each image.

    With epsilon = 0 this is LRP-0; with `bias="absorb"` on top LRP-0 of a ReLU network is input * gradient.

    Source: Bach et al. 2015, Eq. 58. Ayyar et al. 2021 prints +epsilon without the sign, which is a typo.
    """

    epsilon: float = 1e-6
    relative: bool = False
    bias: str = field(default="absorb", kw_only=True)

    def share(self, operation: Linear, R: Tensor, walk: Walk) -> Tensor:
        x = operation.inputs[0].data
        b = operation.bias
        z = operation.map(x) if b is not None and self.bias == "drop" else operation.output.data
        epsilon: float | Tensor = self.epsilon
        if self.relative:
            size = walk.samples.sum(operation.output, z.square()) / (z.numel() / walk.tape.batch)
            epsilon = self.epsilon * walk.samples.spread(operation.output, size.sqrt())
        s = ratio(R, z) if self.epsilon == 0 else R / stabilized(z, epsilon)
        share = operation.transpose(s).mul_(x)
        return self.hand_out_rest(operation, share, s, None, walk, b)


@dataclass(frozen=True)
class ZPlus(LinearRule):
    """q_ij = (x_i a_ij)+: only what speaks for the output, z_j = sum_i x_i+ a_ij+ + x_i- a_ij-. LRP-alpha1-beta0; deep Taylor for ReLU layers.

    Source: Montavon et al. 2017, Eq. 13, for x >= 0; for inputs of both signs Bach et al. 2015, Eq. 60 with alpha = 1.
    """

    def share(self, operation: Linear, R: Tensor, walk: Walk) -> Tensor:
        parts = positive_parts(operation, operation.inputs[0].data)
        return self.hand_out(operation, R, contributions(parts), parts, walk, _positive(operation.bias))


def positive_parts(operation: Linear, x: Tensor) -> list[Part]:
    """x+ with A+ and x- with A-, the second only where x can be negative."""
    A = operation.map
    if operation.inputs[0].nonnegative:
        return [(x, A.positive)]
    return [(x.clamp(min=0), A.positive), (x.clamp(max=0), A.negative)]


def negative_parts(operation: Linear, x: Tensor) -> list[Part]:
    """x+ with A- and x- with A+: what speaks against the output."""
    A = operation.map
    if operation.inputs[0].nonnegative:
        return [(x, A.negative)]
    return [(x.clamp(min=0), A.negative), (x.clamp(max=0), A.positive)]


def _positive(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.clamp(min=0)


@dataclass(frozen=True)
class AlphaBeta(LinearRule):
    """R_i = sum_j (alpha (x_i a_ij)+ / z_j+ - beta (x_i a_ij)- / z_j-) R_j with alpha - beta = 1.

    Where nothing speaks against an output (or for it), the other side takes all of R_j: so the sum stays, which the plain rule does not promise.

    Raises:
        UserError: if alpha - beta is not 1.

    Source: Bach et al. 2015, Eq. 60.
    """

    alpha: float = 2.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if abs(self.alpha - self.beta - 1) > 1e-9 or self.beta < 0:
            raise UserError(
                f"alpha - beta must be 1 with beta >= 0, got {self.alpha} and {self.beta}; try 2 and 1, or 1 and 0"
            )

    def share(self, operation: Linear, R: Tensor, walk: Walk) -> Tensor:
        x, b = operation.inputs[0].data, operation.bias
        for_it, against = positive_parts(operation, x), negative_parts(operation, x)
        z_plus = contributions(for_it)
        if all(A is None for _, A in against):
            return self.hand_out(operation, R, z_plus, for_it, walk, _positive(b))
        z_minus = contributions(against)
        b_plus, b_minus = (None, None) if b is None or self.bias == "drop" else (b.clamp(min=0), b.clamp(max=0))
        none_for, none_against = (
            vanishing(z_plus + (0 if b_plus is None else b_plus)),
            vanishing(z_minus + (0 if b_minus is None else b_minus)),
        )
        R_plus = torch.where(none_against, R, torch.where(none_for, 0.0, self.alpha * R))
        R_minus = torch.where(none_against, 0.0, torch.where(none_for, R, -self.beta * R))
        R_plus = torch.where(none_for & none_against, R, R_plus)
        share = self.hand_out(operation, R_plus, z_plus, for_it, walk, b_plus)
        return share + self.hand_out(operation, R_minus, z_minus, against, walk, b_minus)


@dataclass(frozen=True)
class Gamma(LinearRule):
    """q_ij = x_i (a_ij + gamma a_ij+) for x >= 0: contributions that speak for the output count more.

    For inputs or outputs of both signs: what has the sign of the output counts more, q_ij = x_i a_ij + gamma (x_i a_ij)+ where y_j >= 0 and
    x_i a_ij + gamma (x_i a_ij)- where y_j < 0.

    Source: Montavon et al. 2019; the general form is that of Andéol et al. 2021. Where the bias is dropped, we look at the sign of z_j instead of
    y_j: only so the denominator is never smaller than what the inputs contribute. (Zennit looks at y_j.)
    """

    gamma: float = 0.25

    def share(self, operation: Linear, R: Tensor, walk: Walk) -> Tensor:
        x, b = operation.inputs[0].data, operation.bias
        z_plus = contributions(positive_parts(operation, x))
        z = operation.output.data if b is None else operation.output.data - b
        sign, s, lost, bias = self._divide(operation, R, z, z_plus)
        if b is not None and bool((s.abs() * b.abs()).sum() > 1000 * R.abs().sum()):
            sign, s, lost, bias = self._divide(
                operation, R, operation.map(x), z_plus
            )  # beside such biases z is mostly rounding
        s_plus, s_minus = split_signs(s, sign)
        share = hand_back(_favored(operation, x, self.gamma, 1), s_plus, x)
        if any(s_minus.aminmax()):  # not before a rectifier
            share += hand_back(_favored(operation, x, self.gamma, -1), s_minus, x)
        return self.hand_out_rest(operation, share, s, lost, walk, bias)

    def _divide(
        self, operation: Linear, R: Tensor, z: Tensor, z_plus: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Whose sign decides, s = R / sum_i q_ij, the R of units whose sum vanishes, and the bias's contribution."""
        b = operation.bias
        sign = z if self.bias == "drop" else operation.output.data
        with_it, against = split_signs(z_plus, sign)[0], split_signs(z - z_plus, sign)[1]
        d = with_it.add_(against).mul_(self.gamma).add_(z)
        bias = None
        if b is not None and self.bias != "drop":
            bias = b + self.gamma * torch.where(sign >= 0, b.clamp(min=0), b.clamp(max=0))
            d += bias
        return (sign, *divide(R, d), bias)


def _favored(operation: Linear, x: Tensor, gamma: float, sign: int) -> list[Part]:
    """x_i a_ij plus gamma times its positive (sign 1) or negative (-1) part, as a sum of linear maps."""
    A = operation.map
    if A.negative is None:  # an average: what it does to x follows the signs of x
        return [(x + gamma * (x.clamp(min=0) if sign > 0 else x.clamp(max=0)), A)]
    raise_positive = A.entries(lambda a: a + gamma * a.clamp(min=0))
    raise_negative = A.entries(lambda a: a + gamma * a.clamp(max=0))
    first, second = (raise_positive, raise_negative) if sign > 0 else (raise_negative, raise_positive)
    if operation.inputs[0].nonnegative:
        return [(x, first)]
    return [(x.clamp(min=0), first), (x.clamp(max=0), second)]


@dataclass(frozen=True)
class WSquare(LinearRule):
    """q_ij = a_ij^2, for inputs that may be anything; does not look at x. A bias that keeps its share contributes b_j^2.

    Source: Montavon et al. 2017, Eq. 12.
    """

    def share(self, operation: Linear, R: Tensor, walk: Walk) -> Tensor:
        ones = torch.ones_like(operation.inputs[0].data)
        parts: list[Part] = [(ones, operation.map.squared)]
        b = operation.bias
        return self.hand_out(operation, R, contributions(parts), parts, walk, None if b is None else b.square())


@dataclass(frozen=True)
class Flat(LinearRule):
    """q_ij = 1: every connected input gets the same.

    Source: Lapuschkin et al. 2019 (LRP-flat).
    """

    def share(self, operation: Linear, R: Tensor, walk: Walk) -> Tensor:
        return spread(operation, R)


@dataclass(frozen=True)
class ZBox(LinearRule):
    """q_ij = x_i a_ij - l_i a_ij+ - h_i a_ij-, for inputs between l and h: the first layer, on pixels.

    Args:
        low, high: of the pixels; the network's own normalization carries them to the first linear layer.

    Raises:
        UserError: if low >= high; on the walk, if the layer does not see the pixels.

    Source: Montavon et al. 2017, Eq. 14.
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low >= self.high:
            raise UserError(f"low must be below high, got {self.low} and {self.high}; pixels lie in [0, 1]")

    def share(self, operation: Linear, R: Tensor, walk: Walk) -> Tensor:
        x, pixels = operation.inputs[0].data, walk.tape.input.data
        box = walk.bounds(operation.inputs[0], torch.full_like(pixels, self.low), torch.full_like(pixels, self.high))
        if box is None:
            raise UserError(
                f"the z^B rule at {operation} needs pixels between bounds, and this layer does not see them; use z+ there"
            )
        low, high = box
        A = operation.map  # x a - l a+ - h a- = (x - l) a+ + (x - h) a-
        parts: list[Part] = [(x - low, A.positive), (x - high, A.negative)]
        return self.hand_out(operation, R, contributions(parts), parts, walk)
