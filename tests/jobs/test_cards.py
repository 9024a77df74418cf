"""Cards are measured as the committed findings say, and the command line shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

import explainode
from explainode.cli import cards as verb
from explainode.errors import UserError
from explainode.jobs.cards import has_a_card, measure_cards
from explainode.metrics.cards import cards, from_csv
from explainode.registry import composing

DATA = Path(__file__).parents[2] / "docs" / "cards.csv"


def test_the_committed_findings_are_found_again():
    """Those of two metrics on two networks, whole: a metric whose definition changes needs a new card."""
    committed = {(f.metric, f.network, f.first, f.second): f for f in from_csv(DATA.read_text(encoding="utf-8"))}
    metrics = {name: explainode.get(f"metric/{name}") for name in ("pixel_auroc", "single_patch_deletion")}
    found = measure_cards(metrics, ["two objects", "attention"])
    assert len(found) > 40
    for one in found:
        before = committed[one.metric, one.network, one.first, one.second]
        assert one.effect == pytest.approx(before.effect, rel=0.02, abs=0.02)
        assert one.ahead_100 == pytest.approx(before.ahead_100, abs=0.05)
        assert one.behind_24 == pytest.approx(before.behind_24, abs=0.05)


def test_defaults_are_not_poor():
    """What train, evaluate and benchmark measure to judge maps by begins with one whose card is good or fair."""
    grade = {card.metric: card.grade for card in cards(from_csv(DATA.read_text(encoding="utf-8")))}
    for name in ("train", "evaluate", "benchmark"):
        asked = [metric for metric in composing.compose(name, []).metric if metric in grade]
        judging = [
            metric for metric in asked if explainode.get(f"metric/{metric}").role in ("faithfulness", "localization")
        ]
        assert judging and grade[judging[0]] in ("good", "fair"), (name, {metric: grade[metric] for metric in judging})


def test_what_has_a_card():
    assert has_a_card(explainode.get("metric/deletion_fast")) and has_a_card(explainode.get("metric/pointing_game"))
    assert not has_a_card(explainode.get("metric/cost")) and not has_a_card(explainode.get("metric/box_iou"))


def test_unknown_networks_are_refused():
    with pytest.raises(UserError, match="two objects"):
        measure_cards({}, ["two objekts"])


def test_cards_of_written_findings_are_printed(capsys):
    assert verb.run(["--from", str(DATA)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("| metric | card |") and printed.strip() in (DATA.parent / "cards.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--images", "3"], "at least 12"),
        (["--image", "30"], "--images"),
        (["--csv"], "needs a value"),
        (["--from", "nowhere.csv"], "not a file"),
        (["cost"], "has no card"),
        (["delation"], "deletion"),
    ],
)
def test_bad_words_are_answered(words, said):
    with pytest.raises(UserError, match=said):
        verb.run(words)
