"""Paired comparisons read from results: model against model and explainer against control, image by image, corrected for their number.

Holm's correction (1979): where several differences are looked for at once, each must be surer, so that with 95 % nothing is claimed that is not there.
Three marks: better or worse; equivalent, where the whole interval lies within the smallest effect of interest; else undecided, which is no finding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from explainode.metrics.grades import card_of
from explainode.metrics.means import detectable_difference, mean_tests
from explainode.metrics.results import ROLES, Key, Results, Row
from explainode.metrics.statistics import holm
from explainode.runs.directory import final

LEVEL = 0.05
NUMBERS = 5_000_000  # tested together, so that memory stays small for any number of images
SMALLEST_EFFECT = 0.2  # of interest, in standard deviations of a metric among images: what Cohen 1988 calls small
# roles by what they are asked for; within a role what was measured first
ASKED_FIRST = ("sensitivity", "faithfulness", "localization")  # of two models
JUDGES = (
    "faithfulness",
    "localization",
    "agreement",
)  # what a control can be beaten on: a constant map is never sensitive
CARD_ORDER = ("good", "fair", "", "poor", "none")  # "": a metric that has no card
FACTS = ("cost", "completeness")  # have a direction, but are no reason to trust one network more than another


@dataclass(frozen=True)
class Comparison:
    """One paired test of a subject against a reference over the n images that both have.

    Attributes:
        difference, low, high: subject minus reference with its 95 % interval; error: its standard error.
        p, adjusted: of "there is no difference", alone and corrected for the `family` of tests it was made in.
        effect: the difference in standard deviations of the images' differences (Cohen's d_z).
        margin: the smallest difference of interest, `SMALLEST_EFFECT` of the metric's standard deviation among images.
        p_equivalent, equivalent: of "the difference is as large as the margin", alone and corrected.
        missing: images on which only one of the two has a value, because the other failed. They count as the worst case: what is claimed must
            hold if the one it is claimed of was worst there, and the other best.
    """

    subject: str
    reference: str
    explainer: str
    metric: str
    subject_value: float
    reference_value: float
    difference: float
    low: float
    high: float
    p: float
    adjusted: float
    n: int
    higher_is_better: bool
    effect: float = float("nan")
    error: float = float("nan")
    margin: float = float("nan")
    p_equivalent: float = float("nan")
    equivalent: float = float("nan")
    missing: int = 0
    family: int = 1
    role: str = "diagnostic"

    @property
    def outcome(self) -> str:
        """ "better" or "worse" for the subject at the 5 % level, "equivalent" within the margin, otherwise "undecided"."""
        if self.equivalent < LEVEL:
            return "equivalent"
        if not self.adjusted < LEVEL or self.difference == 0:
            return "undecided"
        return "better" if (self.difference > 0) == self.higher_is_better else "worse"

    @property
    def detectable(self) -> float:
        """The difference that would have been found four times in five in this family of tests."""
        return detectable_difference(self.error, self.n, LEVEL / self.family)

    @property
    def thing(self) -> tuple[object, ...]:
        """What was tested: a property of the network has the same numbers under every explainer, and is one test."""
        values = (self.subject_value, self.reference_value, self.difference, self.p, self.n)
        return self.subject, self.reference, self.metric, *values


def model_names(results: Results) -> list[str]:
    """The models in the order in which they were measured."""
    return list(dict.fromkeys(row.model for row in results.rows))


def final_rows(results: Results) -> dict[Key, Row]:
    """The last measurement of everything by (model, explainer, metric)."""
    return {(row.model, row.explainer, row.metric): row for row in final(results).rows}


def is_primary(found: Row | Comparison) -> bool:
    """Whether a result is a metric's headline and says something about trust: what verdicts count and tables show first."""
    return "." not in found.metric and found.role not in FACTS


def compare_models(results: Results, reference: str | None = None) -> list[Comparison]:
    """Every other model against the reference (the first by default), for each explainer (controls aside) and each metric with a direction.

    The correction holds within the headline results, and apart from them within the others. A pair measured with different protocols, or
    without common images, is not compared.
    """
    rows = final_rows(results)
    models = model_names(results)
    reference = reference or (models[0] if models else "")
    pairs = []
    for (model, explainer, metric), row in rows.items():
        other = rows.get((reference, explainer, metric))
        comparable = (
            model != reference
            and other is not None
            and other.protocol == row.protocol
            and explainer
            and not row.control
        )
        if comparable:
            pairs.append(((model, explainer, metric), (reference, explainer, metric)))
    found = [c for c in _compare(results, rows, pairs) if c is not None]
    return [
        *_corrected([c for c in found if is_primary(c)]),
        *_corrected([c for c in found if not is_primary(c)]),
    ]


