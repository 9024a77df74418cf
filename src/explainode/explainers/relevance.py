"""Methods that walk back along a network's operations by rules: LRP, deep Taylor decomposition, guided backpropagation, deconvnet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from explainode.explainers.base import Explainer
from explainode.explainers.passes import in_passes, predict, record_pass
from explainode.explainers.targets import check_logits, check_range, select_score
from explainode.relevance.composite import Composite
from explainode.relevance.operations import Value
from explainode.relevance.tape import Tape, record
from explainode.relevance.walk import Walk, seed


@dataclass(frozen=True)
class Relevance(Explainer):
    """The relevance of every pixel value, found by walking back from the class with the rules of a composite.

    With a composite that conserves, the values of an image add up to its logit; what biases or constants absorb is missing from the sum, and the
    completeness error says how much that is.

    Args:
        composite: which rule where.

    Raises:
        UserError: if relevance reaches an operation that no rule covers.

    Source: the rules' own; paper 004 for the family.
    """

    composite: Composite

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        def evaluate(x: Tensor, target: Tensor) -> tuple[Tensor]:
            tape = record_logits(model, x, target)
            return (walk_back(tape, target, self.composite)[0],)

        return in_passes(evaluate, x, target)[0]

    def layers(self, model: nn.Module, x: Tensor, target: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The relevance of what each named layer returned, in its shape; a layer that no relevance reaches is missing."""
        tape = record_logits(model, x, target, names)
        values = {name: tape.returned(name) for name in names}
        _, walk = walk_back(tape, target, self.composite, list(values.values()))
        return {name: walk.kept[id(value)] for name, value in values.items() if id(value) in walk.kept}

    def expected_sum(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor | None:
        return select_score(predict(model, x), target) if self.composite.seed == "logit" else None


def record_logits(model: nn.Module, x: Tensor, target: Tensor, keep: Sequence[str] = ()) -> Tape:
    """The tape of one counted forward; the logits are checked.

    Raises:
        UserError: if the model does not return logits (B, K) with the target among them.
    """
    record_pass(forwards=len(x))
    tape = record(model, x, keep)
    check_range(target, check_logits(tape.output.data, len(x)).shape[1])
    return tape


def walk_back(tape: Tape, target: Tensor, composite: Composite, keep: Sequence[Value] = ()) -> tuple[Tensor, Walk]:
    """The relevance (B, C, H, W) of the pixels of one counted walk, and the walk."""
    record_pass(backwards=tape.batch)
    walk = Walk(tape)
    return walk.back({tape.output: seed(tape, target, composite.seed)}, composite, keep, last=True), walk
