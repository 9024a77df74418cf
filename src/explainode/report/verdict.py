"""The answer in words: which network, which explanation, and how sure one can be."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from explainode.metrics.results import Results
from explainode.report.comparisons import (
    Comparison,
    compare_accuracy,
    compare_controls,
    compare_headline,
    compare_models,
    final_rows,
    headline_metric,
    is_primary,
    model_names,
)
from explainode.report.front import ACCURACY_GAP
from explainode.runs.merge import is_chosen
from explainode.wording import enumerate_words, interval, number, p_phrase, percent, signed

FEW_IMAGES = 20
FLOOR_SHARE = 0.5  # of the fresh-noise sensitivity: above it, mostly the noise was measured


@dataclass
class Verdict:
    """What a report says first.

    Attributes:
        models: one sentence per pair of models; controls: one sentence per model on what its explainers are worth.
        cautions: what the reader must know before believing either.
        comparisons: the paired tests between models behind it; against_controls: those between explainers and controls, by model.
    """

    models: list[str] = field(default_factory=list)
    controls: list[str] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    against_controls: dict[str, list[Comparison]] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """All sentences: findings first, then the cautions."""
        return "\n".join([*self.models, *self.controls, *(f"Caution: {caution}" for caution in self.cautions)])


def verdict(results: Results) -> str:
    """The findings of a run as sentences, one a line; says so where there is nothing to say."""
    return judge(results).text


def judge(results: Results) -> Verdict:
    """Compare every model with the first, and every explainer with the controls."""
    models = model_names(results)
    found = Verdict(
        comparisons=compare_models(results),
        against_controls={model: compare_controls(results, model) for model in models},
    )
    if not results.rows:
        found.models = ["Nothing was measured yet."]
        return found
    metric = headline_metric(results)
    for subject in models[1:]:
        found.models.append(_pair_sentence(results, found.comparisons, subject, models[0], metric))
        found.cautions += _pair_cautions(results, subject, models[0])
    found.controls = [
        sentence for model in models if (sentence := _control_sentence(results, model, found.against_controls[model]))
    ]
    if len(models) == 1 and not found.controls:
        found.models = [_single_sentence(results, models[0], metric)]
    found.cautions += _floor_cautions(results)
    counts = [row.n for row in final_rows(results).values() if row.explainer and row.n]
    if counts and min(counts) < FEW_IMAGES:
        exact = " (with 5 images or fewer no paired test can reach p < 0.05)" if min(counts) <= 5 else ""
        found.cautions.append(f"Only {min(counts)} images were measured: intervals are wide and rough{exact}.")
    return found


def _pair_sentence(
    results: Results, comparisons: list[Comparison], subject: str, reference: str, metric: str | None
) -> str:
    parts = []
    headline = None if metric is None else compare_headline(results, subject, reference, metric)
    if headline is not None:
        found, explainers = headline
        over = f" (mean of {explainers} explainers)" if explainers > 1 else ""
        values = f"{number(found.subject_value)} vs {number(found.reference_value)}"
        difference, ends = signed(found.difference, found.low, found.high)
        sure = f", 95 % interval {ends}" if ends else ""
        proof = f"[difference {difference}{sure}, {p_phrase(found.p)}, n = {found.n}]"
        if found.outcome == "undecided":
            parts.append(f"no difference from {reference} beyond chance in {found.metric}{over}, {values} {proof}")
        else:
            parts.append(f"{found.outcome} {found.metric} than {reference}{over}, {values} {proof}")
    accuracy = _accuracies(results, subject, reference)
    if accuracy:
        parts.append(accuracy)
    tally = _tally([c for c in comparisons if c.subject == subject and is_primary(c)])
    return f"{subject}: {', '.join(parts)}; {tally}." if parts else f"{subject} against {reference}: {tally}."


def _accuracies(results: Results, subject: str, reference: str) -> str:
    rows = final_rows(results)
    pair = [rows.get((model, "", "accuracy")) for model in (subject, reference)]
    if pair[0] is None or pair[1] is None:
        return ""
    return f"accuracy {percent(pair[0].value)} vs {percent(pair[1].value)}"


def _tally(comparisons: list[Comparison]) -> str:
    if not comparisons:
        return "no paired comparison was possible"
    counts = {outcome: sum(c.outcome == outcome for c in comparisons) for outcome in ("better", "worse", "undecided")}
    total = len(comparisons)
    if counts["undecided"] == total:
        return (
            "the one paired comparison shows no difference beyond chance"
            if total == 1
            else (f"none of {total} paired comparisons shows a difference beyond chance (Holm)")
        )
    said = [f"{count} {outcome}" for outcome, count in counts.items() if count]
    return f"of {total} paired comparison{'s' * (total > 1)} {', '.join(said)} (Holm)"


def _pair_cautions(results: Results, subject: str, reference: str) -> list[str]:
    cautions = []
    rows = final_rows(results)
    a, b = rows.get((subject, "", "accuracy")), rows.get((reference, "", "accuracy"))
    if a is not None and b is not None and abs(a.value - b.value) > ACCURACY_GAP:
        weaker = subject if a.value < b.value else reference
        test = compare_accuracy(results, subject, reference)
        unsure = (
            ""
            if test is None or test.p < 0.05
            else f" (not beyond chance on these {test.n} images, {p_phrase(test.p)})"
        )
        gap = f"{100 * abs(a.value - b.value):.1f} points{unsure}"
        cautions.append(
            f"The accuracies of {subject} and {reference} differ by {gap}; a weaker net, here {weaker}, "
            "can be less sensitive for the wrong reason: compare at matched accuracy, such as an earlier epoch of the better net "
            "(explainode compare RUN RUN --matched)."
        )
    epochs = {name: {row.epoch for key, row in rows.items() if key[0] == name} for name in (subject, reference)}
    if (
        epochs[subject]
        and epochs[reference]
        and epochs[subject] != epochs[reference]
        and not (is_chosen(subject) or is_chosen(reference))
    ):
        after = f"{subject} was measured after epoch {max(epochs[subject])}, {reference} after epoch {max(epochs[reference])}"
        cautions.append(f"{after}: not the same training.")
    differing = [
        metric
        for (model, explainer, metric), row in rows.items()
        if model == subject
        and (reference, explainer, metric) in rows
        and rows[reference, explainer, metric].protocol != row.protocol
    ]
    if differing:
        names = enumerate_words(list(dict.fromkeys(differing)))
        cautions.append(f"{names} of {subject} and {reference} followed different protocols and are not compared.")
    partial = _unshared(results, subject, reference)
    if partial is not None:
        shared, total = partial
        cautions.append(
            f"{subject} and {reference} share only {shared} of {total} images; paired tests use those alone."
        )
    return cautions


def _unshared(results: Results, subject: str, reference: str) -> tuple[int, int] | None:
    """How many images both models were measured on, and how many either was; None where these are the same."""
    ids = {
        name: set().union(*(v for key, v in results.per_image.items() if key[0] == name and key[1]))
        for name in (subject, reference)
    }
    shared, total = len(ids[subject] & ids[reference]), len(ids[subject] | ids[reference])
    return None if shared == total else (shared, total)


def _control_sentence(results: Results, model: str, comparisons: list[Comparison]) -> str:
    """Which explainers beat every control, on what, and by how much; empty where there are no controls."""
    if not comparisons:
        return ""
    metric = comparisons[0].metric
    sign = 1 if comparisons[0].higher_is_better else -1
    value = {c.subject: c.subject_value for c in comparisons} | {c.reference: c.reference_value for c in comparisons}
    explainers = sorted({c.subject for c in comparisons}, key=lambda e: -sign * value[e])
    controls = sorted({c.reference for c in comparisons}, key=lambda e: -sign * value[e])
    passed = [e for e in explainers if all(c.outcome == "better" for c in comparisons if c.subject == e)]
    failed = [e for e in explainers if e not in passed]
    words = "higher is better" if sign > 0 else "lower is better"
    about = f"{model}, {metric} ({words}, n = {max(c.n for c in comparisons)})"
    bar = (
        f"{'every control' if len(controls) > 1 else 'the control'} (best: {controls[0]} {number(value[controls[0]])})"
    )
    if not passed:
        return f"{about}: no explainer beats {bar} beyond chance; these maps say no more about the network than a map that does not know it."
    shown = enumerate_words([f"{e} {number(value[e])}" for e in passed])
    rest = f"; {enumerate_words(failed)} {'does' if len(failed) == 1 else 'do'} not" if failed else ""
    return f"{about}: {shown} {'beats' if len(passed) == 1 else 'beat'} {bar}{rest}."


def _single_sentence(results: Results, model: str, metric: str | None) -> str:
    """One model without controls: the best explainer, without a claim."""
    rows = {e: row for (_, e, m), row in final_rows(results).items() if m == metric and e and not math.isnan(row.value)}
    accuracy = final_rows(results).get((model, "", "accuracy"))
    known = "" if accuracy is None else f" (accuracy {percent(accuracy.value)})"
    if not rows:
        return f"{model}{known}: no explanation was measured."
    directions = [row.higher_is_better for row in rows.values()]
    real = [e for e, row in rows.items() if not row.control] or list(rows)
    best = (max if directions[0] else min)(real, key=lambda e: rows[e].value)
    doubt = (
        "without controls (random_map, centre_prior, edge_map) nobody can say whether that is good."
        if len(real) == len(rows)
        else "controls prove nothing on this metric: a map that ignores the network may be perfect on it."
    )
    row = rows[best]
    ends = interval(row.low, row.high)
    proof = f" [{ends}]" if ends else ""
    return f"{model}{known}: {best} has the best {metric}, {number(row.value)}{proof} on {row.n} images; {doubt}"


def _floor_cautions(results: Results) -> list[str]:
    """Sensitivities under fresh noise that are mostly the noise's own."""
    rows = final_rows(results)
    cautions = []
    for (model, explainer, metric), row in rows.items():
        fresh = rows.get((model, explainer, metric.removesuffix(".floor") + ".fresh"))
        if row.control:  # a random map is nothing but its draws, and a centre prior has none
            continue
        if (
            metric.endswith(".floor")
            and fresh is not None
            and fresh.value > 0
            and row.value > FLOOR_SHARE * fresh.value
        ):
            left = f"{number(row.value)} of {number(fresh.value)} remain at radius 0"
            cautions.append(f"{fresh.metric} of {explainer} on {model} is mostly noise: {left}.")
    return cautions
