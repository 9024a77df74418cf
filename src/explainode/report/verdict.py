"""The answer in words: which network, which explanation, and how sure one can be."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from explainode.metrics.grades import card_of
from explainode.metrics.means import FEWEST
from explainode.metrics.results import Results
from explainode.report.comparisons import (
    Comparison,
    card_place,
    compare_accuracy,
    compare_controls,
    compare_headlines,
    compare_models,
    final_rows,
    headline_metric,
    is_primary,
    model_names,
)
from explainode.report.front import ACCURACY_GAP
from explainode.report.recipes import RecipeComparison, compare_recipes, recipes, spread_sentence
from explainode.runs.merge import is_chosen
from explainode.wording import enumerate_words, interval, number, p_phrase, percent, signed

FEW_IMAGES = 20
MARKS = ("better", "worse", "equivalent", "undecided")
ONE_TRAINING = (
    "What is said of a network is said of this one, trained once: another seed can turn it round. "
    "Recipes are compared by at least four seeds of each (explainode compare)."
)
FLOOR_SHARE = 0.5  # of the fresh-noise sensitivity: above it, mostly the noise was measured


@dataclass
class Verdict:
    """What a report says first.

    Attributes:
        models: one sentence per pair of models, or of recipes where some have several seeds; scope: of which networks those hold.
        controls: one sentence per model on what its explainers are worth.
        cautions: what the reader must know before believing either.
        comparisons: the paired tests between models behind it; against_controls: those between explainers and controls, by model.
        recipes: the tests between recipes, seeds being the units.
    """

    models: list[str] = field(default_factory=list)
    scope: list[str] = field(default_factory=list)
    controls: list[str] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    against_controls: dict[str, list[Comparison]] = field(default_factory=dict)
    recipes: list[RecipeComparison] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All sentences: findings first, then the cautions."""
        return "\n".join(
            [*self.models, *self.scope, *self.controls, *(f"Caution: {caution}" for caution in self.cautions)]
        )


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
    seeded = recipes(results)
    headlines = {} if metric is None or seeded else compare_headlines(results, metric)
    if seeded:
        found.recipes = compare_recipes(results)
        found.models = [c.sentence for c in found.recipes] or [spread_sentence(results)]
    for subject in [] if seeded else models[1:]:
        found.models.append(_pair_sentence(results, found.comparisons, subject, models[0], headlines))
        found.cautions += _pair_cautions(results, subject, models[0])
    if headlines:
        found.scope = [ONE_TRAINING]
    found.controls = [
        sentence for model in models if (sentence := _control_sentence(results, model, found.against_controls[model]))
    ]
    if len(models) == 1 and not found.controls:
        found.models = [_single_sentence(results, models[0], metric)]
    found.cautions += _floor_cautions(results)
    counts = [row.n for row in final_rows(results).values() if row.explainer and row.n]
    if counts and min(counts) < FEW_IMAGES:
        found.cautions.append(_few_images(min(counts), found))
    return found


def _few_images(n: int, found: Verdict) -> str:
    """What so few images cannot do."""
    said = f"Only {n} images were measured"
    if n < FEWEST:
        return f"{said}: fewer than {FEWEST} give no interval and decide nothing but how often hits are gained or lost."
    made = [found.comparisons, *found.against_controls.values()]
    family = max((c.family for comparisons in made for c in comparisons), default=1)
    least = min(1.0, family * 2.0 ** (1 - n))
    if least >= 0.05:
        return f"{said}: too few to decide {family} comparisons at once, which no difference could pass ({p_phrase(least)} at best)."
    return f"{said}: intervals are wide, and only large differences can be seen."


def _pair_sentence(
    results: Results,
    comparisons: list[Comparison],
    subject: str,
    reference: str,
    headlines: dict[str, tuple[Comparison, int]],
) -> str:
    parts = []
    if subject in headlines:
        found, explainers = headlines[subject]
        over = f" (mean of {explainers} explainers)" if explainers > 1 else ""
        values = f"{number(found.subject_value)} vs {number(found.reference_value)}"
        claim = {
            "undecided": f"undecided against {reference} in {found.metric}{over}",
            "equivalent": f"as good as {reference} in {found.metric}{over}, within ±{number(found.margin)}",
        }.get(found.outcome, f"this network has {found.outcome} {found.metric} than {reference}{over}")
        parts.append(f"{claim}, {values} {_proof(found)}")
    accuracy = _accuracies(results, subject, reference)
    if accuracy:
        parts.append(accuracy)
    tally = _tally([c for c in comparisons if c.subject == subject and is_primary(c)])
    return f"{subject}: {', '.join(parts)}; {tally}." if parts else f"{subject} against {reference}: {tally}."


def _proof(found: Comparison) -> str:
    """The difference with its interval, how large it is, how easily chance makes it, and what would have been seen, in brackets."""
    difference, ends = signed(found.difference, found.low, found.high)
    said = [f"difference {difference}"]
    if ends:
        said.append(f"95 % interval {ends}")
    if found.outcome in ("better", "worse") and math.isfinite(found.effect):
        small = ", less than is of interest" if abs(found.difference) < found.margin else ""
        said.append(f"{number(abs(found.effect))} standard deviations of the images’ differences{small}")
    said.append(_chance(found))
    if found.outcome == "undecided" and found.detectable > 0:
        said.append(f"{number(found.detectable)} would be found four times in five")
    said.append(f"n = {found.n} images")
    if found.missing:
        said.append(f"{found.missing} more on which one of the two failed, counted as the worst case")
    return f"[{', '.join(said)}]"


