"""Verdicts on constructed cases: clear differences, ties, unequal accuracy, unlike protocols, controls."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import numpy as np
import pytest

import explainode
from explainode.metrics.results import Results, Row
from explainode.report.comparisons import (
    compare_controls,
    compare_headlines,
    compare_models,
    headline_metric,
)
from explainode.report.verdict import judge, verdict
from explainode.runs.legacy import control_of, role_of

Values = dict[int, float]


def _add(
    results: Results,
    model: str,
    explainer: str,
    metric: str,
    values: np.ndarray,
    better: bool | None = False,
    **changes: object,
) -> None:
    n = len(values)
    mean = float(np.nanmean(values))
    row = Row(
        1,
        "test",
        model,
        explainer,
        metric,
        mean,
        mean - 0.01,
        mean + 0.01,
        n,
        0,
        0.0,
        better,
        f"{metric}[x]",
        role_of(f"{metric}[x]"),
        control_of(explainer),
    )
    results.rows.append(replace(row, **changes))  # type: ignore[arg-type]
    results.per_image[model, explainer, metric] = dict(enumerate(values.tolist()))


def _two(
    shift: float, n: int = 64, accuracy: tuple[float, float] = (0.98, 0.98), explainers: tuple[str, ...] = ("ig",)
) -> Results:
    """Two models whose sensitivities differ by `shift`, with accuracies of our choice."""
    rng = np.random.default_rng(1)
    results = Results()
    base = rng.normal(0.6, 0.1, n)
    for model, moved, share in (("resnet", 0.0, accuracy[0]), ("sde", shift, accuracy[1])):
        _add(results, model, "", "accuracy", (np.arange(n) < round(share * n)).astype(float), True)
        for explainer in explainers:
            _add(results, model, explainer, "max_sensitivity", base + moved + rng.normal(0, 0.01, n) * (moved != 0))
    return results


def test_a_clear_difference_is_said_with_its_proof() -> None:
    text = verdict(_two(-0.13))
    assert text.startswith("sde: this network has better max_sensitivity than resnet, 0.4")
    assert "95 % interval −0.13" in text
    assert "standard deviations of the images’ differences, by chance p < 0.0001, n = 64 images]" in text
    assert "accuracy 98.4 % vs 98.4 %" in text
    assert "; of 1 paired comparison 1 better.\n" in text
    assert "said of this one, trained once: another seed can turn it round" in text.splitlines()[1]
    assert "Caution" not in text


def test_the_effect_is_the_difference_in_its_own_spread() -> None:
    (found,) = compare_models(_two(-0.13))
    assert found.difference == pytest.approx(-0.13, abs=0.005)
    assert found.effect == pytest.approx(-13, rel=0.25)  # the differences scatter by 0.01


def test_the_other_way_round_it_is_worse() -> None:
    text = verdict(_two(+0.13))
    assert text.startswith("sde: this network has worse max_sensitivity than resnet, ")
    assert "of 1 paired comparison 1 worse" in text


def test_higher_is_better_turns_the_words() -> None:
    results = _two(+0.13)
    results.rows = [replace(row, higher_is_better=True) if row.explainer else row for row in results.rows]
    assert verdict(results).startswith("sde: this network has better max_sensitivity")


def test_a_tie_is_equivalent() -> None:
    text = verdict(_two(0.0))
    assert text.startswith("sde: as good as resnet in max_sensitivity, within ±0.01")
    assert "[difference 0" in text
    assert "p = 1.00" in text
    assert "of 1 paired comparison 1 equivalent" in text


def test_noise_alone_is_undecided_with_what_could_have_been_seen() -> None:
    rng = np.random.default_rng(0)
    results = Results()
    for model in ("resnet", "sde"):
        for explainer in ("a", "b", "c"):
            _add(results, model, explainer, "deletion", rng.normal(0.3, 0.1, 64))
    text = verdict(results)
    assert "sde: undecided against resnet in deletion (mean of 3 explainers)" in text
    found = re.search(r"([\d.]+) would be found four times in five", text)
    assert found is not None and float(found[1]) == pytest.approx(2.85 * 0.1 * np.sqrt(2 / 3 / 64), rel=0.25)
    assert "of 3 paired comparisons 3 undecided (corrected for their number)" in text


def test_a_difference_too_small_to_matter_is_equivalent() -> None:
    """Seen on every image, and a fiftieth of how much images differ: no finding that anybody should act on."""
    found = compare_models(_two(-0.002))[0]
    assert found.adjusted < 0.05 and found.outcome == "equivalent"
    assert found.margin == pytest.approx(0.02, rel=0.2)  # a fifth of 0.1


def test_rounding_makes_no_difference() -> None:
    results = Results()
    base = np.linspace(0.2, 0.8, 64)
    for model, moved in (("resnet", 0.0), ("sde", 1e-7)):
        _add(results, model, "ig", "deletion", base + moved * np.linspace(1, 2, 64))
    assert compare_models(results)[0].p == 1


def test_unequal_accuracy_is_warned_of() -> None:
    cautions = judge(_two(-0.13, accuracy=(0.98, 0.80))).cautions
    assert len(cautions) == 1
    assert "differ by 18.8 points; a weaker net, here sde, can be less sensitive for the wrong reason" in cautions[0]
    assert "here resnet" in judge(_two(-0.13, accuracy=(0.80, 0.98))).cautions[0]
    assert "not beyond chance on these 64 images" in judge(_two(-0.13, accuracy=(0.98, 0.95))).cautions[0]
    assert judge(_two(-0.13, accuracy=(0.98, 0.97))).cautions == []


def test_few_images_are_warned_of() -> None:
    assert "Only 12 images were measured" in judge(_two(-0.13, n=12)).cautions[0]
    found = judge(_two(-0.13, n=5))
    assert "fewer than 12 give no interval and decide nothing" in found.cautions[-1]
    assert found.comparisons[0].outcome == "undecided"
    assert "too few images to test, 12 are needed" in found.text
    wide = Results()
    for model in ("resnet", *map(str, range(210))):
        _add(wide, model, "ig", "deletion", np.random.default_rng(len(wide.rows)).normal(size=13))
    assert "too few to decide 210 comparisons at once" in judge(wide).cautions[-1]


def test_unlike_protocols_are_not_compared() -> None:
    results = _two(-0.13)
    results.rows[-1] = replace(results.rows[-1], protocol="max_sensitivity[other]")
    found = judge(results)
    assert found.comparisons == []
    assert "followed different protocols and are not compared" in found.cautions[0]
    assert "no paired comparison was possible" in found.models[0]


def test_unlike_epochs_and_images_are_warned_of() -> None:
    results = _two(-0.13)
    results.rows = [replace(row, epoch=3) if row.model == "sde" else row for row in results.rows]
    key = ("sde", "ig", "max_sensitivity")
    results.per_image[key] = {k: v for k, v in results.per_image[key].items() if k < 40}
    cautions = judge(results).cautions
    assert any("sde was measured after epoch 3, resnet after epoch 1" in c for c in cautions)
    assert any("share only 40 of 64 images" in c for c in cautions)
    assert "n = 40 images]" in verdict(results)


def test_holm_counts_within_the_headlines_only() -> None:
    """A family of 20 true nothings beside one difference: neutral facts, sub-results, costs and controls are no part of the family."""
    rng = np.random.default_rng(3)
    results = _two(-0.01, explainers=("ig",))
    alone = compare_models(results)[0]
    for model in ("resnet", "sde"):
        for i in range(5):
            _add(results, model, "ig", f"other.part{i}", rng.normal(size=64))
            _add(results, model, "ig", f"neutral{i}", rng.normal(size=64), None)
            _add(results, model, "random_map", f"deletion{i}", rng.normal(size=64))
        _add(results, model, "ig", "cost", rng.normal(size=64))
    found = {c.metric: c for c in compare_models(results)}
    assert found["max_sensitivity"].adjusted == pytest.approx(alone.p)
    assert "neutral0" not in found
    assert found["other.part0"].adjusted >= found["other.part0"].p
    assert all(c.explainer == "ig" for c in found.values())


def test_the_headline_is_chosen_by_name_and_pooled_over_explainers() -> None:
    results = Results()
    for model, shift in (("resnet", 0.0), ("sde", 1.0)):
        _add(results, model, "ig", "insertion", np.arange(30) + shift, True)
        _add(results, model, "ig", "max_sensitivity", np.arange(30) + 2 * shift)
        _add(results, model, "saliency", "max_sensitivity", np.arange(30) + 4 * shift)
        _add(results, model, "random_map", "max_sensitivity", np.arange(30) * 100 * shift)
    assert headline_metric(results) == "max_sensitivity"
    found = compare_headlines(results, "max_sensitivity")["sde"]
    assert found[1] == 2
    assert found[0].difference == pytest.approx(3.0)
    assert found[0].reference_value == pytest.approx(14.5)


def test_a_failure_counts_as_the_worst_case_and_is_said() -> None:
    results = _two(-0.13)
    results.per_image["sde", "ig", "max_sensitivity"][0] = float("nan")
    found = compare_models(results)[0]
    assert (found.n, found.missing, found.outcome) == (63, 1, "better")
    assert "1 more on which one of the two failed, counted as the worst case" in verdict(results)


def test_giving_up_on_the_worst_images_wins_nothing() -> None:
    """As good as the other, but without a value on its 45 worst images of 100: ahead on the rest, and no claim."""
    rng = np.random.default_rng(0)
    results = Results()
    for explainer in ("a", "random_map"):
        values = rng.normal(0.4, 0.1, 100)
        _add(results, "net", explainer, "deletion", values)
    kept = results.per_image["net", "a", "deletion"]
    for image in sorted(kept, key=lambda i: -kept[i])[:45]:
        del kept[image]
    (unsaid,) = compare_controls(results, "net")
    assert unsaid.outcome == "better"  # not measured there, as far as the rows say
    results.rows[0] = replace(results.rows[0], n=55, excluded=45)
    (found,) = compare_controls(results, "net")
    assert (found.n, found.missing, found.outcome) == (55, 45, "undecided")
    assert "up to 45 images on which an explainer failed count as the worst case" in verdict(results)


def test_one_thing_is_tested_once() -> None:
    """A property of the network has the same numbers under each of five explainers."""
    rng = np.random.default_rng(4)
    results = Results()
    for model, moved in (("resnet", 0.0), ("sde", 0.02)):
        values = rng.normal(0.5 + moved, 0.05, 64)
        for explainer in "abcde":
            _add(results, model, explainer, "expansion_ratio", values)
    found = compare_models(results)
    assert len(found) == 5 and {c.family for c in found} == {1} and found[0].adjusted == found[0].p
    assert "of 1 paired comparison " in judge(results).models[0]
    assert "(mean of" not in judge(results).models[0]


def test_headlines_are_one_family() -> None:
    """Ten twins that differ by chance alone: one of them was called better or worse in a third of the runs."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(60):
        results = Results()
        for k in range(11):
            _add(results, f"net{k}", "saliency", "max_sensitivity", rng.normal(size=40))
        wrong += any(
            c.outcome in ("better", "worse") for c, _ in compare_headlines(results, "max_sensitivity").values()
        )
    assert wrong <= 3 + 2 * 1.7  # 5 % of 60, and two standard errors; 20 without the correction


