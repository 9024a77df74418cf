"""PASCAL VOC 2012 as it is handed out: pictures, segmentation by class, and boxes in XML files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from explainode.data.annotated import BOXES, MASK, AnnotatedData, Record, read_plane
from explainode.data.augment import Augment
from explainode.data.voc_xml import read_boxes
from explainode.errors import UserError, nearest

CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike",
    "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
TARGETS = ("largest", "foreground")
VOID = 255  # the border of objects, and what is too difficult to tell

_PLACES = ("", "VOCdevkit/VOC2012", "VOC2012")
_FIRST_PIXEL = np.array([1, 1, 0, 0])  # coordinates are counted from 1 with the last pixel inside; ours are edges


class VOCRecord(Record):
    """A picture, its mask of classes and its file of boxes.

    The label is the class of the largest object, 0..19, or -1 where no object counts; it stands in the mask, so it is known once that was read.
    """

    def __init__(self, path: Path, mask: Path, boxes: Path, classes: frozenset[int], target: str) -> None:
        super().__init__(path)
        self.mask, self.boxes, self.classes, self.target = mask, boxes, classes, target

    def read_mask(self) -> np.ndarray:
        """(H, W): 1 the object, -1 borders and objects of classes that do not count, 0 the rest.

        Raises:
            UserError: if the mask is missing, damaged, in colors, or holds numbers that are no class.
        """
        stored = read_plane(self.mask, "mask")
        area = np.bincount(stored.ravel(), minlength=VOID + 1)
        strange = [int(k) for k in np.flatnonzero(area) if len(CLASS_NAMES) < k < VOID or k > VOID]
        if strange:
            raise UserError(
                f"the mask {self.mask} holds the value {strange[0]}; expected 0, the classes 1..{len(CLASS_NAMES)} and {VOID}"
            )
        present = [k for k in self.classes if area[k + 1]]
        self.label = min(present, key=lambda k: (-area[k + 1], k)) if present else -1
        wanted = present if self.target == "foreground" else [k for k in present if k == self.label]
        other = [k for k in range(len(CLASS_NAMES)) if k not in self.classes]
        codes = np.zeros(VOID + 1, dtype=np.int8)
        codes[[k + 1 for k in wanted]], codes[[k + 1 for k in other]], codes[VOID] = 1, -1, -1
        return codes[stored]

    def read_boxes(self) -> np.ndarray:
        """(n, 4) boxes of the objects that the mask shows as 1."""
        if self.target == "foreground":
            return np.concatenate([read_boxes(self.boxes, CLASS_NAMES[k]) for k in sorted(self.classes)]) - _FIRST_PIXEL
        if self.label < 0:
            self.read_mask()
        return read_boxes(self.boxes, CLASS_NAMES[self.label] if self.label >= 0 else "") - _FIRST_PIXEL


class VOC2012Data(AnnotatedData):
    """`JPEGImages/`, `SegmentationClass/`, `Annotations/` and `ImageSets/Segmentation/*.txt` of VOC 2012, below root or root/VOCdevkit/VOC2012.

    A picture shows objects of several classes, a mask of ours one object against the rest. `target` says which: "largest", all objects of the
    class that covers most pixels, the others background; or "foreground", all objects of all classes. The label is the largest class in both.
    Borders (255) are ignored. A network with ImageNet's classes is judged on these pictures as `model=imagenet_as_voc`.

    Args:
        target: "largest" or "foreground".
        classes: names of the classes that count; objects of others are ignored (-1), and a picture without any that counts has no object
            and no label: metrics of localization exclude and count it. None: all 20.
        boxes: read the boxes as well; a picture without its XML file is then skipped and named.
        masks: the masks' folder.
        test_list: the list that "val" and "test" read, `ImageSets/Segmentation/<name>.txt`; "train" reads train.txt.
        size: see `AnnotatedData`.

    Raises:
        UserError: for an unknown target or class; when a split is asked for, naming what is missing.

    Source: Everingham et al. 2010 and the 2012 development kit. root inference (anonymous), Table 1 measures on the training list (test_list=train), does not
    say which object counts, and calls cow, horse and "ambiguous" classes missing from ImageNet (name the others as `classes`).
    """

    provides = frozenset({MASK, BOXES})
    test_only = False

    def __init__(
        self,
        root: str | Path,
        target: str = "largest",
        classes: Sequence[str] | None = None,
        boxes: bool = True,
        masks: str = "SegmentationClass",
        test_list: str = "val",
        size: int = 224,
        num_classes: int = 20,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        super().__init__(root, size, CLASS_NAMES, num_classes, batch_size, num_workers, seed, augment)
        if target not in TARGETS:
            raise UserError(
                f"data.target must be largest or foreground, got {target!r}; the nearest are {nearest(target, TARGETS)}"
            )
        if num_classes != len(CLASS_NAMES):
            raise UserError(
                f"VOC 2012 has 20 classes, got data.num_classes={num_classes}; take model=imagenet_as_voc for ImageNet's 1000"
            )
        names = list(CLASS_NAMES if classes is None else classes)
        for name in names:
            if name not in CLASS_NAMES:
                raise UserError(
                    f"data.classes: VOC has no class {name!r}; the nearest are {nearest(name, CLASS_NAMES)}"
                )
        self.target, self.classes, self.masks, self.test_list = (
            target,
            frozenset(CLASS_NAMES.index(name) for name in names),
            masks,
            test_list,
        )
        self.provides = frozenset({MASK, BOXES} if boxes else {MASK})

    def records(self, split: str) -> list[VOCRecord]:
        base = next((p for place in _PLACES if ((p := self.root / place) / "JPEGImages").is_dir()), None)
        if base is None:
            raise UserError(
                f"no folder JPEGImages in {self.root} or {self.root / _PLACES[1]}; give the folder that holds VOCdevkit/VOC2012"
            )
        path = base / "ImageSets" / "Segmentation" / f"{'train' if split == 'train' else self.test_list}.txt"
        try:
            names = path.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read as a list of pictures ({error}); it comes with VOC 2012") from error
        return [
            VOCRecord(
                base / "JPEGImages" / f"{name}.jpg",
                base / self.masks / f"{name}.png",
                base / "Annotations" / f"{name}.xml",
                self.classes,
                self.target,
            )
            for name in names
        ]
