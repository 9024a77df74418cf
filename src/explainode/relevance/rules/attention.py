"""Rules for transformers: products of two explained matrices, softmax, normalization with a constant scale, and residual sums that share by totals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from explainode.errors import UserError
from explainode.relevance.operations import Bilinear, Norm, Operation, Softmax, Sum
from explainode.relevance.rule import Relevance, Rule, fit, ratio, stabilized, vanishing
from explainode.relevance.rules.structure import GATES, made_by
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


def _shared(
    A: Tensor, V: Tensor, R: Tensor, rule: ConstantAttention, operation: Operation, walk: Walk, transposed: bool = False
) -> Tensor:
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


@dataclass(frozen=True)
class ConstantScale(Rule):
    """Layer and group normalization whose standard deviation is a constant: y = w (x - mean x) / sigma + b is linear, and shared out by epsilon.

    R_x = x * J^T (R / (y + epsilon sign y)) with J the Jacobian at constant sigma; the share of b is absorbed.

    Args:
        epsilon: added to y with its sign.

    Source: Ali et al. 2022 (LN rule); Achtibat et al. 2024, Prop. 3.4 (identity for 1 / sigma) and Eq. 8 (epsilon for what is linear).
    """

    kinds = ("norm",)
    epsilon: float = 1e-6

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        assert isinstance(operation, Norm)
        (R,), x = relevance, operation.inputs[0].data
        assert R is not None
        s = ratio(R, stabilized(operation.output.data, self.epsilon))
        return (x * centered_transpose(operation, s),)


def centered_transpose(operation: Norm, s: Tensor) -> Tensor:
    """J^T s of a normalization whose sigma is held constant: (w s - mean(w s)) / sigma, means over each normalized group.

    Raises:
        UserError: for a normalization other than by layers or groups.
    """
    x, args = operation.inputs[0].data, operation.args
    if operation.name == "native_layer_norm":
        _, shape, w, _, epsilon = args
        groups = x.reshape(-1, math.prod(shape))
        scaled = s if w is None else s * w
    elif operation.name == "native_group_norm":
        _, w, _, batch, channels, _, count, epsilon = args
        groups = x.reshape(batch * count, -1)
        scaled = s if w is None else s * w.view(1, channels, *[1] * (x.dim() - 2))
    else:
        raise UserError(
            f"{operation} normalizes neither layers nor groups, so its scale cannot be held constant; let its relevance pass"
        )
    sigma = (groups.var(1, correction=0, keepdim=True) + epsilon).sqrt()
    scaled = scaled.reshape_as(groups)
    return ((scaled - scaled.mean(1, keepdim=True)) / sigma).view_as(x)


@dataclass(frozen=True)
class ShareTotals(Rule):
    """R_a = a / (a + b) R and R_b likewise, each then scaled so that the totals over an image stand as |sum R_a| : |sum R_b| and add up to sum R.

    Source: Chefer et al. 2021, Eq. 9 and 10. Their code adds up over the batch; we over each image, which for one image is the same.
    """

    kinds = ("sum",)

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        assert isinstance(operation, Sum)
        (R,), output, samples = relevance, operation.output, walk.samples
        assert R is not None
        parts = [sign * value.data for sign, value in zip(operation.signs, operation.inputs, strict=True)]
        s = ratio(R, output.data)
        shares = [(part * s).expand_as(R) for part in parts]
        totals = [samples.sum(output, share) for share in shares]
        sizes = totals[0].abs() + totals[1].abs()
        arrived = samples.sum(output, R)
        scales = [ratio(ratio(total.abs(), sizes) * arrived, total) for total in totals]
        shares = [share * samples.spread(output, scale) for share, scale in zip(shares, scales, strict=True)]
        return tuple(fit(share, value.data.shape) for share, value in zip(shares, operation.inputs, strict=True))