def test_large_families_can_be_decided() -> None:
    """504 tests of 1000 images, ten standard deviations apart; 10,000 draws could not correct for 501."""
    rng = np.random.default_rng(0)
    results = Results()
    for k, model in enumerate(("plain", "twin", "other")):
        for explainer in range(18):
            for metric in range(14):
                _add(results, model, f"e{explainer}", f"deletion_{metric}", 10 * k + rng.normal(size=1000))
    start = time.process_time()
    found = compare_models(results)
    assert len(found) == 504 and {c.outcome for c in found} == {"worse"}
    assert time.process_time() - start <= 3 * 2  # the target is 2 s; a factor of 3 for a busy machine


def _controls(**shift: float) -> Results:
    rng = np.random.default_rng(5)
    results = Results()
    base = rng.normal(0.4, 0.1, 40)
    for explainer, moved in shift.items():
        _add(results, "resnet", explainer, "deletion", base + moved + rng.normal(0, 0.02, 40))
    return results


def test_explainers_must_beat_every_control() -> None:
    results = _controls(ig=-0.2, saliency=-0.05, gradcam=0.0, random_map=0.0, edge_map=-0.1)
    text = verdict(results)
    told = (
        r"ig 0\.\d+ \(ahead by 0\.\d+, \d\.\d+ sd\) beats every control \(best: edge_map 0\.\d+\); saliency \(behind edge_map\) and "
        r"gradcam \(behind edge_map\) say no more here than a map that does not know it\."
    )
    assert re.fullmatch(r"resnet, deletion \(lower is better, n = 40 images\): " + told, text)
    outcomes = {(c.subject, c.reference): c.outcome for c in compare_controls(results, "resnet")}
    assert outcomes["saliency", "random_map"] == "better"
    assert outcomes["saliency", "edge_map"] == "worse"
    assert outcomes["gradcam", "random_map"] in ("undecided", "equivalent")