def headline_metric(results: Results) -> str | None:
    """The metric that a verdict on models quotes: by its role, not by the numbers, else the first one measured."""
    rows = final_rows(results)
    asked = [row for (_, e, _), row in rows.items() if e and is_primary(row) and row.higher_is_better is not None]
    return first_by_role((*ASKED_FIRST, *ROLES), asked)


def compare_headline(results: Results, subject: str, reference: str, metric: str) -> tuple[Comparison, int] | None:
    """The headline of one pair alone, see `compare_headlines`; None where nothing can be compared."""
    pair = replace(results, rows=[row for row in results.rows if row.model in (subject, reference)])
    return compare_headlines(pair, metric, reference).get(subject)


def compare_headlines(results: Results, metric: str, reference: str | None = None) -> dict[str, tuple[Comparison, int]]:
    """The tests that are fixed beforehand: `metric` of every model against the reference (the first by default), averaged over shared explainers.

    {model: its comparison, and how many explainers differ}. One family, however many models there are. An image counts if all these
    explainers have a value for it; a model without any is left out.
    """
    rows = final_rows(results)
    models = model_names(results)
    reference = reference or (models[0] if models else "")
    others = [model for model in models if model != reference]
    shared = {subject: shared_explainers(results, rows, (subject, reference), metric) for subject in others}
    shared = {subject: explainers for subject, explainers in shared.items() if explainers}
    pooled, of_pool, counts = Results(), {}, {}
    pairs = [
        ((subject, "", metric), (reference, subject, metric)) for subject in shared
    ]  # each with a reference of its own
    for (subject, explainers), pair in zip(shared.items(), pairs, strict=True):
        for model, key in zip((subject, reference), pair, strict=True):
            pooled.per_image[key] = pool(results, model, explainers, metric)
            failures = max(rows[model, e, metric].excluded for e in explainers)
            of_pool[key] = replace(rows[model, explainers[0], metric], excluded=failures)
        counts[subject] = len({tuple(results.per_image[subject, e, metric].items()) for e in explainers})
    found = _corrected([c for c in _compare(pooled, of_pool, pairs) if c is not None])
    return {c.subject: (c, counts[c.subject]) for c in found}


def shared_explainers(results: Results, rows: Mapping[Key, Row], models: Sequence[str], metric: str) -> list[str]:
    """The explainers, controls aside, that all models were measured with by this metric, and in the same way."""
    having = [e for (model, e, m), row in rows.items() if (model, m) == (models[0], metric) and e and not row.control]
    return [
        e
        for e in having
        if all((m, e, metric) in rows and (m, e, metric) in results.per_image for m in models)
        and len({rows[m, e, metric].protocol for m in models}) == 1
    ]


def compare_controls(results: Results, model: str) -> list[Comparison]:
    """Each explainer of a model against each control, corrected over all of them: on the faithfulness metric whose card is best, of several the first."""
    of_all = final_rows(results)
    rows = {(e, m): row for (name, e, m), row in of_all.items() if name == model and e}
    measured = [
        row
        for (e, m), row in rows.items()
        if row.role in JUDGES and row.higher_is_better is not None and (model, e, m) in results.per_image
    ]
    metric = best_card(measured)
    mine = {e: row for (e, m), row in rows.items() if m == metric}
    pairs = [
        ((model, explainer, row.metric), (model, control, row.metric))
        for explainer, row in mine.items()
        for control, other in mine.items()
        if other.control and not row.control
    ]
    return _corrected(_between_explainers(results, of_all, pairs))


def _between_explainers(
    results: Results, rows: Mapping[Key, Row], pairs: Sequence[tuple[Key, Key]]
) -> list[Comparison]:
    """Comparisons within one model: their subjects and references are explainers."""
    compared = zip(pairs, _compare(results, rows, pairs), strict=True)
    return [replace(c, subject=a[1], reference=b[1], explainer="") for (a, b), c in compared if c is not None]


