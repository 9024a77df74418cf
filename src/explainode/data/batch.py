"""The one record that every dataset yields."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass
class Batch:
    """B images and what is known about them.

    Attributes:
        image: (B, 3, H, W) float32 pixels in [0, 1], not normalized (normalization is part of the network).
        label: (B,) int64 class, -1 where unknown.
        sample_id: (B,) int64 position in the split: the key of its noise, its augmentation and its row in every table.
        mask: (B, H, W) int64, 1 object, 0 background, -1 ignored; None where the data has none.
        boxes: one (n, 4) float tensor of x0, y0, x1, y1 in pixels per image; None where the data has none.
        fixation_map: (B, H, W) float, >= 0, the density of where people looked; None where the data has none.
        fixation_points: (B, H, W) bool, the pixels that people fixated; None where the data has none.
        skipped: path -> reason of the files that were asked for and could not be read; their rows are missing. The batch carries this
            because it may have been read in a worker process.
    """

    image: Tensor
    label: Tensor
    sample_id: Tensor
    mask: Tensor | None = None
    boxes: list[Tensor] | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    fixation_map: Tensor | None = None
    fixation_points: Tensor | None = None

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows: slice) -> Batch:
        """The rows of a slice; what was skipped stays with the whole batch."""
        return Batch(
            image=self.image[rows],
            label=self.label[rows],
            sample_id=self.sample_id[rows],
            mask=None if self.mask is None else self.mask[rows],
            boxes=None if self.boxes is None else self.boxes[rows],
            fixation_map=None if self.fixation_map is None else self.fixation_map[rows],
            fixation_points=None if self.fixation_points is None else self.fixation_points[rows],
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        def move(value: Tensor) -> Tensor:
            return value.to(device, non_blocking=non_blocking)

        return replace(
            self,
            image=move(self.image),
            label=move(self.label),
            sample_id=move(self.sample_id),
            mask=None if self.mask is None else move(self.mask),
            boxes=None if self.boxes is None else [move(box) for box in self.boxes],
            fixation_map=None if self.fixation_map is None else move(self.fixation_map),
            fixation_points=None if self.fixation_points is None else move(self.fixation_points),
        )

    def pin_memory(self) -> Batch:
        return replace(
            self,
            image=self.image.pin_memory(),
            label=self.label.pin_memory(),
            sample_id=self.sample_id.pin_memory(),
            mask=None if self.mask is None else self.mask.pin_memory(),
            boxes=None if self.boxes is None else [box.pin_memory() for box in self.boxes],
            fixation_map=None if self.fixation_map is None else self.fixation_map.pin_memory(),
            fixation_points=None if self.fixation_points is None else self.fixation_points.pin_memory(),
        )
