"""Paired comparisons read from results: model against model and explainer against control, image by image, with Holm's correction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from explainode.metrics.results import ROLES, Key, Results, Row
from explainode.metrics.statistics import holm, paired_comparison
from explainode.runs.directory import final

LEVEL = 0.05
# roles by what they are asked for; within a role what was measured first
ASKED_FIRST = ("sensitivity", "faithfulness", "localization")  # of two models
JUDGES = (
    "faithfulness",
    "localization",
    "agreement",
)  # what a control can be beaten on; a constant map is never sensitive
FACTS = ("cost", "completeness")  # have a direction, but are no reason to trust one network more than another


@dataclass(frozen=True)
class Comparison:
    """One paired test of a subject against a reference over the n images that both have.

    `difference` is subject minus reference with its 95 % bootstrap interval; `p` is the sign-flip test's, `adjusted` Holm's in its family;
    `effect` is the difference in standard deviations of the images' differences (Cohen's d_z).
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
    role: str = "diagnostic"

    @property
    def outcome(self) -> str:
        """ "better" or "worse" for the subject at the 5 % level, otherwise "undecided"."""
        if not self.adjusted < LEVEL or self.difference == 0:
            return "undecided"
        return "better" if (self.difference > 0) == self.higher_is_better else "worse"


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

    Holm's correction holds within the headline results, and apart from them within the others. A pair measured with different protocols, or
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
        if comparable and row.higher_is_better is not None:
            found = _compare(results, (model, explainer, metric), (reference, explainer, metric), row)
            pairs += [] if found is None else [found]
    return [
        *_corrected([c for c in pairs if is_primary(c)]),
        *_corrected([c for c in pairs if not is_primary(c)]),
    ]


def headline_metric(results: Results) -> str | None:
    """The metric that a verdict on models quotes: by its role, not by the numbers, else the first one measured."""
    rows = final_rows(results)
    asked = [row for (_, e, _), row in rows.items() if e and is_primary(row) and row.higher_is_better is not None]
    return first_by_role((*ASKED_FIRST, *ROLES), asked)


def compare_headline(results: Results, subject: str, reference: str, metric: str) -> tuple[Comparison, int] | None:
    """The one test that is fixed beforehand: `metric` averaged over the explainers of both models, and their number.

    An image counts if all these explainers have a value for it; None where nothing is left.
    """
    rows = final_rows(results)
    explainers = [
        e
        for (model, e, m), row in rows.items()
        if (model, m) == (subject, metric)
        and e
        and not row.control
        and (reference, e, metric) in rows
        and rows[reference, e, metric].protocol == row.protocol
        and (subject, e, metric) in results.per_image
        and (reference, e, metric) in results.per_image
    ]
    if not explainers:
        return None
    row = rows[subject, explainers[0], metric]
    pooled = Results(
        per_image={(model, "", metric): pool(results, model, explainers, metric) for model in (subject, reference)}
    )
    found = (
        None if row.higher_is_better is None else _compare(pooled, (subject, "", metric), (reference, "", metric), row)
    )
    return None if found is None else (replace(found, adjusted=found.p), len(explainers))


def compare_controls(results: Results, model: str) -> list[Comparison]:
    """Each explainer of a model against each control on the first faithfulness metric there is; Holm's correction over all of them."""
    rows = {(e, m): row for (name, e, m), row in final_rows(results).items() if name == model and e}
    measured = [
        row
        for (e, m), row in rows.items()
        if row.role in JUDGES and row.higher_is_better is not None and (model, e, m) in results.per_image
    ]
    metric = first_by_role(JUDGES, measured)
    if metric is None:
        return []
    mine = {e: row for (e, m), row in rows.items() if m == metric and row.higher_is_better is not None}
    pairs = []
    for explainer in (e for e, row in mine.items() if not row.control):
        for control in (e for e, row in mine.items() if row.control):
            found = _compare(results, (model, explainer, metric), (model, control, metric), mine[explainer])
            pairs += [] if found is None else [replace(found, subject=explainer, reference=control, explainer="")]
    return _corrected(pairs)


def compare_prior(results: Results, model: str) -> list[Comparison]:
    """Each explainer of a model against the centre prior, on every headline metric that a control can be beaten on; Holm's correction in each.

    Empty where there is no centre prior. Objects stand in the middle of most pictures: what does not beat it may know no more than that.
    """
    rows = {(e, m): row for (name, e, m), row in final_rows(results).items() if name == model and e}
    prior = next((e for (e, _), row in rows.items() if row.control == "center"), None)
    found: list[Comparison] = []
    if prior is None:
        return found
    for metric in dict.fromkeys(m for (_, m), row in rows.items() if row.role in JUDGES and is_primary(row)):
        family = []
        for (explainer, m), row in rows.items():
            if m == metric and not row.control and row.higher_is_better is not None:
                pair = _compare(results, (model, explainer, metric), (model, prior, metric), row)
                family += [] if pair is None else [replace(pair, subject=explainer, reference=prior, explainer="")]
        found += _corrected(family)
    return found


def compare_accuracy(results: Results, subject: str, reference: str) -> Comparison | None:
    """Both models' accuracy on the images they share; None where it was not measured."""
    row = final_rows(results).get((subject, "", "accuracy"))
    found = None if row is None else _compare(results, (subject, "", "accuracy"), (reference, "", "accuracy"), row)
    return None if found is None else replace(found, adjusted=found.p)


def first_by_role(roles: Sequence[str], rows: Iterable[Row]) -> str | None:
    """The metric of the first of the roles that any row has, of several the one measured first; None where no row has one of them."""
    return next((row.metric for role in roles for row in rows if row.role == role), None)


def pool(results: Results, model: str, explainers: Sequence[str], metric: str) -> dict[int, float]:
    """Each image's mean over explainers, for images that all of them have."""
    values = [results.per_image[model, e, metric] for e in explainers]
    common = set(values[0]).intersection(*values[1:])
    return {sample: float(np.mean([v[sample] for v in values])) for sample in sorted(common)}


def _compare(results: Results, subject: Key, reference: Key, row: Row) -> Comparison | None:
    a, b = results.per_image.get(subject, {}), results.per_image.get(reference, {})
    common = [sample for sample in a if sample in b and not np.isnan(a[sample] - b[sample])]
    if not common:
        return None
    found = paired_comparison(a, b)
    return Comparison(
        subject=subject[0],
        reference=reference[0],
        explainer=subject[1],
        metric=subject[2],
        subject_value=float(np.mean([a[s] for s in common])),
        reference_value=float(np.mean([b[s] for s in common])),
        difference=found.difference,
        low=found.low,
        high=found.high,
        p=found.p,
        adjusted=float("nan"),
        n=found.n,
        higher_is_better=bool(row.higher_is_better),
        effect=found.effect,
        role=row.role,
    )


def _corrected(family: list[Comparison]) -> list[Comparison]:
    return [replace(c, adjusted=float(p)) for c, p in zip(family, holm([c.p for c in family]), strict=True)]
