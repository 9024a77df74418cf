"""Student's t and the beta distribution against SciPy, far out in their tails too."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from explainode.metrics.distributions import (
    beta_cdf,
    beta_quantile,
    student_quantile,
    student_tail,
)


def test_beta_equals_scipy():
    generator = np.random.default_rng(0)
    a, b = 10 ** generator.uniform(-1, 4, (2, 500))
    x = generator.beta(a, b)
    np.testing.assert_allclose(beta_cdf(x, a, b), scipy.stats.beta.cdf(x, a, b), rtol=1e-9, atol=1e-300)
    assert beta_cdf(0.0, 2.0, 3.0) == 0 and beta_cdf(1.0, 2.0, 3.0) == 1 and np.isnan(beta_cdf(np.nan, 2.0, 3.0))
    for p in (0.025, 0.975):
        for hits, n in ((1, 12), (24, 24), (950, 1000)):
            assert beta_quantile(p, hits, n - hits + 1) == pytest.approx(
                scipy.stats.beta.ppf(p, hits, n - hits + 1), abs=1e-14
            )


def test_student_equals_scipy():
    generator = np.random.default_rng(1)
    t, df = generator.normal(0, 20, 500), 10 ** generator.uniform(0, 5, 500)
    expected = scipy.stats.t.sf(t, df)
    told = expected > 1e-280
    np.testing.assert_allclose(student_tail(t, df)[told], expected[told], rtol=2e-9)
    assert student_tail(np.inf, 5) == 0 and student_tail(0.0, 5) == 0.5 and np.isnan(student_tail(np.nan, 5))
    for p in (0.025, 0.6, 0.975, 0.9999):
        for freedom in (1, 11, 199, 10_000):
            assert student_quantile(p, freedom) == pytest.approx(scipy.stats.t.ppf(p, freedom), rel=1e-9)
