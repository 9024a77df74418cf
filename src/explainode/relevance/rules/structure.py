"""Rules for everything that is not a linear map: what passes, what is routed, what is split between two inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from explainode.errors import UserError, nearest
from explainode.relevance.operations import Affine, Operation, Slot, Sum
from explainode.relevance.rule import Relevance, Rule, divide, fit, ratio, stabilized
from explainode.relevance.walk import Walk


@dataclass(frozen=True)
class Pass(Rule):
    """Relevance passes unchanged, element by element: activations, normalization, softmax, scales and offsets.

    Source: Bach et al. 2015 for activations; Chefer et al. 2021 (layer norm, softmax); Achtibat et al. 2024 call it the identity rule.
    """

    kinds = ("affine", "activation", "norm", "softmax")

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        (R,) = relevance
        assert R is not None
        return (fit(R, operation.inputs[0].data.shape),)


@dataclass(frozen=True)
class AffineShare(Rule):
    """R_x = a x / (a x + c + epsilon sign) R: the offset keeps its share, as a bias that is absorbed."""

    kinds = ("affine",)
    epsilon: float = 0.0

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        assert isinstance(operation, Affine)
        (R,), x = relevance, operation.inputs[0].data
        assert R is not None
        return (fit(operation.slope * x * ratio(R, stabilized(operation.output.data, self.epsilon)), x.shape),)


@dataclass(frozen=True)
class Route(Rule):
    """Relevance goes where the value came from: to the winner of a maximum, to the place before a view, to each part of a concatenation.

    Args:
        constants: what lands on constants (a class token, padding) is handed out evenly over the inputs of the same image (`spread`), or stays
            there (`absorb`); either way the amount is noted.

    Raises:
        UserError: for any other word.
    """

    kinds = ("max", "rearrangement")
    constants: str = "spread"

    def __post_init__(self) -> None:
        _check(self.constants, ("spread", "absorb"), "constants")

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        shares = operation.vjp([value.data for value in operation.inputs], relevance)
        if not _has_constants(operation):
            return shares
        arrived = [walk.samples.sum(v, R) for v, R in zip(operation.outputs, relevance, strict=True) if R is not None]
        given = [walk.samples.sum(v, share) for v, share in zip(operation.inputs, shares, strict=True)]
        lost = torch.stack(arrived).sum(0) - torch.stack(given).sum(0)
        name = "spread" if self.constants == "spread" else "constants"
        walk.amounts[name] = walk.amounts[name] + lost.abs() if name in walk.amounts else lost.abs()
        if self.constants == "absorb":
            return shares
        elements = sum(value.data.numel() for value in operation.inputs) / walk.tape.batch
        return tuple(
            share + walk.samples.spread(value, lost / elements)
            for value, share in zip(operation.inputs, shares, strict=True)
        )


def _has_constants(operation: Operation) -> bool:
    """Whether some elements of the outputs come from constants."""
    name, args = operation.name, operation.args
    if name in ("cat", "stack"):
        return any(not isinstance(part, Slot) for part in args[0])
    if name == "index_put":
        return not (isinstance(args[0], Slot) and isinstance(args[2], Slot))
    if name == "where":
        return any(not isinstance(part, Slot) for part in args[1:3])
    return name in ("constant_pad_nd", "masked_fill")


@dataclass(frozen=True)
class Split(Rule):
    """R_a = q_a / (q_a + q_b) R at a sum a + b.

    Args:
        by: `positive`: q = a+, so that nothing grows; where neither is positive, half each. `signed`: q = a, over a + b + epsilon sign.
            `half`: half each. `rectified`: `positive` where the sum cannot be negative or a ReLU alone reads it, `signed` elsewhere.
        epsilon: of `signed`.

    Raises:
        UserError: for any other word.

    Source: Chefer et al. 2021 for the proportional split (`signed`). We prefer `positive`, which stays bounded where a and b cancel.
    Below LRP-0 and epsilon rules only what is rectified may be split so: R is proportional to a + b there, and a share R / 2 of a term that nearly
    vanishes is divided by that term in the layer that made it. Hence `rectified`, ours.
    """

    kinds = ("sum",)
    by: str = "positive"
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        _check(self.by, ("positive", "signed", "half", "rectified"), "by")

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        assert isinstance(operation, Sum)
        (R,) = relevance
        assert R is not None
        shapes = [value.data.shape for value in operation.inputs]
        if self.by == "half":
            return tuple(fit(R / 2, shape) for shape in shapes)
        q_a, q_b = (
            value.data if sign == 1 else sign * value.data
            for sign, value in zip(operation.signs, operation.inputs, strict=True)
        )
        if self.by == "positive" or (
            self.by == "rectified" and (operation.rectified == "relu" or operation.output.nonnegative)
        ):
            q_a, q_b = q_a.clamp(min=0), q_b.clamp(min=0)
        s, neither = divide(R, stabilized(q_a + q_b, self.epsilon))
        shares = [q_a * s, q_b * s]
        if neither is not None:
            shares = [share + neither / 2 for share in shares]
        return tuple(fit(share, shape) for share, shape in zip(shares, shapes, strict=True))


@dataclass(frozen=True)
class Gate(Rule):
    """At a product one factor is the signal and takes all; the other, the gate, is held constant.

    The gate is the factor with fewer elements, else the one that a sigmoid or softmax made, else the second. A denominator is always a gate.

    Source: Arras et al. 2019 (signal-take-all); as CP-LRP for attention, Ali et al. 2022.
    """

    kinds = ("product",)

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        (R,) = relevance
        assert R is not None
        signal = 0 if operation.name == "div" else 1 - gate(operation)
        shares: list[Tensor | None] = [None, None]
        shares[signal] = fit(R, operation.inputs[signal].data.shape)
        return tuple(shares)


def gate(operation: Operation) -> int:
    """Which of two factors is the gate: 0 or 1."""
    a, b = operation.inputs
    if a.data.numel() != b.data.numel():
        return int(b.data.numel() < a.data.numel())
    made_a, made_b = (made_by(value) for value in (a, b))
    return 0 if made_a in GATES and made_b not in GATES else 1


GATES = ("sigmoid", "hardsigmoid", "_softmax", "_safe_softmax", "tanh")


def made_by(value: object) -> str:
    """The operation behind a value, seen through views."""
    producer = getattr(value, "producer", None)
    while producer is not None and producer.kind == "rearrangement":
        producer = producer.inputs[0].producer
    return "" if producer is None else producer.name


@dataclass(frozen=True)
class Half(Rule):
    """At a product a * b each factor takes half; a denominator takes nothing.

    Source: Achtibat et al. 2024 (uniform rule); Chefer et al. 2021 halve likewise.
    """

    kinds = ("product",)

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        (R,) = relevance
        assert R is not None
        if operation.name == "div":
            return fit(R, operation.inputs[0].data.shape), None
        return tuple(fit(R / 2, value.data.shape) for value in operation.inputs)


def _check(word: str, words: tuple[str, ...], name: str) -> None:
    if word not in words:
        raise UserError(
            f"{name} must be one of {', '.join(words)}, got {word!r}; the nearest are {nearest(word, words)}"
        )
