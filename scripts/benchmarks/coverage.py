"""How often intervals cover the mean, how often tests find what is not there, and how often they find what is.

    python scripts/benchmarks/coverage.py [--repetitions 2000] [--section means tests iou families power seeds]

Makes the tables of docs/statistics.md. "before" is what stood here earlier: percentile bootstrap intervals and sign-flip tests. Shares of
repetitions; behind a slash the share of repetitions that were given an interval at all, where that is below 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from explainode.metrics.localization import agreement
from explainode.metrics.means import mean_intervals, mean_tests
from explainode.metrics.seeds import compare_seeds
from explainode.metrics.statistics import bootstrap_means, holm, paired_sign_flips, percentile_interval

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
SIZES = (8, 12, 24, 60, 200)
RARE = 0.15  # share of images on which something happens at all


def rare(generator: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return np.where(generator.random(shape) < 1 - RARE, 0.0, generator.exponential(1, shape))


def hits(share: float) -> Draw:
    return lambda generator, shape: (generator.random(shape) < share) * 1.0


VALUES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda g, s: g.normal(0, 1, s), 0.0),
    "beta(.5, .5)": (lambda g, s: g.beta(0.5, 0.5, s), 0.5),
    "beta(8, 1)": (lambda g, s: g.beta(8, 1, s), 8 / 9),
    "exponential": (lambda g, s: g.exponential(1, s), 1.0),
    "log-normal, sigma 1": (lambda g, s: g.lognormal(0, 1, s), np.exp(0.5)),
    "log-normal, sigma 1.5": (lambda g, s: g.lognormal(0, 1.5, s), np.exp(1.125)),
    "85 % zeros": (rare, RARE),
    "hits, .5": (hits(0.5), 0.5),
    "hits, .9": (hits(0.9), 0.9),
    "hits, .97": (hits(0.97), 0.97),
    "three levels": (lambda g, s: g.choice([0, 0.5, 1.0], s, p=[0.1, 0.2, 0.7]), 0.8),
}
DIFFERENCES: dict[str, Draw] = {
    "normal": lambda g, s: g.normal(0, 1, s),
    "t, 3 degrees": lambda g, s: g.standard_t(3, s),
    "60 % zeros, normal": lambda g, s: np.where(g.random(s) < 0.6, 0, g.normal(0, 1, s)),
    "-1, 0, 1": lambda g, s: g.choice([-1.0, 0, 1.0], s, p=[0.1, 0.8, 0.1]),
    "exponential": lambda g, s: g.exponential(1, s) - 1,
    "log-normal, sigma 1": lambda g, s: g.lognormal(0, 1, s) - np.exp(0.5),
    "log-normal, sigma 1.5": lambda g, s: g.lognormal(0, 1.5, s) - np.exp(1.125),
    "85 % zeros": lambda g, s: rare(g, s) - RARE,
}


def line(name: str, cells: list[str]) -> None:
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def header(first: str, columns: list[str]) -> None:
    cells = [cell for column in columns for cell in column.split(" | ")]
    line(first, cells)
    line("---", ["---:"] * len(cells))


def covered(low: np.ndarray, high: np.ndarray, mean: float) -> str:
    given = ~np.isnan(low)
    if not given.any():
        return "none"
    share = ((low <= mean) & (mean <= high))[given].mean()
    return f"{share:.3f}" + (f" / {given.mean():.2f}" if not given.all() else "")


def means(repetitions: int) -> None:
    """Coverage of nominal 95 % intervals of a mean."""
    header("values, 95 % intervals", [f"n = {n} before | after" for n in SIZES])
    generator = np.random.default_rng(7)
    for name, (draw, mean) in VALUES.items():
        cells = []
        for n in SIZES:
            values = draw(generator, (n, repetitions))
            before = percentile_interval(bootstrap_means(values, 2000))
            cells += [covered(*before, mean), covered(*mean_intervals(values), mean)]
        line(name, cells)


def tests(repetitions: int) -> None:
    """Share of false findings at 5 % where the mean difference is zero."""
    sizes = (8, 12, 13, 24, 60, 200)
    header("differences of mean 0, tests at .05", [f"n = {n} before | after" for n in sizes])
    generator = np.random.default_rng(3)
    for name, draw in DIFFERENCES.items():
        cells = []
        for n in sizes:
            d = draw(generator, (n, repetitions))
            cells += [f"{(p < 0.05).mean():.3f}" for p in (paired_sign_flips(d, 2000), mean_tests(d).p)]
        line(name, cells)


def confusions(generator: np.random.Generator, n: int, kind: str) -> np.ndarray:
    """(n, 4) tp, fp, fn, tn of pictures of 32x32 with objects of unequal size."""
    middle, spread = (20, 1.3) if kind == "small objects" else (60, 0.8)
    size = np.minimum(generator.lognormal(np.log(middle), spread, n), 900)
    recall, false = generator.beta(4, 2, n), generator.beta(1, 6, n)
    if kind == "nearly perfect":
        recall, false = generator.beta(20, 1, n), generator.beta(1, 60, n)
    if kind == "one in ten fails":
        fails = generator.random(n) < 0.1
        recall, false = np.where(fails, 0, recall), np.where(fails, 0.6, false)
    tp, fp = size * recall, (1024 - size) * false
    return np.stack((tp, fp, size - tp, 1024 - size - fp), 1)


def iou(repetitions: int) -> None:
    """Coverage for the mean IoU of all pixels together."""
    sizes = (12, 24, 60, 200)
    header("mean IoU of all pixels", [f"n = {n} before | after" for n in sizes])
    generator = np.random.default_rng(1)
    for kind in ("usual", "small objects", "nearly perfect", "one in ten fails"):
        true = agreement(confusions(generator, 400_000, kind).mean(0))[0]
        cells = []
        for n in sizes:
            ends: list[list[tuple[float, float]]] = [[], []]
            for _ in range(repetitions // 4):
                counts = confusions(generator, n, kind)
                point = agreement(counts.mean(0))[0]
                drawn = percentile_interval(agreement(bootstrap_means(counts, 1000))[:, :1])
                pseudo = n * point - (n - 1) * agreement((counts.sum(0) - counts) / (n - 1))[:, 0]
                for found, (low, high) in zip(ends, (drawn, mean_intervals(pseudo[:, None])), strict=True):
                    found.append((low[0], high[0]))
            cells += [covered(*np.array(found).T, true) for found in ends]
        line(kind, cells)


def families(repetitions: int) -> None:
    """Share of families of 24 tests without any difference, on the same images, in which one is found."""
    header("24 tests of nothing", [f"n = {n} before | after" for n in SIZES])
    generator = np.random.default_rng(5)
    for name in ("normal", "log-normal, sigma 1"):
        cells = []
        for n in SIZES:
            found = np.zeros(2)
            for _ in range(repetitions // 5):
                common, own = (DIFFERENCES[name](generator, (n, k)) for k in (1, 24))
                d = 0.7 * common + 0.7 * own
                found += [(holm(p) < 0.05).any() for p in (paired_sign_flips(d, 2000), mean_tests(d).p)]
            cells += [f"{share:.3f}" for share in found / (repetitions // 5)]
        line(name, cells)


def power(repetitions: int) -> None:
    """Share of normal differences of d standard deviations that a single test finds."""
    header("power", [f"n = {n} before | after" for n in SIZES])
    generator = np.random.default_rng(6)
    for effect in (0.3, 0.5, 0.8):
        cells = []
        for n in SIZES:
            d = generator.normal(effect, 1, (n, repetitions))
            cells += [f"{(p < 0.05).mean():.2f}" for p in (paired_sign_flips(d, 2000), mean_tests(d).p)]
        line(f"d = {effect}", cells)


def seeds(repetitions: int) -> None:
    """Networks of one recipe in both arms: how often a difference is found, and how often the interval covers zero."""
    header("seeds an arm, spread of seeds / of images", ["images alone finds", "with seeds finds", "interval covers"])
    generator = np.random.default_rng(8)
    for arm in (4, 6, 10):
        for ratio in (0.0, 0.3, 1.0):
            found = np.zeros(3)
            for _ in range(repetitions):
                of_image = generator.normal(0, 1, 60)
                networks = (
                    of_image
                    + ratio * generator.normal(0, 1, (2 * arm, 1))
                    + 0.5 * generator.normal(0, 1, (2 * arm, 60))
                )
                a, b = networks[:arm], networks[arm:]
                tested = compare_seeds(a, b)
                alone = mean_tests((a[0] - b[0])[:, None]).p[0]
                found += [alone < 0.05, tested.p < 0.05, tested.low <= 0 <= tested.high]
            line(f"{arm}, {ratio}", [f"{share:.3f}" for share in found / repetitions])


SECTIONS = {"means": means, "tests": tests, "iou": iou, "families": families, "power": power, "seeds": seeds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--section", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    arguments = parser.parse_args()
    for section in arguments.section:
        print(f"\n{SECTIONS[section].__doc__}\n")
        SECTIONS[section](arguments.repetitions)


if __name__ == "__main__":
    main()
