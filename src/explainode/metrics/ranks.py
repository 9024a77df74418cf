"""Which explanations does a metric tell apart? Ranks on each image, Friedman's test, the critical difference, and paired tests of all pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from explainode.errors import UserError
from explainode.metrics.agreement import mean_ranks
from explainode.metrics.means import ROUNDING, mean_tests, sign_tests
from explainode.metrics.statistics import holm

LEVEL = 0.05


@dataclass(frozen=True)
class MeanRanks:
    """How k explainers rank on n images; rank 1 is the best.

    Attributes:
        names: in the order of their mean rank, best first.
        mean_rank: (k,); the k of one image share k (k + 1) / 2, so the mean of all is (k + 1) / 2.
        mean_value: (k,) over the images that an explainer has a value for.
        friedman, p: Friedman's statistic and the p-value of "all explainers rank alike".
        critical_difference: of two mean ranks, Nemenyi's at the 5 % level.
        adjusted: (k, k) p-values of "both have the same mean rank" for all pairs, after Holm's correction over them; NaN on the diagonal.
        failed: (k,) images that an explainer has no value for although others have: it ranks last there.
    """

    names: tuple[str, ...]
    mean_rank: np.ndarray
    mean_value: np.ndarray
    n: int
    friedman: float
    p: float
    critical_difference: float
    adjusted: np.ndarray
    higher_is_better: bool
    failed: np.ndarray

    def order(self, a: str, b: str) -> int:
        """1 if a ranks before b beyond chance, -1 if b does, 0 if they are not told apart."""
        i, j = self.names.index(a), self.names.index(b)
        if not self.adjusted[i, j] < LEVEL:
            return 0
        return 1 if self.mean_rank[i] < self.mean_rank[j] else -1

    @property
    def cliques(self) -> list[tuple[int, int]]:
        """First and last place of each longest run of neighbors in mean rank, of two or more, in which no pair is told apart."""
        alike = ~(self.adjusted < LEVEL)
        runs: list[tuple[int, int]] = []
        for first in range(len(self.names)):
            last = first
            while last + 1 < len(self.names) and alike[first : last + 1, last + 1].all():
                last += 1
            if last > first and (not runs or last > runs[-1][1]):
                runs.append((first, last))
        return runs


def rank_explainers(
    values: Mapping[str, Mapping[int, float]], higher_is_better: bool, rounding: float = ROUNDING
) -> MeanRanks:
    """{explainer: {sample id: value}} -> how the explainers rank, with images as blocks.

    What is ranked is what is tested: the mean difference between two explainers' ranks, which one very bad image cannot decide. Values that differ by
    less than `rounding` share a place. On images where an explainer has no value, it ranks last: a method must not lead because it gave up where it is bad.
    Like the critical difference, which is given because readers know it, a mean rank depends on which others were ranked.

    Raises:
        UserError: for fewer than two explainers, or fewer than two images that two of them have a value for.

    Source: Friedman 1937; Nemenyi 1963; for machine learning Demšar 2006. We decide by tests of pairs with the pairs' own spread, as Benavoli et al.
    2016 advise, where Nemenyi takes one spread for all.
    """
    names = tuple(values)
    if len(names) < 2:
        raise UserError(f"ranks need two explainers or more, got {len(names)}")
    table = _blocks(values)
    if len(table) < 2:
        raise UserError(
            f"ranks need two images or more that {', '.join(names)} have values for, two of them at least, got {len(table)}"
        )
    ranks = image_ranks(table, higher_is_better, rounding)
    statistic, p = friedman_test(ranks)
    order = np.argsort(ranks.mean(0), kind="stable")
    first, second = np.triu_indices(len(names), 1)
    adjusted = np.full((len(names), len(names)), np.nan)
    apart = ranks[:, first] - ranks[:, second]
    p_pairs = mean_tests(apart).p
    p_pairs = np.where(np.isnan(p_pairs), sign_tests(apart), p_pairs)  # always the same number of places, or few images
    adjusted[first, second] = adjusted[second, first] = holm(p_pairs)
    return MeanRanks(
        names=tuple(names[i] for i in order),
        mean_rank=ranks.mean(0)[order],
        mean_value=np.nanmean(table, axis=0)[order],
        n=len(table),
        friedman=statistic,
        p=p,
        critical_difference=critical_difference(len(names), len(table)),
        adjusted=adjusted[np.ix_(order, order)],
        higher_is_better=higher_is_better,
        failed=np.isnan(table).sum(0)[order],
    )


def _blocks(values: Mapping[str, Mapping[int, float]]) -> np.ndarray:
    """(n, k) values of the images that two explainers or more have a value for; NaN where one has none."""
    ids = sorted(set().union(*values.values()))
    table = np.array([[column.get(i, np.nan) for column in values.values()] for i in ids], dtype=np.float64)
    table = table.reshape(len(ids), len(values))
    return table[(~np.isnan(table)).sum(1) > 1]


def image_ranks(table: np.ndarray, higher_is_better: bool, rounding: float = 0.0) -> np.ndarray:
    """(n, k) values -> (n, k) ranks within each image, 1 for the best, equal values at the mean of their places, NaN last.

    Values are equal if each differs from its neighbor in order by `rounding` at most.
    """
    worst_last = np.where(np.isnan(table), np.inf, -table if higher_is_better else table)
    order = np.argsort(worst_last, axis=1, kind="stable")
    ordered = np.take_along_axis(worst_last, order, axis=1)
    with np.errstate(invalid="ignore"):  # infinity less infinity: both failed
        apart = np.diff(ordered, axis=1) > rounding
    level = np.concatenate((np.zeros((len(table), 1)), apart.cumsum(1)), axis=1)
    places = np.empty_like(level)
    np.put_along_axis(places, order, level, axis=1)
    return mean_ranks(torch.from_numpy(places)).numpy()


def friedman_test(ranks: np.ndarray) -> tuple[float, float]:
    """(n, k) ranks -> Friedman's statistic, corrected for ties, and its p-value by the chi-squared distribution with k - 1 degrees of freedom.

    NaN, NaN where every image ties all explainers. The approximation is good from about ten images.

    Source: Friedman 1937; the correction divides by the ranks' own variance, which is k (k + 1) / 12 without ties (Conover 1999, Sec. 5.8).
    """
    n, k = ranks.shape
    spread = np.square(ranks - (k + 1) / 2).sum() / (n * (k - 1))
    if spread == 0:
        return float("nan"), float("nan")
    statistic = n * float(np.square(ranks.mean(0) - (k + 1) / 2).sum() / spread)
    tail = torch.special.gammaincc(
        torch.tensor((k - 1) / 2, dtype=torch.float64), torch.tensor(statistic / 2, dtype=torch.float64)
    )
    return statistic, float(tail)


def critical_difference(k: int, n: int, level: float = LEVEL) -> float:
    """Nemenyi's critical difference of the mean ranks of k explainers over n images: q sqrt(k (k + 1) / (6 n)).

    Source: Nemenyi 1963; Demšar 2006, Sec. 3.2.2. q is the studentized range divided by sqrt(2), for infinitely many degrees of freedom.
    """
    return studentized_range(k, 1 - level) / np.sqrt(2) * np.sqrt(k * (k + 1) / (6 * n))


@lru_cache
def studentized_range(k: int, probability: float) -> float:
    """The quantile of the range of k independent standard normal numbers.

    Its distribution function is k * integral of phi(z) (Phi(z) - Phi(z - q))^(k - 1) dz: one number is the largest, the others lie within
    q below it. We integrate and bisect instead of keeping a table, which would end at some k, or asking SciPy, which is not ours to require.

    Raises:
        UserError: for fewer than two numbers, or a probability outside (0, 1).
    """
    if k < 2 or not 0 < probability < 1:
        raise UserError(
            f"a range needs two numbers or more and a probability between 0 and 1, got {k} and {probability}"
        )
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)  # what lies outside weighs less than 1e-14 k

    def normal(at: Tensor) -> Tensor:
        return torch.special.ndtr(at)

    density = torch.exp(-z.square() / 2) / np.sqrt(2 * np.pi)
    low, high = 0.0, 16.0
    for _ in range(60):
        q = (low + high) / 2
        within = k * torch.trapezoid(density * (normal(z) - normal(z - q)) ** (k - 1), z)
        low, high = (q, high) if within < probability else (low, q)
    return (low + high) / 2


@dataclass(frozen=True)
class Reversals:
    """The pairs of explainers that two rankings both tell apart, and those of them that turn round."""

    decided: int
    turned: tuple[tuple[str, str], ...]


def reversals(a: MeanRanks, b: MeanRanks) -> Reversals:
    """Compare two rankings on what each is sure of; `turned` holds (x, y) with x better in `a`, y better in `b`."""
    names = [name for name in a.names if name in b.names]
    decided, turned = 0, []
    for i, x in enumerate(names):
        for y in names[i + 1 :]:
            here, there = a.order(x, y), b.order(x, y)
            decided += bool(here and there)
            if here * there < 0:
                turned.append((x, y) if here > 0 else (y, x))
    return Reversals(decided, tuple(turned))


def mean_over_metrics(rankings: Sequence[MeanRanks]) -> dict[str, float]:
    """{explainer: mean of its mean ranks}, best first, of the explainers that are ranked in all of them; each metric counts once."""
    common = [name for name in rankings[0].names if all(name in r.names for r in rankings)] if rankings else []
    mean = {name: float(np.mean([r.mean_rank[r.names.index(name)] for r in rankings])) for name in common}
    return dict(sorted(mean.items(), key=lambda pair: pair[1]))
