"""Student's t and the beta distribution, which NumPy draws from but cannot evaluate."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

_SMALLEST = 1e-300  # stands for a zero denominator (Lentz's method)
_PLACES = 4e-15  # relative change at which the continued fraction has come to rest


def beta_cdf(x: np.ndarray | float, a: np.ndarray | float, b: np.ndarray | float) -> np.ndarray:
    """P(X <= x) for X ~ Beta(a, b): the regularized incomplete beta function I_x(a, b); arguments are broadcast, NaN stays NaN.

    Relative error below 1e-9 also where the probability is tiny, which corrected p-values need.

    Source: continued fraction DLMF 8.17.22 by Lentz's method; I_x(a, b) = 1 - I_{1-x}(b, a) where that converges faster.
    """
    x, a, b = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (x, a, b)))
    turned = x > (a + 1) / (a + b + 2)
    below = _below(np.where(turned, 1 - x, x), np.where(turned, b, a), np.where(turned, a, b))
    return np.where(turned, 1 - below, below)


def _below(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """I_x(a, b) for x below the mean, where the continued fraction converges within O(sqrt(max(a, b))) terms."""
    inside = np.clip(x, _SMALLEST, 1 - 1e-16)
    factor = np.exp(a * np.log(inside) + b * np.log1p(-inside) - _log_beta(a, b)) / a
    c, d = np.ones_like(inside), 1 / _not_zero(1 - (a + b) * inside / (a + 1))
    fraction = d.copy()
    for m in range(1, 10_000):
        even = m * (b - m) * inside / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * inside / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _not_zero(1 + term * d)
            c = _not_zero(1 + term / c)
            fraction = fraction * (d * c)
        if not (np.abs(d * c - 1) > _PLACES).any():
            break
    return np.where(x <= 0, 0.0, np.where(np.isnan(x), np.nan, factor * fraction))


def _not_zero(value: np.ndarray) -> np.ndarray:
    return np.where(np.abs(value) < _SMALLEST, _SMALLEST, value)


def _log_beta(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """log B(a, b); of the few different pairs of a family of tests each is worked out once."""
    pairs, place = np.unique(np.stack((a.ravel(), b.ravel())), axis=1, return_inverse=True)
    values = [math.lgamma(p) + math.lgamma(q) - math.lgamma(p + q) if p > 0 and q > 0 else math.nan for p, q in pairs.T]
    return np.array(values)[place.ravel()].reshape(a.shape)


def student_tail(t: np.ndarray | float, df: np.ndarray | float) -> np.ndarray:
    """P(T > t) for Student's t with df degrees of freedom."""
    t, df = np.broadcast_arrays(np.asarray(t, dtype=np.float64), np.asarray(df, dtype=np.float64))
    with np.errstate(over="ignore", invalid="ignore"):
        beyond = beta_cdf(np.where(np.isinf(t), 0.0, df / (df + t**2)), df / 2, 0.5) / 2
    return np.where(t >= 0, beyond, 1 - beyond)


@lru_cache(maxsize=1024)
def student_quantile(probability: float, df: float) -> float:
    """The t that Student's t with df degrees of freedom stays below with this probability, in (0, 1)."""
    if probability < 0.5:
        return -student_quantile(1 - probability, df)
    high = 1.0
    while student_tail(high, df) > 1 - probability:
        high *= 2
    return _search(lambda t: student_tail(t, df) > 1 - probability, 0.0, high)


@lru_cache(maxsize=1024)
def beta_quantile(probability: float, a: float, b: float) -> float:
    """The x that Beta(a, b) stays below with this probability."""
    return _search(lambda x: beta_cdf(x, a, b) < probability, 0.0, 1.0)


def _search(is_below: Callable[[np.ndarray], np.ndarray], low: float, high: float) -> float:
    """Where `is_below` turns from true to false: eight rounds among 128 places each, which is quicker than 56 halvings."""
    for _ in range(8):
        places = np.linspace(low, high, 129)
        last = int(is_below(places[1:-1]).sum())
        low, high = float(places[last]), float(places[last + 1])
    return (low + high) / 2
