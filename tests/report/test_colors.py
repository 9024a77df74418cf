"""Colors say what the numbers say: zero is neutral, outliers do not blind, faults are seen."""

from __future__ import annotations

import io
from itertools import combinations

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from explainode.errors import UserError
from explainode.report.colors import (
    Colors,
    enlarge,
    fault,
    fault_tile,
    heatmap_to_rgb,
    is_signed,
    lookup_table,
    overlay,
    reduce_maps,
    robust_scale,
    scales_of,
    webp,
)


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)


def test_tables_are_matplotlibs_own() -> None:
    inferno = (colormaps["inferno"](np.arange(256))[:, :3] * 255).round()
    np.testing.assert_array_equal(lookup_table("inferno"), inferno.astype(np.uint8))


@pytest.mark.parametrize("name", ["RdBu_r", "PuOr"])
def test_zero_of_a_signed_map_is_exactly_neutral(name: str, noise: np.ndarray) -> None:
    noise[10:20] = 0
    neutral = np.rint(np.array(colormaps[name](0.5)[:3]) * 255)
    drawn = heatmap_to_rgb(noise, Colors("signed", name))
    # one level of rounding: matplotlib's 256 levels have no middle one
    assert np.abs(drawn[10:20].astype(int) - neutral).max() <= 1
    assert (drawn[10:20] == drawn[10, 0]).all()


def test_signed_maps_are_symmetric_about_zero(noise: np.ndarray) -> None:
    """Whatever the offset, equal magnitudes get equally strong, opposite colors: min-max scaling would put zero elsewhere."""
    values = np.abs(noise) + 0.5
    values[0, 0] = -0.1  # almost all positive
    red, blue = heatmap_to_rgb(values, "signed").astype(int), heatmap_to_rgb(-values, "signed").astype(int)
    assert (red[1:, :, 0] > red[1:, :, 2]).all()
    assert (blue[1:, :, 2] > blue[1:, :, 0]).all()


def test_one_outlier_leaves_the_other_colors() -> None:
    heatmap = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    heatmap[3, 3] = 1e6
    plain = heatmap / heatmap.max()
    assert len(np.unique(np.rint(plain * 255))) == 2, "what min-max scaling would leave"
    assert len(np.unique(heatmap_to_rgb(heatmap, "magnitude").reshape(-1, 3), axis=0)) > 200


def test_a_sparse_map_is_not_drawn_blank() -> None:
    heatmap = np.zeros((100, 100), np.float32)
    heatmap[:5, :10] = 0.7  # 0.5 % of the pixels: the 99th percentile of all is 0
    assert np.percentile(heatmap, 99) == 0
    assert robust_scale(heatmap) == pytest.approx(0.7)
    drawn = heatmap_to_rgb(heatmap, "magnitude")
    np.testing.assert_array_equal(drawn[0, 0], lookup_table("inferno")[255])
    np.testing.assert_array_equal(drawn[50, 50], lookup_table("inferno")[0])


def test_zero_nan_and_infinite_maps_are_three_tiles_that_differ_everywhere_from_maps(noise: np.ndarray) -> None:
    zero, nan, inf = np.zeros((64, 64), np.float32), noise.copy(), noise.copy()
    nan[5, 5], inf[6, 6] = np.nan, -np.inf
    assert [fault(h) for h in (zero, nan, inf, noise)] == ["zero", "NaN", "infinite", None]
    for preset in ("magnitude", "signed", "root_inference", "auto"):
        drawn = [heatmap_to_rgb(h, preset) for h in (zero, nan, inf)]
        for a, b in combinations(drawn, 2):
            distance = np.abs(a.astype(int) - b).mean()
            assert distance > 25, "a tenth of the range on the average pixel"
        for tile, reason in zip(drawn, ("zero", "NaN", "infinite"), strict=True):
            np.testing.assert_array_equal(tile, fault_tile(reason, 64, 64))
            assert len(np.unique(tile.reshape(-1, 3), axis=0)) > 2, "a pattern with words, not a field of color"


def test_tiles_differ_in_gray_as_well() -> None:
    """Patterns, not only hues: the mean row and column profiles tell checks, stripes and bars apart in a gray print."""
    gray = {reason: fault_tile(reason, 128, 128).mean(2) for reason in ("zero", "NaN", "infinite")}
    bars = gray["infinite"][:30]
    assert np.ptp(bars, axis=0).max() == 0, "upright bars are constant along a column"
    assert np.ptp(gray["NaN"][:30], axis=0).min() > 50
    assert np.ptp(gray["zero"][:30]) < 40 < np.ptp(bars)


def test_tiles_are_drawn_at_any_size() -> None:
    for size in ((1, 1), (7, 3), (16, 40), (500, 300)):
        for reason in ("zero", "NaN", "infinite"):
            assert fault_tile(reason, *size).shape == (*size, 3)


