"""How a `shapes` picture is painted: clutter, small distractors, and one figure with an exact mask, all from a row of uniform numbers.

Everything is elementwise +, -, *, /, sqrt, comparisons and gathers on tables made in float64: no sum, no matrix product, no transcendental
function whose rounding depends on where a pixel lies in a batch. So row b of a batch has the same bits alone and among others.

Letters: n images, h = side of the picture, p = side of a distractor's patch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from explainode.data.figures import FIGURES

TURN = 4096  # entries of the tables of angles and hues
LEVELS = 256  # lightness levels of the palette
KINDS, EACH = 4, 2  # distractors: bars, pebbles, corners, arcs, and how many of each
COARSE, FINE = 5, 11  # lattice points of the two layers of clutter
TEXTURES = 4  # blotches, stripes, checks, waves


@lru_cache(maxsize=1)
def _rotations() -> Tensor:
    """(TURN, 2) float32: cosine and sine of a full turn."""
    angle = np.arange(TURN) * (2 * np.pi / TURN)
    return torch.from_numpy(np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32))


@lru_cache(maxsize=1)
def _palette() -> Tensor:
    """(TURN / 16 * LEVELS, 3) float32 sRGB: hues around the OKLCh circle by lightness, colorful in the middle (Ottosson 2020)."""
    hue = (np.arange(TURN // 16) * (2 * np.pi * 16 / TURN))[:, None]
    lightness = (np.arange(LEVELS) / (LEVELS - 1))[None]
    chroma = 0.36 * lightness * (1 - lightness) + 0.045
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    s = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.stack(
        [
            4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
            -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
            -0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s,
        ],
        -1,
    ).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return torch.from_numpy(srgb.reshape(-1, 3).astype(np.float32))


def color(hue: Tensor, lightness: Tensor) -> Tensor:
    """Hue in turns (any real) and OKLab lightness in [0, 1], both (*S) -> (*S, 3) sRGB."""
    hues = TURN // 16
    row = (hue * hues).floor().to(torch.int64).remainder(hues)
    level = (lightness * (LEVELS - 1)).round().to(torch.int64).clamp(0, LEVELS - 1)
    return _palette()[row * LEVELS + level]


def _wave(x: Tensor) -> Tensor:
    """A triangle wave of period 1 between 0 and 1, rounded at its turns: smoothstep of the triangle."""
    x = (x - x.floor()).mul_(2).sub_(1).abs_()
    return x * x * (3 - 2 * x)


def _turn(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates in a frame turned by `angle` (in turns, shaped to broadcast)."""
    c, s = _rotations()[(angle * TURN).floor().to(torch.int64).remainder(TURN)].unbind(-1)
    return x * c + y * s, y * c - x * s


@lru_cache(maxsize=8)
def stretch(points: int, size: int) -> tuple[Tensor, Tensor]:
    """(size,) lattice index and smooth weight of the next point, for each pixel of a line of `points` lattice points."""
    position = (np.arange(size) + 0.5) / size * (points - 1)
    left = np.minimum(position.astype(np.int64), points - 2)
    t = position - left
    return torch.from_numpy(left), torch.from_numpy((t * t * (3 - 2 * t)).astype(np.float32))


def _clutter(lattice: Tensor, size: int) -> Tensor:
    """(n, g, g) lattice values -> (n, h, h) smooth field: value noise."""
    index, weight = stretch(lattice.shape[1], size)
    rows = lattice.index_select(2, index)  # columns first: they are few, and then whole rows are copied
    rows = rows + (lattice.index_select(2, index + 1) - rows) * weight
    step = rows[:, 1:] - rows[:, :-1]
    return step.index_select(1, index).mul_(weight[:, None]).add_(rows.index_select(1, index))


@dataclass
class Draws:
    """Hands out the columns of an (n, m) tensor of uniforms, each once."""

    values: Tensor
    used: int = 0

    COUNT = COARSE**2 + FINE**2 + KINDS * EACH * 8 + 22

    def take(self, *shape: int) -> Tensor:
        """(n, *shape) of the next columns; (n,) without a shape."""
        count = math.prod(shape)
        part = self.values[:, self.used : self.used + count]
        self.used += count
        return part.reshape(-1, *shape)

    def between(self, low: float, high: float) -> Tensor:
        """(n,) uniform in [low, high)."""
        return self.take() * (high - low) + low


