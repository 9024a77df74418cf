"""What the mean of some images says of the mean of all: its interval, whether it is zero, and whether it is next to zero.

Student's t, with Hall's correction on the side of the long tail. Few values drawn from a skewed distribution miss its tail more often than not: their
mean is too low, their spread too small, and their own skewness tells little of it. We therefore correct that side for more skewness than was seen,
and never shorten the other side. `docs/statistics.md` holds how often intervals cover and tests err, on eleven and eight distributions.

Letters: n images, k columns of values. NaN is no value.

Source: Hall 1992, the monotone cubic transformation of t; Johnson 1978. The factor by which we enlarge the skewness is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from explainode.errors import UserError
from explainode.metrics.distributions import beta_cdf, beta_quantile, student_quantile, student_tail

FEWEST = 12  # images: below, neither intervals nor tests of a skewed quantity keep their promise
DIFFERENT = (
    5  # images that differ from the most frequent value: four failures among zeros do not show what failures are like
)
ROUNDING = 1e-6  # a difference of scores that float32 may have made: eight spacings of numbers near 1
STEEPEST = 0.5  # of Hall's correction: beyond, more skewness would shorten the interval again
POWER = 0.8  # with which a detectable effect is detected


@dataclass(frozen=True)
class Moments:
    """Of k columns, each (k,): the values that are there, their mean, its standard error, and `bend`, their skewness over sqrt(n), enlarged.

    `enough`: whether the values can carry an interval of Student's kind.
    """

    n: np.ndarray
    mean: np.ndarray
    error: np.ndarray
    bend: np.ndarray
    enough: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Moments:
        """The moments of (n, k) values."""
        there = ~np.isnan(values)
        n = there.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(there, values, 0.0).sum(0) / n
            deviation = np.where(there, values - mean, 0.0)
            spread = np.sqrt((deviation**2).sum(0) / (n - 1))
            rounding = 1e-12 * np.abs(np.where(there, values, 0.0)).max(0, initial=0.0)
            varies = spread > rounding
            skewness = n / ((n - 1) * (n - 2)) * ((deviation / np.where(varies, spread, 1.0)) ** 3).sum(0)
            bend = np.clip((1.25 + 6 / n) * skewness / np.sqrt(n), -STEEPEST, STEEPEST)
            error = np.where(varies, spread, 0.0) / np.sqrt(n)
        return cls(n, mean, error, bend, varies & (n >= FEWEST) & ~_mostly_one_value(values, n))

    def interval(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """The central interval of each mean; NaN where there is not enough."""
        t = np.array([student_quantile((1 + level) / 2, int(n) - 1) if n > 1 else np.nan for n in self.n])
        down, up = (
            self.error * np.where(tail > 0, _reach(t, np.abs(self.bend)), t) for tail in (-self.bend, self.bend)
        )
        low, high = self.mean - down, self.mean + up
        return np.where(self.enough, low, np.nan), np.where(self.enough, high, np.nan)

    def tails(self, at: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """The one-sided p-values of "the true mean is at least `at`" and of "... at most `at`"; NaN where there is not enough."""
        with np.errstate(invalid="ignore", divide="ignore"):
            t = np.where(self.enough, (at - self.mean) / self.error, np.nan)
        found = []
        for distance, tail in ((t, self.bend), (-t, -self.bend)):
            seen = np.where((tail > 0) & (distance > 0), _toward_tail(distance, np.abs(self.bend)), distance)
            found.append(np.where(self.enough, student_tail(seen, np.maximum(self.n - 1, 1)), np.nan))
        return found[0], found[1]


def _mostly_one_value(values: np.ndarray, n: np.ndarray) -> np.ndarray:
    """(k,) bool: whether fewer than `DIFFERENT` of a column's values differ from its most frequent one."""
    ordered = np.sort(values, axis=0)  # NaN last
    found = n < DIFFERENT
    for first in range(min(DIFFERENT, len(ordered))):
        last = np.maximum(n - DIFFERENT + first, 0)
        found = found | (ordered[first] == np.take_along_axis(ordered, last[None], 0)[0])
    return found


def _toward_tail(t: np.ndarray, bend: np.ndarray) -> np.ndarray:
    """What is left of a distance of t standard errors toward the long tail: t - a t^2 / 3 + a^2 t^3 / 27 - a / 6, Hall 1992."""
    return t - bend * t**2 / 3 + bend**2 * t**3 / 27 - bend / 6


def _reach(t: np.ndarray, bend: np.ndarray) -> np.ndarray:
    """Its inverse: how many standard errors toward the long tail stand for t."""
    a = np.where(bend > 1e-9, bend, 1.0)
    return np.where(bend > 1e-9, 3 / a * (1 - np.cbrt(1 - a * (t + a / 6))), t)


# ---- intervals