def compare_prior(results: Results, model: str) -> list[Comparison]:
    """Each explainer of a model against the centre prior, on every headline metric that a control can be beaten on; corrected within each.

    Empty where there is no centre prior. Objects stand in the middle of most pictures: what does not beat it may know no more than that.
    """
    of_all = final_rows(results)
    rows = {(e, m): row for (name, e, m), row in of_all.items() if name == model and e}
    prior = next((e for (e, _), row in rows.items() if row.control == "center"), None)
    found: list[Comparison] = []
    if prior is None:
        return found
    for metric in dict.fromkeys(m for (_, m), row in rows.items() if row.role in JUDGES and is_primary(row)):
        pairs = [
            ((model, explainer, metric), (model, prior, metric))
            for (explainer, m), row in rows.items()
            if m == metric and not row.control
        ]
        found += _corrected(_between_explainers(results, of_all, pairs))
    return found


def compare_accuracy(results: Results, subject: str, reference: str) -> Comparison | None:
    """Both models' accuracy on the images they share; None where it was not measured."""
    (found,) = _compare(results, final_rows(results), [((subject, "", "accuracy"), (reference, "", "accuracy"))])
    return None if found is None else replace(found, adjusted=found.p, equivalent=found.p_equivalent)


def best_card(rows: Sequence[Row]) -> str | None:
    """Of the metrics of the first role in `JUDGES` that any row has, the one with the best card, of several the one measured first."""
    role = next((role for role in JUDGES for row in rows if row.role == role), None)
    judging = [row for row in rows if row.role == role]
    return min(judging, key=card_place).metric if judging else None


def card_place(row: Row) -> int:
    """Where the card of a row's metric stands in `CARD_ORDER`; further results of a metric have none."""
    return CARD_ORDER.index(card_of(row.protocol) if row.is_headline else "")


def first_by_role(roles: Iterable[str], rows: Sequence[Row]) -> str | None:
    """The metric of the first of the roles that any row has, of several the one measured first; None where no row has one of them."""
    return next((row.metric for role in roles for row in rows if row.role == role), None)


def pool(results: Results, model: str, explainers: Sequence[str], metric: str) -> dict[int, float]:
    """Each image's mean over explainers, for images that all of them have."""
    values = [results.per_image[model, e, metric] for e in explainers]
    common = set(values[0]).intersection(*values[1:])
    return {sample: float(np.mean([v[sample] for v in values])) for sample in sorted(common)}


@dataclass(frozen=True)
class _Column:
    """The images that a result has numbers for, ascending, with the numbers; and those whose number is NaN."""

    ids: np.ndarray
    values: np.ndarray
    failed: np.ndarray

    @classmethod
    def of(cls, values: Mapping[int, float]) -> _Column:
        ids = np.fromiter(values.keys(), dtype=np.int64, count=len(values))
        numbers = np.fromiter(values.values(), dtype=np.float64, count=len(values))
        order = np.argsort(ids)
        ids, numbers = ids[order], numbers[order]
        there = ~np.isnan(numbers)
        return cls(ids[there], numbers[there], ids[~there])

    def beside(self, other: _Column) -> np.ndarray:
        """(n, 2) numbers of both on the images that both have."""
        if np.array_equal(self.ids, other.ids):
            return np.stack((self.values, other.values), 1)
        _, mine, theirs = np.intersect1d(self.ids, other.ids, assume_unique=True, return_indices=True)
        return np.stack((self.values[mine], other.values[theirs]), 1)

    def where_fails(self, other: _Column, excluded: int) -> np.ndarray:
        """(f,) own numbers on the images on which `other` failed, rather than was not measured."""
        lacking = ~np.isin(self.ids, other.ids)
        return self.values[lacking if excluded else np.isin(self.ids, other.failed)]


