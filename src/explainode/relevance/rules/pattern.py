"""PatternNet and PatternAttribution: each neuron's pattern, the direction of its inputs that carries its signal, learned from data.

A neuron y = w^T x also weighs what it only has to cancel, so its weights do not show what it looks for. The pattern a is the covariance of input and
output where the neuron is active: a y is what of x can be told from y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from explainode.errors import UserError
from explainode.relevance.linear import Convolution, MatrixProduct
from explainode.relevance.operations import Linear, Operation
from explainode.relevance.rule import Relevance, ratio
from explainode.relevance.rules.gradient import Gradient
from explainode.relevance.tape import Tape
from explainode.relevance.walk import Walk

aten = torch.ops.aten


@dataclass(eq=False)
class Neurons:
    """Running means over the inputs x at which each neuron of one linear operation has y = w^T x > 0, in double precision.

    Attributes:
        n: how many there were; y, yy: means of y and y^2, per neuron; x, xy: means of x and x y, in the shape of the weights.
    """

    n: Tensor
    y: Tensor
    yy: Tensor
    x: Tensor
    xy: Tensor

    @classmethod
    def of(cls, operation: Linear) -> Neurons:
        weight = _matrix(operation).weight
        per_neuron = torch.zeros_like(_per_neuron(operation, operation.output.data), dtype=torch.float64)
        return cls(
            per_neuron,
            per_neuron.clone(),
            per_neuron.clone(),
            *(torch.zeros_like(weight, dtype=torch.float64) for _ in range(2)),
        )

    def add(self, operation: Linear) -> None:
        """What one recorded call saw."""
        y = operation.output.data if operation.bias is None else operation.output.data - operation.bias
        active = (y > 0).to(y.dtype)
        y = y * active
        count = _per_neuron(operation, active)
        total = self.n + count
        share = ratio(count, total)  # of the new among all
        for name, found in (("y", _per_neuron(operation, y)), ("yy", _per_neuron(operation, y.square()))):
            mean = getattr(self, name)
            setattr(self, name, mean + share * (ratio(found, count) - mean))
        for name, cotangent in (("x", active), ("xy", y)):
            mean, found = getattr(self, name), _correlation(operation, cotangent).double()
            count_w, share_w = (_over_weights(operation, scalars) for scalars in (count, share))
            setattr(self, name, mean + share_w * (ratio(found, count_w.expand_as(found)) - mean))
        self.n = total

    def pattern(self, operation: Linear) -> Tensor:
        """a = (E[x y] - E[x] E[y]) / (E[y^2] - E[y]^2), in the shape of the weights; 0 for neurons that never varied."""
        over = lambda scalars: _over_weights(operation, scalars)  # noqa: E731
        variance = self.yy - self.y.square()
        variance = torch.where(variance > 1e-12 * self.yy, variance, 0.0)  # the rest is rounding
        return ratio(self.xy - self.x * over(self.y), over(variance).expand_as(self.xy))


def linear_operations(tape: Tape) -> list[Linear]:
    """The operations that have patterns, in the order of computing."""
    return [operation for operation in tape.operations if isinstance(operation, Linear) and operation.kind == "linear"]


@dataclass(frozen=True, eq=False)
class Pattern(Gradient):
    """The chain rule with patterns a (`signal`), or w a (`attribution`), in the place of the weights w.

    Args:
        patterns: of the linear operations of the network, in the order of computing.
        attribution: w a.

    Raises:
        UserError: on the walk, if the network is not the one that the patterns are of.

    Source: Kindermans et al. 2018, Eq. 8 and Sec. 4. We take BatchNorm as part of the convolution before it.
    """

    patterns: Sequence[Tensor] = field(default=(), repr=False)
    attribution: bool = False

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        if not isinstance(operation, Linear) or operation.kind != "linear":
            return super().propagate(operation, relevance, walk)
        (R,) = relevance
        assert R is not None
        matrix, number = _matrix(operation), linear_operations(walk.tape).index(operation)
        if number >= len(self.patterns) or self.patterns[number].shape != matrix.weight.shape:
            raise UserError(
                f"the patterns do not fit {operation}: they are of another network; fit the explainer to this one"
            )
        pattern = self.patterns[number].to(matrix.weight)
        weight = matrix.weight * pattern if self.attribution else pattern
        return (replace(matrix, weight=weight).transpose(R, operation.inputs[0].data),)


def _matrix(operation: Linear) -> Convolution | MatrixProduct:
    """The map, if patterns are known for it: convolutions, and products x W with one matrix W."""
    found = operation.map
    if isinstance(found, Convolution) and not found.transposed:
        return found
    if isinstance(found, MatrixProduct) and found.on_left and found.weight.dim() == 2:
        return found
    raise UserError(
        f"patterns are known for convolutions and dense layers, not for {operation}; use a relevance method (dtd_z_box)"
    )


def _per_neuron(operation: Linear, y: Tensor) -> Tensor:
    """The sum over images and places, per neuron, in double precision: (C',)."""
    if isinstance(operation.map, Convolution):
        return y.double().sum([0, *range(2, y.dim())])
    return y.double().flatten(0, -2).sum(0)


def _over_weights(operation: Linear, scalars: Tensor) -> Tensor:
    """One number per neuron, broadcastable to the weights: (C', C, *kernel), or (inputs, neurons) of x W."""
    matrix = _matrix(operation)
    return scalars.view(-1, *[1] * (matrix.weight.dim() - 1)) if isinstance(matrix, Convolution) else scalars


def _correlation(operation: Linear, r: Tensor) -> Tensor:
    """The sum of r_j x over images and places, in the shape of the weights: the gradient of <r, A x> by the weights."""
    matrix, x = _matrix(operation), operation.inputs[0].data
    if isinstance(matrix, MatrixProduct):
        return x.flatten(0, -2).mT @ r.flatten(0, -2)
    return aten.convolution_backward(
        r,
        x,
        matrix.weight,
        None,
        matrix.stride,
        matrix.padding,
        matrix.dilation,
        False,
        matrix.output_padding,
        matrix.groups,
        [False, True, False],
    )[1]
