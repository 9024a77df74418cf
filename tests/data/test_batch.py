"""The batch record: slices, moves, and what Lightning does with it."""

from __future__ import annotations

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device

from explainode.data.batch import Batch


def batch() -> Batch:
    return Batch(
        torch.rand(3, 3, 4, 4),
        torch.tensor([0, 1, -1]),
        torch.tensor([5, 6, 7]),
        mask=torch.zeros(3, 4, 4, dtype=torch.int64),
        boxes=[torch.zeros(1, 4), torch.zeros(0, 4), torch.ones(2, 4)],
        skipped={"a.png": "torn"},
        fixation_map=torch.arange(48.0).view(3, 4, 4),
        fixation_points=torch.arange(48).view(3, 4, 4) % 5 == 0,
    )


def test_slice_keeps_rows_together() -> None:
    whole, part = batch(), batch()[1:]
    assert len(whole) == 3 and len(part) == 2
    assert part.sample_id.tolist() == [6, 7] and part.label.tolist() == [1, -1]
    assert [len(box) for box in part.boxes] == [0, 2]
    assert torch.equal(part.fixation_map, whole.fixation_map[1:]) and torch.equal(
        part.fixation_points, whole.fixation_points[1:]
    )
    assert part.skipped == {}  # the whole batch has told it already


def test_slice_without_masks_and_boxes() -> None:
    bare = Batch(torch.rand(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    assert bare[:1].mask is None and bare[:1].boxes is None and bare[:1].fixation_map is None


def test_lightning_moves_it() -> None:
    moved = move_data_to_device(batch(), torch.device("meta"))
    assert isinstance(moved, Batch)
    assert {t.device.type for t in (moved.image, moved.label, moved.sample_id, moved.mask, *moved.boxes)} == {"meta"}
    assert moved.fixation_map.device.type == moved.fixation_points.device.type == "meta"
    assert moved.skipped == {"a.png": "torn"}
