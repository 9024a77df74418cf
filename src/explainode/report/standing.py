"""How the explainers of one network stand: ranked by each metric, over all of them, and over the settings of one."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from explainode.errors import UserError
from explainode.metrics.ranks import LEVEL, MeanRanks, mean_over_metrics, rank_explainers, reversals
from explainode.metrics.results import Results, Row
from explainode.metrics.statistics import kendall_matrix
from explainode.report.comparisons import JUDGES, final_rows, is_primary
from explainode.wording import correlation, enumerate_words, number, p_phrase

FEWEST = 3  # explainers, controls aside: fewer need no ranking
NAMED = 3  # pairs of metrics that a sentence names
NO_SETTINGS = ("diagnostic",)  # one class, another number under each name


@dataclass(frozen=True)
class Standing:
    """The rankings of one model's explainers, controls among them.

    Attributes:
        ranks: {headline metric: MeanRanks}, faithfulness first.
        unranked: {headline metric: why it has no ranks}.
        left_out: {metric: explainers that have a value for less than half of the images of the others}.
        mean: {explainer: mean rank over the metrics}, best first; explainers that all metrics rank.
        score: {headline metric: {explainer: value}} of the explainers that are no controls, higher is better.
        protocol: {headline metric: its protocol}; controls: {explainer: which control it is} of those that are one.
    """

    model: str
    ranks: dict[str, MeanRanks] = field(default_factory=dict)
    unranked: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    mean: dict[str, float] = field(default_factory=dict)
    score: dict[str, dict[str, float]] = field(default_factory=dict)
    protocol: dict[str, str] = field(default_factory=dict)
    controls: dict[str, str] = field(default_factory=dict)


def standing(results: Results, model: str) -> Standing | None:
    """The rankings of a model; None for fewer than three explainers beside the controls.

    Kept out of them: metrics without a direction, facts such as cost, and results that are no means over images (a mean IoU of all images),
    which rank nothing image by image but have a score.
    """
    rows: dict[str, dict[str, Row]] = {}
    for (name, explainer, metric), row in final_rows(results).items():
        if name == model and explainer and is_primary(row) and row.higher_is_better is not None:
            rows.setdefault(metric, {})[explainer] = row
    explainers = dict.fromkeys(e for of_metric in rows.values() for e in of_metric)
    controls = {e: control for e, control in results.controls.items() if e in explainers}
    if len(explainers) - len(controls) < FEWEST:
        return None
    found = Standing(model, controls=controls)
    for metric in sorted(rows, key=lambda metric: _place(next(iter(rows[metric].values())))):
        better = next(iter(rows[metric].values())).higher_is_better
        sign = 1 if better else -1
        found.protocol[metric] = next(iter(rows[metric].values())).protocol
        found.score[metric] = {
            e: sign * row.value for e, row in rows[metric].items() if not row.control and not math.isnan(row.value)
        }
        values = {
            e: results.per_image[model, e, metric] for e in rows[metric] if results.per_image.get((model, e, metric))
        }
        most = max((len(of_explainer) for of_explainer in values.values()), default=0)
        whole = {e: of_explainer for e, of_explainer in values.items() if 2 * len(of_explainer) >= most}
        if lacking := [e for e in rows[metric] if e not in whole]:
            found.left_out[metric] = lacking
        if not values:
            found.unranked[metric] = "no number for each image"
            continue
        try:
            found.ranks[metric] = rank_explainers(whole, bool(better))
        except UserError as error:
            found.unranked[metric] = str(error)
    found.mean.update(mean_over_metrics(list(found.ranks.values())))
    return found


def _place(row: Row) -> int:
    """The place of a metric: what controls can be beaten on comes first, the rest as it was measured."""
    return JUDGES.index(row.role) if row.role in JUDGES else len(JUDGES)


def standing_sentence(found: Standing) -> str:
    """Who ranks best over the metrics, and who leads on the first one; empty without ranks."""
    if not found.ranks:
        return ""
    sentences = []
    best = [e for e in found.mean if e not in found.controls][:3]
    if best and len(found.ranks) > 1:
        led = sum(best[0] in leaders(ranks) for ranks in found.ranks.values())
        others = enumerate_words([f"{e} ({number(found.mean[e])})" for e in best[1:]])
        sentences.append(
            f"Over {len(found.ranks)} metrics {best[0]} ranks best, {number(found.mean[best[0]])} of {len(found.mean)} on average"
            + (f", before {others}" if others else "")
            + f"; it is among the leaders of {led} of them."
        )
    metric, ranks = next(iter(found.ranks.items()))
    group = leaders(ranks)
    sure = f"chance of so unequal ranks if all were alike: {p_phrase(ranks.p)}; n = {ranks.n} images"
    if not ranks.p < LEVEL:
        sentences.append(f"By {metric} no explainer ranks differently from another beyond chance ({sure}).")
    elif len(group) == len(ranks.names):
        sentences.append(f"By {metric} {group[0]} has the best mean rank, but no other is told apart from it ({sure}).")
    else:
        alike = enumerate_words(group[1:])
        tail = (
            f"; {alike} {'is' if len(group) == 2 else 'are'} not told apart from it"
            if alike
            else ", before every other"
        )
        sentences.append(f"By {metric} {group[0]} ranks best{tail} ({sure}).")
    failed = [f"{e} on {count}" for e, count in zip(ranks.names, ranks.failed, strict=True) if count]
    if failed:
        sentences.append(f"Images without a value count as last place: {enumerate_words(failed)} of {ranks.n}.")
    return " ".join(sentences)


def leaders(ranks: MeanRanks) -> list[str]:
    """The explainer of the best mean rank and those that are not told apart from it."""
    return [e for e in ranks.names if e == ranks.names[0] or not ranks.order(ranks.names[0], e)]


def metric_agreement(found: Standing) -> tuple[tuple[str, ...], np.ndarray]:
    """The headline metrics and (M, M), Kendall's tau of their orders of the explainers, each in its own direction.

    Controls are left out: every metric of faithfulness puts a random map last, and every sensitivity a constant one first.
    """
    return kendall_matrix({metric: score for metric, score in found.score.items() if len(score) >= FEWEST})


def disagreement_sentence(found: Standing) -> str:
    """Which metrics contradict each other most, and whether beyond chance; empty for fewer than two metrics."""
    names, matrix = metric_agreement(found)
    pairs = sorted(
        (float(matrix[i, j]), a, b)
        for (i, a), (j, b) in combinations(enumerate(names), 2)
        if not np.isnan(matrix[i, j])
    )
    if not pairs:
        return ""
    against = [pair for pair in pairs if pair[0] < 0]
    tau, a, b = pairs[0]
    if not against:
        return f"No two metrics order the explainers against each other (smallest τ {correlation(tau)}: {a} and {b})."
    said = [f"{a} and {b} (τ {correlation(tau)}{_proof(found, a, b)})" for tau, a, b in against[:NAMED]]
    return f"{len(against)} of {len(pairs)} pairs of metrics order the explainers more against each other than alike; most of all {enumerate_words(said)}."


def _proof(found: Standing, a: str, b: str) -> str:
    """How many pairs of explainers the two metrics are both sure of, and turn round."""
    if a not in found.ranks or b not in found.ranks:
        return ""
    turned, decided, example = _turned(found, a, b)
    if not decided:
        return "; no pair of explainers is told apart by both"
    return f"; {turned} of {decided} pairs that both tell apart turn round" + (
        f", as {example[0]} before {example[1]} by {a}" if example else ""
    )


def _turned(found: Standing, a: str, b: str) -> tuple[int, int, tuple[str, str] | None]:
    """Of pairs of explainers, controls aside: those that turn round, those that both metrics tell apart, and the first that turns."""
    ranks = [_without(found.ranks[m], found.controls) for m in (a, b)]
    change = reversals(*ranks)
    return len(change.turned), change.decided, change.turned[0] if change.turned else None


def _without(ranks: MeanRanks, controls: Container[str]) -> MeanRanks:
    keep = [i for i, e in enumerate(ranks.names) if e not in controls]
    return replace(
        ranks,
        names=tuple(ranks.names[i] for i in keep),
        mean_rank=ranks.mean_rank[keep],
        mean_value=ranks.mean_value[keep],
        adjusted=ranks.adjusted[np.ix_(keep, keep)],
        failed=ranks.failed[keep],
    )


@dataclass(frozen=True)
class Stability:
    """One metric under several settings.

    Attributes:
        kind: the metric; metrics: its entries; matrix: (S, S) Kendall's tau between their orders of the explainers.
        decided, turned: pairs of explainers that two settings both tell apart, over all pairs of settings, and those that turn round.
        example: (better, worse, setting, other setting) of one that turns.
        best: the explainer with the best value under each setting.
    """

    kind: str
    metrics: tuple[str, ...]
    matrix: np.ndarray
    decided: int
    turned: int
    example: tuple[str, str, str, str] | None
    best: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """Whether the ranking survives the change of setting."""
        pairs = [
            (float(self.matrix[i, j]), i, j)
            for i, j in combinations(range(len(self.metrics)), 2)
            if not np.isnan(self.matrix[i, j])
        ]
        about = f"{self.kind} under {len(self.metrics)} settings ({', '.join(self.metrics)})"
        if not pairs:
            return f"{about}: nothing can be said, the explainers are tied."
        tau, i, j = min(pairs)
        least = f"smallest τ {correlation(tau)}, {self.metrics[i]} against {self.metrics[j]}"
        first = (
            f"{self.best[0]} is best under each"
            if len(set(self.best)) == 1
            else "the best explainer changes ("
            + ", ".join(f"{m}: {e}" for m, e in zip(self.metrics, self.best, strict=True))
            + ")"
        )
        if not self.decided:
            return f"{about}: no pair of explainers is told apart under two settings, so the ranking is not tested ({least}; {first})."
        if not self.turned:
            return f"{about}: the ranking survives: none of {self.decided} pairs told apart under two settings turns round ({least}; {first})."
        assert self.example is not None
        better, worse, here, there = self.example
        return (
            f"{about}: the ranking does not survive: {self.turned} of {self.decided} pairs told apart under two settings turn round, "
            f"as {better} before {worse} by {here}, after it by {there} ({least}; {first})."
        )


def rank_stability(found: Standing) -> list[Stability]:
    """The metrics that were measured under two settings or more, each with the agreement of its rankings.

    Source: rankings over settings, Wickstrøm et al. 2024. We ask of the pairs that two settings are both sure of whether they turn round.
    """
    families: dict[str, list[str]] = {}
    for metric, score in found.score.items():
        kind = found.protocol[metric].split("[")[0]
        if len(score) >= FEWEST and kind not in NO_SETTINGS:
            families.setdefault(kind, []).append(metric)
    return [_stability(found, kind, metrics) for kind, metrics in families.items() if len(metrics) > 1]


def _stability(found: Standing, kind: str, metrics: Sequence[str]) -> Stability:
    names, matrix = kendall_matrix({metric: found.score[metric] for metric in metrics})
    decided = turned = 0
    example: tuple[str, str, str, str] | None = None
    for a, b in combinations(names, 2):
        if a in found.ranks and b in found.ranks:
            count, sure, pair = _turned(found, a, b)
            decided, turned = decided + sure, turned + count
            example = example or ((*pair, a, b) if pair else None)
    best = tuple(max(found.score[m].items(), key=lambda pair: pair[1])[0] for m in names)
    return Stability(kind, names, matrix, decided, turned, example, best)
