"""Recipes: networks that differ in their seed alone, compared with the seed as the unit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from explainode.metrics.results import Results
from explainode.metrics.seeds import FEWEST_SEEDS, SeedComparison, compare_seeds
from explainode.metrics.statistics import holm
from explainode.report.comparisons import LEVEL, final_rows, headline_metric, model_names, pool, shared_explainers
from explainode.wording import number, p_phrase, signed


@dataclass(frozen=True)
class RecipeComparison:
    """One recipe against another by one metric, averaged over the explainers that all their networks share."""

    subject: str
    reference: str
    metric: str
    explainers: int
    subject_value: float
    reference_value: float
    higher_is_better: bool
    test: SeedComparison
    adjusted: float
    family: int = 1

    @property
    def outcome(self) -> str:
        """ "better" or "worse" for the subject, otherwise "undecided"; always that with fewer than four seeds an arm."""
        if not self.adjusted < LEVEL or self.test.difference == 0:
            return "undecided"
        return "better" if (self.test.difference > 0) == self.higher_is_better else "worse"

    @property
    def sentence(self) -> str:
        """What follows for networks that are trained by these recipes."""
        a, b = self.test.seeds
        over = f" (mean of {self.explainers} explainers)" if self.explainers > 1 else ""
        values = f"{number(self.subject_value)} with {_seeds(a)} vs {number(self.reference_value)} with {_seeds(b)}"
        if min(a, b) < FEWEST_SEEDS:
            return (
                f"{self.subject} against {self.reference}, {self.metric}{over}: {values}; no claim about these recipes, "
                f"which takes {FEWEST_SEEDS} seeds of each."
            )
        difference, ends = signed(self.test.difference, self.test.low, self.test.high)
        among = f" among {self.family}" if self.family > 1 else ""
        proof = (
            f"[difference {difference}, 95 % interval for new seeds and images {ends}, by chance{among} {p_phrase(self.adjusted)}, "
            f"n = {a} and {b} seeds, {self.test.n} images]"
        )
        claim = (
            f"undecided against {self.reference} in {self.metric}"
            if self.outcome == "undecided"
            else f"{self.outcome} {self.metric} than {self.reference}"
        )
        return f"{self.subject}: {claim}{over}, {values} {proof}."


def recipes(results: Results) -> dict[str, list[str]]:
    """{recipe: its networks}, in the order of measurement; empty where no recipe has more than one."""
    found: dict[str, list[str]] = {}
    for model in model_names(results):
        if model in results.recipes:
            found.setdefault(results.recipes[model], []).append(model)
    return found if any(len(models) > 1 for models in found.values()) else {}


def compare_recipes(results: Results, metric: str | None = None) -> list[RecipeComparison]:
    """Every other recipe against the first by the headline metric; one family. Empty for fewer than two, or without a common image."""
    metric = metric or headline_metric(results)
    arms = recipes(results)
    if metric is None or len(arms) < 2:
        return []
    rows = final_rows(results)
    reference, *others = arms
    found = []
    for subject in others:
        models = [*arms[subject], *arms[reference]]
        explainers = shared_explainers(results, rows, models, metric)
        if not explainers:
            continue
        values = [pool(results, model, explainers, metric) for model in models]
        common = sorted(set.intersection(*map(set, values)))
        if len(common) < 2:
            continue
        table = np.array([[of_model[i] for i in common] for of_model in values])
        a, b = np.split(table, [len(arms[subject])])
        better = rows[models[0], explainers[0], metric].higher_is_better
        test = compare_seeds(a, b)
        means = float(a.mean()), float(b.mean())
        found.append(
            RecipeComparison(subject, reference, metric, len(explainers), *means, bool(better), test, float("nan"))
        )
    corrected = holm([c.test.p for c in found])
    return [replace(c, adjusted=float(p), family=len(found)) for c, p in zip(found, corrected, strict=True)]


def spread_sentence(results: Results) -> str:
    """Of networks that are all of one recipe: how far apart the seed alone puts them; empty otherwise."""
    metric, arms = headline_metric(results), recipes(results)
    if len(arms) != 1 or metric is None:
        return ""
    ((recipe, models),) = arms.items()
    explainers = shared_explainers(results, final_rows(results), models, metric)
    means = (
        [float(np.mean(list(pool(results, model, explainers, metric).values()))) for model in models]
        if explainers
        else []
    )
    if not means:
        return ""
    return (
        f"These are {len(models)} networks of one recipe, {recipe}, from different seeds: by the seed alone {metric} runs from "
        f"{number(min(means))} to {number(max(means))} (standard deviation {number(float(np.std(means, ddof=1)))}). "
        "Differences between them are no finding about the recipe."
    )


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"