@dataclass
class Style:
    """What ties a background to a class: (n,) hue in turns and texture kind in 0..TEXTURES-1; `tied` says in which images."""

    tied: Tensor
    hue: Tensor
    texture: Tensor


def paint(draws: Draws, grain: Tensor, label: Tensor, out: Tensor, style: Style | None = None) -> Tensor:
    """Paints the figures `label` (n,) into `out` (n, 3, h, h) float32: multiples of 1/255 in [0, 1], so that 8 bits lose nothing.

    Args:
        draws: Draws.COUNT uniforms per image.
        grain: (n, h * h) standard normals.
        style: replaces hue and texture of the background where it is tied to the class.

    Returns:
        (n, h, h) bool mask: pixel centers inside the figure.
    """
    size = out.shape[-1]
    line = torch.from_numpy(((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32))
    x, y = line[None, None, :], line[None, :, None]

    # Lightness separates figure and ground, one dark and one light; hues are free, so that no color tells the class.
    figure_is_light = draws.take() < 0.5
    dark, light = draws.between(0.28, 0.48), draws.between(0.72, 0.92)
    ground, front = torch.where(figure_is_light, dark, light), torch.where(figure_is_light, light, dark)

    _paint_background(draws, grain, ground, x, y, out, style)
    _paint_distractors(draws, ground, out)

    distance, u, v, radius = _place_figure(draws, label, x, y)
    hue = draws.take()
    texture = _wave(
        u * draws.between(0.8, 2.2)[:, None, None]
        + v * draws.between(-1.2, 1.2)[:, None, None]
        + draws.take()[:, None, None]
    )
    first = color(hue, front + 0.07)
    step = color(hue + draws.between(-0.14, 0.14), front - draws.between(0.0, 0.12)) - first
    pixels = distance * (radius * size / 2)
    # A dark rim, bright inside. The antialiased edge lies inside the outline: no pixel outside the mask knows the figure.
    shade = (pixels * (-20 / size)).clamp_(0, 1).mul_(0.38).add_(0.62)
    shade -= v * 0.06
    cover = (-pixels).clamp_(0, 1)
    for c in range(3):
        layer = texture * step[:, c, None, None]
        layer.add_(first[:, c, None, None]).mul_(shade).sub_(out[:, c]).mul_(cover)
        out[:, c] += layer
    out.clamp_(0, 1).mul_(255).round_().div_(255)
    assert draws.used == Draws.COUNT
    return distance < 0


def _paint_background(
    draws: Draws, grain: Tensor, lightness: Tensor, x: Tensor, y: Tensor, out: Tensor, style: Style | None
) -> None:
    """Two neighboring hues mixed by clutter, a texture and grain."""
    size = out.shape[-1]
    hue, kind = draws.take(), (draws.take() * TEXTURES).to(torch.int64)
    if style is not None:
        hue, kind = torch.where(style.tied, style.hue, hue), torch.where(style.tied, style.texture, kind)
    u, v = _turn(x, y, draws.take()[:, None, None])
    frequency, phase = draws.between(1.2, 3.2)[:, None, None], draws.take()[:, None, None]
    blotches = _clutter(draws.take(COARSE, COARSE), size)
    fine = _clutter(draws.take(FINE, FINE), size)
    kind = kind[:, None, None]
    # One pass serves all kinds: stripes along u, checks = stripes times stripes, waves = stripes bent by the clutter, blotches = none.
    stripes = _wave((u * frequency).add_(blotches * torch.where(kind == 3, 1.6, 0.25)).add_(phase))
    across = _wave((v * frequency).add_(phase)).sub_(1).mul_(torch.where(kind == 2, 1.0, 0.0)).add_(1)
    strength = torch.where(kind == 0, 0.0, 0.55)
    field = stripes.mul_(across).mul_(strength).add_(blotches.mul_(0.75 - strength)).add_(fine.mul_(0.35))
    field.add_(grain.reshape(-1, size, size) * draws.between(0.04, 0.14)[:, None, None])
    first = color(hue, lightness - 0.08)
    step = color(hue + draws.between(-0.14, 0.14), lightness + 0.08 + draws.between(0.0, 0.06)) - first
    torch.mul(step[:, :, None, None], field[:, None], out=out)
    out += first[:, :, None, None]


def _paint_distractors(draws: Draws, lightness: Tensor, out: Tensor) -> None:
    """Small bars, pebbles, corners and arcs that belong to no class, one after the other."""
    n, size = len(out), out.shape[-1]
    p = max(4, size * 5 // 16)
    draw = draws.take(KINDS, EACH, 8)
    shown = draw[..., 0] < draws.between(0.4, 1.0)[:, None, None]
    center = draw[..., 1:3] * (size - p) + p / 2  # (n, kinds, each, 2) in pixels: patches lie inside the picture
    corner = (center - p / 2).floor()
    scale = 2.12 / p  # the patch's half side is 1, with a pixel to spare
    local = (corner[..., None] + (torch.arange(p) + 0.5) - center[..., None]) * scale  # (n, kinds, each, 2, p)
    u, v = _turn(local[..., 1, None, :], local[..., 0, :, None], draw[..., 3, None, None])
    length, width = draw[..., 4, None, None] * 0.5 + 0.4, draw[..., 5, None, None] * 0.5
    distance = torch.stack(
        [f(u[:, k], v[:, k], length[:, k], width[:, k]) for k, f in enumerate((_bar, _pebble, _corner, _arc))], 1
    )
    cover = (0.5 - distance / scale).clamp_(0, 1).mul_(shown[..., None, None])  # (n, kinds, each, p, p)
    paints = color(draw[..., 6], lightness[:, None, None] + draw[..., 7] * 0.6 - 0.3)  # around the ground's lightness
    row, column = (corner[..., None].to(torch.int64) + torch.arange(p)).unbind(-2)
    where = (row[..., :, None] * size + column[..., None, :]).view(n, KINDS, EACH, 1, p * p).expand(-1, -1, -1, 3, -1)
    flat, cover = out.view(n, 3, size * size), cover.view(n, KINDS, EACH, 1, p * p)
    for k in range(KINDS * EACH):  # in order, as later ones cover earlier ones
        one = (slice(None), k % KINDS, k // KINDS)
        under = flat.gather(2, where[one])
        flat.scatter_(2, where[one], (paints[one][:, :, None] - under).mul_(cover[one]).add_(under))


def _bar(u: Tensor, v: Tensor, length: Tensor, width: Tensor) -> Tensor:
    return torch.maximum(u.abs() - length, v.abs() - (width * 0.2 + 0.10))


def _pebble(u: Tensor, v: Tensor, length: Tensor, width: Tensor) -> Tensor:
    return ((u * u) / (length * length * 0.3) + (v * v) / (width * width * 0.3 + 0.04)).sqrt_().sub_(1).mul_(0.25)


def _corner(u: Tensor, v: Tensor, length: Tensor, width: Tensor) -> Tensor:
    a = torch.maximum(u.abs() - length, (v + length * 0.6).abs() - 0.13)
    return torch.minimum(a, torch.maximum(v.abs() - length * 0.75, (u + length).abs() - 0.13))


def _arc(u: Tensor, v: Tensor, length: Tensor, width: Tensor) -> Tensor:
    return torch.maximum(((u * u + v * v).sqrt_() - length).abs_() - 0.12, v - (width - 0.3) * length)


def _place_figure(draws: Draws, label: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Signed distance (n, h, h) in radii, the figure's own coordinates u, v, and the radius (n, 1, 1) in half picture sides."""
    radius = draws.between(0.46, 0.74)[:, None, None]
    room = 1 - radius * 1.04  # figures lie inside the picture
    dx, dy = (draws.take()[:, None, None] * 2 - 1) * room, (draws.take()[:, None, None] * 2 - 1) * room
    u, v = _turn((x - dx) / radius, (y - dy) / radius, draws.take()[:, None, None])
    distance = torch.empty_like(u)
    for k in label.unique().tolist():
        rows = (label == k).nonzero()[:, 0]
        distance[rows] = FIGURES[k](u[rows], v[rows])
    return distance, u, v, radius


def spurious_style(label: Tensor, draw: Tensor, jitter: Tensor, strength: float) -> Style:
    """Backgrounds of the class's own hue and texture in a fraction `strength` of the images (draw, jitter: (n,) uniforms)."""
    k = len(FIGURES)
    return Style(draw < strength, (label + (jitter - 0.5) * 0.5) / k, label % TEXTURES)