def test_explainers_that_beat_nothing_are_told_so() -> None:
    text = verdict(_controls(ig=0.0, random_map=0.0))
    assert "no explainer was seen to beat the control (best: random_map 0." in text
    assert "ig (equivalent to random_map within ±0.01" in text
    assert "says no more here than a map that does not know it" in text


def test_absence_of_evidence_is_no_evidence_of_absence() -> None:
    """Eight images, perfectly separated: too few to decide twelve comparisons, and no word that the maps say nothing."""
    rng = np.random.default_rng(1)
    results = Results()
    for explainer in ("gradcam", "saliency", "ig", "lrp", "random_map", "centre_prior", "edge_map"):
        _add(results, "net", explainer, "deletion", rng.normal(0.5 if "_" in explainer else 0.3, 0.02, 8))
    text = verdict(results)
    assert (
        "say no more" not in text
        and "undecided: lrp, saliency, ig and gradcam (with 8 images and 12 comparisons a lead of 0." in text
    )


def test_sensitivity_is_no_contest_with_controls() -> None:
    """A constant map is never sensitive: controls are beaten on faithfulness or not at all."""
    results = Results()
    _add(results, "resnet", "ig", "max_sensitivity", np.ones(30))
    _add(results, "resnet", "centre_prior", "max_sensitivity", np.zeros(30))
    assert compare_controls(results, "resnet") == []
    assert "resnet: ig has the best max_sensitivity" in verdict(results)  # the control's 0 is no merit
    assert "controls prove nothing on this metric" in verdict(results)


