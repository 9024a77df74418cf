"""ImageNet-S 50, 300 and 919: ImageNet's own pictures with masks of their class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from explainode.data.annotated import MASK, AnnotatedData, Record, read_values
from explainode.data.augment import Augment
from explainode.data.image_folder import find_pictures
from explainode.data.imagenet import class_names, read_synsets
from explainode.errors import UserError, nearest

IGNORED = 1000
TARGETS = ("own", "foreground")

_FOLDERS = {
    "train": "train-semi",
    "val": "validation",
    "test": "validation",
}  # the test set's masks were never published


class ImageNetSRecord(Record):
    """A picture of synset `wnid`, and its mask, in which that synset has the number `own`."""

    def __init__(self, path: Path, label: int, mask: Path, wnid: str, own: int, target: str) -> None:
        super().__init__(path, label)
        self.mask, self.wnid, self.own, self.target = mask, wnid, own, target

    def read_mask(self) -> np.ndarray:
        """(H, W): 1 the object, -1 ignored, 0 the rest (under "own" other synsets too).

        Raises:
            UserError: if the mask is missing, damaged, not in colors, or has no pixel of the picture's own synset.
        """
        stored = read_values(self.mask, "mask")
        if stored.ndim != 3 or stored.shape[2] < 3:
            raise UserError(
                f"the mask {self.mask} has one number per pixel; ImageNet-S stores class R + 256 G in three"
            )
        red, green = stored[:, :, 0].astype(np.int64), stored[:, :, 1].astype(np.int64)
        number = red + 256 * green
        if not (number == self.own).any():
            raise UserError(
                f"the mask {self.mask} has no pixel of its own class {self.own} ({self.wnid}); where class folders are missing, name the list of"
                " all as data.categories"
            )
        object_ = number == self.own if self.target == "own" else (number > 0) & (number != IGNORED)
        return np.where(number == IGNORED, -1, object_)


class ImageNetSData(AnnotatedData):
    """`validation/<synset>/*.JPEG` with `validation-segmentation/<synset>/*.png` in root, the folder of ImageNet-S 50, 300 or 919.

    A mask stores class R + 256 G: the place of the synset among the sorted ones, counted from 1; 0 is everything else, 1000 is ignored.
    "train" are the annotated training pictures (`train-semi`), "val" and "test" both the validation set.

    Args:
        target: "own", the picture's class against the rest, or "foreground", all classes that the set knows.
        synsets: a file with one synset a line in the order of the network's classes, as ImageNet's LOC_synset_mapping.txt; None: the network's
            classes are those of the set.
        categories: a file with the set's own synsets, one a line (ImageNetS_categories_im300.txt); None: the class folders.
        size: see `AnnotatedData`.
        num_classes: of the network; 1000 needs `synsets`.

    Raises:
        UserError: for an unknown target; when a split is asked for, naming what is missing.

    Source: Gao et al. 2022 and its read-me. ImageNet-S 919 merges five pairs of synsets that look alike; a picture has the label of the folder
    it lies in.
    """

    provides = frozenset({MASK})
    test_only = False

    def __init__(
        self,
        root: str | Path,
        target: str = "own",
        synsets: str | Path | None = None,
        categories: str | Path | None = None,
        size: int = 224,
        num_classes: int = 1000,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        super().__init__(root, size, class_names(num_classes), num_classes, batch_size, num_workers, seed, augment)
        if target not in TARGETS:
            raise UserError(
                f"data.target must be own or foreground, got {target!r}; the nearest are {nearest(target, TARGETS)}"
            )
        self.target, self.synsets, self.categories = target, synsets, categories

    def records(self, split: str) -> list[ImageNetSRecord]:
        folder, masks = (self.root / f"{_FOLDERS[split]}{end}" for end in ("", "-segmentation"))
        for needed in (folder, masks):
            if not needed.is_dir():
                raise UserError(
                    f"no folder {needed}; give the folder of ImageNet-S 50, 300 or 919, which holds {_FOLDERS[split]}, as data.root"
                )
        own = (
            read_synsets(self.categories)
            if self.categories is not None
            else [p.name for p in folder.iterdir() if p.is_dir()]
        )
        numbers = {wnid: k for k, wnid in enumerate(sorted(own), 1)}
        order = read_synsets(self.synsets) if self.synsets is not None else sorted(own)
        if len(order) != self.num_classes:
            raise UserError(
                f"{len(order)} synsets in {self.synsets or folder}, but data.num_classes={self.num_classes}; name the list of the network's classes"
                " as data.synsets"
            )
        labels = {wnid: k for k, wnid in enumerate(order)}
        records = []
        for path in find_pictures(folder):
            wnid = path.relative_to(folder).parts[0]
            if wnid not in numbers or wnid not in labels:
                raise UserError(
                    f"{path} is of synset {wnid!r}, which is not among the {len(order)}; the nearest are {nearest(wnid, labels)}"
                )
            records.append(
                ImageNetSRecord(path, labels[wnid], masks / wnid / f"{path.stem}.png", wnid, numbers[wnid], self.target)
            )
        return records
