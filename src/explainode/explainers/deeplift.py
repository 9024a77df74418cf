"""Methods that share out the difference from a baseline by its multipliers: DeepLIFT, and its mean over several baselines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from explainode.errors import UserError, nearest
from explainode.explainers.base import Explainer
from explainode.explainers.baselines import Baseline, make_baseline
from explainode.explainers.gradient import score_difference
from explainode.explainers.passes import each_copy, in_passes, predict, record_pass
from explainode.explainers.relevance import check_seen
from explainode.explainers.targets import check_logits, check_range, select_score
from explainode.randomness import chain, current_scope, noise_rows, sample_keys, uniform
from explainode.relevance.comparison import Comparison, same_operations
from explainode.relevance.composites import backpropagation
from explainode.relevance.rule import Rule
from explainode.relevance.rules.deeplift import Rescale, RevealCancel
from explainode.relevance.rules.gradient import Gradient
from explainode.relevance.samples import Samples
from explainode.relevance.tape import Tape, record
from explainode.relevance.walk import Walk, seed

RULES: dict[str, Rule] = {"rescale": Rescale(), "reveal_cancel": RevealCancel(), "linear": Gradient()}


def _check_rule(rule: str) -> None:
    if rule not in RULES:
        raise UserError(f"no rule of DeepLIFT named {rule!r}; the nearest are {nearest(rule, RULES)}")


def _record(model: nn.Module, x: Tensor, target: Tensor) -> Tape:
    """The tape of one counted forward, in which noise is a function of the image as everything else is."""
    check_seen(model, x)
    record_pass(forwards=len(x))
    tape = record(model, x, noise=True)
    check_range(target, check_logits(tape.output.data, len(x)).shape[1])
    return tape


def _multipliers(tape: Tape, reference: Tape | None, target: Tensor, rule: str, last: bool = False) -> Tensor:
    """(B, C, H, W) of one counted walk; without a reference the walk is the chain rule. After the `last` walk the image's tape is gone."""
    record_pass(backwards=tape.batch)
    walk = Walk(tape) if reference is None else Comparison(tape, reference)
    return walk.back({tape.output: seed(tape, target, "one")}, backpropagation(RULES[rule]), last=last)


@dataclass(frozen=True)
class DeepLIFT(Explainer):
    """(x - x') times the multipliers of the difference between the image and one baseline x'; sums to f(x) - f(x').

    Complete for every network of covered operations, whatever is reused, functional, in place or computed by a solver. Noise is the same for
    image and baseline.

    Args:
        rule: "rescale"; "reveal_cancel", which treats what speaks for a unit and what speaks against it apart; "linear": the gradient times the
            difference, for comparison, which promises no sum.
        baseline: x' (see `make_baseline`).

    Raises:
        UserError: if there is no such rule; if the network computes image and baseline in other operations.

    Source: Shrikumar et al. 2017.
    """

    rule: str = "rescale"
    baseline: Baseline = "black"

    def __post_init__(self) -> None:
        _check_rule(self.rule)

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        def compute(x: Tensor, x0: Tensor, target: Tensor) -> tuple[Tensor]:
            tape = _record(model, x, target)
            reference = None if self.rule == "linear" else _record(model, x0, target)
            return ((x - x0) * _multipliers(tape, reference, target, self.rule, last=True),)

        return in_passes(compute, x, make_baseline(self.baseline, x), target)[0]

    def expected_sum(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor | None:
        return None if self.rule == "linear" else score_difference(model, x, make_baseline(self.baseline, x), target)


@dataclass(frozen=True)
class DeepSHAP(Explainer):
    """The mean of DeepLIFT over several baselines, the same for all images; sums to f(x) minus the mean score of the baselines.

    A black baseline is blind to black objects, and any color to its own; several share the blindness out.

    Args:
        baselines: (N, C, H, W) images of the background, best some of the data; or how many to draw: pictures of one color each, every channel
            uniform in [0, 1], keyed by seed and draw of the noise scope.
        rule: "rescale" or "reveal_cancel".

    Raises:
        UserError: if there is no such rule, no baseline, or baselines that do not fit.

    Source: Lundberg and Lee 2017 (Deep SHAP); Chen et al. 2022 for the mean over baselines.
    """

    baselines: int | Tensor = 8
    rule: str = "rescale"

    def __post_init__(self) -> None:
        _check_rule(self.rule)
        if self.rule == "linear":
            raise UserError("the linear rule sees no baseline; choose rescale or reveal_cancel, or gradient_shap")
        if isinstance(self.baselines, Tensor):
            if self.baselines.dim() != 4 or len(self.baselines) < 1:
                raise UserError(
                    f"baselines of shape {tuple(self.baselines.shape)} are no batch of images; give (N, C, H, W)"
                )
        elif self.baselines < 1:
            raise UserError(f"baselines must be at least 1, got {self.baselines}")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return not isinstance(self.baselines, Tensor)

    def _references(self, x: Tensor) -> Tensor:
        """(N, C, H, W)."""
        if isinstance(self.baselines, Tensor):
            return torch.cat([make_baseline(reference, x[:1]) for reference in self.baselines])
        scope = current_scope()
        key = chain("deep_shap", *((0, 0) if scope is None else (scope.seed, scope.draw)))
        colors = uniform(sample_keys(torch.arange(self.baselines, device=x.device), key), x.shape[1])
        return colors.to(x)[:, :, None, None].expand(-1, -1, *x.shape[2:])

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        references = self._references(x)

        def compute(x: Tensor, target: Tensor) -> tuple[Tensor]:
            tape, total = _record(model, x, target), torch.zeros_like(x)
            shared = not _has_noise() and _is_batch_first(tape)
            for x0 in references:
                reference = _record_alone(model, x0, target) if shared else None
                if reference is None or not same_operations(
                    tape, reference
                ):  # torch may multiply a single row by other operations
                    shared, reference = False, _record(model, x0.expand_as(x), target)
                total += (x - x0) * _multipliers(tape, reference, target, self.rule)
            return (total / len(references),)

        return in_passes(compute, x, target)[0]

    def expected_sum(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        references = self._references(x)
        if _has_noise():  # the baseline's score is another one beside every image
            copies = (x0.expand_as(x) for x0 in references)
            scores = each_copy(lambda rows, classes: (select_score(predict(model, rows), classes),), copies, target)
            mean = torch.stack([score for (score,) in scores]).mean(0)
        else:
            with noise_rows(torch.zeros(len(references), dtype=torch.int64)):
                mean = predict(model, references)[:, target].mean(0)
        return select_score(predict(model, x), target) - mean


def _has_noise() -> bool:
    """Whether noise blocks speak, so that every image has a noise of its own."""
    scope = current_scope()
    return scope is not None and scope.active


def _record_alone(model: nn.Module, x0: Tensor, target: Tensor) -> Tape:
    """The tape of one image (C, H, W) that is none of the batch."""
    with noise_rows(torch.zeros(1, dtype=torch.int64)):
        return _record(model, x0[None], target)


def _is_batch_first(tape: Tape) -> bool:
    """Whether the images are the slowest axis of all that the network has computed, so that a batch of one can stand beside all of them."""
    samples = Samples(tape.batch)
    return all(samples.leading(value) for operation in tape.operations for value in operation.outputs)
