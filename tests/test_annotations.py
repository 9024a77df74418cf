"""The record of what is known: every kind is declared once, and travels whole."""

from __future__ import annotations

from dataclasses import fields

import torch

from explainode.annotations import KINDS, Annotations


def test_every_field_is_a_kind():
    assert [part.name for part in fields(Annotations)] == list(KINDS)


def test_an_unknown_label_is_a_missing_one():
    assert Annotations(label=torch.tensor([0, -1])).lacks({"label"}) == ["label"]
    assert Annotations(label=torch.tensor([0, 1])).lacks({"label", "boxes"}) == ["boxes"]


def test_tensors_and_lists_change_alike():
    known = Annotations(mask=torch.ones(2, 3, 3), boxes=[torch.ones(1, 4), torch.ones(2, 4)])
    changed = known.map_known(lambda value: 2 * value)
    assert set(changed) == {"mask", "boxes"} and changed["mask"].sum() == 36
    assert [float(box.sum()) for box in changed["boxes"]] == [8, 16]
    assert [len(box) for box in known.rows(slice(1, 2))["boxes"]] == [2]
