"""The pointing game against a transcription of TorchRay's rule, and ties.

Compared once with Quantus 0.6's `PointingGame` (ties="any", tolerance=0) on 30 images with objects: equal.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from explainode.errors import UserError
from explainode.metrics.pointing_game import PointingGame, distance_in_row


def torchray_hit(mask: np.ndarray, point: tuple[int, int], tolerance: float) -> bool:
    """Any object pixel strictly closer to the point than the tolerance."""
    row, column = np.mgrid[: mask.shape[0], : mask.shape[1]]
    return bool((mask & ((row - point[0]) ** 2 + (column - point[1]) ** 2 < tolerance**2)).any())


@pytest.fixture
def play(record, network, pictures):
    def measure(heat, mask, **options):
        heat = torch.as_tensor(heat)
        explanation, _ = record(
            network(), pictures(len(heat), heat.shape[-1]), heat[:, None], mask=torch.as_tensor(mask).long()
        )
        metric = PointingGame(**options).setup(len(heat))
        metric.update(explanation)
        return metric

    return measure


def test_equal_hits_on_a_thousand_cases(play):
    """Acceptance check 5."""
    generator = np.random.default_rng(0)
    heat = generator.normal(size=(1000, 20, 20)).astype(np.float32)
    mask = generator.random((1000, 20, 20)) < generator.choice([0.002, 0.01, 0.2], size=(1000, 1, 1))
    mask[:, 0, 0] = True  # an object in every image
    for tolerance in (1, 2.5, 7):
        expected = [
            torchray_hit(m, np.unravel_index(h.argmax(), h.shape), tolerance) for h, m in zip(heat, mask, strict=True)
        ]
        found = play(heat, mask, tolerance=tolerance, reference_side=None, ties="first").per_image()[""]
        assert [found[i] for i in range(1000)] == expected and any(expected) and not all(expected)


def test_the_tolerance_is_strict_and_scales_with_the_image(play):
    heat, mask = torch.zeros(1, 32, 32), torch.zeros(1, 32, 32)
    heat[0, 10, 10], mask[0, 13, 14] = 1, 1  # five pixels apart
    for tolerance, hit in ((5, 0), (5.01, 1)):
        assert play(heat, mask, tolerance=tolerance, reference_side=None).compute() == hit
        assert play(heat, mask, tolerance=7 * tolerance, reference_side=224).compute() == hit  # 224 / 32 = 7
    assert play(heat, mask, tolerance=0).compute() == 0
    assert play(heat, heat, tolerance=0).compute() == 1


def test_ties_share_the_hit(play):
    """Three equal maxima, one of them on the object."""
    heat, mask = torch.zeros(1, 6, 6), torch.zeros(1, 6, 6)
    heat[0, 0, 0] = heat[0, 0, 5] = heat[0, 5, 5] = 1
    mask[0, 0, 5] = 1
    for ties, expected in (("mean", 1 / 3), ("any", 1), ("first", 0)):
        assert play(heat, mask, tolerance=0, ties=ties).compute().item() == pytest.approx(expected)


def test_a_random_map_hits_as_often_as_the_object_is_large(play):
    mask = torch.zeros(800, 10, 10)
    mask[:, 2:7, 3:9] = 1
    heat = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0))
    assert play(heat, mask, tolerance=0).compute().item() == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / 800))


def test_nothing_broken_is_a_hit(play):
    """A constant map, NaN, infinity, and an image without an object: excluded and counted, whatever the ties."""
    heat = torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(0))
    heat[0], heat[1, 0, 0], heat[2, 0, 0] = 0, torch.nan, torch.inf
    mask = torch.ones(5, 8, 8)
    mask[3] = 0
    for ties in ("mean", "any", "first"):
        metric = play(heat, mask, ties=ties)
        (found,) = metric.summary()
        assert (found.value, found.n, found.excluded) == (1, 1, 4) and list(metric.per_image()[""]) == [4]


def test_distance_in_row():
    mask = torch.tensor([[[0, 0, 1, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0]]], dtype=torch.bool)
    assert distance_in_row(mask).tolist() == [[[2, 1, 0, 1, 2, 1, 0], [torch.inf] * 7]]


def test_bad_settings_are_told_in_a_sentence():
    for options, words in (
        ({"tolerance": -1}, "tolerance"),
        ({"reference_side": 0}, "reference_side"),
        ({"ties": "last"}, "ties must be"),
    ):
        with pytest.raises(UserError, match=words):
            PointingGame(**options)
