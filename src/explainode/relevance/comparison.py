"""Two tapes side by side: what a network did with an image, beside what it did with a baseline; multipliers walk back along both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from explainode.errors import UserError
from explainode.relevance.operations import Affine, Linear, Operation, Slot, Sum, Value
from explainode.relevance.tape import Tape
from explainode.relevance.walk import Walk

# their numbers are shapes and positions, which hold the number of images
_SHAPES = ("rearrangement", "average", "norm", "max", "softmax", "length")


@dataclass(eq=False)
class Comparison(Walk):
    """A walk back that carries multipliers m: what a unit contributes to the difference of the scores is m times its own difference.

    Where a rule tells positive from negative contributions (RevealCancel), a unit t has two multipliers, for the parts t+ and t- of its
    difference. They are carried as their mean m and half their difference h, so that m+ = m + h and m- = m - h, back through the linear maps
    that made t; there every input takes the one of its own sign. The parts themselves are t+- = (delta +- spread) / 2.

    A baseline that all images share may be recorded as a batch of one.

    Attributes:
        halves: h by value.

    Raises:
        UserError: if the network did not do the same with the image and with the baseline.
    """

    halves: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.reference is not None
        mine, other = self.tape.operations, self.reference.operations
        if not same_operations(self.tape, self.reference):
            raise UserError(
                "the network computes the image in other operations than the baseline (an adaptive solver, a branch that depends on the "
                "image); choose a solver with fixed steps or a gradient method (ig)"
            )
        super().__post_init__()
        self._twins = {id(self.tape.input): self.reference.input}
        for a, b in zip(mine, other, strict=True):
            self._twins |= {id(value): twin for value, twin in zip(a.outputs, b.outputs, strict=True)}
        self._spreads: dict[int, Tensor] = {}

    def before(self, value: Value) -> Tensor:
        """What the value was on the baseline, in a shape that broadcasts to its own."""
        x, x0 = value.data, self._twins[id(value)].data
        if x0.shape == x.shape or x0.shape[0] in (1, x.shape[0]):
            return x0
        return x0.repeat(
            self.tape.batch, *[1] * (x.dim() - 1)
        )  # one baseline for all images, which are the slowest axis here

    def delta(self, value: Value) -> Tensor:
        """The difference that is explained; 0 where both are the same, infinities too."""
        x, x0 = value.data, self.before(value)
        return torch.where(x == x0, 0.0, x - x0)

    def check(self, operation: Operation) -> None:
        """
        Raises:
            UserError: if the operation had other constants on the baseline, so that they are part of the difference and nobody's.
        """
        for a, b in zip(_constants(operation), _constants(self.partner(operation)), strict=True):
            if not _same(a, b):
                raise UserError(
                    f"{operation} uses another constant on the baseline than on the image (the step of an adaptive solver, positions that "
                    "depend on the image); choose a solver with fixed steps or a gradient method (ig)"
                )

    def carry(self, value: Value, half: Tensor) -> Tensor | float:
        """Give h to a value; returns what its m gains at once, where the value is no linear map of others and has but one sign."""
        if not self.has_parts(value):
            return self.delta(value).sign() * half
        at = id(value)
        self.halves[at] = self.halves[at] + half if at in self.halves else half
        return 0.0

    def has_parts(self, value: Value) -> bool:
        """Whether a value is a linear map of others, so that its difference has a positive and a negative part."""
        return value.producer is not None and (isinstance(value.producer, Linear) or _passes_parts(value.producer))

    def spread(self, value: Value) -> Tensor:
        """t+ - t-: the sum of the absolute contributions to the difference of a linear map, where other values contribute their delta."""
        stack = [value]  # no recursion: networks are deeper than Python's stack
        while stack:
            last = stack[-1]
            producer = last.producer
            sources = producer.inputs if producer is not None and _passes_parts(producer) else ()
            missing = [source for source in sources if id(source) not in self._spreads]
            if id(last) in self._spreads:
                stack.pop()
            elif missing:
                stack += missing
            else:
                self._find_spread(last)
        return self._spreads[id(value)]

    def _find_spread(self, value: Value) -> None:
        operation = value.producer
        if operation is None or not self.has_parts(value):
            self._spreads[id(value)] = self.delta(value).abs()
        elif isinstance(operation, Linear):
            self._spreads[id(value)] = operation.map.entries(torch.abs)(self.delta(operation.inputs[0]).abs())
        else:
            spreads = [self._spreads[id(source)] for source in operation.inputs]
            if isinstance(operation, Affine):
                outputs: tuple[Tensor, ...] = (operation.slope.abs() * spreads[0],)
            elif isinstance(operation, Sum):
                outputs = (
                    sum((abs(sign) * s for sign, s in zip(operation.signs, spreads, strict=True)), torch.zeros(())),
                )
            else:
                outputs = operation.call(*spreads)
            self._spreads |= {id(output): s for output, s in zip(operation.outputs, outputs, strict=True)}

    def forget(self, operation: Operation) -> None:
        """Free what was kept for the outputs of an operation that has been walked."""
        for output in operation.outputs:
            self._spreads.pop(id(output), None)


def same_operations(a: Tape, b: Tape) -> bool:
    """Whether two tapes hold the same operations on each other's results."""
    return [_wiring(operation) for operation in a.operations] == [_wiring(operation) for operation in b.operations]


def hidden_computation(a: Tape, b: Tape) -> Operation | None:
    """The first operation that reads other constant tensors on one tape than on the other, though the network is the same and noise is recorded.

    So they were computed from the image by something that is no operation of torch: numpy, a kernel of one's own. What the network reads as single
    numbers (step sizes) is constant by agreement, and a network that branches otherwise cannot be compared.
    """
    if not same_operations(a, b):
        return None
    for mine, other in zip(a.operations, b.operations, strict=True):
        for x, y in zip(_constants(mine), _constants(other), strict=True):
            if isinstance(x, Tensor) and x.is_floating_point() and x.numel() > 1 and not _same(x, y):
                return mine
    return None


def _wiring(operation: Operation) -> tuple[Any, ...]:
    """An operation and whose results it read."""
    return (
        operation.name,
        len(operation.outputs),
        [-1 if value.producer is None else value.producer.index for value in operation.inputs],
    )


def _passes_parts(operation: Operation) -> bool:
    """Whether the parts of the outputs are made of the parts of the inputs: elements that move, add up or change their scale."""
    if operation.kind == "rearrangement":
        return (
            not any(isinstance(leaf, Tensor) for leaf in _constants(operation)) and operation.name != "constant_pad_nd"
        )
    return operation.kind in ("affine", "sum")


def _constants(operation: Operation) -> Iterator[Any]:
    """Tensors and numbers among the arguments that say what is computed; conditions say whose value is taken and may differ."""
    args = operation.args[1:] if operation.name == "where" else operation.args
    for leaf in tree_leaves((args, operation.kwargs)):
        if not isinstance(leaf, Slot) and (
            isinstance(leaf, Tensor) or (isinstance(leaf, int | float) and operation.kind not in _SHAPES)
        ):
            yield leaf


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return bool(a == b)
    if (a.data_ptr(), a.shape, a.stride()) == (b.data_ptr(), b.shape, b.stride()):
        return True  # a weight, seen through a view
    return (
        a.dim() == b.dim()
        and all(n in (m, 1) for m, n in zip(a.shape, b.shape, strict=True))
        and torch.equal(a, b.expand_as(a))
    )
