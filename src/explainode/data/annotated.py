"""Pictures with something known about their places: masks, boxes and fixations go through the same geometry as the picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from explainode.annotations import KINDS
from explainode.data.augment import Augment
from explainode.data.base import ImageData
from explainode.data.batch import Batch
from explainode.data.file_dataset import FileDataset, check_size
from explainode.data.pictures import central_square, load_picture, resize_square
from explainode.errors import UserError

MASK, BOXES, FIXATION_MAP, FIXATION_POINTS = ANNOTATIONS = ("mask", "boxes", "fixation_map", "fixation_points")
_DTYPES = {"classes": torch.int64, "density": torch.float32, "points": torch.bool}  # of planes, by geometry


class Record:
    """One picture and where its annotations come from; nothing is read before it is asked for.

    A subclass reads those kinds that its data set has (`read_<kind>`), in pixels of the stored picture, which is never turned as its EXIF data say.

    Raises:
        UserError: from `read_*`, if the file is missing or damaged; the picture is then skipped and named.
    """

    def __init__(self, path: Path, label: int = -1) -> None:
        self.path, self.label = path, label

    def read_mask(self) -> np.ndarray:
        """(H, W) integers: 1 object, 0 background, -1 ignored."""
        raise NotImplementedError

    def read_boxes(self) -> np.ndarray:
        """(n, 4) floats x0, y0, x1, y1: edges of pixels, so a box of the whole picture is 0, 0, W, H."""
        raise NotImplementedError

    def read_fixation_map(self) -> np.ndarray:
        """(H, W) floats >= 0."""
        raise NotImplementedError

    def read_fixation_points(self) -> np.ndarray:
        """(H, W) bool, true where people looked."""
        raise NotImplementedError


# ---- the geometry of `load_picture(path, size)`, for everything that belongs to the picture


def cut_mask(mask: np.ndarray, size: int) -> Tensor:
    """(H, W) -> (size, size) int64 by nearest neighbor: each pixel takes what lies under its center."""
    top, left, side = central_square(*mask.shape)
    step = (np.arange(size) + 0.5) * (side / size)
    row, column = (np.floor(start + step).astype(np.int64) for start in (top, left))
    return torch.from_numpy(mask[row[:, None], column].astype(np.int64))


def cut_boxes(boxes: np.ndarray, height: int, width: int, size: int) -> Tensor:
    """(n, 4) in a picture of height x width -> (m, 4) float32 in the cut one, clipped to it; boxes of which nothing is left are dropped."""
    top, left, side = central_square(height, width)
    moved = (np.asarray(boxes, dtype=np.float64).reshape(-1, 4) - [left, top, left, top]) * (size / side)
    moved = moved.clip(0, size)
    return torch.from_numpy(moved[(moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])].astype(np.float32))


def cut_map(density: np.ndarray, size: int) -> Tensor:
    """(H, W) -> (size, size) float32, bilinear as the picture."""
    return torch.from_numpy(np.array(resize_square(Image.fromarray(density.astype(np.float32)), size)))


def cut_points(points: np.ndarray, size: int) -> Tensor:
    """(H, W) bool -> (size, size) bool: the pixels in which the centers of the true ones come to lie, so that none is lost by shrinking."""
    top, left, side = central_square(*points.shape)
    at = (np.argwhere(points) + 0.5 - [top, left]) * (size / side)
    row, column = np.floor(at[((at >= 0) & (at < size)).all(1)]).astype(np.int64).T
    found = torch.zeros(size, size, dtype=torch.bool)
    found[row, column] = True
    return found


_CUT = {"classes": cut_mask, "density": cut_map, "points": cut_points}


def read_values(path: Path, what: str) -> np.ndarray:
    """The numbers stored in a picture, palette positions as they are: (H, W), or (H, W, channels) of one in colors.

    Raises:
        UserError: if the file is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            return np.array(image)
    except FileNotFoundError:
        raise UserError(f"no {what} {path}; each picture needs one") from None
    except Exception as error:  # foreign bytes may break a decoder in any way
        raise UserError(f"the {what} {path} is damaged and cannot be read ({error}); get it anew") from error


def read_plane(path: Path, what: str) -> np.ndarray:
    """The numbers stored in a picture of one channel, palette positions as they are: (H, W).

    Raises:
        UserError: if the file is missing, damaged, or in colors.
    """
    values = read_values(path, what)
    if values.ndim != 2:
        raise UserError(f"the {what} {path} is a picture in colors; expected one number per pixel")
    return values


