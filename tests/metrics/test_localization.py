"""Segmentation agreement against an independent pixel-by-pixel count in the manner of Chefer et al."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from explainode.errors import UserError
from explainode.metrics.localization import SegmentationAgreement, agreement


def chefer_counts(heat: np.ndarray, labels: np.ndarray):
    """Dataset-level two-class counts: (correct, labeled, intersection[2], union[2]) image by image, ignore -1, `> mean` after min-max."""
    correct = labeled = 0
    intersection, union = np.zeros(2), np.zeros(2)
    for h, y in zip(heat.astype(np.float64), labels, strict=True):
        with np.errstate(invalid="ignore", divide="ignore"):
            h = (h - h.min()) / (h.max() - h.min())
        foreground = h > h.mean()  # NaN compares false: a constant map is all background
        prediction = foreground.astype(int)
        correct += ((prediction == y) & (y >= 0)).sum()
        labeled += (y >= 0).sum()
        for cls in (0, 1):
            predicted, true = (prediction == cls) & (y >= 0), y == cls
            intersection[cls] += (predicted & true).sum()
            union[cls] += (predicted | true).sum()
    return correct, labeled, intersection, union


def step_precision(score: np.ndarray, truth: np.ndarray) -> float:
    """Average precision by going through the distinct thresholds one by one."""
    total, before = 0.0, 0.0
    for threshold in np.unique(score)[::-1]:
        chosen = score >= threshold
        recall = (truth & chosen).sum() / truth.sum()
        total += (recall - before) * (truth & chosen).sum() / chosen.sum()
        before = recall
    return total


def case(seed: int, n: int = 12, size: int = 10):
    generator = np.random.default_rng(seed)
    heat = np.round(generator.normal(size=(n, size, size)), 1).astype(np.float32)  # ties
    labels = generator.choice([-1, 0, 1], p=[0.1, 0.6, 0.3], size=(n, size, size))
    heat += (labels == 1) * generator.uniform(0, 2, (n, 1, 1)).astype(np.float32)
    heat[seed % n] = 0.7  # a constant map
    return heat, labels


@pytest.fixture
def measured(record, network, pictures):
    def measure(heat, labels, **options):
        x = pictures(len(labels), labels.shape[-1])
        explanation, _ = record(network(), x, torch.as_tensor(heat)[:, None], mask=torch.as_tensor(labels))
        metric = SegmentationAgreement(**options).setup(len(labels))
        metric.update(explanation)
        return metric

    return measure


@pytest.mark.parametrize("seed", range(5))
def test_chefer_counts(measured, seed):
    """Acceptance check 2."""
    heat, labels = case(seed)
    found = {name: value.item() for name, value in measured(heat, labels, degenerate="background").compute().items()}
    correct, labeled, intersection, union = chefer_counts(heat, labels)
    assert found["pixel_accuracy"] == pytest.approx(correct / labeled, abs=1e-6)
    assert found[""] == pytest.approx((intersection / union).mean(), abs=1e-6)
    assert found["foreground_iou"] == pytest.approx(intersection[1] / union[1], abs=1e-6)
    recalls = [intersection[cls] / (labels == cls).sum() for cls in (0, 1)]
    assert found["foreground_recall"] == pytest.approx(recalls[1], abs=1e-6)
    assert found["macro_pixel_accuracy"] == pytest.approx(np.mean(recalls), abs=1e-6)
    assert found["constant"] == pytest.approx(1 / len(heat))
    per_image = [
        (i / u).mean() for _, _, i, u in (chefer_counts(h[None], y[None]) for h, y in zip(heat, labels, strict=True))
    ]
    assert found["miou_per_image"] == pytest.approx(np.mean(per_image), abs=1e-6)


def test_map_is_average_precision_over_both_classes(measured):
    heat, labels = case(3)
    expected = []
    for h, y in zip(heat, labels, strict=True):
        h = (h - h.min()) / max(h.max() - h.min(), 1e-30)
        keep = y >= 0
        score, truth = np.concatenate((1 - h[keep], h[keep])), np.concatenate((y[keep] != 1, y[keep] == 1))
        expected.append(step_precision(score, truth))
    found = measured(heat, labels, degenerate="background").per_image()["map"]
    np.testing.assert_allclose([found[i] for i in range(len(heat))], expected, atol=1e-6)


@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4).filter(lambda c: c[0] + c[2] > 0 and c[1] + c[3] > 0))
@settings(max_examples=300, deadline=None)
def test_miou_never_exceeds_the_accuracies(counts):
    """For one binary mask both hold always; the paper's table that violates them is therefore about something else."""
    miou, pixel_accuracy, macro, recall, iou = agreement(np.array(counts, dtype=float))
    assert miou <= pixel_accuracy + 1e-12 and miou <= macro + 1e-12 and iou <= recall + 1e-12


