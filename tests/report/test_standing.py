"""How explainers stand, on cases whose answer we planted: ranks, reversals, the centre prior, the front."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from explainode.metrics.results import Results, Row
from explainode.report.board import make_board, map_agreement
from explainode.report.comparisons import compare_prior
from explainode.report.front import accuracy_front, front_figure
from explainode.report.html_standing import agreement_section, front_section, matrix_table, prior_section, ranks_section
from explainode.report.rank_figure import rank_figure
from explainode.report.standing import (
    disagreement_sentence,
    leaders,
    metric_agreement,
    rank_stability,
    standing,
    standing_sentence,
)
from explainode.runs.legacy import control_of, role_of

Build = Callable[..., Results]
N = 60


def add(
    results: Results,
    model: str,
    metric: str,
    means: Mapping[str, float],
    better: bool,
    kind: str = "",
    noise: float = 0.05,
) -> None:
    """A metric of explainers that differ by their means on the same images."""
    rng = np.random.default_rng(len(results.rows))
    hard = rng.normal(0, 0.3, N)
    for explainer, mean in means.items():
        values = mean + hard + rng.normal(0, noise, N)
        value = float(values.mean())
        row = Row(
            0,
            "test",
            model,
            explainer,
            metric,
            value,
            value - 0.1,
            value + 0.1,
            N,
            0,
            0.0,
            better,
            f"{kind or metric}[x]#0",
            role_of(f"{kind or metric}[x]"),
            control_of(explainer),
        )
        results.rows.append(row)
        results.per_image[model, explainer, metric] = dict(enumerate(values.tolist()))


@pytest.fixture
def planted() -> Results:
    """a > b > c by deletion; the order is kept on zeros and turned on the minimum; sensitivity has it the other way round."""
    results = Results()
    good = {"a": 0.1, "b": 0.3, "c": 0.5, "random_map": 0.9, "centre_prior": 0.5}
    add(results, "net", "deletion", good, False)
    add(results, "net", "deletion_zero", {e: m + 1 for e, m in good.items()}, False, kind="deletion")
    add(results, "net", "deletion_min", good | {"a": 0.5, "c": 0.1}, False, kind="deletion")
    add(results, "net", "insertion", {e: 1 - m for e, m in good.items()}, True)
    add(
        results,
        "net",
        "max_sensitivity",
        {"a": 0.9, "b": 0.6, "c": 0.3, "random_map": 0.95, "centre_prior": 0.0},
        False,
    )
    return results


def test_ranks_follow_the_planted_order(planted: Results) -> None:
    found = standing(planted, "net")
    assert found is not None
    assert list(found.ranks) == ["deletion", "deletion_zero", "deletion_min", "insertion", "max_sensitivity"]
    assert found.ranks["deletion"].names[:2] == found.ranks["insertion"].names[:2] == ("a", "b")
    assert leaders(found.ranks["deletion"]) == ["a"]
    assert found.ranks["max_sensitivity"].names[0] == "centre_prior"
    text = standing_sentence(found)
    assert (
        "By deletion a ranks best, before every other (chance of so unequal ranks if all were alike: p < 0.0001; n = 60 images)."
        in text
    )
    assert (
        "a ranks best" in text and "it is among the leaders of 3 of them" in text
    )  # deletion, deletion_zero and insertion


def test_explainers_that_are_alike_are_not_told_apart() -> None:
    results = Results()
    add(results, "net", "deletion", dict.fromkeys("abcd", 0.4), False)
    found = standing(results, "net")
    assert found is not None
    assert found.ranks["deletion"].cliques == [(0, 3)]
    assert standing_sentence(found).startswith("By deletion no explainer ranks differently from another beyond chance")


def test_the_best_mean_rank_alone_is_no_lead() -> None:
    results = Results()
    add(results, "net", "deletion", {"a": 0.38, "b": 0.4, "c": 0.4, "d": 0.41}, False, noise=0.2)
    found = standing(results, "net")
    assert found is not None
    even = replace(found.ranks["deletion"], adjusted=np.full((4, 4), 0.2), p=0.01)
    text = standing_sentence(replace(found, ranks={"deletion": even}))
    assert (
        text == f"By deletion {even.names[0]} has the best mean rank, but no other is told apart from it "
        f"(chance of so unequal ranks if all were alike: p = 0.010; n = {N} images)."
    )


def test_two_explainers_need_no_ranks(planted: Results) -> None:
    planted.rows = [row for row in planted.rows if row.explainer != "c"]
    assert standing(planted, "net") is None  # controls do not count


def test_metrics_that_contradict_each_other_are_named(planted: Results) -> None:
    found = standing(planted, "net")
    assert found is not None
    names, matrix = metric_agreement(found)
    tau = {(a, b): matrix[i, j] for i, a in enumerate(names) for j, b in enumerate(names)}
    assert tau["deletion", "insertion"] == 1  # one is better low, the other high
    assert tau["deletion", "max_sensitivity"] == -1
    text = disagreement_sentence(found)
    assert text.startswith(
        "6 of 10 pairs of metrics order the explainers more against each other than alike; most of all "
    )
    assert "deletion and max_sensitivity (τ −1.00; 3 of 3 pairs that both tell apart turn round, as a before " in text


def test_metrics_that_agree_are_said_to(planted: Results) -> None:
    planted.rows = [row for row in planted.rows if row.metric in ("deletion", "insertion")]
    found = standing(planted, "net")
    assert found is not None
    assert (
        disagreement_sentence(found)
        == "No two metrics order the explainers against each other (smallest τ 1.00: deletion and insertion)."
    )


def test_a_ranking_survives_a_setting_or_does_not(planted: Results) -> None:
    found = standing(planted, "net")
    assert found is not None
    (stable,) = rank_stability(found)
    assert stable.kind == "deletion" and stable.metrics == ("deletion", "deletion_zero", "deletion_min")
    assert (stable.decided, stable.turned) == (
        9,
        6,
    )  # three pairs in each of three pairs of settings; all turn against the minimum
    assert "the ranking does not survive: 6 of 9 pairs" in stable.sentence
    planted.rows = [row for row in planted.rows if row.metric != "deletion_min"]
    found = standing(planted, "net")
    assert found is not None
    assert (
        "the ranking survives: none of 3 pairs told apart under two settings turns round"
        in rank_stability(found)[0].sentence
    )
    assert "a is best under each" in rank_stability(found)[0].sentence


def test_chance_neither_turns_nor_confirms_a_ranking() -> None:
    results = Results()
    for metric in ("deletion", "deletion_zero"):
        add(results, "net", metric, dict.fromkeys("abc", 0.4), False, kind="deletion")
    found = standing(results, "net")
    assert found is not None
    assert "so the ranking is not tested" in rank_stability(found)[0].sentence


def test_the_centre_prior_is_beaten_where_it_is(planted: Results) -> None:
    outcome = {(c.metric, c.subject): c.outcome for c in compare_prior(planted, "net")}
    assert set(outcome) == {
        (m, e) for m in ("deletion", "deletion_zero", "deletion_min", "insertion") for e in "abc"
    }, "no sensitivity"
    assert outcome["deletion", "a"] == outcome["deletion", "b"] == outcome["insertion", "a"] == "better"
    assert outcome["deletion", "c"] == "equivalent"
    assert outcome["deletion_min", "a"] == "equivalent"
    worse = replace(
        planted, per_image={k: {i: v + (k[1] == "b") for i, v in of.items()} for k, of in planted.per_image.items()}
    )
    assert {c.subject: c.outcome for c in compare_prior(worse, "net") if c.metric == "deletion"}["b"] == "worse"
    text = prior_section(planted, ["net"])
    assert "Ahead of the centre prior on all of 4 metrics: b." in text
    assert "Every explainer is ahead on at least one." in text
    planted.rows = [row for row in planted.rows if row.explainer != "centre_prior"]
    assert compare_prior(planted, "net") == [] and prior_section(planted, ["net"]) == ""


def test_holm_holds_within_each_metric(planted: Results) -> None:
    alone = replace(planted, rows=[row for row in planted.rows if row.metric == "deletion"])
    both = {c.subject: c.adjusted for c in compare_prior(planted, "net") if c.metric == "deletion"}
    assert both == {c.subject: c.adjusted for c in compare_prior(alone, "net")}


def test_what_cannot_be_ranked_is_named(planted: Results) -> None:
    for key in [key for key in planted.per_image if key[2] == "insertion"]:
        del planted.per_image[key]  # as of a result that is no mean over images
    planted.per_image["net", "c", "deletion"] = {0: 0.5, 1: 0.5}
    found = standing(planted, "net")
    assert found is not None
    assert "insertion" not in found.ranks and "insertion" in found.score
    assert found.ranks["deletion"].n == N and "c" not in found.ranks["deletion"].names
    assert "Not ranked: insertion: no number for each image; deletion without c (too few numbers)." in ranks_section(
        [found], ["net"]
    )


def test_the_models_of_a_sweep_are_folded_not_cut(planted: Results) -> None:
    found = standing(planted, "net")
    assert found is not None
    models = [f"m{k}" for k in range(7)]
    for section in (ranks_section, lambda many, names: agreement_section(many, None, names)):
        text = section([replace(found, model=model) for model in models], models)
        assert "<summary>4 more</summary>" in text or "<summary>1 more</summary>" in text
        assert all(f"</span>{model}" in text for model in models)
        assert text.count("<details") == text.count("</details>")


def test_the_diagram_is_to_scale(planted: Results) -> None:
    found = standing(planted, "net")
    assert found is not None
    ranks = found.ranks["deletion"]
    svg = rank_figure(ranks, "deletion", found.controls)
    axis = re.search(r'd="M([\d.]+) 44H([\d.]+)"', svg)
    assert axis is not None
    left, right = float(axis[1]), float(axis[2])
    low, high = np.floor(ranks.mean_rank.min()), np.ceil(ranks.mean_rank.max())
    drawn = [float(m) for m in re.findall(r'd="M([\d.]+) 44V', svg)]
    np.testing.assert_allclose(drawn, left + (right - left) * (ranks.mean_rank - low) / (high - low), atol=0.06)
    bar = re.search(r'd="M[\d.]+ 6v8m0 -4h([\d.]+)', svg)
    assert bar is not None
    assert float(bar[1]) == pytest.approx(ranks.critical_difference * (right - left) / (high - low), abs=0.06)
    assert svg.count('class="clique"') == len(ranks.cliques) == 1  # c and the centre prior have the same mean
    assert svg.count('<tspan class="control">') == 2
    assert rank_figure(replace(ranks, names=("<b>", *ranks.names[1:])), "x").count("&lt;b&gt;") >= 2


def test_heat_maps_show_their_numbers() -> None:
    text = matrix_table(["a", "b"], np.array([[1, -0.456], [-0.456, 1]]), "t")
    assert text.count("−0.46</td>") == 2 and "--share: 46%" in text and 'class="against"' in text
    assert "–" in matrix_table(["a", "b"], np.array([[1, np.nan], [np.nan, 1]]), "t")


def test_maps_agree_with_themselves(make_results: Build) -> None:
    board = make_board(make_results(images=4, side=32, n=8, epochs=1, models=("net",)).maps)
    board.heatmap["net", "ig"] = board.heatmap["net", "saliency"] ** 3  # another scale, the same ranks of pixels
    board.heatmap["net", "smoothgrad"] = -board.heatmap["net", "saliency"]
    board.heatmap["net", "centre_prior"] = np.zeros_like(board.heatmap["net", "ig"])
    names, matrix = map_agreement(board, "net")
    at = {name: i for i, name in enumerate(names)}
    assert matrix[at["saliency"], at["smoothgrad"]] == pytest.approx(-1)
    assert matrix[at["saliency"], at["ig"]] > 0.9 and matrix[at["ig"], at["ig"]] == pytest.approx(1)
    assert np.isnan(matrix[at["centre_prior"]]).all(), "an empty map orders nothing"
    assert "Agreement between maps" in agreement_section([], board, ["net"])


def _models(*points: tuple[str, float, float]) -> Results:
    results = Results()
    for model, accuracy, sensitivity in points:
        right = (np.arange(N) < round(accuracy * N)).astype(float)
        results.rows.append(
            Row(0, "test", model, "", "accuracy", right.mean(), 0.1, 0.9, N, 0, 0.0, True, "accuracy[top1]")
        )
        results.per_image[model, "", "accuracy"] = dict(enumerate(right.tolist()))
        add(
            results,
            model,
            "max_sensitivity",
            {"ig": sensitivity, "cam": sensitivity + 0.2, "random_map": 9.0},
            False,
            noise=1e-6,
        )
    mean = results.per_image["a", "ig", "max_sensitivity"]  # the same images for all models
    for (model, explainer, metric), values in results.per_image.items():
        if metric == "max_sensitivity":
            base = {m: s for m, _, s in points}[model] + (0.2 if explainer == "cam" else 0)
            values.update({i: base + v - np.mean(list(mean.values())) for i, v in mean.copy().items()})
    return results


def test_the_front_is_what_nothing_beats() -> None:
    results = _models(("a", 0.9, 0.5), ("b", 0.8, 0.3), ("c", 0.7, 0.4), ("d", 0.8, 0.6))
    front = accuracy_front(results)
    assert front is not None
    assert front.explainers == ("ig", "cam"), "controls are no explanation"
    assert {p.model for p in front.points if p.front} == {"a", "b"}
    assert {p.model: round(p.value, 6) for p in front.points} == {"a": 0.6, "b": 0.4, "c": 0.5, "d": 0.7}
    assert "a and b. The models are not equally accurate (70.0 % to 90.0 %)" in front.sentence
    section = front_section(front, ["a", "b", "c", "d"])
    assert front.sentence in section and section.count("<tr>") == 1 + 4
    for model in "abcd":
        assert f">{model}</text>" in front_figure(front, list("abcd"))


def test_equal_models_and_single_ones() -> None:
    front = accuracy_front(_models(("a", 0.9, 0.5), ("b", 0.9, 0.5)))
    assert front is not None and all(p.front for p in front.points)
    assert "not equally accurate" not in front.sentence
    assert accuracy_front(_models(("a", 0.9, 0.5))) is None
    assert front_section(None, ["a"]) == ""
