"""What is known about pictures beside their pixels: one record, from the loader through the network to the metric that needs it.

A new kind of annotation is a field here, a reader in `data/` and the metric that reads it; everything between passes the record on whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

Geometry = Literal["none", "classes", "density", "points", "boxes"]


@dataclass(frozen=True)
class Kind:
    """How a kind of annotation is called in sentences, where users find some, and how it follows its picture.

    Attributes:
        geometry: "none": not in the plane; "classes": a plane of integers (nearest neighbor); "density": a plane of floats (bilinear); "points": a
            plane of which no true pixel may get lost; "boxes": corners in pixels.
        outside: the value of a plane where a moved picture has no pixels.
    """

    noun: str
    advice: str
    geometry: Geometry = "none"
    outside: int = 0


KINDS = {
    "label": Kind("labels", "choose data with labels, such as data=shapes"),
    "mask": Kind(
        "masks",
        "choose data with masks, such as data=shapes, data=composites, data=voc2012 or data=imagenet_s",
        geometry="classes",
        outside=-1,
    ),
    "boxes": Kind(
        "boxes",
        "choose data with boxes, such as data=tiny_imagenet_boxes or data=imagenet, or the box around a mask (truth=mask)",
        geometry="boxes",
    ),
    "fixation_map": Kind(
        "fixation maps",
        "choose data with maps of where people looked, such as data=saliency_folder",
        geometry="density",
    ),
    "fixation_points": Kind(
        "fixation points",
        "choose data with the points that people fixated, such as data=saliency_folder data.points=...",
        geometry="points",
    ),
}


@dataclass(kw_only=True)
class Annotations:
    """What is known about B images; None where the data has none.

    Attributes:
        label: (B,) int64 class, -1 where unknown.
        mask: (B, H, W) int64, 1 object, 0 background, -1 ignored.
        boxes: one (n, 4) float tensor of x0, y0, x1, y1 in pixels per image.
        fixation_map: (B, H, W) float, >= 0, the density of where people looked.
        fixation_points: (B, H, W) bool, the pixels that people fixated.

    Example:
        >>> import torch
        >>> known = Annotations(label=torch.tensor([3, -1]), boxes=[torch.zeros(1, 4), torch.zeros(0, 4)])
        >>> sorted(known.known())
        ['boxes', 'label']
        >>> known.lacks(["label", "mask"])  # the second image has no label
        ['label', 'mask']
    """

    label: Tensor | None = None
    mask: Tensor | None = None
    boxes: list[Tensor] | None = None
    fixation_map: Tensor | None = None
    fixation_points: Tensor | None = None

    def known(self) -> dict[str, Any]:
        """What is there, by kind: tensors, and lists of one tensor per image."""
        return {kind: value for kind in KINDS if (value := getattr(self, kind)) is not None}

    def map_known(self, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """What is there with every tensor changed, by kind: the keywords for a new record."""
        return {
            kind: [change(part) for part in value] if isinstance(value, list) else change(value)
            for kind, value in self.known().items()
        }

    def rows(self, rows: slice) -> dict[str, Any]:
        """What is there of the rows of a slice, by kind: the keywords for a new record."""
        return {kind: value[rows] for kind, value in self.known().items()}

    def lacks(self, needs: Sequence[str] | frozenset[str]) -> list[str]:
        """Which of the kinds are missing, sorted; labels are if one of them is unknown."""
        there = self.known()
        unknown = self.label is not None and bool((self.label < 0).any())
        return [need for need in sorted(needs) if need not in there or (need == "label" and unknown)]
