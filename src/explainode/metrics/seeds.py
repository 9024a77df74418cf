"""Recipes compared by networks that were trained from several seeds: the network is the unit, not the image.

Two networks of one recipe differ more than their images can explain. What is said of a recipe must hold for the next network trained by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

from explainode.metrics.distributions import student_quantile
from explainode.randomness import chain

FEWEST_SEEDS = 4  # an arm: with three and three, the most extreme of all 20 ways to deal them out has p = .1
MOST_DEALS = 10_000  # ways to deal the networks out to both arms that are all tried; of more, so many are drawn


@dataclass(frozen=True)
class SeedComparison:
    """Mean over seeds and images of arm a minus that of arm b, its interval for new seeds and new images, and a permutation test's p-value.

    NaN for interval and p where an arm has fewer than `FEWEST_SEEDS` networks: then nothing is said of the recipes.
    """

    difference: float
    low: float
    high: float
    p: float
    seeds: tuple[int, int]
    n: int


def compare_seeds(a: np.ndarray, b: np.ndarray, level: float = 0.95, seed: int = 0) -> SeedComparison:
    """Compare two recipes by values (seeds, n) of their networks on the same n images.

    The test deals the networks out anew to both arms and asks how often their means then lie as far apart. The variance behind the interval adds
    that between the networks of each arm, over their number, and that of the images' mean differences, over theirs: both are samples.
    Welch's degrees of freedom.

    Source: permutation of networks, Phipson and Smyth 2010 for draws; variance of two crossed samples, Owen 2007. A bootstrap of four seeds would be
    too short by a factor of sqrt(3/4) and Student's quantile.
    """
    arms = len(a), len(b)
    of_network = np.concatenate((a.mean(1), b.mean(1)))
    difference = float(of_network[: arms[0]].mean() - of_network[arms[0] :].mean())
    if min(arms) < FEWEST_SEEDS:
        return SeedComparison(difference, np.nan, np.nan, np.nan, arms, a.shape[1])
    variances = [float(means.var(ddof=1)) / len(means) for means in (a.mean(1), b.mean(1))]
    per_image = a.mean(0) - b.mean(0)
    variances.append(float(per_image.var(ddof=1)) / len(per_image))
    freedom = [arms[0] - 1, arms[1] - 1, len(per_image) - 1]
    total = sum(variances)
    df = total**2 / sum(v**2 / f for v, f in zip(variances, freedom, strict=True)) if total else 1.0
    half = student_quantile((1 + level) / 2, round(df, 2)) * total**0.5
    return SeedComparison(
        difference, difference - half, difference + half, _permutation(of_network, arms[0], seed), arms, a.shape[1]
    )


def _permutation(values: np.ndarray, first: int, seed: int) -> float:
    """Two-sided p-value of the difference between the mean of the first values and that of the others, over all deals or many drawn."""
    n = len(values)
    observed = abs(values[:first].mean() - values[first:].mean())
    if comb(n, first) <= MOST_DEALS:
        deals = np.array(list(combinations(range(n), first)))
        drawn = False
    else:
        generator = np.random.Generator(np.random.PCG64(chain(seed, "deals", n)))
        deals = generator.random((MOST_DEALS, n)).argpartition(first, 1)[:, :first]
        drawn = True
    chosen = values[deals].sum(1)
    apart = np.abs(chosen / first - (values.sum() - chosen) / (n - first))
    extreme = int((apart >= observed - 1e-12 * np.abs(values).max()).sum())  # sums in another order differ by rounding
    return (extreme + drawn) / (len(deals) + drawn)
