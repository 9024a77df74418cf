"""Can a metric be trusted? It should not move with what does not matter, and should fall with what does.

Letters: E methods, n images, P perturbations. Scores are turned so that more is better; all methods are scored on the same images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from explainode.errors import UserError
from explainode.metrics.statistics import paired_sign_flip


@dataclass(frozen=True)
class MetaEvaluation:
    """Four numbers in [0, 1], 1 is best.

    Attributes:
        resilience: small perturbations leave the scores as they are: mean p-value of "the paired differences are symmetric around 0".
        rank_resilience: ... and each method's place among the methods: share of images, methods and perturbations whose rank stays.
        reactivity: disruptions change the scores: one minus the mean p-value.
        worse: ... and for the worse: share of images, methods and disruptions whose score falls.

    Source: Hedström et al. 2023 (MetaQuantus), Eq. 4-7: intra- and inter-consistency under noise (NR) and under an adversary (AR). We take the
    p-value of a sign-flip test where they take Wilcoxon's.
    """

    resilience: float
    rank_resilience: float
    reactivity: float
    worse: float

    @property
    def consistency(self) -> float:
        """The mean of the four."""
        return (self.resilience + self.rank_resilience + self.reactivity + self.worse) / 4


def meta_evaluate(
    scores: np.ndarray, shaken: np.ndarray, disrupted: np.ndarray, resamples: int = 2000
) -> MetaEvaluation:
    """How a metric answers to perturbations that should not matter and to some that should.

    A random method is disrupted by nothing, and should not be among those of `disrupted`: leave its row out of both `scores` and `disrupted`, or
    accept that `worse` cannot reach 1.

    Args:
        scores: (E, n), more is better; NaN where an image was excluded.
        shaken: (P, E, n) under small perturbations.
        disrupted: (P, E, n) under disruptions.

    Raises:
        UserError: if the shapes do not fit.
    """
    for name, values in (("shaken", shaken), ("disrupted", disrupted)):
        if values.ndim != 3 or values.shape[1:] != scores.shape or not len(values):
            raise UserError(
                f"{name} must have shape (P, {scores.shape[0]}, {scores.shape[1]}), got {values.shape}; one table per perturbation"
            )
    return MetaEvaluation(
        resilience=_mean_p(scores, shaken, resamples),
        rank_resilience=float(np.mean((ranks(shaken) == ranks(scores))[:, :, ~np.isnan(scores).any(0)])),
        reactivity=1 - _mean_p(scores, disrupted, resamples),
        worse=float(np.mean((disrupted < scores)[~np.isnan(disrupted) & ~np.isnan(scores)])),
    )


def ranks(scores: np.ndarray) -> np.ndarray:
    """(..., E, n) -> the place of each method on each image, 1 the best, equal scores at the mean of their places."""
    above = (scores[..., None, :, :] > scores[..., :, None, :]).sum(-2)
    equal = (scores[..., None, :, :] == scores[..., :, None, :]).sum(-2)
    return above + (equal + 1) / 2


def _mean_p(before: np.ndarray, after: np.ndarray, resamples: int) -> float:
    found = [paired_sign_flip(new - old, resamples) for table in after for old, new in zip(before, table, strict=True)]
    return float(np.nanmean(found)) if not np.isnan(found).all() else float("nan")
