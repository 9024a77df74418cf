"""Cards: arithmetic on values whose answer is known, and the page that is made of the committed findings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import explainode
from explainode.metrics.cards import Card, cards, findings, from_csv, pairs, table, to_csv
from explainode.metrics.grades import GRADES, card_of
from explainode.metrics.planted import MAPS

DOCS = Path(__file__).parents[2] / "docs"


def values(rng, **lift):
    """(72,) of each map: normal noise, plus what the map gains."""
    return {name: rng.normal(lift.get(name.replace(" ", "_"), 0.0), 1.0, 72) for name in MAPS}


def test_a_metric_that_says_nothing_is_rarely_wrong_and_never_sees_anything():
    found = [f for k in range(8) for f in findings("m", "attention", values(np.random.default_rng(k)), True)]
    card = Card.of("m", found)
    assert card.false_positives < 0.08 and card.power_24 < 0.25
    assert card.grade == "poor"


def test_a_metric_that_sees_the_truth_is_good_in_both_directions():
    for sign in (1, -1):
        lift = {"truth": 3.0 * sign, "noisy": 2.5 * sign}
        card = Card.of("m", findings("m", "attention", values(np.random.default_rng(0), **lift), sign > 0))
        assert card.grade == "good" and card.power_100 == card.power_24 == 1 and not card.misled and not card.gamed


def test_what_gains_by_looks_is_not_good():
    card = Card.of("m", findings("m", "attention", values(np.random.default_rng(0), truth=3.0, mask=5.0), True))
    assert card.gamed == {"mask": 1} and card.grade == "fair"


def test_networks_of_one_object_have_no_other_map():
    assert not {second for _, second in pairs("conv")} & {"other object", "both objects"}
    assert {"other object", "both objects"} <= {second for _, second in pairs("two objects")}


def test_wrong_maps_ahead_are_named():
    lift = {"truth": 1.0, "other_object": 4.0, "center": 2.0}
    card = Card.of("m", findings("m", "attention", values(np.random.default_rng(0), **lift), True))
    assert (
        card.misled == {"attention": ("other object", "center")}
        and card.blind == {"center": 1}
        and card.grade == "poor"
    )


def test_power_is_that_of_students_test():
    """A lead of half a standard deviation is found by a two-sided t test of 24 images in .65 of studies (tables of Cohen 1988)."""
    rng = np.random.default_rng(0)
    lead = rng.normal(0, 1, 4000)
    lead = (lead - lead.mean()) / lead.std() + 0.5
    of = {name: np.zeros(4000) for name in MAPS} | {"truth": lead}
    found = next(f for f in findings("m", "attention", of, True) if f.second == "inverted")
    assert found.ahead_24 == pytest.approx(0.65, abs=0.12) and found.effect == pytest.approx(0.5, abs=0.01)


def test_maps_without_values_are_left_out():
    of = values(np.random.default_rng(0), truth=3.0) | {"other object": np.full(72, np.nan)}
    found = findings("m", "attention", of, True)
    assert {f.second for f in found} == {second for _, second in pairs("attention")} - {"other object"}


def test_csv_goes_back_and_forth():
    found = findings("m", "attention", values(np.random.default_rng(0)), True)
    assert from_csv(to_csv(found)) == found


def test_the_page_shows_what_the_data_says():
    page = (DOCS / "cards.md").read_text(encoding="utf-8")
    assert table(cards(from_csv((DOCS / "cards.csv").read_text(encoding="utf-8")))) in page


def test_reports_know_the_grades_that_the_data_says():
    made = cards(from_csv((DOCS / "cards.csv").read_text(encoding="utf-8")))
    metrics = {card.metric: explainode.get(f"metric/{card.metric}") for card in made}
    assert {metrics[card.metric].protocol_hash: card.grade for card in made} == GRADES
    protocol = f"{metrics['insertion'].protocol}#{metrics['insertion'].protocol_hash} noise=off seed=0"
    assert card_of(protocol) == "good" and card_of("mine[x]#00000000 noise=off") == card_of("accuracy[top1]") == ""