def _compare(results: Results, rows: Mapping[Key, Row], pairs: Sequence[tuple[Key, Key]]) -> list[Comparison | None]:
    """The paired tests of subjects against references, not yet corrected; None without a common image or a direction.

    Pairs with equally many images are tested together.
    """
    columns = {
        key: _Column.of(results.per_image.get(key, {})) for key in dict.fromkeys(key for pair in pairs for key in pair)
    }
    values = [columns[subject].beside(columns[reference]) for subject, reference in pairs]
    groups: dict[int, list[int]] = {}
    for place, ((subject, _), both) in enumerate(zip(pairs, values, strict=True)):
        if len(both) and subject in rows and rows[subject].higher_is_better is not None:
            groups.setdefault(len(both), []).append(place)
    found: list[Comparison | None] = [None] * len(pairs)
    for n, members in groups.items():
        step = max(1, NUMBERS // n)
        for first in range(0, len(members), step):
            places = members[first : first + step]
            for place, comparison in zip(
                places, _tested(rows, [pairs[i] for i in places], [values[i] for i in places]), strict=True
            ):
                a, b = (columns[key] for key in pairs[place])
                without_a, without_b = (
                    of.where_fails(other, rows[key].excluded if key in rows else 0)
                    for of, other, key in ((b, a, pairs[place][0]), (a, b, pairs[place][1]))
                )
                found[place] = _worst_case(comparison, values[place], without_a, without_b)
    return found


def _tested(rows: Mapping[Key, Row], pairs: list[tuple[Key, Key]], values: list[np.ndarray]) -> list[Comparison]:
    """The comparisons of pairs that have equally many images, each (n, 2)."""
    table = np.stack(values, 1)  # (n, k, 2)
    means = table.mean(0)
    d = table[:, :, 0] - table[:, :, 1]
    ddof = min(1, len(d) - 1)
    margin = SMALLEST_EFFECT * np.sqrt(table.var(0, ddof=ddof).mean(1)) if ddof else np.full(len(pairs), np.nan)
    tests = mean_tests(d, margin)
    spread = d.std(0, ddof=ddof)
    varies = spread > 1e-12 * np.abs(d).max(0)
    effect = np.where(varies, d.mean(0) / np.where(varies, spread, 1.0), np.nan)
    return [
        Comparison(
            subject=subject[0],
            reference=reference[0],
            explainer=subject[1],
            metric=subject[2],
            subject_value=float(means[k, 0]),
            reference_value=float(means[k, 1]),
            difference=float(d[:, k].mean()),
            low=float(tests.low[k]),
            high=float(tests.high[k]),
            p=float(tests.p[k]),
            adjusted=float("nan"),
            n=len(d),
            higher_is_better=bool(rows[subject].higher_is_better),
            effect=float(effect[k]),
            error=float(tests.error[k]),
            margin=float(margin[k]),
            p_equivalent=float(tests.p_equivalent[k]),
            role=rows[subject].role,
        )
        for k, (subject, reference) in enumerate(pairs)
    ]


def _worst_case(found: Comparison, values: np.ndarray, without_a: np.ndarray, without_b: np.ndarray) -> Comparison:
    """The comparison with the p-values that its claims have if the failures count against them."""
    missing = len(without_a) + len(without_b)
    if not missing:
        return found
    seen = np.concatenate((values.ravel(), without_a, without_b))
    low, high = float(seen.min()), float(seen.max())
    both = values[:, 0] - values[:, 1]
    least = np.concatenate(
        (both, low - without_a, without_b - high)
    )  # the subject's failures lowest, the reference's highest
    most = np.concatenate((both, high - without_a, without_b - low))
    tests = mean_tests(np.stack((least, most), 1), found.margin)
    against = 0 if found.difference > 0 else 1
    turned = np.sign(tests.mean[against]) != np.sign(found.difference)
    p = 1.0 if turned else float(np.maximum(found.p, tests.p[against]))
    equivalent = float(np.maximum(found.p_equivalent, tests.p_equivalent.max()))
    return replace(found, p=p, p_equivalent=equivalent, missing=missing)


def _corrected(family: list[Comparison]) -> list[Comparison]:
    """The family with Holm's correction, of differences and of equivalences, each thing counting once."""
    things = list({c.thing: c for c in family}.values())
    adjusted = dict(zip((c.thing for c in things), holm([c.p for c in things]), strict=True))
    equivalent = dict(zip((c.thing for c in things), holm([c.p_equivalent for c in things]), strict=True))
    return [
        replace(c, adjusted=float(adjusted[c.thing]), equivalent=float(equivalent[c.thing]), family=len(things))
        for c in family
    ]
