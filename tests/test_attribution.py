from __future__ import annotations

import pytest
import torch

from explainode.attribution import (
    REDUCTIONS,
    Explanation,
    check_reduction,
    mean_crop,
    normalize,
    rank_pixels,
    reduce_channels,
    upsample,
)
from explainode.errors import UserError
from explainode.metrics.localization import SegmentationAgreement
from explainode.metrics.perturbation import PerturbationPath
from explainode.metrics.smoothness import Smoothness


def make_explanation(attribution: torch.Tensor) -> Explanation:
    batch = len(attribution)
    zeros = torch.zeros(batch)
    return Explanation(
        x=torch.zeros(batch, 3, 8, 8), target=zeros.long(), attribution=attribution, logits=torch.zeros(batch, 2), score=zeros,
        completeness_error=None, forwards=0, backwards=0, noise="off", seed=0, stochastic=False, sample_ids=torch.arange(batch), label=None,
        mask=None, boxes=None, seconds=0.0, forward=lambda x, rows=None: x, explain=lambda x, rows=None, draw=None: x, model=torch.nn.Identity(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [("sum", -2.0), ("abs_sum", 8.0), ("abs_max", 5.0), ("positive_sum", 3.0), ("l2", 34**0.5)],
)
def test_reductions_of_3_minus_5_and_0(reduction, expected):
    assert reduction in REDUCTIONS
    reduced = reduce_channels(torch.tensor([3.0, -5.0, 0.0]).reshape(1, 3, 1, 1), reduction)
    assert reduced.shape == (1, 1, 1) and reduced.item() == pytest.approx(expected)


def test_an_unknown_reduction_is_answered_with_the_known_ones():
    for refuse in (
        check_reduction,
        lambda name: reduce_channels(torch.zeros(1, 3, 2, 2), name),
        lambda name: PerturbationPath(reduction=name),
    ):
        with pytest.raises(UserError, match=r"no channel reduction named 'max'; the nearest are abs_max"):
            refuse("max")
    for metric in (Smoothness, SegmentationAgreement):
        with pytest.raises(UserError, match=r"no channel reduction named 'max'; the nearest are abs_max"):
            metric(reduction="max")
    assert all(check_reduction(name) == name for name in REDUCTIONS)


def test_normalize_runs_from_0_to_1_per_image_and_maps_a_constant_to_0():
    maps = torch.stack([torch.arange(4.0).reshape(2, 2) - 1, torch.full((2, 2), 7.0), torch.full((2, 2), torch.nan)])
    unit = normalize(maps)
    torch.testing.assert_close(unit[0], torch.arange(4.0).reshape(2, 2) / 3)
    assert torch.equal(unit[1], torch.zeros(2, 2))
    assert torch.isnan(unit[2]).all()


def test_mean_crop_keeps_what_is_not_below_the_maps_own_mean():
    assert mean_crop(torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])).tolist() == [[[0.0, 0.0], [3.0, 6.0]]]


def test_ranking_puts_the_most_relevant_first_and_keeps_raster_order_in_ties():
    assert rank_pixels(torch.tensor([[[1.0, 5.0], [5.0, -2.0]], [[0.0, 0.0], [0.0, 0.0]]])).tolist() == [
        [1, 2, 0, 3],
        [0, 1, 2, 3],
    ]


def test_nan_has_no_rank():
    with pytest.raises(ValueError, match="NaN"):
        rank_pixels(torch.tensor([[[1.0, torch.nan]]]))


def test_upsampling_keeps_constants_and_leaves_maps_that_fit_alone():
    heatmap = torch.rand(2, 4, 4)
    assert upsample(heatmap, (4, 4)) is heatmap
    torch.testing.assert_close(upsample(torch.full((1, 2, 2), 0.3), (7, 5)), torch.full((1, 7, 5), 0.3))


def test_a_heatmap_is_reduced_upsampled_and_made_once():
    explanation = make_explanation(torch.randn(2, 1, 4, 4))
    heatmap = explanation.heatmap()
    assert heatmap.shape == (2, 8, 8) and explanation.heatmap() is heatmap
    assert explanation.heatmap("abs_sum") is not heatmap
    assert len(explanation) == 2


def test_memo_computes_once_and_shares_only_what_is_said_to_be_shared():
    one, other = make_explanation(torch.zeros(1, 1, 8, 8)), make_explanation(torch.zeros(1, 1, 8, 8))
    other.shared = one.shared
    calls = []

    def compute() -> int:
        calls.append(1)
        return len(calls)

    assert [one.memo("k", compute), one.memo("k", compute), other.memo("k", compute)] == [1, 1, 2]
    assert [one.memo("s", compute, shared=True), other.memo("s", compute, shared=True)] == [3, 3]
