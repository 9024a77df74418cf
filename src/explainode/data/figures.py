"""Signed distances of the eight figures that `shapes` is made of, each inside the unit circle, negative inside.

Only +, -, *, /, sqrt, abs, min and max are used: these round alike in a processor's vector and scalar units, so that a pixel has the
same bits wherever it lies in a batch. The zero set is exact; away from it some are bounds of the distance rather than the distance.

Source: the folds of the star follow Quilez, "2D distance functions" (iquilezles.org/articles/distfunctions2d).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _norm(x: Tensor, y: Tensor) -> Tensor:
    return (x * x + y * y).sqrt()


def disk(x: Tensor, y: Tensor) -> Tensor:
    """Radius 0.86."""
    return _norm(x, y) - 0.86


def ring(x: Tensor, y: Tensor) -> Tensor:
    """Between the radii 0.46 and 0.92."""
    return (_norm(x, y) - 0.69).abs() - 0.23


def triangle(x: Tensor, y: Tensor) -> Tensor:
    """Equilateral: half-planes at the inradius 1/2."""
    return torch.maximum(-y, x.abs() * (math.sqrt(3) / 2) + y * 0.5) - 0.5


def square(x: Tensor, y: Tensor) -> Tensor:
    """Sides of 1.4 along the axes."""
    return torch.maximum(x.abs(), y.abs()) - 0.70


def star(x: Tensor, y: Tensor) -> Tensor:
    """Five points: fold the plane into one tenth, where the outline is a line from the tip (0, 1) to the inner corner."""
    c, s, inner = math.cos(math.pi / 5), math.sin(math.pi / 5), 0.45
    x = x.abs()
    fold = (x * c - y * s).clamp_min(0) * 2
    x, y = x - fold * c, y + fold * s
    fold = (y * -s - x * c).clamp_min(0) * 2
    x, y = (x + fold * c).abs(), y + fold * s
    nx, ny = 1 - inner * c, inner * s  # normal of the line, not yet of unit length
    length = math.hypot(nx, ny)
    return x * (nx / length) + (y - 1) * (ny / length)


def cross(x: Tensor, y: Tensor) -> Tensor:
    """Two bars of 1.88 by 0.58 along the axes, by folding them onto one octant."""
    x, y = x.abs(), y.abs()
    return torch.maximum(torch.minimum(x, y) - 0.29, torch.maximum(x, y) - 0.94)


def crescent(x: Tensor, y: Tensor) -> Tensor:
    """A disk with a bite."""
    return torch.maximum(_norm(x, y) - 0.95, 0.78 - _norm(x - 0.46, y))


def heart(x: Tensor, y: Tensor) -> Tensor:
    """Two disks and the wedge between the tip and the tangents to them; right half, mirrored. The tip is the origin of the constants."""
    a, b, r, scale, height = (
        0.31,
        0.86,
        0.34,
        0.70,
        0.68,
    )  # center (a, b) and radius of the lobe; scale and shift into the unit circle
    cleft = b + math.sqrt(r * r - a * a)
    tangent = math.atan2(a, b) + math.asin(r / math.hypot(a, b))  # its angle from the axis
    c, s = math.cos(tangent), math.sin(tangent)
    x, y = x.abs() * scale, y * scale + height
    lobe = _norm(x - a, y - b) - r
    # The wedge ends on radii of the lobe, to the tangent point and to the cleft, so that no seam shows inside.
    wedge = torch.maximum(
        x * c - y * s, torch.maximum((x - a) * s + (y - b) * c, (x * (cleft - b) + (y - cleft) * a) / r)
    )
    return torch.minimum(lobe, wedge) / scale


FIGURES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (disk, ring, triangle, square, star, cross, crescent, heart)
