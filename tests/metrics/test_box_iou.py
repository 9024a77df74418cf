"""Regions against a flood fill, boxes and their overlap by hand.

Compared once with scikit-image 0.26's `label(connectivity=2)` on 100 random images of 25x31: the same regions in all.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from explainode.errors import UserError
from explainode.metrics.box_iou import BoxIoU, components, intersection_over_union, largest_component
from explainode.metrics.localization import bounding_boxes


def flood(mask: np.ndarray) -> np.ndarray:
    """Regions over edges and corners, one pixel at a time."""
    label = np.full(mask.shape, -1)
    for start in zip(*np.nonzero(mask), strict=True):
        stack = [start] if label[start] < 0 else []
        while stack:
            row, column = stack.pop()
            if (
                not (0 <= row < mask.shape[0] and 0 <= column < mask.shape[1])
                or not mask[row, column]
                or label[row, column] >= 0
            ):
                continue
            label[row, column] = start[0] * mask.shape[1] + start[1]
            stack += [(row + dy, column + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return label


def spiral(size: int) -> np.ndarray:
    """The longest region there is, one pixel wide."""
    mask, row, column, dy, dx = np.zeros((size, size), dtype=bool), 0, 0, 0, 1
    mask[0, 0] = True
    turns = 0
    while turns < 2:
        y, x = row + 2 * dy, column + 2 * dx
        free = 0 <= row + dy < size and 0 <= column + dx < size and not (0 <= y < size and 0 <= x < size and mask[y, x])
        if free:
            row, column, turns = row + dy, column + dx, 0
            mask[row, column] = True
        else:
            dy, dx, turns = dx, -dy, turns + 1
    return mask


def test_regions_equal_a_flood_fill():
    generator = np.random.default_rng(0)
    masks = generator.random((30, 15, 19)) < np.linspace(0.1, 0.7, 30)[:, None, None]
    for found, mask in zip(components(torch.from_numpy(masks)).numpy(), masks, strict=True):
        pairs = set(zip(found.ravel().tolist(), flood(mask).ravel().tolist(), strict=True))
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
        assert ((found >= 0) == mask).all()


def test_a_spiral_is_one_region():
    mask = spiral(41)
    assert mask.sum() > 700
    assert len(np.unique(components(torch.from_numpy(mask)[None]).numpy())) == 2


def test_the_largest_region_wins_and_the_first_of_equals():
    mask = torch.zeros(3, 6, 8, dtype=torch.bool)
    mask[0, 0, 0:3] = mask[0, 3:5, 4:8] = True
    mask[1, 0, 0:2] = mask[1, 5, 6:8] = True
    expected = mask.clone()
    expected[0, 0] = expected[1, 5] = False
    assert torch.equal(largest_component(mask), expected)
    boxes = bounding_boxes(expected)
    assert boxes[:2].tolist() == [[4, 3, 8, 5], [0, 0, 2, 1]] and boxes[2].isnan().all()


def test_overlap_equals_torchvision():
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> torch.Tensor:
        a, b = torch.rand(n, 2, generator=generator), torch.rand(n, 2, generator=generator)
        return 20 * torch.cat((torch.minimum(a, b), torch.maximum(a, b)), 1)

    own, others = draw(5), [draw(n) for n in (1, 4, 0, 2, 3)]
    found = intersection_over_union(own, others)
    for b, other in enumerate(others):
        expected = box_iou(own[b : b + 1], other).max().item() if len(other) else np.nan
        assert found[b].item() == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert intersection_over_union(own, [torch.zeros(0, 4)] * 5).isnan().all()


@pytest.fixture
def measured(record, network, pictures):
    def measure(heat, boxes=None, mask=None, **options):
        heat = torch.as_tensor(heat)
        explanation, _ = record(network(), pictures(len(heat), heat.shape[-1]), heat[:, None], boxes=boxes, mask=mask)
        metric = BoxIoU(**options).setup(len(heat))
        metric.update(explanation)
        return metric

    return measure


def test_boxes_by_hand(measured):
    """A hot square of 4 x 4 against a box of 4 x 8 that holds it, a speck elsewhere, in an image of 8 x 8."""
    heat = torch.zeros(1, 8, 8)
    heat[0, 0:4, 0:4], heat[0, 7, 7] = 1, 1
    box = [torch.tensor([[0.0, 0.0, 8.0, 4.0]])]
    found = {name: value.item() for name, value in measured(heat, box).compute().items()}
    # the centre box of half the area reaches from 1.17 to 6.83: it shares 5.66 * 2.83 = 16 of 32 + 32 - 16
    assert found == pytest.approx({"": 16 / 32, "localized": 1, "whole_image": 0.5, "centre_box": 16 / 48}, abs=1e-6)
    assert measured(heat, box, region="all").compute()[""].item() == pytest.approx(
        0.5
    )  # the speck makes it the whole image
    two = [torch.tensor([[0.0, 0.0, 8.0, 4.0], [0.0, 0.0, 4.0, 4.0]])]
    assert measured(heat, two).compute()[""].item() == 1  # the best of several
    mask = torch.zeros(1, 8, 8, dtype=torch.int64)
    mask[0, 0:4, 0:4] = torch.eye(4).long()
    assert measured(heat, mask=mask, truth="mask").compute()[""].item() == 1  # the box around the mask


@pytest.mark.parametrize("cut", [">mean", "otsu", "top:0.25", "peak:0.2"])
def test_every_cut_finds_a_clear_object(measured, cut):
    heat = torch.zeros(2, 12, 12)
    heat[:, 2:8, 3:9] = 1
    heat += 0.05 * torch.rand(heat.shape, generator=torch.Generator().manual_seed(0))
    assert measured(heat, [torch.tensor([[3.0, 2.0, 9.0, 8.0]])] * 2, cut=cut).compute()[""].item() == 1


def test_what_cannot_be_scored_is_excluded_and_counted(measured):
    heat = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0))
    heat[0], heat[1, 0, 0] = 1, torch.nan
    boxes = [torch.tensor([[1.0, 1.0, 5.0, 5.0]])] * 3 + [torch.zeros(0, 4)]
    assert [(r.n, r.excluded) for r in measured(heat, boxes).summary()] == [(1, 3)] * 4


def test_bad_settings_are_told_in_a_sentence():
    for options, words in (
        ({"region": "any"}, "region must be"),
        ({"centre_share": 1}, "centre_share"),
        ({"cut": "mean"}, "no cut named"),
    ):
        with pytest.raises(UserError, match=words):
            BoxIoU(**options)
