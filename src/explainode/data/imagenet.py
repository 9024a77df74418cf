"""ImageNet (ILSVRC 2012) as it is handed out: class folders or a flat validation folder, and boxes in XML files."""

from __future__ import annotations

import csv
import re
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from torchvision.models._meta import _IMAGENET_CATEGORIES

from explainode.data.annotated import BOXES, AnnotatedData, Record
from explainode.data.augment import Augment
from explainode.data.image_folder import find_pictures
from explainode.data.voc_xml import read_boxes
from explainode.errors import UserError, nearest

# Where pictures and boxes lie below root: unpacked by hand as torchvision and timm expect it, or as the whole archive has it.
_PICTURES = ("{split}", "Data/CLS-LOC/{split}", "ILSVRC/Data/CLS-LOC/{split}")
_ANNOTATIONS = (
    "Annotations/{split}",
    "Annotations/CLS-LOC/{split}",
    "ILSVRC/Annotations/CLS-LOC/{split}",
    "bbox/{split}",
)
_SOLUTION, _SYNSETS = "LOC_{split}_solution.csv", "LOC_synset_mapping.txt"
_WNID = re.compile(r"n\d{8}")
_NOTHING = np.zeros((0, 4))
_LAST_PIXEL = np.array([0, 0, 1, 1])  # coordinates name the last pixel inside, ours the edge behind it


class ImageNetRecord(Record):
    """A picture whose boxes are known, or stand in an XML file; without one it has no boxes (most of the training pictures)."""

    def __init__(self, path: Path, label: int, wnid: str, boxes: np.ndarray | None, annotation: Path | None) -> None:
        super().__init__(path, label)
        self.wnid, self.boxes, self.annotation = wnid, boxes, annotation

    def read_boxes(self) -> np.ndarray:
        """(n, 4) boxes of the picture's own class."""
        if self.boxes is not None:
            return self.boxes
        return _NOTHING if self.annotation is None else read_boxes(self.annotation, self.wnid) + _LAST_PIXEL


def class_names(num_classes: int) -> list[str]:
    """The names of ImageNet's 1000 classes in torchvision's order; none for a selection of another size."""
    return list(_IMAGENET_CATEGORIES) if num_classes == len(_IMAGENET_CATEGORIES) else []


def read_synsets(path: str | Path) -> list[str]:
    """The synsets of a file with one a line (what follows it is its name), in the file's order.

    Raises:
        UserError: if it cannot be read.
    """
    path = Path(path).expanduser()
    try:
        return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a list with one synset a line ({error}); check the path") from error


