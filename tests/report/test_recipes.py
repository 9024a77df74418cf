"""Recipes: who belongs to which, and what is said of them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np

from explainode.metrics.results import Results, Row
from explainode.report.recipes import compare_recipes, recipes
from explainode.report.verdict import judge
from explainode.runs.directory import RunDirectory
from explainode.runs.merge import Source, merge_runs

IMAGES = 60


def measured(means: Mapping[str, float], of: Mapping[str, str], seed: int = 0) -> Results:
    """Networks around their means, on the same images; `of` names their recipes."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(0, 0.1, IMAGES)
    results = Results(recipes=dict(of))
    for model, mean in means.items():
        values = mean + hard + rng.normal(0, 0.02, IMAGES)
        row = Row(0, "test", model, "ig", "max_sensitivity", values.mean(), 0.0, 0.0, IMAGES, 0, 0.0, False, "p")
        results.rows.append(row)
        results.per_image[model, "ig", "max_sensitivity"] = dict(enumerate(values.tolist()))
    return results


def test_eight_networks_of_one_recipe_are_no_finding() -> None:
    """Seeds move a network by five standard errors over images. Pairs differ; of all ways to make two arms of four, few do."""
    rng = np.random.default_rng(5)
    means = {f"seed{k}": 0.5 + 0.05 * float(rng.normal()) for k in range(8)}
    results = measured(means, dict.fromkeys(means, "plain"))
    (sentence,) = judge(results).models
    assert (
        "8 networks of one recipe, plain, from different seeds: by the seed alone max_sensitivity runs from 0."
        in sentence
    )
    assert "better" not in sentence and "worse" not in sentence
    claims = 0
    deals = [deal for deal in combinations(means, 4) if "seed0" in deal]
    for deal in deals:
        results.recipes = {model: "a" if model in deal else "b" for model in means}
        (found,) = compare_recipes(results)
        claims += found.outcome != "undecided"
    assert claims <= 0.05 * len(deals)


def test_a_recipe_that_is_better_is_said_to_be_with_its_seeds() -> None:
    rng = np.random.default_rng(6)
    means = {
        f"{arm}{k}": base + 0.02 * float(rng.normal())
        for arm, base in (("plain", 0.6), ("twin", 0.4))
        for k in range(4)
    }
    results = measured(means, {model: model[:-1] for model in means})
    text = judge(results).text
    assert text.startswith("twin: better max_sensitivity than plain, 0.4")
    assert "95 % interval for new seeds and images −0." in text and "n = 4 and 4 seeds, 60 images]" in text
    assert "trained once" not in text
    del results.recipes["twin3"]
    assert "no claim about these recipes, which takes 4 seeds of each" in judge(results).text


def test_runs_that_differ_by_their_seed_are_one_recipe(tmp_path: Path) -> None:
    sources = []
    for label, seed, width in (("a", 0, 8), ("b", 1, 8), ("c", 2, 16)):
        folder = RunDirectory(tmp_path / label)
        data = {"_target_": "explainode.data.shapes.Shapes", "seed": seed, "root": f"/data{seed}"}
        folder.write_config({"seed": seed, "data": data, "model": {"width": width, "rule": {"seed": "logit"}}})
        folder.write_results(measured({"net": 0.5}, {}, seed=0))
        sources.append(Source(tmp_path / label, f"seed={seed}, width={width}", short=True))
    merged = merge_runs(sources)
    assert recipes(merged) == {"width=8": ["seed=0, width=8", "seed=1, width=8"], "width=16": ["seed=2, width=16"]}
    folder = RunDirectory(tmp_path / "compared")
    folder.write_results(merged)
    assert folder.read_results().recipes == merged.recipes
    assert "no claim about these recipes" in judge(folder.read_results()).text
