"""The skeleton of metrics that look at single points of the perturbation walks: which pixels are gone, and what the network says then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from explainode.attribution import Explanation
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.perturbation import (
    PerturbationPath,
    check_percent,
    check_score,
    logits_at,
    percent_counts,
    target_score,
)


class PerturbationPoints(ExplanationMetric):
    """Base of metrics that read the network's answer where `percent` of the pixels are replaced.

    Points that deletion and insertion visit with the same baseline, reduction and ties are not visited again.
    Images whose map is constant or not finite order no pixels: they are excluded and counted.

    Args:
        percent: ascending percentages of pixels.
        baseline: what replaces a pixel, a name in `baselines.BASELINES`.
        reduction: of the channels before ranking.
        ties: "raster" or "reverse".
    """

    higher_is_better: bool | Mapping[str, bool | None] | None = None  # type: ignore[assignment]

    def __init__(self, percent: Sequence[float], baseline: str, reduction: str, ties: str) -> None:
        self.levels, self.baseline, self.reduction, self.ties = check_percent(percent), baseline, reduction, ties
        self.walk = PerturbationPath(101, baseline, reduction, ties)
        super().__init__()

    def without_most(self, explanation: Explanation) -> Tensor:
        """(B, P, K) logits with the most relevant `percent` of the pixels replaced."""
        return logits_at(explanation, self.walk, False, percent_counts(self.levels, explanation.x[0, 0].numel()))

    def without_least(self, explanation: Explanation) -> Tensor:
        """(B, P, K) logits with the least relevant `percent` of the pixels replaced: points of the insertion."""
        return logits_at(
            explanation, self.walk, True, percent_counts([100 - p for p in self.levels], explanation.x[0, 0].numel())
        )

    def only_most(self, explanation: Explanation) -> Tensor:
        """(B, P, K) logits with all but the most relevant `percent` of the pixels replaced: points of the insertion."""
        return logits_at(explanation, self.walk, True, percent_counts(self.levels, explanation.x[0, 0].numel()))

    def settings(self) -> tuple[str, ...]:
        shown = "-".join(f"{p:g}" for p in (self.levels if len(self.levels) < 4 else (self.levels[0], self.levels[-1])))
        return self.baseline, f"{len(self.levels)}x{shown}%", self.reduction, self.ties


class ScoreAtPoints(PerturbationPoints):
    """`PerturbationPoints` that follow the score of one class.

    Args:
        score: softmax "probability", "logit" or "margin", see `perturbation.target_score`.
        target: the "predicted" class of the clean image, or the "explained" one.
    """

    higher_is_better: bool | Mapping[str, bool | None] | None = None  # type: ignore[assignment]

    def __init__(
        self, percent: Sequence[float], baseline: str, reduction: str, score: str, target: str, ties: str
    ) -> None:
        check_score(score, target)
        self.score, self.target = score, target
        super().__init__(percent, baseline, reduction, ties)

    def followed(self, explanation: Explanation, logits: Tensor) -> Tensor:
        """(B, ..., K) logits -> (B, ...) scores of the followed class."""
        target = explanation.logits.argmax(1) if self.target == "predicted" else explanation.target
        return target_score(logits, target, self.score)

    def clean(self, explanation: Explanation) -> Tensor:
        """(B, 1) scores of the clean images."""
        return self.followed(explanation, explanation.logits.float())[:, None]

    def settings(self) -> tuple[str, ...]:
        followed = f"{'p' if self.score == 'probability' else self.score}({self.target})"
        return *super().settings(), followed


def correct(explanation: Explanation, logits: Tensor) -> Tensor:
    """(B, ..., K) logits -> (B, ...) 1 where the label has the largest one, 0 elsewhere; NaN for unknown labels and NaN logits."""
    assert explanation.label is not None, "the metric needs labels"
    label = explanation.label.to(logits.device).view(-1, *[1] * (logits.dim() - 2))
    hit = (logits.argmax(-1) == label).double()
    return torch.where((label < 0) | torch.isnan(logits).any(-1), torch.nan, hit)
