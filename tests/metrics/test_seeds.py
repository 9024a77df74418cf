"""Networks of one recipe are not told apart, and a recipe that is better is, with the seed as the unit."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from explainode.metrics.means import mean_tests
from explainode.metrics.seeds import compare_seeds


def networks(generator: np.random.Generator, seeds: int, images: int = 60, mean: float = 0.0) -> np.ndarray:
    """(seeds, images): what makes an image hard is common, what a seed does to a network moves all of its images."""
    of_image = np.random.default_rng(99).normal(size=images)
    return mean + of_image + 0.3 * generator.normal(size=(seeds, 1)) + 0.5 * generator.normal(size=(seeds, images))


def test_one_recipe_is_no_finding_though_its_networks_differ():
    generator = np.random.default_rng(0)
    alone = recipe = covered = 0
    for _ in range(400):
        a, b = networks(generator, 5), networks(generator, 5)
        alone += mean_tests((a[0] - b[0])[:, None]).p[0] < 0.05
        found = compare_seeds(a, b)
        recipe += found.p < 0.05
        covered += found.low <= 0 <= found.high
    assert alone / 400 > 0.5, "images alone call most pairs of networks of one recipe different"
    assert recipe / 400 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)
    assert covered / 400 >= 0.93 - 2 * np.sqrt(0.07 * 0.93 / 400)


def test_a_better_recipe_is_found():
    generator = np.random.default_rng(1)
    found = compare_seeds(networks(generator, 6, mean=1.0), networks(generator, 6))
    assert found.p < 0.05 and found.low > 0 and found.low < 1 < found.high
    assert found.seeds == (6, 6) and found.n == 60


def test_permutations_are_scipys():
    generator = np.random.default_rng(2)
    a, b = networks(generator, 4, mean=0.2), networks(generator, 4)
    expected = scipy.stats.permutation_test(
        (a.mean(1), b.mean(1)), lambda x, y, axis: x.mean(axis) - y.mean(axis), vectorized=True, n_resamples=np.inf
    )
    assert compare_seeds(a, b).p == pytest.approx(expected.pvalue)
    many = compare_seeds(networks(generator, 12, mean=3.0), networks(generator, 12))
    assert many.p == pytest.approx(1 / 10_001)  # of deals drawn, none is as extreme; never 0


def test_with_the_same_images_the_interval_is_welchs():
    """No image differs from another: only the seeds are a sample."""
    generator = np.random.default_rng(3)
    a, b = (np.tile(generator.normal(size=(k, 1)), 30) for k in (5, 7))
    expected = scipy.stats.ttest_ind(a[:, 0], b[:, 0], equal_var=False).confidence_interval()
    found = compare_seeds(a, b)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=2e-3)  # degrees to two places


@pytest.mark.parametrize("seeds", [(1, 1), (3, 8)])
def test_fewer_than_four_seeds_say_nothing_of_a_recipe(seeds):
    generator = np.random.default_rng(4)
    found = compare_seeds(networks(generator, seeds[0], mean=9.0), networks(generator, seeds[1]))
    assert np.isnan([found.low, found.high, found.p]).all() and found.difference > 5
