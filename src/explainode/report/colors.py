"""From attribution maps to colors: perceptually uniform for magnitude, diverging and centered at zero for signed maps."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from explainode.attribution import mean_crop, normalize, reduce_channels, upsample
from explainode.errors import UserError, nearest

PRESETS = ("auto", "magnitude", "signed", "root_inference")
SCALES = ("per-map", "per-image", "per-model")
COLOR_MAPS = {"magnitude": "inferno", "signed": "RdBu_r", "root_inference": "turbo"}
DIVERGING = ("RdBu_r", "PuOr", "RdBu", "PuOr_r", "coolwarm", "PRGn", "BrBG", "PiYG", "seismic", "bwr")
PERCENTILE = 99.0
FAULTS = ("zero", "NaN", "infinite")  # what a map can be instead of a picture


@lru_cache
def lookup_table(name: str) -> np.ndarray:
    """(256, 3) uint8: matplotlib's color map `name`; an odd-sized diverging map keeps its exact neutral color at index 128."""
    from matplotlib import colormaps

    if name not in colormaps:
        raise UserError(f"no color map named {name!r}; the nearest are {nearest(name, list(colormaps))}")
    positions = np.clip(np.arange(256) / 256 + (0 if name in DIVERGING else 1 / 512), 0, 1)
    return (np.asarray(colormaps[name](positions))[:, :3] * 255).round().astype(np.uint8)


def reduce_maps(attribution: np.ndarray, size: tuple[int, int] | None = None, reduction: str = "sum") -> np.ndarray:
    """(N, C, h, w) -> (N, H, W) float32: channels reduced, then upsampled to `size` (kept where None)."""
    heatmap = reduce_channels(torch.from_numpy(np.asarray(attribution, dtype=np.float32)), reduction)
    return (heatmap if size is None else upsample(heatmap, size)).numpy()


def fault(heatmap: np.ndarray) -> str | None:
    """Why a (H, W) map cannot be drawn: "NaN", "infinite" or "zero"; None for a map with something to see."""
    if np.isnan(heatmap).any():
        return "NaN"
    if np.isinf(heatmap).any():
        return "infinite"
    return None if heatmap.any() else "zero"


def robust_scale(heatmap: np.ndarray) -> float:
    """The magnitude of the strongest color: the 99th percentile of the finite non-zeros, their maximum where that is zero, 1 for none.

    Of the non-zeros, because a map that is zero on 99 % of the pixels would otherwise be drawn blank; a percentile, because one
    outlier would otherwise leave two colors.
    """
    values = np.abs(heatmap)
    values = values[(values > 0) & np.isfinite(values)]
    if not len(values):
        return 1.0
    return float(np.percentile(values, PERCENTILE)) or float(values.max())


def is_signed(heatmaps: np.ndarray) -> bool:
    """Whether maps say "against" as well as "for": more than a thousandth of their mass is negative."""
    values = heatmaps[np.isfinite(heatmaps)]
    return bool(-values[values < 0].sum(dtype=np.float64) > 1e-3 * np.abs(values).sum(dtype=np.float64))


def scales_of(heatmaps: np.ndarray, scale: str = "per-map") -> np.ndarray:
    """(M, N, H, W) maps of one explainer for M models on N images -> (M, N) scales.

    `per-map` shows where each map looks; `per-image` compares the M models on an image; `per-model` compares the N images of a model.
    Maps of different explainers have different units and share no scale.

    Raises:
        UserError: for an unknown word.
    """
    if scale not in SCALES:
        raise UserError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    each = np.array(
        [[robust_scale(h) if fault(h) is None else 0.0 for h in row] for row in heatmaps], dtype=np.float64
    ).reshape(heatmaps.shape[:2])
    if scale == "per-image":
        each = np.broadcast_to(each.max(0, keepdims=True), each.shape)
    elif scale == "per-model":
        each = np.broadcast_to(each.max(1, keepdims=True), each.shape)
    return np.where(each > 0, each, 1.0)


@dataclass(frozen=True)
class Colors:
    """How maps become pictures.

    Args:
        preset: "magnitude" (|map|, inferno), "signed" (RdBu_r, white is zero), "root_inference" (mean-cropped min-max, turbo), or "auto":
            signed where a map has both signs, magnitude otherwise.
        color_map: any of matplotlib's color maps instead of the preset's own.

    Source: turbo over mean-cropped maps is the root inference paper's. We use it only on request: two of its levels 19 % apart look the same in
    grey print and to a deuteranope.
    """

    preset: str = "auto"
    color_map: str | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise UserError(f"no color preset named {self.preset!r}; choose one of {', '.join(PRESETS)}")

    def kind(self, heatmaps: np.ndarray) -> str:
        """The preset that these maps get, one for all of them so that a column of pictures reads alike."""
        if self.preset != "auto":
            return self.preset
        return "signed" if is_signed(heatmaps) else "magnitude"

    def table(self, kind: str) -> np.ndarray:
        """(256, 3) uint8 colors of a kind."""
        return lookup_table(self.color_map or COLOR_MAPS[kind])


