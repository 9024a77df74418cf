"""Augmentation as a function of (seed, epoch, sample): random crops and flips with the same bits in any batch, order, worker or rank."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from explainode.annotations import KINDS
from explainode.data.batch import Batch
from explainode.randomness import sample_keys, uniform


@dataclass(frozen=True)
class Geometry:
    """Where the pixels of a batch come from.

    Attributes:
        shift: (B, 2) int64: output pixel (y, x) is input pixel (y + shift_y, x + shift_x), before the flip.
        flip: (B,) bool: mirrored left to right after the shift.
    """

    shift: Tensor
    flip: Tensor


@dataclass(frozen=True)
class Augment:
    """Random crop from a padded image, then a random horizontal flip.

    Args:
        padding: pixels added on each side before a crop of the original size is taken; 0 switches the crop off.
        flip: mirror left to right with probability 1/2.
        border: what the padding holds: "reflect" (the image mirrored at its edge) or "black" (He et al. pad with zeros after normalization,
            which is the mean color; black is what is nearest to it before normalization).

    Source: He et al. 2016, Sec. 4.2 (4 pixels, crop, flip). We key the draw by (seed, epoch, sample id) instead of a generator.
    """

    padding: int = 4
    flip: bool = True
    border: str = "reflect"

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"padding must be 0 or more pixels, got {self.padding}")
        if self.border not in ("reflect", "black"):
            raise ValueError(f"border must be 'reflect' or 'black', got {self.border!r}")

    def geometry(self, sample_id: Tensor, seed: int, epoch: int) -> Geometry:
        """The draw of each sample in this epoch."""
        draw = uniform(sample_keys(sample_id, seed, "augment", epoch), 3)
        shift = (draw[:, :2] * (2 * self.padding + 1)).to(torch.int64) - self.padding
        return Geometry(shift, (draw[:, 2] < 0.5) & self.flip)

    def __call__(self, image: Tensor, sample_id: Tensor, seed: int, epoch: int) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), row b moved by the draw of `sample_id[b]` (B,)."""
        return self._move(image, self.geometry(sample_id, seed, epoch), outside=0)

    def batch(self, batch: Batch, seed: int, epoch: int) -> Batch:
        """The batch with the image and all that lies in its plane moved alike; mask pixels from outside a black border's image are -1 (ignored)."""
        geometry = self.geometry(batch.sample_id, seed, epoch)

        def follow(kind: str, value: Any) -> Any:
            how = KINDS[kind]
            if how.geometry == "none":
                return value
            if how.geometry == "boxes":
                return self._move_boxes(value, geometry, batch.image.shape[-2:])
            return self._move(value[:, None], geometry, how.outside)[:, 0]

        moved = {kind: follow(kind, value) for kind, value in batch.known().items()}
        return replace(batch, image=self._move(batch.image, geometry, outside=0), **moved)

    def _move(self, x: Tensor, geometry: Geometry, outside: int) -> Tensor:
        b, c, h, w = x.shape
        if self.padding >= min(h, w):
            raise ValueError(f"padding {self.padding} must be smaller than the image, got {h}x{w} pixels")
        column = torch.arange(w, device=x.device)
        column = torch.where(geometry.flip[:, None], w - 1 - column, column) + geometry.shift[:, 1:]  # (B, W)
        row = torch.arange(h, device=x.device) + geometry.shift[:, :1]  # (B, H)
        source = (_reflect(row, h)[:, :, None] * w + _reflect(column, w)[:, None, :]).reshape(b, 1, h * w)
        moved = x.reshape(b, c, h * w).gather(2, source.expand(b, c, h * w)).view(b, c, h, w)
        if self.border == "black":
            inside = _inside(row, h)[:, None, :, None] & _inside(column, w)[:, None, None, :]
            moved = torch.where(inside, moved, outside)
        return moved

    def _move_boxes(self, boxes: list[Tensor], geometry: Geometry, size: torch.Size) -> list[Tensor]:
        """x0, y0, x1, y1 follow the pixels and are clipped to the image (one small tensor per image: there is nothing to vectorize)."""
        h, w = size
        moved = []
        for box, (dy, dx), flip in zip(boxes, geometry.shift.tolist(), geometry.flip.tolist(), strict=True):
            x0, y0, x1, y1 = (box - box.new_tensor([dx, dy, dx, dy])).unbind(1)
            if flip:
                x0, x1 = w - x1, w - x0
            moved.append(torch.stack([x0.clamp(0, w), y0.clamp(0, h), x1.clamp(0, w), y1.clamp(0, h)], 1))
        return moved


def _reflect(index: Tensor, n: int) -> Tensor:
    """Indices mirrored at the first and the last pixel."""
    return (n - 1) - ((n - 1) - index.abs()).abs()


def _inside(index: Tensor, n: int) -> Tensor:
    return (index >= 0) & (index < n)
