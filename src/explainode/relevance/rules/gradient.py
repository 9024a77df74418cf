"""The chain rule, and the two ways of bending it at rectifiers: deconvnet and guided backpropagation."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from explainode.relevance.operations import Activation, Affine, Linear, Operation, Slot, Sum
from explainode.relevance.rule import KINDS, Relevance, Rule, fit
from explainode.relevance.walk import Walk

aten = torch.ops.aten

RECTIFIERS = (
    "relu",
    "leaky_relu",
    "hardtanh",
    "elu",
    "gelu",
    "silu",
    "hardswish",
    "mish",
    "softplus",
    "celu",
    "selu",
    "threshold",
    "_prelu_kernel",
)


@dataclass(frozen=True)
class Gradient(Rule):
    """(d output / d input)^T R: the chain rule, for every operation of the table.

    Args:
        stop_at_detach: what the network detaches has no gradient, as in autograd; else it is a function like any other.
    """

    kinds = KINDS
    stop_at_detach: bool = field(default=True, kw_only=True)

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        if operation.name == "detach" and self.stop_at_detach:
            return (None,)
        (x, *others), R = operation.inputs, relevance[0]
        if R is not None and isinstance(operation, Sum):
            pairs = zip(operation.signs, operation.inputs, strict=True)
            return tuple(fit(R if sign == 1 else sign * R, value.data.shape) for sign, value in pairs)
        if R is not None and not others and len(relevance) == 1:
            if isinstance(operation, Linear) and operation.kind == "linear":
                return (operation.transpose(R),)
            if isinstance(operation, Affine):
                if operation.name in ("add", "sub") and isinstance(operation.args[0], Slot):  # an offset
                    return (fit(R, x.data.shape),)
                return (fit(operation.slope * R, x.data.shape),)
            if isinstance(operation, Activation) and operation.name == "relu":
                return (aten.threshold_backward(R, x.data, 0),)
        return operation.vjp([value.data for value in operation.inputs], relevance)


@dataclass(frozen=True)
class Deconvnet(Gradient):
    """At a rectifier only what is positive on the way back passes, whatever was positive on the way there.

    Source: Zeiler & Fergus 2014; Ayyar et al. 2021. For smooth rectifiers (GELU, SiLU) we multiply by no slope either.
    """

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        if operation.kind == "activation" and operation.name in RECTIFIERS:
            return (_positive(relevance),)
        return super().propagate(operation, relevance, walk)


@dataclass(frozen=True)
class Guided(Gradient):
    """At a rectifier only what is positive on the way back and was positive on the way there passes.

    Source: Springenberg et al. 2015; Ayyar et al. 2021. For smooth rectifiers (GELU, SiLU) we take the gradient of what is positive on the way back.
    """

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        if operation.kind == "activation" and operation.name in RECTIFIERS:
            relevance = (_positive(relevance),)
            if operation.name == "relu":
                return (
                    aten.threshold_backward.grad_input(
                        relevance[0], operation.inputs[0].data, 0, grad_input=relevance[0]
                    ),
                )
        return super().propagate(operation, relevance, walk)


def _positive(relevance: Relevance) -> Tensor:
    (R,) = relevance
    assert R is not None
    return R.clamp(min=0)