def levels(heatmap: np.ndarray, kind: str, scale: float | None = None) -> np.ndarray:
    """(H, W) -> (H, W) uint8 indices into a color table; 128 is exactly zero for signed maps, 0 for magnitudes."""
    if kind == "root_inference":
        cropped = mean_crop(normalize(torch.from_numpy(np.ascontiguousarray(heatmap, dtype=np.float32))[None]))[
            0
        ].numpy()
        return (cropped * 255).round().astype(np.uint8)
    scale = robust_scale(heatmap) if scale is None else scale
    if kind == "signed":
        return np.clip(np.rint(heatmap * (127 / scale)) + 128, 1, 255).astype(np.uint8)
    return np.minimum(np.rint(np.abs(heatmap) * (255 / scale)), 255).astype(np.uint8)


def heatmap_to_rgb(heatmap: np.ndarray, colors: Colors | str = "auto", scale: float | None = None) -> np.ndarray:
    """(H, W) or (N, H, W) -> (..., 3) uint8; zero, NaN and infinite maps become three different tiles, never a field of color.

    `scale` is the magnitude of the strongest color; by default each map's own (`robust_scale`).
    """
    colors = Colors(colors) if isinstance(colors, str) else colors
    maps = heatmap if heatmap.ndim == 3 else heatmap[None]
    kind = colors.kind(maps)
    table = colors.table(kind)
    drawn = [fault_tile(reason, *h.shape) if (reason := fault(h)) else table[levels(h, kind, scale)] for h in maps]
    stacked = np.stack(drawn) if drawn else np.zeros((*maps.shape, 3), np.uint8)
    return stacked if heatmap.ndim == 3 else stacked[0]


def overlay(
    image: np.ndarray,
    heatmap: np.ndarray,
    colors: Colors | str = "auto",
    scale: float | None = None,
    opacity: float = 0.85,
) -> np.ndarray:
    """(H, W, 3) uint8 picture that the model saw, in grey, under the (H, W) map: the stronger, the more opaque; zero shows the picture.

    Raises:
        UserError: if the two differ in size, or opacity lies outside [0, 1].
    """
    if image.shape[:2] != heatmap.shape:
        raise UserError(
            f"an overlay needs a map of the picture's size {image.shape[:2]}, got {heatmap.shape}; upsample it first"
        )
    if not 0 <= opacity <= 1:
        raise UserError(f"opacity must lie between 0 and 1, got {opacity}")
    colors = Colors(colors) if isinstance(colors, str) else colors
    reason = fault(heatmap)
    if reason:
        return fault_tile(reason, *heatmap.shape)
    kind = colors.kind(heatmap)
    index = levels(heatmap, kind, scale)
    strength = np.abs(index.astype(np.float32) - 128) / 127 if kind == "signed" else index.astype(np.float32) / 255
    alpha = (opacity * np.sqrt(np.minimum(strength, 1)))[..., None]
    grey = (image @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None]
    return np.rint(grey * (1 - alpha) + colors.table(kind)[index] * alpha).astype(np.uint8)


@lru_cache(maxsize=32)
def _tile(reason: str, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    period = max(4, min(height, width) // 8)
    if reason == "zero":  # a calm, empty checkerboard: nothing is there
        pattern, pair = (x // period + y // period) % 2, ((188, 192, 199), (212, 215, 220))
    elif reason == "NaN":  # diagonal stripes: something went wrong
        pattern, pair = (x + y) // period % 2, ((126, 34, 106), (226, 180, 214))
    else:  # upright bars: something ran away
        pattern, pair = x // period % 2, ((17, 94, 89), (153, 214, 200))
    picture = Image.fromarray(np.array(pair, dtype=np.uint8)[pattern])
    label = {"zero": "all 0", "NaN": "NaN", "infinite": "inf"}[reason]
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(8, min(height, width) // 5))
    left, top, right, bottom = draw.textbbox((width / 2, height / 2), label, font=font, anchor="mm")
    if right - left <= width:
        draw.rectangle((left - 3, top - 2, right + 3, bottom + 2), fill=(255, 255, 255))
        draw.text((width / 2, height / 2), label, fill=(20, 20, 20), font=font, anchor="mm")
    tile = np.asarray(picture)
    tile.setflags(write=False)
    return tile


def fault_tile(reason: str, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8 tile that says "all 0", "NaN" or "inf" in words and by its own pattern."""
    return _tile(reason, height, width)


def enlarge(picture: np.ndarray, side: int) -> np.ndarray:
    """(H, W, 3) -> the same picture, whole pixels repeated until its longer side reaches at least `side`; larger ones stay as they are."""
    factor = -(-side // max(picture.shape[:2]))
    return picture if factor <= 1 else picture.repeat(factor, 0).repeat(factor, 1)


def webp(picture: np.ndarray, quality: int = 80, largest: int | None = None) -> bytes:
    """(H, W, 3) uint8 -> WebP, lossless at quality 100; pictures with a longer side above `largest` are reduced to it."""
    drawn = Image.fromarray(picture)
    if largest is not None and max(drawn.size) > largest:
        drawn.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    drawn.save(buffer, "WEBP", quality=quality, lossless=quality == 100, method=3)
    return buffer.getvalue()


def data_uri(content: bytes, kind: str = "image/webp") -> str:
    """Bytes as an address that carries them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
