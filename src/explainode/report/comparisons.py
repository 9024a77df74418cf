"""Paired comparisons read from results: model against model and explainer against control, image by image, with Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from explainode.metrics.results import Key, Results, Row
from explainode.metrics.statistics import holm, paired_comparison
from explainode.report.board import is_control
from explainode.runs.directory import final

LEVEL = 0.05
HEADLINES = (
    "max_sensitivity",
    "deletion",
    "insertion",
    "pixel_auroc",
    "best_area_miou",
    "segmentation_agreement",
)  # what is asked first of two models
FAITHFUL = (  # what a control can be beaten on; a constant map is never sensitive
    "deletion", "insertion", "pixel_auroc", "best_area_miou", "segmentation_agreement", "pointing_game", "energy_pointing_game", "relevance_mass",
    "relevance_rank", "box_iou", "fixation_map_agreement", "fixation_point_agreement", "road", "negative_perturbation", "aopc", "infidelity",
    "positive_perturbation", "pixel_average_precision", "average_drop", "comprehensiveness", "sufficiency", "flip_rate",
)  # fmt: skip
CENTRE = ("centre_prior", "center_prior")
FACTS = ("cost", "completeness_error")  # have a direction, but are no reason to trust one network more than another


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


def is_primary(metric: str) -> bool:
    """Whether a result is a metric's headline and says something about trust: what verdicts count and tables show first."""
    return "." not in metric and not metric.startswith(FACTS)


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
            and not is_control(explainer)
        )
        if comparable and row.higher_is_better is not None:
            found = _compare(results, (model, explainer, metric), (reference, explainer, metric), row.higher_is_better)
            pairs += [] if found is None else [found]
    return [
        *_corrected([c for c in pairs if is_primary(c.metric)]),
        *_corrected([c for c in pairs if not is_primary(c.metric)]),
    ]


def headline_metric(results: Results) -> str | None:
    """The metric that a verdict on models quotes: by the order of HEADLINES, not by the numbers, else the first one measured."""
    return _first_of(
        HEADLINES,
        [
            m
            for (_, e, m), row in final_rows(results).items()
            if e and is_primary(m) and row.higher_is_better is not None
        ],
    )


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
        and not is_control(e)
        and (reference, e, metric) in rows
        and rows[reference, e, metric].protocol == row.protocol
        and (subject, e, metric) in results.per_image
        and (reference, e, metric) in results.per_image
    ]
    if not explainers:
        return None
    better = rows[subject, explainers[0], metric].higher_is_better
    pooled = Results(
        per_image={(model, "", metric): pool(results, model, explainers, metric) for model in (subject, reference)}
    )
    found = None if better is None else _compare(pooled, (subject, "", metric), (reference, "", metric), better)
    return None if found is None else (replace(found, adjusted=found.p), len(explainers))


def compare_controls(results: Results, model: str) -> list[Comparison]:
    """Each explainer of a model against each control on the first faithfulness metric there is; Holm's correction over all of them."""
    rows = {(e, m): row for (name, e, m), row in final_rows(results).items() if name == model and e}
    measured = [
        m for (e, m), row in rows.items() if row.higher_is_better is not None and (model, e, m) in results.per_image
    ]
    metric = _first_of(FAITHFUL, [m for m in measured if m.startswith(FAITHFUL)])
    names = [e for e, m in rows if m == metric]
    pairs = []
    for explainer in names:
        for control in names:
            better = None if metric is None else rows[explainer, metric].higher_is_better
            if metric is not None and better is not None and is_control(control) and not is_control(explainer):
                found = _compare(results, (model, explainer, metric), (model, control, metric), better)
                pairs += [] if found is None else [replace(found, subject=explainer, reference=control, explainer="")]
    return _corrected(pairs)


def compare_prior(results: Results, model: str) -> list[Comparison]:
    """Each explainer of a model against the centre prior, on every headline metric that a control can be beaten on; Holm's correction in each.

    Empty where there is no centre prior. Objects stand in the middle of most pictures: what does not beat it may know no more than that.
    """
    rows = {(e, m): row for (name, e, m), row in final_rows(results).items() if name == model and e}
    prior = next((e for e, _ in rows if e.startswith(CENTRE)), None)
    found = []
    for metric in dict.fromkeys(m for _, m in rows if m.startswith(FAITHFUL) and is_primary(m)):
        family = []
        for (explainer, m), row in rows.items():
            if m == metric and prior is not None and not is_control(explainer) and row.higher_is_better is not None:
                pair = _compare(results, (model, explainer, metric), (model, prior, metric), row.higher_is_better)
                family += [] if pair is None else [replace(pair, subject=explainer, reference=prior, explainer="")]
        found += _corrected(family)
    return found


def compare_accuracy(results: Results, subject: str, reference: str) -> Comparison | None:
    """Both models' accuracy on the images they share; None where it was not measured."""
    found = _compare(results, (subject, "", "accuracy"), (reference, "", "accuracy"), True)
    return None if found is None else replace(found, adjusted=found.p)


def _first_of(wanted: Sequence[str], names: Sequence[str]) -> str | None:
    for word in wanted:
        for name in names:
            if name.startswith(word):
                return name
    return names[0] if names else None


def pool(results: Results, model: str, explainers: Sequence[str], metric: str) -> dict[int, float]:
    """Each image's mean over explainers, for images that all of them have."""
    values = [results.per_image[model, e, metric] for e in explainers]
    common = set(values[0]).intersection(*values[1:])
    return {sample: float(np.mean([v[sample] for v in values])) for sample in sorted(common)}


def _compare(results: Results, subject: Key, reference: Key, higher_is_better: bool) -> Comparison | None:
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
        higher_is_better=higher_is_better,
        effect=found.effect,
    )


def _corrected(family: list[Comparison]) -> list[Comparison]:
    return [replace(c, adjusted=float(p)) for c, p in zip(family, holm([c.p for c in family]), strict=True)]
