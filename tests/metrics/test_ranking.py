"""Areas under curves and best cuts against counting, and the metrics that read them.

Compared once: scikit-learn 1.9's `roc_auc_score` and `average_precision_score` on 100 rankings with ties and ignored pixels, largest
differences 1e-16 and 6e-17; Quantus 0.6's `AUC` on 30 images, 1e-16.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from explainode.errors import UserError
from explainode.metrics.localization import agreement, fill_boxes
from explainode.metrics.pixel_ranking import BestAreaMIoU, PixelAUROC, PixelAveragePrecision
from explainode.metrics.ranking import Ranking

RANKS = (PixelAUROC, PixelAveragePrecision, BestAreaMIoU)
cases = st.lists(
    st.tuples(st.integers(0, 4), st.booleans(), st.booleans()), min_size=2, max_size=12
)  # score, truth, counted


def split(case):
    score, truth, counted = (np.array(column) for column in zip(*case, strict=True))
    return score.astype(np.float32), truth, counted


def ranked(score, truth, counted) -> Ranking:
    return Ranking.of(*(torch.as_tensor(part)[None] for part in (score, truth, counted)))


@given(cases)
@settings(max_examples=200, deadline=None)
def test_auroc_is_the_share_of_pairs_in_order(case):
    score, truth, counted = split(case)
    above = score[truth & counted][:, None] - score[~truth & counted]
    found = ranked(score, truth, counted).auroc().item()
    assert (
        found == pytest.approx(((above > 0) + 0.5 * (above == 0)).mean(), abs=1e-12) if above.size else np.isnan(found)
    )


@given(cases)
@settings(max_examples=200, deadline=None)
def test_best_cut_is_the_best_of_all_thresholds(case):
    score, truth, counted = split(case)
    found, counts = ranked(score, truth, counted).best_cut()
    best = []
    for threshold in (*np.unique(score[counted]), np.inf):
        marked = (score >= threshold) & counted
        parts = [marked & truth, marked & ~truth, counted & ~marked & truth, counted & ~marked & ~truth]
        best.append(agreement(np.array([part.sum() for part in parts], dtype=float))[0])
    if (truth & counted).any() and (~truth & counted).any():
        assert found.item() == pytest.approx(max(best), abs=1e-12)
        assert agreement(counts[0].numpy())[0] == pytest.approx(max(best), abs=1e-12) and counts.sum() == counted.sum()
    else:
        assert found.isnan().all()


def test_both_areas_equal_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(8, 200, generator=generator).round(decimals=2)
    truth = torch.rand(8, 200, generator=generator) < 0.3
    ranking = Ranking.of(score, truth)
    for b in range(8):
        assert ranking.average_precision()[b].item() == pytest.approx(
            binary_average_precision(score[b], truth[b].int()).item(), abs=1e-6
        )
        assert ranking.auroc()[b].item() == pytest.approx(binary_auroc(score[b], truth[b].int()).item(), abs=1e-6)


@pytest.fixture
def measured(record, network, pictures):
    def measure(cls, heat, mask=None, boxes=None, **options):
        heat = torch.as_tensor(heat)
        explanation, _ = record(network(), pictures(len(heat), heat.shape[-1]), heat[:, None], mask=mask, boxes=boxes)
        metric = cls(**options).setup(len(heat))
        metric.update(explanation)
        return metric

    return measure


def objects(n: int = 40, size: int = 12) -> torch.Tensor:
    mask = torch.zeros(n, size, size, dtype=torch.int64)
    mask[:, 2:7, 3:9] = 1
    mask[:, 0] = -1
    return mask


def head(metric) -> float:
    return metric.summary()[0].value


def test_toy_map_by_hand(measured):
    """Object pixels hold 4 and 2, background 3 and 1: three of four pairs are in order."""
    heat, mask = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]]), torch.tensor([[[1, 0], [1, 0]]])
    assert head(measured(PixelAUROC, heat, mask)) == 3 / 4
    assert head(measured(PixelAveragePrecision, heat, mask)) == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    # cut after 4: object 1/2, background 2/3; after 4, 3, 2: object 2/3, background 1/2; both 7/12
    assert head(measured(BestAreaMIoU, heat, mask)) == pytest.approx(7 / 12)


def test_perfect_and_opposite_maps(measured):
    mask = objects()
    for cls in RANKS:
        assert head(measured(cls, mask.float(), mask)) == 1
    assert head(measured(PixelAUROC, -mask.float(), mask)) == 0  # the ignored row's values do not count
    share = (mask == 1).sum() / (mask >= 0).sum()
    assert head(measured(BestAreaMIoU, -(mask == 1).float(), mask)) == pytest.approx(
        float(1 - share) / 2
    )  # best to mark nothing


def test_a_random_map_meets_its_expectation(measured):
    mask = objects(200)
    heat = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0))
    share = float((mask[0] == 1).sum() / (mask[0] >= 0).sum())
    # standard error of one AUROC with 30 and 102 pixels is 0.06, of the mean of 200 0.0042
    assert head(measured(PixelAUROC, heat, mask)) == pytest.approx(0.5, abs=0.015)
    assert head(measured(PixelAveragePrecision, heat, mask)) == pytest.approx(
        share, abs=0.03
    )  # a little above, for few pixels


def test_increasing_functions_change_nothing(measured):
    mask = objects()
    heat = torch.randn(mask.shape, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    for cls in RANKS:
        first = measured(cls, heat, mask).table()
        for changed in (3 * heat + 1, heat**3, heat.exp()):
            second = measured(cls, changed, mask).table()
            assert all(np.array_equal(first[i], second[i]) for i in first)


def test_what_cannot_be_scored_is_excluded_and_counted(measured):
    mask = objects(6)
    heat = torch.randn(mask.shape, generator=torch.Generator().manual_seed(2))
    heat[0], heat[1, 3, 3], heat[2, 3, 3] = 0.7, torch.nan, torch.inf
    mask[3] = 0
    for cls in RANKS:
        metric = measured(cls, heat, mask)
        assert sorted(metric.per_image()[""]) == [4, 5]
        assert all((r.n, r.excluded) == (2, 4) for r in metric.summary())
    mask[4] = 1  # no background
    assert sorted(measured(PixelAUROC, heat, mask).per_image()[""]) == [5]


def test_best_area_is_never_worse_than_the_mean_cut(measured):
    from explainode.metrics.localization import SegmentationAgreement

    mask = objects()
    heat = torch.randn(mask.shape, generator=torch.Generator().manual_seed(3)) + (mask == 1)
    best = measured(BestAreaMIoU, heat, mask).per_image()[""]
    at_mean = measured(SegmentationAgreement, heat, mask).per_image()["miou_per_image"]
    assert all(best[i] >= at_mean[i] - 1e-12 for i in best) and best.keys() == at_mean.keys()


def test_boxes_are_filled_half_open(measured):
    boxes = [torch.tensor([[1.0, 2.0, 4.0, 5.0], [3.0, 0.0, 6.0, 3.0]]), torch.zeros(0, 4)]
    mask = fill_boxes(boxes, (6, 7))
    expected = torch.zeros(6, 7, dtype=torch.int64)
    expected[2:5, 1:4] = expected[0:3, 3:6] = 1
    assert torch.equal(mask[0], expected) and not mask[1].any()
    assert fill_boxes([torch.tensor([[0.4, 0.0, 1.6, 1.0]])], (1, 3)).tolist() == [
        [[1, 1, 0]]
    ]  # by the pixels' centers
    heat = mask.float() + 0.1 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(4))
    metric = measured(PixelAUROC, heat[:, :, :6], boxes=boxes, truth="boxes")
    assert sorted(metric.per_image()[""]) == [0] and head(metric) > 0.95


def test_one_sort_serves_all(measured, record, network, pictures, monkeypatch):
    calls = []
    plain = torch.sort
    monkeypatch.setattr(torch, "sort", lambda *a, **k: calls.append(1) or plain(*a, **k))
    explanation, _ = record(network(), pictures(3, 12), torch.rand(3, 1, 12, 12), mask=objects(3))
    for cls in RANKS:
        cls().setup(3).update(explanation)
    assert len(calls) == 1


def test_bad_input_is_told_in_a_sentence(measured):
    with pytest.raises(UserError, match="truth must be mask or boxes, got 'masks'"):
        PixelAUROC(truth="masks")
    with pytest.raises(
        UserError, match="needs boxes, but this data has none; choose data with boxes, such as data=tiny_imagenet_boxes"
    ):
        measured(PixelAUROC, torch.rand(1, 8, 8), objects(1, 8), truth="boxes")
