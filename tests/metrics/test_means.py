"""Intervals and tests of means: closed forms, and what they promise on distributions whose mean we know."""

from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.stats

from explainode.errors import UserError
from explainode.metrics.means import (
    FEWEST,
    detectable_difference,
    mean_interval,
    mean_intervals,
    mean_tests,
    share_interval,
)

LOGNORMAL = {sigma: np.exp(sigma**2 / 2) for sigma in (1.0, 1.5)}


def rare(generator: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Mostly nothing, otherwise exponential: rare failures; mean 0.15."""
    return np.where(generator.random(shape) < 0.85, 0.0, generator.exponential(1, shape))


DRAWS = {
    "normal": (lambda g, s: g.normal(0, 1, s), 0.0),
    "arcsine": (lambda g, s: g.beta(0.5, 0.5, s), 0.5),
    "exponential": (lambda g, s: g.exponential(1, s), 1.0),
    "log-normal 1": (lambda g, s: g.lognormal(0, 1, s), LOGNORMAL[1.0]),
    "log-normal 1.5": (lambda g, s: g.lognormal(0, 1.5, s), LOGNORMAL[1.5]),
    "rare failures": (rare, 0.15),
    "three levels": (lambda g, s: g.choice([0, 0.5, 1.0], s, p=[0.1, 0.2, 0.7]), 0.8),
}


@pytest.mark.parametrize("n", [12, 24, 60, 200])
@pytest.mark.parametrize("name", DRAWS)
def test_intervals_cover_and_tests_hold_their_level(name, n):
    """0.93 and 0.06, as docs/statistics.md says, less three standard errors of 1500 repetitions. Percentile intervals cover .66 to .95."""
    draw, mean = DRAWS[name]
    values = draw(np.random.default_rng([n, len(name)]), (n, 1500))
    low, high = mean_intervals(values)
    given = ~np.isnan(low)
    covered = ((low <= mean) & (mean <= high))[given]
    assert given.mean() > 0.9 or name in ("rare failures", "three levels")
    assert covered.mean() >= 0.93 - 3 * np.sqrt(0.93 * 0.07 / len(covered))
    found = mean_tests(values - mean).p < 0.05
    assert found.mean() <= 0.06 + 3 * np.sqrt(0.06 * 0.94 / 1500)


def test_symmetric_values_get_students_interval():
    half = np.random.default_rng(0).normal(size=30)
    values = np.concatenate((half, -half)) + 0.3  # no skewness at all
    expected = scipy.stats.t.interval(0.95, 59, 0.3, values.std(ddof=1) / np.sqrt(60))
    assert mean_interval(values) == pytest.approx(expected, rel=1e-9)
    assert mean_tests(values[:, None]).p[0] == pytest.approx(scipy.stats.ttest_1samp(values, 0).pvalue, rel=1e-9)


@pytest.mark.parametrize("at", ["low", "high"])
def test_the_test_is_the_interval_turned_round(at):
    values = np.random.default_rng(1).exponential(size=40)
    for shift in (values, -values):
        ends = dict(zip(("low", "high"), mean_interval(shift, 0.95), strict=True))
        assert mean_tests((shift - ends[at])[:, None]).p[0] == pytest.approx(0.05, rel=1e-6)


def test_only_the_side_of_the_tail_is_longer_than_students():
    values = np.random.default_rng(2).exponential(size=40)
    low, high = mean_interval(values)
    expected = scipy.stats.t.interval(0.95, 39, values.mean(), values.std(ddof=1) / np.sqrt(40))
    assert low == pytest.approx(expected[0], rel=1e-9) and high > expected[1]


def test_shares_are_clopper_and_pearsons():
    assert mean_interval(np.ones(24)) == pytest.approx((scipy.stats.beta.ppf(0.025, 24, 1), 1.0))
    assert mean_interval(np.zeros(24)) == pytest.approx((0.0, scipy.stats.beta.ppf(0.975, 1, 24)))
    found = scipy.stats.binomtest(9, 10).proportion_ci(0.9, method="exact")
    assert share_interval(9, 10, 0.9) == pytest.approx((found.low, found.high))
    assert mean_interval([1.0, 1.0, 0.0, np.nan], 0.9) == pytest.approx(share_interval(2, 3, 0.9))


def test_too_few_images_have_no_interval():
    values = np.random.default_rng(3).normal(size=FEWEST)
    assert not np.isnan(mean_interval(values)).any()
    assert np.isnan(mean_interval(values[1:])).all() and np.isnan(mean_interval([])).all()
    failures = np.zeros(40)
    failures[:4] = 1, 2, 3, 4  # four failures do not show what failures are like
    assert np.isnan(mean_interval(failures)).all()
    failures[4] = 5
    assert not np.isnan(mean_interval(failures)).any()
    assert np.isnan(mean_interval(np.full(40, 0.7))).all()
    with pytest.raises(UserError, match="level must lie between 0 and 1"):
        mean_interval(values, 1.0)


def test_missing_values_are_left_out_of_their_column():
    values = np.random.default_rng(4).lognormal(size=(60, 3))
    values[::3, 1] = np.nan
    low, high = mean_intervals(values)
    assert (low[1], high[1]) == pytest.approx(mean_interval(values[~np.isnan(values[:, 1]), 1]))
    tests = mean_tests(values - 1.5)
    assert list(tests.n) == [60, 40, 60]


def test_hits_are_tested_exactly():
    d = np.repeat([1.0, 0.0, -1.0], [9, 20, 1])[:, None]
    found = mean_tests(d, margin=0.5)
    assert found.p[0] == pytest.approx(scipy.stats.binomtest(1, 10).pvalue)
    assert found.low[0] < 8 / 30 < found.high[0]
    assert mean_tests(np.zeros((30, 1))).p[0] == 1


def test_intervals_of_paired_hits_cover():
    generator = np.random.default_rng(5)
    for n in (12, 24, 200):
        d = generator.choice([-1.0, 0.0, 1.0], (n, 2000), p=[0.05, 0.8, 0.15])
        found = mean_tests(d)
        assert ((found.low <= 0.1) & (found.high >= 0.1)).mean() >= 0.93


def test_the_same_difference_on_all_images_is_one():
    assert mean_tests(np.full((24, 1), -0.3)).p[0] == 2 / 2**24
    assert np.isnan(mean_tests(np.full((23, 1), -0.3)).p[0])  # one image in seven may be otherwise, and was not drawn


def test_rounding_is_no_difference():
    generator = np.random.default_rng(6)
    d = 1e-7 * np.abs(generator.normal(size=(60, 1)))  # all of one sign, and none that float32 could tell from nothing
    found = mean_tests(d, margin=0.01)
    assert found.p[0] == 1 and found.p_equivalent[0] == 0
    assert mean_tests(1000 * d).p[0] < 1e-6


def test_few_images_cannot_decide_large_families():
    d = np.random.default_rng(7).normal(5, 0.1, size=(13, 1))
    assert mean_tests(d).p[0] == 2 / 2**13  # though by theory it were 1e-20
    assert np.isnan(mean_tests(d[:11]).p[0])


def test_equivalence_is_two_one_sided_tests():
    half = np.random.default_rng(8).normal(size=50)
    d = np.concatenate((half, -half)) + 0.05
    found = mean_tests(d[:, None], margin=0.3)
    error = d.std(ddof=1) / 10
    assert found.p_equivalent[0] == pytest.approx(2 * scipy.stats.t.sf((0.3 - 0.05) / error, 99), rel=1e-9)
    assert np.isnan(mean_tests(d[:, None]).p_equivalent[0])


def test_equivalence_is_rarely_claimed_of_means_at_the_margin():
    values = np.random.default_rng(9).lognormal(0, 1, (24, 3000)) - LOGNORMAL[1.0]
    for sign in (1, -1):
        claimed = mean_tests(sign * values + 0.5, margin=0.5).p_equivalent < 0.05
        assert claimed.mean() <= 0.06


def test_what_could_have_been_detected_is_detected_four_times_in_five():
    generator = np.random.default_rng(10)
    difference = detectable_difference(1 / np.sqrt(40), 40, 0.05)
    found = mean_tests(generator.normal(difference, 1, (40, 3000))).p < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.04)


def test_720_tests_of_1000_images_take_no_two_seconds():
    d = np.random.default_rng(11).normal(size=(1000, 720))
    start = time.process_time()
    mean_tests(d, margin=0.1)
    assert time.process_time() - start <= 2
