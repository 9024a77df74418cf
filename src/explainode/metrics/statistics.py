"""What chance alone would do: paired comparisons, Holm's correction, the bootstrap over images, and agreement of rankings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from explainode.errors import UserError
from explainode.metrics.means import ROUNDING, check_level, mean_interval, mean_tests
from explainode.randomness import chain

bootstrap_interval = mean_interval  # the name of earlier versions, whose percentile intervals were too short

_CACHED = (
    100_000_000  # counts kept for the next metric of the same images (one byte each): 10,000 resamples of 10,000 images
)
_CHUNK = 2_000_000  # draws at a time, so that memory stays small for any number of images
EXACT_PAIRS = 12  # up to 2^12 sign patterns are enumerated, which is cheaper than drawing 10,000


def _generator(*parts: int | str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(chain(*parts)))


def _draw_counts(generator: np.random.Generator, rows: int, n: int) -> np.ndarray:
    """(rows, n) uint8: how often each of n images is drawn in each of `rows` resamples with replacement."""
    picks = generator.integers(0, n, size=(rows, n), dtype=np.int32)
    picks += np.arange(rows, dtype=np.int32)[:, None] * n
    return np.minimum(np.bincount(picks.ravel(), minlength=rows * n), 255).astype(np.uint8).reshape(rows, n)


@lru_cache(maxsize=2)
def _kept_counts(resamples: int, n: int, seed: int) -> np.ndarray:
    return np.concatenate(list(_fresh_counts(resamples, n, seed)))


def _fresh_counts(resamples: int, n: int, seed: int):
    generator = _generator(seed, "bootstrap", n)
    step = max(1, _CHUNK // n)
    for top in range(0, resamples, step):
        yield _draw_counts(generator, min(step, resamples - top), n)


def bootstrap_means(values: np.ndarray, resamples: int = 10_000, seed: int = 0) -> np.ndarray:
    """(n, k) values of n images -> (resamples, k) means of resampled images; NaN entries are left out of their column.

    The resamples are a function of (seed, n) alone, so results over the same images are resampled together.
    """
    n = len(values)
    there = ~np.isnan(values)
    filled = np.where(there, values, 0.0)
    kept = resamples * n <= _CACHED
    chunks = (
        (np.array_split(_kept_counts(resamples, n, seed), -(-resamples * n // _CHUNK)))
        if kept
        else _fresh_counts(resamples, n, seed)
    )
    complete = bool(there.all())
    means = []
    for counts in chunks:
        weights = counts.astype(np.float64)
        below = n if complete else weights @ there
        with np.errstate(invalid="ignore"):  # a resample without any number of a column has no mean
            means.append((weights @ filled) / below)
    return np.concatenate(means)


def percentile_interval(drawn: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """(R, k) resampled values -> their central interval, two (k,) arrays; NaN where nothing was drawn."""
    check_level(level)
    low, high = np.full(drawn.shape[1], np.nan), np.full(drawn.shape[1], np.nan)
    for k, column in enumerate(drawn.T):
        numbers = column[~np.isnan(column)]
        if len(numbers):
            low[k], high[k] = np.quantile(numbers, ((1 - level) / 2, (1 + level) / 2))
    return low, high


def paired_sign_flip(difference: Sequence[float] | np.ndarray, resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of "the paired differences are symmetric around 0", by flipping their signs.

    Exact (all 2^n patterns) for n <= 12, otherwise (1 + count) / (1 + resamples) over keyed random flips, which never is 0 and keeps the
    level (Phipson and Smyth 2010). NaN differences are left out; NaN for no difference at all.
    """
    d = np.asarray(difference, dtype=np.float64)
    return float(paired_sign_flips(d[~np.isnan(d)][:, None], resamples, seed)[0])