def test_maps_are_held_against_controls_on_localization_too() -> None:
    results = Results()
    _add(results, "resnet", "ig", "pointing_game", np.ones(30), True)
    _add(results, "resnet", "random_map", "pointing_game", np.zeros(30), True)
    assert [c.reference for c in compare_controls(results, "resnet")] == ["random_map"]


def test_one_model_without_controls_makes_no_claim() -> None:
    text = verdict(_controls(ig=-0.1, saliency=0.1))
    assert text.startswith("resnet: ig has the best deletion, 0.")
    assert "nobody can say whether that is good" in text


def test_sensitivities_that_are_noise_are_told() -> None:
    results = _two(-0.1)
    for model, floor in (("resnet", 0.1), ("sde", 0.9)):
        _add(results, model, "ig", "max_sensitivity.fresh", np.ones(64))
        _add(results, model, "ig", "max_sensitivity.floor", np.full(64, floor), None)
    cautions = judge(results).cautions
    assert cautions == ["max_sensitivity.fresh of ig on sde is mostly noise: 0.900 of 1.00 remain at radius 0."]


def test_three_models_are_each_compared_with_the_first() -> None:
    results = _two(-0.13)
    rng = np.random.default_rng(9)
    _add(results, "third", "ig", "max_sensitivity", rng.normal(0.6, 0.1, 64))
    assert [sentence.split(":")[0] for sentence in judge(results).models] == ["sde", "third"]
    assert {c.reference for c in compare_models(results)} == {"resnet"}


def test_nothing_measured_is_said() -> None:
    assert verdict(Results()) == "Nothing was measured yet."


def test_the_control_sentence_goes_by_the_metric_with_the_best_card_and_says_so(make_results):
    """Deletion's card is fair, insertion's good: insertion judges, though deletion was measured first."""
    results = make_results(images=3, side=16, n=40, epochs=1, models=("resnet",))
    assert "resnet, deletion (" in verdict(results)  # settings that have no card: what was measured first
    known = {name: explainode.get(f"metric/{name}") for name in ("deletion", "insertion")}
    results.rows = [
        replace(r, protocol=f"{known[r.metric].protocol}#{known[r.metric].protocol_hash}") if r.metric in known else r
        for r in results.rows
    ]
    assert (
        "resnet, insertion (higher is better, n = 40 images; chosen before deletion because its card is good"
        in verdict(results)
    )
