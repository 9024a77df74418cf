"""The walk back: the relevance of each output handed to the inputs, operation by operation, until the image is reached."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from explainode.relevance.operations import Affine, Operation, Sum, Value, refuse
from explainode.relevance.samples import Samples
from explainode.relevance.tape import Tape

Relevance = tuple[Tensor | None, ...]
Observer = Callable[[Operation, Relevance, Relevance], None]


class Propagates(Protocol):
    """What a walk asks of a rule."""

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance: ...


class Assigns(Protocol):
    """What a walk asks of a composite: which rule where."""

    def assign(self, tape: Tape) -> Callable[[Operation], Propagates]: ...


@dataclass(eq=False)
class Walk:
    """One way back along a tape.

    Attributes:
        tape: what is walked; reference: the same network on the baseline, operation for operation, where the rules compare the two.
        samples: sums and scalars per image.
        amounts: per name (B,): how much relevance was spread over the inputs of units that had no share to give, how much went to constants, ...
        diagnostics: per name (B,): sums of what rules measured, and under the same name in `counts` how many units they stand for.
        kept: relevance by value, of the values that were asked for.
        signals: per module, the parts of the inputs of its calls that rules found to carry the class, the last call first; None: not kept.
    """

    tape: Tape
    reference: Tape | None = None
    samples: Samples = field(init=False)
    amounts: dict[str, Tensor] = field(default_factory=dict)
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    kept: dict[int, Tensor] = field(default_factory=dict)
    signals: dict[str, list[Tensor]] | None = None

    def __post_init__(self) -> None:
        self.samples = Samples(self.tape.batch)
        self._partner: dict[int, Operation] = {}
        if self.reference is not None:
            mine, other = self.tape.operations, self.reference.operations
            if [operation.name for operation in mine] != [operation.name for operation in other]:
                raise ValueError("the tapes of image and baseline differ: the network branches on the image")
            self._partner = {id(a): b for a, b in zip(mine, other, strict=True)}

    def partner(self, operation: Operation) -> Operation:
        """The same operation on the baseline."""
        return self._partner[id(operation)]

    def note(self, name: str, value: Value, amount: Tensor) -> None:
        """Add the sum of |amount|, which has the shape of `value`, to a named total per image."""
        total = self.samples.sum(value, amount.abs())
        self.amounts[name] = self.amounts[name] + total if name in self.amounts else total

    def measure(self, name: str, number: Tensor) -> None:
        """Add what a rule measured of one unit, one number per image (B,)."""
        self.diagnostics[name] = self.diagnostics[name] + number if name in self.diagnostics else number
        self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, Tensor]:
        """What rules measured, on average over the units, by name (B,)."""
        return {name: total / self.counts[name] for name, total in self.diagnostics.items()}

    @torch.no_grad()  # weights that are no parameters of the network may ask for gradients
    def back(
        self,
        seeds: Mapping[Value, Tensor],
        composite: Assigns,
        keep: Collection[Value] = (),
        last: bool = False,
        observe: Observer | None = None,
    ) -> Tensor:
        """Relevance (B, C, H, W) of the image, given the relevance of some values; zeros where none arrives.

        Args:
            seeds: relevance to begin with, by value, in its shape.
            composite: which rule where.
            keep: values whose relevance is wanted too; see `kept`.
            observe: called with each operation that was passed, the relevance of its outputs and of its inputs.
            last: nobody walks along this tape again, so what the walk has passed is let go; only input and output stay.

        Raises:
            UserError: if relevance reaches an operation outside of the table, or one that the composite has no rule for.
        """
        wanted = {id(value) for value in keep}
        arrived: dict[int, Tensor] = {id(value): relevance for value, relevance in seeds.items()}
        chosen = composite.assign(self.tape)
        for operation in reversed(self.tape.operations):
            relevance = tuple(arrived.pop(id(output), None) for output in operation.outputs)
            for output, R in zip(operation.outputs, relevance, strict=True):
                if R is not None and id(output) in wanted:
                    self.kept[id(output)] = R
            if any(R is not None for R in relevance):
                if operation.kind == "unknown":
                    raise refuse(operation)
                shares = chosen(operation).propagate(operation, relevance, self)
                if observe is not None:
                    observe(operation, relevance, shares)
                for value, share in zip(operation.inputs, shares, strict=True):
                    if share is not None:
                        at = id(value)
                        arrived[at] = arrived[at] + share if at in arrived else share
                del shares, relevance
            if last and self.tape.output not in operation.outputs:
                operation.release()
        image = arrived.get(id(self.tape.input))
        if id(self.tape.input) in wanted and image is not None:
            self.kept[id(self.tape.input)] = image
        return torch.zeros_like(self.tape.input.data) if image is None else image

    def bounds(self, value: Value, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor] | None:
        """What pixels of `low` and `high` become at a value that is scaled, shifted, averaged and rearranged pixels; None if it is something else."""
        if id(value) not in affine_in_pixels(self.tape):
            return None
        known = {id(self.tape.input): (low, high)}
        for operation in self.tape.operations:
            if id(value) in known:
                break
            if operation.inputs and all(id(source) in known for source in operation.inputs) and is_affine(operation):
                ends = [known[id(source)] for source in operation.inputs]
                if isinstance(operation, Sum):  # a term with a minus is largest where it is least
                    ends = [pair if sign >= 0 else pair[::-1] for pair, sign in zip(ends, operation.signs, strict=True)]
                outputs = operation.call(*(pair[0] for pair in ends)), operation.call(*(pair[1] for pair in ends))
                for output, *pair in zip(operation.outputs, *outputs, strict=True):
                    known[id(output)] = torch.minimum(*pair), torch.maximum(*pair)
        return known[id(value)]


def is_affine(operation: Operation) -> bool:
    """Whether an operation scales, shifts, adds up, averages or rearranges what it reads, with weights of one sign for each element."""
    return isinstance(operation, Affine | Sum) or operation.kind in ("average", "rearrangement")


def affine_in_pixels(tape: Tape) -> frozenset[int]:
    """The ids of all values that are the image, scaled, shifted, added up, averaged and rearranged, before any linear layer."""
    known = {id(tape.input)}
    for operation in tape.operations:
        if operation.inputs and is_affine(operation) and all(id(value) in known for value in operation.inputs):
            known.update(map(id, operation.outputs))
    return frozenset(known)


def one_hot(tape: Tape, target: Tensor) -> Tensor:
    """(B, K): 1 at each image's class."""
    return torch.zeros_like(tape.output.data).scatter_(1, target[:, None], 1.0)


def seed(tape: Tape, target: Tensor, kind: str) -> Tensor:
    """(B, K): the relevance of the logits that a walk begins with.

    Args:
        kind: `logit`: the logit of each image's class; `one`: 1; `contrastive`: the logit, and the same amount taken evenly from the other classes;
            `softmax`: the gradient of the class's probability, p_t (1 - p_t) at the class and -p_t p_k at each other.

    Source: Gu et al. 2018 (contrastive); Iwana et al. 2019, Eq. 6 (softmax).
    """
    chosen, logits = one_hot(tape, target), tape.output.data
    if kind == "one":
        return chosen
    if kind == "softmax":
        p = logits.softmax(1)
        return p.gather(1, target[:, None]) * (chosen - p)
    score = logits.gather(1, target[:, None])
    if kind == "contrastive":
        return score * (chosen - (1 - chosen) / max(1, logits.shape[1] - 1))
    return score * chosen