Loaded = tuple[Tensor, dict[str, Tensor]]
"""The picture (3, size, size) and its annotations by kind."""


class AnnotatedDataset(FileDataset[Loaded]):
    """Records by position.

    Args:
        records: what there is.
        provides: the kinds of annotation that each record reads, of `ANNOTATIONS`.
        size, replace: see `FileDataset`.
    """

    def __init__(
        self,
        records: Sequence[Record],
        provides: frozenset[str],
        size: int,
        class_names: list[str],
        num_classes: int,
        replace: bool = False,
    ) -> None:
        super().__init__(size, class_names, num_classes, replace)
        self.records, self.provides = records, provides

    def __len__(self) -> int:
        return len(self.records)

    def path(self, position: int) -> Path:
        return self.records[position].path

    def __getitems__(self, positions: list[int]) -> Batch:
        ids, loaded, skipped = self.read(positions)

        def joined(kind: str) -> Any:
            found = [annotations[kind] for _, annotations in loaded]
            if KINDS[kind].geometry == "boxes":
                return found
            empty = torch.empty(0, self.size, self.size, dtype=_DTYPES[KINDS[kind].geometry])
            return torch.stack(found) if found else empty

        return Batch(
            image=torch.stack([image for image, _ in loaded]) if ids else torch.empty(0, 3, self.size, self.size),
            label=torch.tensor([self.records[i].label for i in ids], dtype=torch.int64),
            sample_id=torch.tensor(ids, dtype=torch.int64),
            skipped=skipped,
            **{kind: joined(kind) for kind in self.provides},
        )

    def load(self, position: int) -> Loaded:
        """The picture and its annotations.

        Raises:
            UserError: if one of the files cannot be read, or an annotation has another size than its picture.
        """
        record = self.records[position]
        picture = load_picture(record.path, self.size, upright=False)
        found: dict[str, Tensor] = {}
        for kind in self.provides:
            read = getattr(record, f"read_{kind}")
            if KINDS[kind].geometry == "boxes":
                found[kind] = cut_boxes(read(), *picture.source_size, self.size)
                continue
            plane = read()
            if plane.shape != picture.source_size:
                raise UserError(
                    f"the {kind.replace('_', ' ')} of {record.path} has {plane.shape[1]}x{plane.shape[0]} pixels, but the picture"
                    f" {picture.source_size[1]}x{picture.source_size[0]}; they must be of one size"
                )
            found[kind] = _CUT[KINDS[kind].geometry](plane, self.size)
        return picture.image, found


class AnnotatedData(ImageData):
    """Base of data with annotations: a subclass says what it `provides` and lists its records; nothing is read before a split is asked for.

    Pictures and annotations are cut to the central square and resized: masks by nearest neighbor, boxes are moved and clipped, fixation maps
    are resized bilinearly as the picture is. Sets without a training split serve "val" and "test" with the same pictures and refuse "train".

    Args:
        root: the folder of the data set.
        size: height and width that pictures are brought to, in pixels.
        num_classes: number of the model's classes.
    """

    provides: frozenset[str] = frozenset()
    test_only: ClassVar[bool] = True

    def __init__(
        self,
        root: str | Path,
        size: int,
        class_names: Sequence[str] = (),
        num_classes: int = 0,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, augment)
        self.root, self.image_size = Path(root).expanduser(), check_size(size)
        self.class_names, self.num_classes = list(class_names), num_classes

    def records(self, split: str) -> Sequence[Record]:
        """What a split holds, in an order that never changes.

        Raises:
            UserError: if something is missing.
        """
        raise NotImplementedError

    def make_dataset(self, split: str) -> AnnotatedDataset:
        if split == "train" and self.test_only:
            raise UserError(
                f"{type(self).__name__} has no training pictures, it is there to measure explanations; train on other data and name it in"
                " evaluate"
            )
        if not self.root.is_dir():
            raise UserError(f"no folder {self.root}; give the folder of the data set as data.root")
        records = self.records(split)
        if not records:
            raise UserError(f"no pictures of the {split} split in {self.root}")
        return AnnotatedDataset(
            records, self.provides, self.image_size, self.class_names, self.num_classes, replace=split == "train"
        )