def read_solution(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Picture name -> synset and boxes (n, 4) of a LOC_*_solution.csv: `ILSVRC2012_val_00000001,n01751748 xmin ymin xmax ymax ...`.

    Raises:
        UserError: naming the line that is not of this form.
    """
    found = {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        next(rows, None)  # ImageId,PredictionString
        for number, row in enumerate(rows, 2):
            words = row[1].split() if len(row) == 2 else []
            try:
                table = np.array([words[k + 1 : k + 5] for k in range(0, len(words), 5)], dtype=np.float64).reshape(
                    -1, 4
                )
                wnid = words[0]
            except (ValueError, IndexError) as error:
                raise UserError(
                    f"line {number} of {path} is not a picture with boxes ('name,synset x0 y0 x1 y1 ...'), got {row}"
                ) from error
            found[row[0]] = (wnid, table + _LAST_PIXEL)
    return found


class ImageNetData(AnnotatedData):
    """ILSVRC 2012: `train/<synset>/*.JPEG`, and `val` in synset folders or flat, below root or in the archive's own folders.

    The label is the synset's place among the sorted ones, as in all published weights. Labels of a flat validation folder come from
    `LOC_val_solution.csv`, from the XML files of boxes, or from the devkit's ground truth (`devkit/data`, see `devkit`). Boxes come from the
    solution or the XML files, of the picture's own class only; a picture without any has none. "test" is the validation split: the labels of
    ILSVRC's test set were never published.

    Args:
        root: the folder that holds train and val, or ILSVRC/.
        synsets: a file with one synset a line in the order of the network's classes (what follows it is its name); None:
            `LOC_synset_mapping.txt` in root, or else the class folders of train or val, sorted.
        devkit: folder of `ILSVRC2012_devkit_t12`, for a flat validation folder without boxes; None: not needed. Needs scipy.
        size, num_classes: see `AnnotatedData`.

    Raises:
        UserError: when a split is asked for, naming what is missing.

    Source: Russakovsky et al. 2015. We take coordinates as counted from 0 with the last pixel inside.
    """

    provides = frozenset({BOXES})
    test_only = False

    def __init__(
        self,
        root: str | Path,
        synsets: str | Path | None = None,
        devkit: str | Path | None = None,
        size: int = 224,
        num_classes: int = 1000,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        super().__init__(root, size, class_names(num_classes), num_classes, batch_size, num_workers, seed, augment)
        self.synsets, self.devkit = synsets, devkit

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Synset -> class."""
        path = self.root / _SYNSETS if self.synsets is None else Path(self.synsets).expanduser()
        if path.is_file():
            found = read_synsets(path)
            where = str(path)
        elif self.synsets is not None:
            raise UserError(f"no file {path}; data.synsets is a list with one synset a line, or null")
        else:
            folders = [folder for split in ("train", "val") if (folder := self._find(_PICTURES, split))]
            found = sorted({p.name for folder in folders for p in folder.iterdir() if _WNID.fullmatch(p.name)})
            where = " and ".join(map(str, folders))
        if len(found) != self.num_classes:
            raise UserError(
                f"{len(found)} synsets in {where or self.root}, but data.num_classes={self.num_classes}; name a list of all of them as"
                " data.synsets"
            )
        return {wnid: k for k, wnid in enumerate(found)}

    def records(self, split: str) -> list[ImageNetRecord]:
        split = "val" if split == "test" else split
        folder = self._find(_PICTURES, split)
        if folder is None:
            raise UserError(
                f"no folder {self.root / split}, nor {self.root / _PICTURES[2].format(split=split)}; unpack ImageNet there"
            )
        boxes = self._find(_ANNOTATIONS, split)
        annotations = (
            {} if boxes is None else {path.stem: path for path in boxes.rglob("*.xml")}
        )  # in class folders or flat
        solution = self._solution(split)
        paths = find_pictures(folder)
        truth = self._devkit_truth(paths) if any(p.parent == folder for p in paths) and self.devkit is not None else {}
        return [
            self._record(path, folder, annotations.get(path.stem), solution.get(path.stem), truth.get(path.stem))
            for path in paths
        ]

    def _find(self, patterns: tuple[str, ...], split: str) -> Path | None:
        """The first of the folders that is there."""
        return next((p for p in (self.root / pattern.format(split=split) for pattern in patterns) if p.is_dir()), None)

    def _solution(self, split: str) -> dict[str, tuple[str, np.ndarray]]:
        path = self.root / _SOLUTION.format(split=split)
        return read_solution(path) if path.is_file() else {}

    def _record(
        self,
        path: Path,
        folder: Path,
        annotation: Path | None,
        solved: tuple[str, np.ndarray] | None,
        truth: str | None,
    ) -> ImageNetRecord:
        inner = path.relative_to(folder).parts[:-1]
        wnid = inner[0] if inner else solved[0] if solved else truth or self._named(annotation)
        if wnid is None:
            raise UserError(
                f"the class of {path} is not known; put LOC_val_solution.csv or the XML files of boxes into {self.root}, or name data.devkit"
            )
        if wnid not in self.numbers:
            raise UserError(
                f"{path} is of synset {wnid!r}, which is not among the {self.num_classes}; the nearest are {nearest(wnid, self.numbers)}"
            )
        return ImageNetRecord(path, self.numbers[wnid], wnid, solved[1] if solved else None, annotation)

    def _named(self, annotation: Path | None) -> str | None:
        """The synset of the first object of an XML file: all objects of a validation picture are of its class."""
        if annotation is None:
            return None
        try:
            return ElementTree.parse(annotation).findtext("object/name")
        except (OSError, ElementTree.ParseError) as error:
            raise UserError(f"{annotation} is not a file of boxes that can be read ({error}); get it anew") from error

    def _devkit_truth(self, paths: list[Path]) -> dict[str, str]:
        """Picture name -> synset, from the devkit's list of ILSVRC's own numbers, whose order is not that of the sorted synsets."""
        try:
            from scipy.io import loadmat
        except ImportError:
            raise UserError(
                "the devkit's meta.mat can only be read with scipy; install it, or use LOC_val_solution.csv"
            ) from None
        folder = Path(self.devkit or "").expanduser() / "data"
        try:
            meta = loadmat(folder / "meta.mat", squeeze_me=True)["synsets"]
            wnid = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in meta}
            truth = [
                int(line)
                for line in (folder / "ILSVRC2012_validation_ground_truth.txt").read_text(encoding="utf-8").split()
            ]
        except (OSError, KeyError, ValueError) as error:
            raise UserError(
                f"{folder} does not hold the devkit's meta.mat and ILSVRC2012_validation_ground_truth.txt ({error})"
            ) from error
        found = {}
        for path in paths:
            digits = path.stem.rpartition("_")[2]  # ILSVRC2012_val_00000001
            number = int(digits) if digits.isdecimal() else 0
            if not 1 <= number <= len(truth):
                raise UserError(f"{path} is not among the {len(truth)} pictures of the devkit's ground truth")
            found[path.stem] = wnid[truth[number - 1]]
        return found
