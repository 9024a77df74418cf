"""Rules for attention: products of two explained matrices, and softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from explainode.relevance.operations import Bilinear, Operation, Softmax
from explainode.relevance.rule import Relevance, Rule, ratio, stabilized, vanishing
from explainode.relevance.rules.structure import GATES, made_by

if TYPE_CHECKING:
    from explainode.relevance.walk import Walk


def matrices(operation: Operation) -> tuple[Tensor, Tensor]:
    """The two factors a (..., n, k) and b (..., k, m)."""
    a, b = (value.data for value in operation.inputs)
    return a, b


@dataclass(frozen=True)
class HalfBilinear(Rule):
    """R_a = a * (s b^T) / 2 and R_b = b * (a^T s) / 2 with s = R / (a b): each factor takes its proportional share of half.

    Args:
        positive: only products a_ik b_kj that speak for the result, so that nothing grows where they cancel.
        epsilon: added to the denominator with its sign.

    Source: Chefer et al. 2021 (signed); Achtibat et al. 2024, Eq. 14. `positive` is ours: the z+ rule for two inputs.
    """

    kinds = ("bilinear",)
    positive: bool = True
    epsilon: float = 0.0

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        assert isinstance(operation, Bilinear)
        (R,) = relevance
        assert R is not None
        a, b = matrices(operation)
        pairs = [(a, b)]
        if self.positive:
            pairs = [(a.clamp(min=0), b.clamp(min=0)), (a.clamp(max=0), b.clamp(max=0))]
        z = stabilized(sum((p @ q for p, q in pairs[1:]), pairs[0][0] @ pairs[0][1]), self.epsilon)
        s = ratio(R, z) / 2
        share_a = sum((p * (s @ q.mT) for p, q in pairs[1:]), pairs[0][0] * (s @ pairs[0][1].mT))
        share_b = sum((q * (p.mT @ s) for p, q in pairs[1:]), pairs[0][1] * (pairs[0][0].mT @ s))
        lost = torch.where(vanishing(z), R, 0.0)
        if bool(lost.any()):
            walk.note("spread", operation.output, lost)
            share_a = share_a + (lost.sum(-1, keepdim=True) / (2 * a.shape[-1])).expand_as(a)
            share_b = share_b + (lost.sum(-2, keepdim=True) / (2 * b.shape[-2])).expand_as(b)
        return share_a, share_b


@dataclass(frozen=True)
class ConstantAttention(Rule):
    """Attention times values: the attention is a constant matrix, the values take all relevance; any other product is shared out by halves.

    Args:
        positive: values by the z+ rule (attention is never negative); else by z = A V with `epsilon`.

    Source: Ali et al. 2022 (CP-LRP).
    """

    kinds = ("bilinear",)
    positive: bool = True
    epsilon: float = 0.0

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        (R,) = relevance
        assert R is not None
        a, b = matrices(operation)
        attention = [made_by(value) in GATES for value in operation.inputs]
        if attention[0] == attention[1]:
            return HalfBilinear(self.positive, self.epsilon).propagate(operation, relevance, walk)
        if attention[1]:  # values on the left: transpose the picture
            return _shared(b.mT, a.mT, R.mT, self, operation, walk, transposed=True), None
        return None, _shared(a, b, R, self, operation, walk)


def _shared(A: Tensor, V: Tensor, R: Tensor, rule: ConstantAttention, operation: Operation, walk: Walk, transposed: bool = False) -> Tensor:
    """R_V = V * A^T (R / (A V))."""
    V = V.clamp(min=0) if rule.positive else V
    z = stabilized(A @ V, rule.epsilon)
    share = V * (A.mT @ ratio(R, z))
    lost = torch.where(vanishing(z), R, 0.0)
    if bool(lost.any()):
        walk.note("spread", operation.output, lost.mT if transposed else lost)
        share = share + (lost.sum(-2, keepdim=True) / V.shape[-2]).expand_as(V)
    return share.mT if transposed else share


@dataclass(frozen=True)
class SoftmaxTaylor(Rule):
    """R_i = x_i (R_i - s_i sum_j R_j): the first-order share at x, the offset absorbed.

    Source: Achtibat et al. 2024, Eq. 13 (AttnLRP).
    """

    kinds = ("softmax",)

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        assert isinstance(operation, Softmax)
        (R,), x, s = relevance, operation.inputs[0].data, operation.output.data
        assert R is not None
        finite = torch.where(s > 0, x, 0.0)  # masked entries are -inf
        return (finite * (R - s * R.sum(operation.dim, keepdim=True)),)
