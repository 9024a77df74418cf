"""A folder of pictures with a list of boxes in one json file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from explainode.data.annotated import BOXES, AnnotatedData, Record
from explainode.data.augment import Augment
from explainode.errors import UserError


class BoxRecord(Record):
    """A picture whose boxes are known."""

    def __init__(self, path: Path, label: int, boxes: np.ndarray) -> None:
        super().__init__(path, label)
        self.boxes = boxes

    def read_boxes(self) -> np.ndarray:
        """(n, 4).

        Raises:
            UserError: if a box ends before it begins.
        """
        if (self.boxes[:, 2:] <= self.boxes[:, :2]).any():
            raise UserError(
                f"a box of {self.path} ends before it begins; expected x0, y0, x1, y1, got {self.boxes.tolist()}"
            )
        return self.boxes


class BoxesData(AnnotatedData):
    """`root/images/` and a list of what is in each picture. There is no training split.

    The list is `{"images": [{"file": "a.jpg", "label": 3, "boxes": [[x0, y0, x1, y1], ...]}, ...]}`; one box may also stand as
    `"box_xyxy": [x0, y0, x1, y1]`, the label as `"imagenet_idx"`, and a missing label is -1. Coordinates are pixels of the stored picture.

    Args:
        boxes: the list's name in root.
        images: the pictures' folder in root; "." where they lie beside the list.
        inclusive: whether x1 and y1 are the last pixel inside (PASCAL VOC, ImageNet, Tiny-ImageNet) or the edge behind it (COCO-like).
        size, class_names, num_classes: see `AnnotatedData`; None: as many classes as the network has.

    Raises:
        UserError: when a split is asked for, if the list is missing or not of this form.
    """

    provides = frozenset({BOXES})

    def __init__(
        self,
        root: str | Path,
        boxes: str = "boxes.json",
        images: str = "images",
        inclusive: bool = False,
        size: int = 224,
        class_names: Sequence[str] | None = None,
        num_classes: int | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        names = list(class_names or ())
        super().__init__(
            root,
            size,
            names,
            len(names) if num_classes is None else num_classes,
            batch_size,
            num_workers,
            seed,
            augment,
        )
        self.boxes, self.images, self.inclusive = boxes, images, inclusive

    def records(self, split: str) -> list[BoxRecord]:
        path = self.root / self.boxes
        try:
            return [self._record(entry) for entry in json.loads(path.read_text(encoding="utf-8"))["images"]]
        except FileNotFoundError:
            raise UserError(f"no file {path}; it lists the pictures and their boxes (data.boxes)") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f'{path} is not a list of boxes ({error!r}); expected {{"images": [{{"file": "a.jpg", "label": 3, "boxes": [[x0, y0, x1, y1]]}}]}}'
            ) from error

    def _record(self, entry: dict[str, Any]) -> BoxRecord:
        listed = entry["boxes"] if "boxes" in entry else [entry["box_xyxy"]]
        boxes = np.asarray(listed, dtype=np.float64).reshape(len(listed), 4)
        if self.inclusive:
            boxes[:, 2:] += 1
        label = entry.get("label", entry.get("imagenet_idx", -1))
        return BoxRecord(self.root / self.images / entry["file"], int(label), boxes)
