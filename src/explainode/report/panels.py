"""One picture of many maps: a row per image, then the input and each explainer of each model, with what was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from explainode.errors import UserError
from explainode.metrics.results import Maps
from explainode.report.board import Board, make_board
from explainode.report.colors import COLOR_MAPS, Colors, enlarge, heatmap_to_rgb, overlay

STYLES = ("map", "overlay")
INK, MUTED, PAPER, LINE = (23, 27, 35), (98, 106, 120), (255, 255, 255), (222, 226, 232)
RIGHT, WRONG = (16, 110, 80), (176, 42, 48)
CONTOUR = ((10, 10, 10), (255, 214, 10))
GAP, MARGIN = 6, 18


def draw_map(board: Board, model: str, explainer: str, row: int, style: str = "map") -> np.ndarray:
    """(H, W, 3) uint8: one map of the board in its colors, alone or over the picture that the model saw."""
    heatmap, scale, kind = (
        board.heatmap[model, explainer][row],
        float(board.scale[model, explainer][row]),
        board.kind[explainer],
    )
    colors = Colors(kind, board.colors.color_map)
    return (
        overlay(board.image[row], heatmap, colors, scale)
        if style == "overlay"
        else heatmap_to_rgb(heatmap, colors, scale)
    )


def draw_input(board: Board, row: int, side: int) -> np.ndarray:
    """(h, w, 3) uint8: the picture that the model saw, at least `side` pixels large, with the contour of its mask."""
    picture = enlarge(board.image[row], side)
    if board.mask is None:
        return picture
    factor = picture.shape[0] // board.image.shape[1]
    return draw_contour(picture, (board.mask[row] == 1).repeat(factor, 0).repeat(factor, 1))


def draw_contour(picture: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(H, W, 3) with the border of the (H, W) bool mask drawn in yellow between dark lines, visible on any background."""
    padded = np.pad(inside, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    ring = np.pad(~inside, 1, constant_values=True)
    outer = inside | ~(ring[:-2, 1:-1] & ring[2:, 1:-1] & ring[1:-1, :-2] & ring[1:-1, 2:])
    drawn = picture.copy()
    drawn[outer & ~inside] = CONTOUR[0]
    drawn[inside & ~core] = CONTOUR[1]
    return drawn


def class_name(names: Sequence[str], index: int) -> str:
    """The name of a class, or its number where it has none."""
    return names[index] if 0 <= index < len(names) else f"class {index}"


def panel(
    maps: Sequence[Maps],
    class_names: Sequence[str] | None = (),
    *,
    style: str = "map",
    colors: Colors | str = "auto",
    scale: str = "per-map",
    reduction: str = "sum",
    side: int = 128,
    images: int = 8,
) -> Image.Image:
    """The grid picture of the first `images` images: one row each; columns are the input, then for each explainer its map for each model.

    Args:
        style: "map" (colors alone) or "overlay" (over the picture that the model saw).
        scale: "per-map", "per-image" or "per-model", see `colors.scales_of`; written under the picture.
        side: pixels of a cell; small pictures are enlarged by whole factors, large ones reduced.

    Raises:
        UserError: for an unknown style, scale or reduction, and for maps that do not belong together.
    """
    if style not in STYLES:
        raise UserError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
    class_names = class_names or ()
    board = make_board(maps, colors, scale, reduction)
    rows = range(min(images, len(board)))
    columns = [
        (model, explainer)
        for explainer in board.explainers
        for model in board.models
        if (model, explainer) in board.heatmap
    ]
    cells = {(r, c): _fit(enlarge(draw_map(board, *c, r, style), side), side) for r in rows for c in columns}
    inputs = [_fit(draw_input(board, r, side), side) for r in rows]
    cell_h, cell_w = inputs[0].shape[:2]
    step_x, step_y = cell_w + GAP, cell_h + 34
    head = 62
    width = 2 * MARGIN + step_x * (1 + len(columns)) + GAP * len(board.explainers)
    picture = Image.new("RGB", (max(width, 360), head + len(rows) * step_y + 34), PAPER)
    draw = ImageDraw.Draw(picture)

    left = {columns[0]: 0}
    x = MARGIN + step_x
    for i, column in enumerate(columns):
        if i == 0 or column[1] != columns[i - 1][1]:
            x += GAP
            group = [c for c in columns if c[1] == column[1]]
            span = len(group) * step_x - GAP
            name = column[1] + (" (control)" if column[1] in board.controls else "")
            _text(draw, (x, 14), name, span, 14, MUTED if column[1] in board.controls else INK)
            draw.line((x, 33, x + span - 1, 33), fill=LINE)
        left[column] = x
        _text(draw, (x, 39), column[0], cell_w, 12, MUTED)
        x += step_x
    epochs = sorted(set(board.epoch.values()))
    if epochs != [0]:  # an explanation outside of training has no epoch
        _text(draw, (MARGIN, 14), f"epoch {', '.join(map(str, epochs))}", cell_w, 14, INK)
    _text(draw, (MARGIN, 39), "input", cell_w, 12, MUTED)
    for r in rows:
        y = head + r * step_y
        picture.paste(Image.fromarray(inputs[r]), (MARGIN, y))
        label = int(board.label[r])
        truth = class_name(class_names, label) if label >= 0 else "no label"
        _text(draw, (MARGIN, y + cell_h + 4), f"#{board.sample_id[r]}  {truth}", cell_w, 12, INK)
        for column in columns:
            picture.paste(Image.fromarray(cells[r, column]), (left[column], y))
            target, probability = int(board.target[column[0]][r]), float(board.probability[column[0]][r])
            ink = MUTED if label < 0 else RIGHT if target == label else WRONG
            _text(
                draw,
                (left[column], y + cell_h + 4),
                f"{probability:.2f} {class_name(class_names, target)}",
                cell_w,
                12,
                ink,
            )
    _text(draw, (MARGIN, picture.height - 26), legend(board, scale, reduction), picture.width - 2 * MARGIN, 12, MUTED)
    return picture


def legend(board: Board, scale: str = "per-map", reduction: str = "sum") -> str:
    """What the colors mean, in words."""
    words = {
        "signed": "red speaks for the class, blue against, white is zero",
        "magnitude": "the brighter, the stronger",
        "root_inference": "turbo over mean-cropped maps",
    }
    kinds = list(dict.fromkeys(board.kind.values()))
    said = "; ".join(f"{board.colors.color_map or COLOR_MAPS[kind]}: {words[kind]}" for kind in kinds)
    return f"{said}. Channels reduced by {reduction.replace('_', ' ')}; strongest color {scale} at the 99th percentile of the non-zeros."


def _fit(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture reduced so that its longer side is at most that of whole-pixel enlargement to `side`."""
    longest = max(picture.shape[:2])
    if longest <= 1.5 * side:
        return picture
    drawn = Image.fromarray(picture)
    drawn.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(drawn)


@lru_cache
def _font(size: int, wide: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if not wide:
        return ImageFont.load_default(size)
    from matplotlib import (
        get_data_path,
    )  # its DejaVu Sans knows Greek, Cyrillic and more, which Pillow's own font does not

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size - 1)


def _text(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, width: int, size: int, fill: tuple[int, int, int]
) -> None:
    """One line of text, cut with an ellipsis where it is wider than `width`."""
    font = _font(size, not text.isascii())
    if draw.textlength(text, font=font) > width:
        while text and draw.textlength(text + "...", font=font) > width:
            text = text[:-1]
        text += "..."
    draw.text(at, text, font=font, fill=fill)
