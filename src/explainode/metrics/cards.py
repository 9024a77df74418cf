"""The card of a metric: what it claims on planted networks, where the truth is known. Only arithmetic; `jobs/cards` measures.

Letters: N images of the pool, R resamples.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from explainode.metrics.means import mean_tests
from explainode.metrics.planted import BLIND, GAMES, MAPS, NETWORKS, WRONG

RESAMPLES = 100  # studies of n images drawn from the pool
SIZES = (24, 100)  # images of a study
ALPHA = 0.05
USUALLY = 0.5  # of the studies: what more of them find, a metric is said to find


@dataclass(frozen=True)
class Finding:
    """What studies of two maps find by one metric on one network.

    Attributes:
        metric, network: by name; first, second: the maps, names in `planted.MAPS`.
        images: on which both have a value.
        effect: mean over standard deviation of the paired differences, above 0 where `first` scores better.
        ahead_24, behind_24, ahead_100, behind_100: share of the studies of so many images that find `first` better, or worse, at 5 %.
    """

    metric: str
    network: str
    first: str
    second: str
    images: int
    effect: float
    ahead_24: float
    behind_24: float
    ahead_100: float
    behind_100: float


def pairs(network: str) -> list[tuple[str, str]]:
    """The maps that are compared: the truth with all that differs from it there, and what knows nothing with a random map."""
    left_out = {"truth", "random again", *(() if NETWORKS[network].second else ("other object", "both objects"))}
    against_truth = [name for name in MAPS if name not in left_out]
    return [*(("truth", name) for name in against_truth), *(("random", name) for name in BLIND)]


def findings(metric: str, network: str, values: Mapping[str, np.ndarray], higher_is_better: bool) -> list[Finding]:
    """What studies find of the values (N,) of each map; pairs of which fewer than half of the images have both values are left out.

    Two random maps differ by their draws alone, so each study swaps them image by image as a coin says: what it then finds is false.
    """
    found = []
    for first, second in pairs(network):
        difference = (values[first] - values[second]) * (1 if higher_is_better else -1)
        difference = difference[np.isfinite(difference)]
        if len(difference) < len(values[first]) / 2:
            continue
        draws = np.random.default_rng(0)
        shares = []
        for n in SIZES:
            studies = difference[draws.integers(0, len(difference), (n, RESAMPLES))]
            if second == "random again":
                studies = studies * draws.choice((-1, 1), studies.shape)
            test = mean_tests(studies)
            sure = test.p < ALPHA
            shares += [float((sure & (test.mean > 0)).mean()), float((sure & (test.mean < 0)).mean())]
        spread = float(difference.std())
        effect = float(difference.mean()) / spread if spread > 0 else 0.0
        found.append(Finding(metric, network, first, second, len(difference), round(effect, 3), *shares))
    return found


def to_csv(found: Sequence[Finding]) -> str:
    """One line for each finding."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Finding)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(one) for one in found)
    return text.getvalue()


def from_csv(text: str) -> list[Finding]:
    """The findings that `to_csv` wrote."""
    kinds = {"metric": str, "network": str, "first": str, "second": str, "images": int}
    return [
        Finding(**{key: kinds.get(key, float)(value) for key, value in row.items()})
        for row in csv.DictReader(io.StringIO(text))
    ]


@dataclass(frozen=True)
class Card:
    """What is known of a metric.

    Attributes:
        metric: by name.
        false_positives: share of studies of 24 images that find two random maps different.
        power_24, power_100: share of studies that put the truth ahead of a wrong map, over all networks and wrong maps.
        misled: networks, and the wrong maps that studies of 100 images usually put ahead of the truth there.
        gamed: the changed looks (blurred, squared, mask) by which the truth usually gains, and on how many networks.
        blind: maps that know nothing and are usually put ahead of a random one, and on how many networks.
        networks: on how many it was measured.
    """

    metric: str
    false_positives: float
    power_24: float
    power_100: float
    misled: Mapping[str, tuple[str, ...]]
    gamed: Mapping[str, int]
    blind: Mapping[str, int]
    networks: int

    @classmethod
    def of(cls, metric: str, found: Sequence[Finding]) -> Card:
        """The card of the metric's findings."""
        mine = [f for f in found if f.metric == metric]
        wrong = [f for f in mine if f.first == "truth" and f.second in WRONG]
        twins = [f for f in mine if f.second == "random again"]

        def ahead(first: str, seconds: Sequence[str]) -> dict[str, int]:
            counts = {
                s: sum(f.behind_100 > USUALLY for f in mine if (f.first, f.second) == (first, s)) for s in seconds
            }
            return {name: count for name, count in counts.items() if count}

        misled = {
            network: tuple(f.second for f in wrong if f.network == network and f.behind_100 > USUALLY)
            for network in NETWORKS
        }
        return cls(
            metric,
            _mean([f.ahead_24 + f.behind_24 for f in twins]),
            _mean([f.ahead_24 for f in wrong]),
            _mean([f.ahead_100 for f in wrong]),
            {network: maps for network, maps in misled.items() if maps},
            ahead("truth", GAMES),
            ahead("random", BLIND[1:]),
            len({f.network for f in mine}),
        )

    @property
    def grade(self) -> str:
        """ "good", "fair", "poor", or "none" where nothing could be measured.

        Good: no wrong map is ahead on any network, power at 100 images is .8 or more, and neither looks nor a map that knows nothing gain on more than
        a quarter of the networks. Fair: wrong maps are ahead on an eighth of the networks at most, and power is .6 or more. Both: at most 7 % false findings.
        """
        if not self.networks or np.isnan(self.power_100):
            return "none"
        if self.false_positives > 0.07:
            return "poor"
        gained = max((*self.gamed.values(), *self.blind.values()), default=0)
        if not self.misled and self.power_100 >= 0.8 and 4 * gained <= self.networks:
            return "good"
        return "fair" if 8 * len(self.misled) <= self.networks and self.power_100 >= 0.6 else "poor"


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def cards(found: Sequence[Finding]) -> list[Card]:
    """One card for each metric, the best first."""
    made = [Card.of(metric, found) for metric in dict.fromkeys(f.metric for f in found)]
    order = ("good", "fair", "poor", "none")
    return sorted(made, key=lambda card: (order.index(card.grade), len(card.misled), -np.nan_to_num(card.power_100)))


def table(made: Sequence[Card]) -> str:
    """The cards as a table in Markdown."""
    head = "| metric | card | false findings | power, n = 24 | n = 100 | wrong maps ahead of the truth | gains by looks | knows nothing, yet ahead of noise |"
    lines = [head, "|---|---|---:|---:|---:|---|---|---|"]
    for card in made:
        misled = "; ".join(f"{network}: {', '.join(maps)}" for network, maps in card.misled.items()) or "-"
        games, blind = (
            ", ".join(f"{name} ({count} of {card.networks})" for name, count in counts.items()) or "-"
            for counts in (card.gamed, card.blind)
        )
        numbers = " | ".join(_share(v) for v in (card.false_positives, card.power_24, card.power_100))
        lines.append(f"| `{card.metric}` | {card.grade} | {numbers} | {misled} | {games} | {blind} |")
    return "\n".join(lines) + "\n"


def _share(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"
