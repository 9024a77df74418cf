"""MeanRanks, Friedman's test and critical differences against a published example, closed forms and SciPy."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from explainode.errors import UserError
from explainode.metrics.means import mean_tests
from explainode.metrics.ranks import (
    MeanRanks,
    critical_difference,
    friedman_test,
    image_ranks,
    mean_over_metrics,
    rank_explainers,
    reversals,
    studentized_range,
)
from explainode.metrics.statistics import holm

# Demšar 2006, Table 6: AUC of four variants of C4.5 on 14 data sets. On "voting" two values are equal as printed, but not as ranked there.
DEMSAR = np.array(
    [
        [0.763, 0.768, 0.771, 0.798],
        [0.599, 0.591, 0.590, 0.569],
        [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898],
        [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685],
        [0.583, 0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000],
        [0.940, 0.962, 0.965, 0.962],
        [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.9751, 0.975],
        [0.957, 0.978, 0.946, 0.970],
    ]
)


def _values(table: np.ndarray) -> dict[str, dict[int, float]]:
    return {f"e{k}": dict(enumerate(column.tolist())) for k, column in enumerate(table.T)}


def test_the_published_example():
    ranks = image_ranks(DEMSAR, higher_is_better=True)
    np.testing.assert_allclose(ranks.mean(0), [3.143, 2.000, 2.893, 1.964], atol=5e-4)
    n, k = ranks.shape
    uncorrected = 12 * n / (k * (k + 1)) * (np.square(ranks.mean(0)).sum() - k * (k + 1) ** 2 / 4)
    assert uncorrected == pytest.approx(9.28, abs=0.005)  # as printed, where ties are not corrected for
    assert friedman_test(ranks)[0] > uncorrected
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert critical_difference(4, 14, level=0.10) == pytest.approx(1.12, abs=0.005)


def test_friedman_equals_scipy_with_ties():
    generator = np.random.default_rng(0)
    for k in (3, 5, 9):
        table = generator.integers(0, 4, size=(20, k)).astype(float)
        expected = scipy.stats.friedmanchisquare(*table.T)
        assert friedman_test(image_ranks(table, True)) == pytest.approx(
            (expected.statistic, expected.pvalue), rel=1e-10
        )
    assert all(math.isnan(v) for v in friedman_test(np.full((5, 3), 2.0)))


def test_friedman_holds_its_level():
    generator = np.random.default_rng(1)
    p = [friedman_test(image_ranks(generator.exponential(size=(40, 6)), False))[1] for _ in range(1000)]
    assert 0.03 <= np.mean(np.array(p) <= 0.05) <= 0.07


def test_studentized_range():
    # two numbers: their distance is sqrt(2) |normal|
    assert studentized_range(2, 0.95) == pytest.approx(math.sqrt(2) * scipy.stats.norm.ppf(0.975), abs=1e-9)
    # more against SciPy's own integration
    for k in (3, 4, 7, 15, 40):
        for level in (0.5, 0.9, 0.95, 0.999):
            assert studentized_range(k, level) == pytest.approx(
                scipy.stats.studentized_range.ppf(level, k, np.inf), abs=2e-6
            )
    # Demšar 2006, Table 5 a: q at 5 % for 2..10 classifiers, from ranges with three decimals
    printed = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]
    np.testing.assert_allclose([studentized_range(k, 0.95) / math.sqrt(2) for k in range(2, 11)], printed, atol=8e-4)
    with pytest.raises(UserError, match="two numbers or more"):
        studentized_range(1, 0.95)


def test_ranks_by_hand():
    values = {
        "a": {0: 1.0, 1: 2.0, 2: 3.0, 9: 0.0},
        "b": {0: 2.0, 1: 2.0, 2: 1.0},
        "c": {0: 3.0, 1: 1.0, 2: float("nan"), 1000: 5.0},
    }
    found = rank_explainers(values, higher_is_better=False)
    assert found.n == 3  # on image 2 c failed and is last; images 9 and 1000 have one value, which ranks nothing
    assert dict(zip(found.names, found.mean_rank, strict=True)) == pytest.approx(
        {"a": 5.5 / 3, "b": 5.5 / 3, "c": 7 / 3}
    )
    assert dict(zip(found.names, found.failed, strict=True)) == {"a": 0, "b": 0, "c": 1}
    assert dict(zip(found.names, found.mean_value, strict=True)) == pytest.approx({"a": 2, "b": 5 / 3, "c": 2})
    assert found.mean_rank.mean() == (3 + 1) / 2
    turned = rank_explainers(values, higher_is_better=True)
    assert dict(zip(turned.names, turned.mean_rank, strict=True)) == pytest.approx(
        {"a": 5.5 / 3, "b": 5.5 / 3, "c": 7 / 3}
    )


def test_pairs_are_those_of_single_tests():
    table = np.random.default_rng(2).normal(size=(40, 4)) + np.array([0, 0.3, 0.6, 2])
    found = rank_explainers(_values(table), higher_is_better=True)
    ranks = image_ranks(table, True)
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    expected = holm([mean_tests((ranks[:, i] - ranks[:, j])[:, None]).p[0] for i, j in pairs])
    for (i, j), p in zip(pairs, expected, strict=True):
        a, b = found.names.index(f"e{i}"), found.names.index(f"e{j}")
        assert found.adjusted[a, b] == found.adjusted[b, a] == pytest.approx(p, rel=1e-9)
        assert found.order(f"e{i}", f"e{j}") == (
            0 if p >= 0.05 else int(np.sign(ranks[:, j].mean() - ranks[:, i].mean()))
        )
    assert found.names[0] == "e3" and found.order("e3", "e0") == 1 and found.order("e0", "e3") == -1


def test_many_explainers_are_told_apart():
    """33 explainers are 528 pairs: 10,000 drawn sign patterns could not tell any of them apart."""
    generator = np.random.default_rng(0)
    for k in (32, 33):
        found = rank_explainers(_values(generator.normal(size=(200, k)) + 10 * np.arange(k)), True)
        assert found.cliques == [] and np.nanmax(found.adjusted) < 1e-6


def test_the_leader_is_not_behind_by_the_test_it_rests_on():
    """a wins on 60 of 100 images by a little and loses on 40 by much: by ranks, 60 to 40 is no lead."""
    base = np.random.default_rng(0).uniform(0.4, 0.5, 100)
    table = np.stack((base, base + np.where(np.arange(100) < 60, 0.01, -0.3), base + 0.2), 1)
    found = rank_explainers(_values(table), higher_is_better=False)
    assert found.names[:2] == ("e0", "e1") and found.order("e0", "e1") == 0
    for first in range(3):
        assert all(found.order(found.names[first], later) >= 0 for later in found.names[first:])


def test_giving_up_is_no_merit():
    table = np.random.default_rng(1).normal(size=(100, 3))
    table[np.argsort(table[:, 0])[-45:], 0] = np.nan  # lower is better: fails on its 45 worst
    found = rank_explainers(_values(table), higher_is_better=False)
    assert found.n == 100 and found.failed[found.names.index("e0")] == 45
    assert found.order("e0", "e1") <= 0 and found.order("e0", "e2") <= 0


def test_rounding_is_a_tie():
    table = 1e-7 * np.random.default_rng(2).normal(size=(100, 2)) + np.array([1.0, 1.0 + 1e-7])
    assert rank_explainers(_values(table), True).order("e0", "e1") == 0
    assert rank_explainers(_values(table), True, rounding=0.0).order("e0", "e1") == -1
    assert image_ranks(np.array([[0.0, 2e-6, 0.5e-6]]), False, 1e-6).tolist() == [[1.5, 3.0, 1.5]]


def _ranks(adjusted: np.ndarray, names: str = "abcde", value: np.ndarray | None = None) -> MeanRanks:
    k = len(adjusted)
    value = np.arange(k) * 1.0 if value is None else value
    return MeanRanks(tuple(names[:k]), np.arange(k) + 1.0, value, 10, 1.0, 0.01, 0.5, adjusted, False, np.zeros(k, int))


def test_cliques_are_the_longest_runs_of_neighbors():
    apart = np.zeros((5, 5))
    for i, j in ((0, 1), (1, 2), (0, 2), (2, 3)):
        apart[i, j] = apart[j, i] = 0.5
    assert _ranks(apart).cliques == [(0, 2), (2, 3)]
    assert _ranks(np.ones((5, 5))).cliques == [(0, 4)]
    assert _ranks(np.zeros((5, 5))).cliques == []
    outer = np.zeros((3, 3))
    outer[0, 2] = outer[2, 0] = 0.5  # not told apart, but what lies between is: no bar may say that all three are alike
    assert _ranks(outer).cliques == []


def test_reversals_count_what_both_are_sure_of():
    sure, unsure = np.zeros((3, 3)), np.ones((3, 3))
    a = _ranks(sure, "abc")
    b = replace(a, mean_rank=np.array([2.0, 1.0, 3.0]))  # b before a now
    assert reversals(a, b).decided == 3 and reversals(a, b).turned == (("a", "b"),)
    assert reversals(b, a).turned == (("b", "a"),)
    assert reversals(a, _ranks(unsure, "abc")).decided == 0
    assert reversals(a, a).turned == ()


def test_mean_over_metrics_takes_what_all_rank():
    a = _ranks(np.ones((3, 3)), "abc")
    b = _ranks(np.ones((2, 2)), "ca")
    assert mean_over_metrics([a, b]) == {"a": 1.5, "c": 2.0}
    assert mean_over_metrics([a, _ranks(np.ones((2, 2)), "xy")]) == mean_over_metrics([]) == {}


def test_the_order_of_the_explainers_changes_nothing():
    table = np.random.default_rng(3).normal(size=(30, 5))
    values = _values(table)
    there, back = rank_explainers(values, True), rank_explainers(dict(reversed(values.items())), True)
    assert there.names == back.names and there.p == pytest.approx(back.p)
    np.testing.assert_allclose(there.adjusted, back.adjusted)


def test_too_little_is_refused():
    with pytest.raises(UserError, match="two explainers or more, got 1"):
        rank_explainers({"a": {0: 1.0}}, True)
    with pytest.raises(UserError, match="a, b have values for, two of them at least, got 1"):
        rank_explainers({"a": {0: 1.0, 1: 2.0}, "b": {0: 1.0}}, True)


def test_fifteen_explainers_on_a_thousand_images_take_half_a_second():
    values = _values(np.random.default_rng(4).normal(size=(1000, 15)))
    start = time.process_time()
    rank_explainers(values, True)
    assert time.process_time() - start <= 0.5 * 3  # 105 tests of 10,000 flips; a factor of 3 for a busy machine