def test_perfect_and_opposite_maps(measured):
    _, labels = case(1)
    labels = np.abs(labels)
    right = {name: value.item() for name, value in measured(labels.astype(np.float32), labels).compute().items()}
    assert all(right[name] == 1 for name in right if name != "constant")
    wrong = {name: value.item() for name, value in measured(-labels.astype(np.float32), labels).compute().items()}
    assert all(wrong[name] == 0 for name in wrong if name not in ("constant", "map")) and wrong["map"] < 0.6


def test_what_is_ignored_counts_nowhere(measured):
    """Turning the map upside down under the ignored pixels, at the same mean, moves no number."""
    heat, labels = case(2)
    heat, labels = heat[3:4], labels[3:4]
    ignored = np.argwhere(labels[0] == -1)
    assert len(ignored) >= 2
    changed = heat.copy()
    (a, b), (c, d) = ignored[np.argsort([heat[0, r, c] for r, c in ignored])][[0, -1]]
    changed[0, a, b], changed[0, c, d] = heat[0, c, d], heat[0, a, b]  # from below the mean to above it and back
    assert heat[0, a, b] < heat[0].mean() < heat[0, c, d]
    first, second = measured(heat, labels).compute(), measured(changed, labels).compute()
    assert all(second[name].item() == pytest.approx(value.item(), abs=1e-6) for name, value in first.items())


def test_broken_maps_are_excluded_and_small_maps_upsampled(measured):
    heat, labels = case(4)
    heat[5, 0, 0] = np.nan
    metric = measured(heat, labels)
    assert metric.summary()[0].excluded == 2  # the map of image 4 is constant
    assert not {4, 5} & set(metric.per_image()["miou_per_image"])
    coarse = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    fine = torch.nn.functional.interpolate(coarse[None], size=(8, 8), mode="bilinear", align_corners=False)[0]
    assert measured(coarse, (fine > fine.mean()).long()).compute()["foreground_iou"] == 1


def test_interval_of_a_dataset_level_number(measured):
    """From pseudo-values, one image left out at a time; as wide as resampling the images and recomputing the ratio says."""
    heat, labels = (np.concatenate(parts) for parts in zip(*(case(seed) for seed in range(5, 15)), strict=True))
    metric = measured(heat, labels)
    found = metric.summary()[0]
    counts = np.stack([row[:4] for row in metric.table().values() if not np.isnan(row[0])])
    generator = np.random.default_rng(0)
    loop = [agreement(counts[generator.integers(0, len(counts), len(counts))].sum(0))[0] for _ in range(2000)]
    low, high = np.quantile(loop, (0.025, 0.975))
    assert found.high - found.low == pytest.approx(high - low, rel=0.15)  # skewness lengthens one side
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))
    assert found.low < found.value < found.high


def test_bad_input_is_told_in_a_sentence(record, network, pictures, measured):
    explanation, _ = record(network(), pictures(2, 8))
    with pytest.raises(UserError, match="needs masks, but this data has none"):
        SegmentationAgreement().setup(2).update(explanation)
    explanation, _ = record(network(), pictures(2, 8), mask=torch.zeros(2, 4, 4, dtype=torch.int64))
    with pytest.raises(UserError, match=r"size of the images, \(8, 8\), got \(4, 4\)"):
        SegmentationAgreement().setup(2).update(explanation)
    with pytest.raises(UserError, match="no channel reduction named 'l1'"):
        SegmentationAgreement(reduction="l1")


def test_what_cannot_be_scored_is_excluded_and_counted(measured):
    """A constant map and an image without an object say nothing; the reference code counts both for the background."""
    heat, labels = case(6, n=4)  # the map of image 6 % 4 = 2 is constant
    labels[1] = 0
    metric = measured(heat, labels)
    assert sorted(metric.per_image()["miou_per_image"]) == [0, 3]
    assert [(r.n, r.excluded) for r in metric.summary()] == [(2, 2)] * 7 + [(4, 0)]
    assert metric.compute()["constant"].item() == 1 / 4
    kept = chefer_counts(heat[[0, 3]], labels[[0, 3]])
    assert metric.compute()["pixel_accuracy"].item() == pytest.approx(kept[0] / kept[1], abs=1e-6)

    metric = measured(heat, labels, degenerate="background")
    assert sorted(metric.per_image()["miou_per_image"]) == [0, 2, 3]  # no foreground, no IoU of it
    correct, labeled, *_ = chefer_counts(heat, labels)
    assert metric.compute()["pixel_accuracy"].item() == pytest.approx(correct / labeled, abs=1e-6)
