"""Methods that walk back along a network's operations by rules: LRP, deep Taylor decomposition, guided backpropagation, deconvnet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from explainode.errors import UserError
from explainode.explainers.base import Explainer
from explainode.explainers.passes import in_passes, predict, record_pass, report, uncounted
from explainode.explainers.targets import check_logits, check_range, select_score
from explainode.randomness import noise_rows
from explainode.relevance.comparison import hidden_computation
from explainode.relevance.composite import Composite
from explainode.relevance.operations import Value
from explainode.relevance.tape import Tape, record
from explainode.relevance.walk import Walk, seed


@dataclass(frozen=True)
class Relevance(Explainer):
    """The relevance of every pixel value, found by walking back from the class with the rules of a composite.

    With a composite that conserves, the values of an image add up to its logit; what biases or constants absorb is missing from the sum, and the
    completeness error says how much that is.

    Of each image it reports what its rules measured, on average over their units, and, where the walk begins with the logit, as parts of |logit|
    (NaN if that is 0): `relevance_absorbed`, (logit - sum) / |logit|, and `relevance_spread`, what was handed out evenly to the inputs of units
    that had no share to give, summed over all units, which conserves the sum but says nothing of the image.

    Args:
        composite: which rule where.

    Raises:
        UserError: if relevance reaches an operation that no rule covers.

    Source: the rules' own; Ayyar et al. 2021 for the family.
    """

    composite: Composite

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        def compute(x: Tensor, target: Tensor) -> tuple[Tensor]:
            tape = record_logits(model, x, target)
            R, walk = walk_back(tape, target, self.composite)
            for name, values in walk.means().items():
                report(name, values)
            if self.composite.seed == "logit":
                report_losses(walk, R, select_score(tape.output.data, target))
            return (R,)

        return in_passes(compute, x, target)[0]

    def layers(self, model: nn.Module, x: Tensor, target: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The relevance of what each named layer returned, in its shape; a layer that no relevance reaches is missing."""
        tape = record_logits(model, x, target, names)
        values = {name: tape.returned(name) for name in names}
        _, walk = walk_back(tape, target, self.composite, list(values.values()))
        return {name: walk.kept[id(value)] for name, value in values.items() if id(value) in walk.kept}

    def expected_sum(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor | None:
        return select_score(predict(model, x), target) if self.composite.seed == "logit" else None


# Per network: the image shapes for which the tape is known to see everything.
_seen: WeakKeyDictionary[nn.Module, set[torch.Size]] = WeakKeyDictionary()


def check_seen(model: nn.Module, x: Tensor) -> None:
    """Whether the tape sees all that the network does with images of x's shape: recorded once more on an image nearby, nothing else may be constant.

    Looked at once for each network; these passes are not counted, as they belong to the network.

    Raises:
        UserError: with the operation that reads what was computed outside of torch.
    """
    known = _seen.setdefault(model, set())
    if x.shape[1:] in known:
        return
    image, tapes, state = x[:1].detach(), [], torch.get_rng_state()
    for scale in (1.0, 1 - 1e-3):
        torch.set_rng_state(state)  # what the network draws by itself is the same for both
        with _disable_current_modes(), uncounted(), noise_rows(torch.zeros(1, dtype=torch.int64)):
            tapes.append(record(model, image * scale, noise=True))
    hidden = hidden_computation(*tapes)
    if hidden is not None:
        raise UserError(
            f"{hidden} reads numbers that were computed from the image outside of torch's operations (numpy, a custom kernel), which relevance "
            "cannot follow; use a gradient method (saliency, ig), or write that part with torch operations"
        )
    known.add(x.shape[1:])


def record_logits(model: nn.Module, x: Tensor, target: Tensor, keep: Sequence[str] = ()) -> Tape:
    """The tape of one counted forward; the logits are checked.

    Raises:
        UserError: if the model does not return logits (B, K) with the target among them.
    """
    check_seen(model, x)
    record_pass(forwards=len(x))
    tape = record(model, x, keep)
    check_range(target, check_logits(tape.output.data, len(x)).shape[1])
    return tape


def walk_back(tape: Tape, target: Tensor, composite: Composite, keep: Sequence[Value] = ()) -> tuple[Tensor, Walk]:
    """The relevance (B, C, H, W) of the pixels of one counted walk, and the walk."""
    record_pass(backwards=tape.batch)
    walk = Walk(tape)
    return walk.back({tape.output: seed(tape, target, composite.seed)}, composite, keep, last=True), walk


def report_losses(walk: Walk, R: Tensor, score: Tensor) -> None:
    """How much of the score (B,) is missing from the relevance of the pixels (B, C, H, W), and how much was spread, as parts of |score|."""
    score = score.double()
    scale = torch.where(score == 0, torch.nan, score.abs())
    report("relevance_absorbed", (score - R.flatten(1).sum(1, dtype=torch.float64)) / scale)
    report("relevance_spread", walk.amounts.get("spread", torch.zeros_like(score)) / scale)