def _chance(found: Comparison) -> str:
    """How probable so large a difference is where there is none, among all that was compared."""
    if math.isnan(found.adjusted):
        return (
            f"too few images to test, {FEWEST} are needed" if found.n < FEWEST else "too few images that differ to test"
        )
    among = f" among {found.family}" if found.family > 1 else ""
    return f"by chance{among} {p_phrase(found.adjusted)}"


def _accuracies(results: Results, subject: str, reference: str) -> str:
    rows = final_rows(results)
    pair = [rows.get((model, "", "accuracy")) for model in (subject, reference)]
    if pair[0] is None or pair[1] is None:
        return ""
    return f"accuracy {percent(pair[0].value)} vs {percent(pair[1].value)}"


def _tally(comparisons: list[Comparison]) -> str:
    """How many of the things compared came out how."""
    things = list({c.thing: c for c in comparisons}.values())
    if not things:
        return "no paired comparison was possible"
    counts = {mark: sum(c.outcome == mark for c in things) for mark in MARKS}
    said = enumerate_words([f"{count} {mark}" for mark, count in counts.items() if count])
    total = len(things)
    if total == 1:
        return (
            f"the one paired comparison is {things[0].outcome}"
            if counts["undecided"]
            else f"of 1 paired comparison {said}"
        )
    return f"of {total} paired comparisons {said} (corrected for their number)"


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
    """Which explainers beat every control, on what, and by how much; which do no better, and which are undecided; empty where there are no controls."""
    if not comparisons:
        return ""
    metric = comparisons[0].metric
    sign = 1 if comparisons[0].higher_is_better else -1
    value = {c.subject: c.subject_value for c in comparisons} | {c.reference: c.reference_value for c in comparisons}
    explainers = sorted({c.subject for c in comparisons}, key=lambda e: -sign * value[e])
    controls = sorted({c.reference for c in comparisons}, key=lambda e: -sign * value[e])
    of = {e: [c for c in comparisons if c.subject == e] for e in explainers}
    passed = [e for e in explainers if all(c.outcome == "better" for c in of[e])]
    failed = [e for e in explainers if any(c.outcome in ("worse", "equivalent") for c in of[e])]
    open_ = [e for e in explainers if e not in passed and e not in failed]
    words = "higher is better" if sign > 0 else "lower is better"
    about = (
        f"{model}, {metric} ({words}, n = {max(c.n for c in comparisons)} images{_why_metric(results, model, metric)})"
    )
    bar = (
        f"{'every control' if len(controls) > 1 else 'the control'} (best: {controls[0]} {number(value[controls[0]])})"
    )
    said = []
    if passed:
        shown = enumerate_words([f"{e} {number(value[e])} ({_lead(of[e])})" for e in passed])
        said.append(f"{shown} {'beats' if len(passed) == 1 else 'beat'} {bar}")
    else:
        said.append(f"no explainer was seen to beat {bar}")
    if failed:
        shown = enumerate_words([f"{e} ({_why_not(of[e])})" for e in failed])
        said.append(f"{shown} {'says' if len(failed) == 1 else 'say'} no more here than a map that does not know it")
    if open_:
        said.append(
            f"undecided: {enumerate_words(open_)} ({_too_little([c for e in open_ for c in of[e] if c.outcome == 'undecided'])})"
        )
    missing = max(c.missing for c in comparisons)
    if missing:
        said.append(f"up to {missing} images on which an explainer failed count as the worst case")
    return f"{about}: {'; '.join(said)}."


def _why_metric(results: Results, model: str, metric: str) -> str:
    """Why this one of several metrics judges: said where it is not simply the first that was measured."""
    rows = [row for (name, explainer, _), row in final_rows(results).items() if name == model and explainer]
    chosen = next(row for row in rows if row.metric == metric)
    first = next(row for row in rows if row.role == chosen.role and row.higher_is_better is not None)
    if first.metric == metric or card_place(first) <= card_place(chosen):
        return ""
    return f"; chosen before {first.metric} because its card is {card_of(chosen.protocol)}, see docs/cards.md"


def _lead(comparisons: list[Comparison]) -> str:
    """The smallest of the leads, in the metric's units and in standard deviations, and whether it matters."""
    least = min(comparisons, key=lambda c: abs(c.difference))
    small = ", less than is of interest" if abs(least.difference) < least.margin else ""
    effect = f", {number(abs(least.effect))} sd" if math.isfinite(least.effect) else ""
    return f"ahead by {number(abs(least.difference))}{effect}{small}"


def _why_not(comparisons: list[Comparison]) -> str:
    """The first control that an explainer does no better than."""
    found = next((c for c in comparisons if c.outcome == "worse"), None) or next(
        c for c in comparisons if c.outcome == "equivalent"
    )
    if found.outcome == "worse":
        return f"behind {found.reference}"
    return f"equivalent to {found.reference} within ±{number(found.margin)}"


def _too_little(undecided: list[Comparison]) -> str:
    """What would have had to be seen."""
    largest = max((c.detectable for c in undecided if math.isfinite(c.detectable)), default=math.nan)
    if math.isnan(largest):
        return "too few images to tell"
    n, family = max(c.n for c in undecided), undecided[0].family
    return f"with {n} images and {family} comparison{'s' * (family > 1)} a lead of {number(largest)} would be found four times in five"


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