def paired_sign_flips(differences: np.ndarray, resamples: int = 10_000, seed: int = 0) -> np.ndarray:
    """(n, k) differences of k comparisons on the same n images, without NaN -> (k,) p-values of `paired_sign_flip`.

    The flips are a function of (seed, n) alone, so all comparisons share them, and many cost little more than one.
    """
    d = np.asarray(differences, dtype=np.float64)
    n, k = d.shape
    if n == 0:
        return np.full(k, np.nan)
    total = d.sum(0)
    bound = np.abs(total) - 1e-12 * np.abs(d).sum(0)  # sums in another order differ by rounding; ties must count
    if n <= EXACT_PAIRS:
        signs = 1.0 - 2.0 * ((np.arange(1 << n)[:, None] >> np.arange(n)) & 1)
        return np.mean(np.abs(signs @ d) >= bound, axis=0)
    kept = resamples * n <= _CACHED
    flips = (
        np.array_split(_kept_flips(resamples, n, seed), -(-resamples * n // _CHUNK))
        if kept
        else _fresh_flips(resamples, n, seed)
    )
    count = np.zeros(k, dtype=np.int64)
    for part in flips:
        bits = np.unpackbits(part, axis=1, count=n)
        count += (np.abs(total - 2.0 * (bits.astype(np.float64) @ d)) >= bound).sum(0)
    return (1 + count) / (1 + resamples)


@lru_cache(maxsize=2)
def _kept_flips(resamples: int, n: int, seed: int) -> np.ndarray:
    return np.concatenate(list(_fresh_flips(resamples, n, seed)))


def _fresh_flips(resamples: int, n: int, seed: int):
    """Chunks of (resamples, ceil(n / 8)) uint8: which of n signs each resample flips, one bit each."""
    generator = _generator(seed, "sign flip", n)
    step = max(1, _CHUNK // n)
    for top in range(0, resamples, step):
        yield generator.integers(0, 256, size=(min(step, resamples - top), -(-n // 8)), dtype=np.uint8)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down correction (Holm 1979): adjusted p-values in the given order; NaN stays NaN and is no test."""
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full_like(p, np.nan)
    tests = np.flatnonzero(~np.isnan(p))
    order = tests[np.argsort(p[tests], kind="stable")]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0) if len(order) else []
    return adjusted


@dataclass(frozen=True)
class PairedComparison:
    """mean(a - b) over the n images that both have, its interval, and the p-values of `means.mean_tests`.

    `effect` is the mean over the standard deviation of the differences (Cohen's d_z): large n makes any difference significant, not large.
    NaN for fewer than two images, or differences that are all the same. `error` is the standard error of the mean.
    """

    difference: float
    low: float
    high: float
    p: float
    n: int
    effect: float
    p_equivalent: float
    error: float


def paired_comparison(
    a: Mapping[int, float],
    b: Mapping[int, float],
    level: float = 0.95,
    margin: float = float("nan"),
    rounding: float = ROUNDING,
) -> PairedComparison:
    """Compare two results image by image ({sample id: value} each); images that only one has, or NaN, do not count.

    Raises:
        UserError: if the two have no image in common.
    """
    common = sorted(a.keys() & b.keys())
    d = np.array([a[i] - b[i] for i in common], dtype=np.float64)
    d = d[~np.isnan(d)]
    if not len(d):
        raise UserError("the two results have no image in common; evaluate both on the same images")
    found = mean_tests(d[:, None], margin, level, rounding)
    low, high, p, equivalent, error = (
        float(column[0]) for column in (found.low, found.high, found.p, found.p_equivalent, found.error)
    )
    spread = float(d.std(ddof=1)) if len(d) > 1 else 0.0
    effect = float(d.mean()) / spread if spread > 1e-12 * float(np.abs(d).max()) else float("nan")
    return PairedComparison(float(d.mean()), low, high, p, len(d), effect, equivalent, error)


def kendall_tau(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Agreement in [-1, 1] of two rankings of the same things: pairs in the same order minus pairs in opposite order, ties accounted for.

    Things that are NaN in either are left out; NaN for fewer than two things, or if one side ties them all.

    Source: tau-b, Kendall 1945.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    there = ~(np.isnan(a) | np.isnan(b))
    order_a, order_b = (np.sign(v[there][:, None] - v[there]) for v in (a, b))
    untied = float(np.abs(order_a).sum()) * float(np.abs(order_b).sum())
    return float((order_a * order_b).sum() / np.sqrt(untied)) if untied else float("nan")


def kendall_matrix(scores: Mapping[str, Mapping[str, float]]) -> tuple[tuple[str, ...], np.ndarray]:
    """{metric: {explainer: value, higher is better}} -> the metrics and (M, M), how alike each pair of them ranks the explainers.

    The same for {setting: {explainer: value}} is the stability of a ranking over baselines or hyper-parameters. A pair is compared on the
    explainers that both have.

    Source: disagreement of metrics, Tomsett et al. 2020; ranks over settings, Wickstrøm et al. 2024.
    """
    names = tuple(scores)
    matrix = np.full((len(names), len(names)), np.nan)
    for i, first in enumerate(names):
        for j, second in enumerate(names):
            common = [explainer for explainer in scores[first] if explainer in scores[second]]
            matrix[i, j] = kendall_tau([scores[first][e] for e in common], [scores[second][e] for e in common])
    return names, matrix
