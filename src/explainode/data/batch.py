"""The one record that every dataset yields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from explainode.annotations import Annotations


@dataclass
class _Pictures:
    """Declared by itself so that `Batch(image, label, sample_id)` reads in this order; all further annotations go by name."""

    image: Tensor
    label: Tensor
    sample_id: Tensor


@dataclass
class Batch(Annotations, _Pictures):
    """B images and what is known about them (see `Annotations`).

    Attributes:
        image: (B, 3, H, W) float32 pixels in [0, 1], not normalized (normalization is part of the network).
        label: (B,) int64 class, -1 where unknown.
        sample_id: (B,) int64 position in the split: the key of its noise, its augmentation and its row in every table.
        skipped: path -> reason of the files that were asked for and could not be read; their rows are missing. The batch carries this
            because it may have been read in a worker process.

    Example:
        >>> batch = Batch(torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64), torch.arange(4), mask=torch.ones(4, 8, 8))
        >>> len(batch[1:3]), batch[1:3].sample_id.tolist(), batch[1:3].mask.shape
        (2, [1, 2], torch.Size([2, 8, 8]))
    """

    label: Tensor = field()  # always there: no default, unlike in `Annotations`
    skipped: dict[str, str] = field(default_factory=dict, kw_only=True)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows: slice) -> Batch:
        """The rows of a slice; what was skipped stays with the whole batch."""
        return Batch(image=self.image[rows], sample_id=self.sample_id[rows], **self.rows(rows))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(self, image=change(self.image), sample_id=change(self.sample_id), **self.map_known(change))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return self._each(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self._each(Tensor.pin_memory)