def test_auto_chooses_by_sign(noise: np.ndarray) -> None:
    assert is_signed(noise)
    assert not is_signed(np.abs(noise))
    almost = np.abs(noise)
    almost[0, 0] = -1e-6  # rounding of an upsampled map does not make it signed
    assert not is_signed(almost)
    np.testing.assert_array_equal(heatmap_to_rgb(noise), heatmap_to_rgb(noise, "signed"))
    np.testing.assert_array_equal(heatmap_to_rgb(np.abs(noise)), heatmap_to_rgb(np.abs(noise), "magnitude"))


def test_root_inference_crops_below_the_mean(noise: np.ndarray) -> None:
    drawn = heatmap_to_rgb(noise, "root_inference")
    np.testing.assert_array_equal(
        drawn[noise < noise.mean() - 1e-3],
        np.broadcast_to(lookup_table("turbo")[0], drawn[noise < noise.mean() - 1e-3].shape),
    )
    np.testing.assert_array_equal(drawn[np.unravel_index(noise.argmax(), noise.shape)], lookup_table("turbo")[255])


def test_batches_equal_single_maps(noise: np.ndarray) -> None:
    batch = np.stack([noise, 10 * noise, np.zeros_like(noise)])
    together = heatmap_to_rgb(batch, "signed")
    for one, drawn in zip(batch, together, strict=True):
        np.testing.assert_array_equal(heatmap_to_rgb(one, "signed"), drawn)
    np.testing.assert_array_equal(together[0], together[1])  # each map by its own scale
    shared = heatmap_to_rgb(batch, "signed", scale=robust_scale(10 * noise))
    assert np.abs(shared[0].astype(int) - 247).mean() < np.abs(shared[1].astype(int) - 247).mean(), (
        "a weak map stays pale on a common scale"
    )


def test_scales() -> None:
    maps = np.zeros((2, 3, 4, 4), np.float32)
    maps[0] += np.array([1, 2, 3])[:, None, None]
    maps[1] += np.array([10, 20, 0])[:, None, None]
    np.testing.assert_allclose(scales_of(maps, "per-map"), [[1, 2, 3], [10, 20, 1]])
    np.testing.assert_allclose(scales_of(maps, "per-image"), [[10, 20, 3], [10, 20, 3]])
    np.testing.assert_allclose(scales_of(maps, "per-model"), [[3, 3, 3], [20, 20, 20]])
    with pytest.raises(UserError, match="per-map, per-image, per-model"):
        scales_of(maps, "global")


def test_overlay_shows_the_picture_where_the_map_is_zero(noise: np.ndarray) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    heatmap = np.zeros_like(noise)
    heatmap[:8] = 1
    drawn = overlay(picture, heatmap, "magnitude", opacity=1.0)
    gray = np.asarray(Image.fromarray(picture).convert("L"))
    assert np.abs(drawn[8:].astype(int) - gray[8:, :, None]).max() <= 1  # Pillow's gray rounds down
    np.testing.assert_array_equal(drawn[:8], np.broadcast_to(lookup_table("inferno")[255], (8, 64, 3)))
    np.testing.assert_array_equal(overlay(picture, np.zeros_like(noise)), fault_tile("zero", 64, 64))
    with pytest.raises(UserError, match="upsample it first"):
        overlay(picture, noise[:32])
    with pytest.raises(UserError, match="opacity"):
        overlay(picture, noise, opacity=2)


def test_enlarging_repeats_whole_pixels() -> None:
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    large = enlarge(picture, 5)
    assert large.shape == (6, 6, 3)
    np.testing.assert_array_equal(large[::3, ::3], picture)
    assert enlarge(large, 4) is large


def test_reduction_and_size() -> None:
    attribution = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float16)
    np.testing.assert_allclose(reduce_maps(attribution), attribution.astype(np.float32).sum(1), rtol=1e-6)
    assert reduce_maps(attribution, (8, 8), "l2").shape == (2, 8, 8)
    with pytest.raises(UserError, match="no channel reduction"):
        reduce_maps(attribution, reduction="mean")


def test_webp_reduces_large_pictures_and_keeps_lossless_ones(noise: np.ndarray) -> None:
    picture = heatmap_to_rgb(noise, "signed")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(webp(picture, 100))).convert("RGB")), picture)
    assert Image.open(io.BytesIO(webp(picture, 80, largest=32))).size == (32, 32)


@pytest.mark.parametrize(
    ("call", "match"),
    [(lambda: Colors("rainbow"), "no color preset"), (lambda: lookup_table("viridsi"), "nearest are .*viridis")],
)
def test_unknown_names_are_refused(call: object, match: str) -> None:
    with pytest.raises(UserError, match=match):
        call()  # type: ignore[operator]