def mean_intervals(values: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """(n, k) values -> the interval of each column's mean, two (k,) arrays; NaN where the images are too few to say.

    Columns of hits and misses, ones and zeros, are shares: Clopper-Pearson, from two images on. Others need `FEWEST` images, `DIFFERENT` of
    which differ from the most frequent value.

    Raises:
        UserError: for a level outside (0, 1).

    Source: Clopper and Pearson 1934; the others see the module.
    """
    check_level(level)
    values = np.asarray(values, dtype=np.float64)
    moments = Moments.of(values)
    low, high = moments.interval(level)
    for k in np.flatnonzero((np.isnan(values) | (values == 0) | (values == 1)).all(0) & (moments.n > 1)):
        low[k], high[k] = share_interval(round(moments.n[k] * moments.mean[k]), int(moments.n[k]), level)
    return low, high


@lru_cache(maxsize=4096)
def share_interval(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval of the share of which n images gave so many hits."""
    low = beta_quantile((1 - level) / 2, hits, n - hits + 1) if hits else 0.0
    high = beta_quantile((1 + level) / 2, hits + 1, n - hits) if hits < n else 1.0
    return low, high


def mean_interval(values: np.ndarray | list[float] | tuple[float, ...], level: float = 0.95) -> tuple[float, float]:
    """`mean_intervals` of one column (n,); NaN, NaN where the images are too few to say."""
    low, high = mean_intervals(np.asarray(values, dtype=np.float64)[:, None], level)
    return float(low[0]), float(high[0])


def check_level(level: float) -> float:
    """The level, if it is one.

    Raises:
        UserError: if it is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise UserError(f"level must lie between 0 and 1, got {level}; 0.95 is usual")
    return level


# ---- tests


@dataclass(frozen=True)
class MeanTests:
    """Of k columns of paired differences, each (k,).

    Attributes:
        n: images; mean, low, high: the mean difference and its interval; error: the mean's standard error.
        p: of "the mean is zero"; NaN where the images are too few to test.
        p_equivalent: of "the mean is as far from zero as the margin, or farther"; NaN without a margin.
    """

    n: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    error: np.ndarray
    p: np.ndarray
    p_equivalent: np.ndarray


def mean_tests(
    differences: np.ndarray, margin: np.ndarray | float = np.nan, level: float = 0.95, rounding: float = ROUNDING
) -> MeanTests:
    """Test the means of (n, k) paired differences against zero, and against a margin around it.

    Differences smaller than `rounding` are none; images that are the same in all are not told apart, and equivalent. Differences of hits
    and misses, of -1, 0 and 1, have an exact test (McNemar's) from two images on, and so has one and the same difference of 24 images or more.
    For others it is Student's with Hall's correction, and never smaller than 2 / 2^m of m differences, which is the least that an exact test
    of symmetry can say: with few images a large family of tests cannot be decided, however small p would be by theory.

    Source: equivalence by two one-sided tests, Schuirmann 1987, each of which we ask at half the level, so that what is equivalent at 5 % has
    its 95 % interval within the margin. Interval of a difference of paired shares, after Agresti and Min 2005, who add half an image to each outcome and
    take normal quantiles: we add a whole one and take Student's, since theirs covers .90 of twelve images.
    """
    d = np.asarray(differences, dtype=np.float64)
    d = np.where(np.abs(d) < rounding, 0.0, d)
    margin = np.broadcast_to(np.asarray(margin, dtype=np.float64), d.shape[1:])
    moments = Moments.of(d)
    low, high = moments.interval(level)
    above, below = moments.tails(0.0)
    p = np.minimum(2 * np.minimum(above, below), 1.0)
    p = np.maximum(p, 2.0 ** (1 - (d * (~np.isnan(d)) != 0).sum(0)))
    p_equivalent = np.minimum(2 * np.maximum(moments.tails(margin)[0], moments.tails(-margin)[1]), 1.0)
    error = moments.error.copy()
    same = ((d == 0) | np.isnan(d)).all(0) & (moments.n > 0)
    hits = ((np.abs(d) == 1) | (d == 0) | np.isnan(d)).all(0) & ~same
    for k in np.flatnonzero(hits):
        counts = int(moments.n[k]), int((d[:, k] == 1).sum()), int((d[:, k] == -1).sum())
        low[k], high[k], error[k], p[k], p_equivalent[k] = _test_hits(*counts, float(margin[k]), level)
    constant = (moments.error == 0) & (moments.n >= 2 * FEWEST) & ~same & ~hits  # rare exceptions would show in as many
    p[constant] = 2.0 ** (1 - moments.n[constant])
    low[same], high[same], p[same] = 0.0, 0.0, 1.0
    p_equivalent[same & (moments.n >= FEWEST)] = 0.0
    return MeanTests(moments.n, moments.mean, low, high, error, p, p_equivalent)


def sign_tests(d: np.ndarray) -> np.ndarray:
    """(k,) exact two-sided p-values of "as many of the (n, k) differences are above zero as below" (McNemar 1947, for hits and misses)."""
    more, less = (d > 0).sum(0), (d < 0).sum(0)
    fewer = np.minimum(more, less)
    tail = 1 - beta_cdf(0.5, fewer + 1, np.maximum(more + less - fewer, 1))  # of the binomial distribution at one half
    return np.where(more == less, 1.0, np.minimum(2 * tail, 1.0))


@lru_cache(maxsize=4096)
def _test_hits(n: int, gained: int, lost: int, margin: float, level: float) -> tuple[float, float, float, float, float]:
    """Low, high, standard error, p and p of equivalence of n differences of hits, of which some were gained and some lost."""
    differ, p = gained + lost, float(sign_tests(np.repeat((1, -1), (gained, lost))[:, None])[0])
    share = (gained - lost) / (n + 4)  # an image added to each of the four outcomes
    error = math.sqrt(((differ + 2) / (n + 4) - share**2) / (n + 4))
    if n < FEWEST:
        return math.nan, math.nan, error, p, math.nan
    reach = student_quantile((1 + level) / 2, n - 1) * error
    equal = min(1.0, 2 * float(student_tail((margin - abs(share)) / error, n - 1)))
    return share - reach, share + reach, error, p, equal


def detectable_difference(error: float, n: int, alpha: float) -> float:
    """The mean difference that a two-sided test at level alpha would have found in four of five repetitions, given the standard error of n images."""
    if n < 2 or np.isnan(error):
        return float("nan")
    return float((student_quantile(1 - alpha / 2, n - 1) + student_quantile(POWER, n - 1)) * error)
