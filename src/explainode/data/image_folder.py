"""Any folder of pictures, with or without a folder per class; a file that cannot be read is named, left out and counted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from explainode.data.augment import Augment
from explainode.data.base import ImageData
from explainode.data.batch import Batch
from explainode.data.file_dataset import FileDataset, check_size
from explainode.data.pictures import load_picture
from explainode.errors import UserError, nearest

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".avif", ".heic", ".heif")
)
SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


class ImageFolderDataset(FileDataset[Tensor]):
    """Pictures by position in the sorted list of files.

    Args:
        paths: the files, in order.
        labels: class of each, -1 where unknown.
        size, replace: see `FileDataset`.
    """

    def __init__(
        self, paths: list[Path], labels: list[int], class_names: list[str], size: int, replace: bool = False
    ) -> None:
        super().__init__(size, class_names, len(class_names), replace)
        self.paths, self.labels = paths, labels

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, position: int) -> Path:
        return self.paths[position]

    def load(self, position: int) -> Tensor:
        """(3, size, size) in [0, 1]."""
        return load_picture(self.paths[position], self.size).image

    def __getitems__(self, positions: list[int]) -> Batch:
        ids, images, skipped = self.read(positions)
        image = torch.stack(images) if images else torch.empty(0, 3, self.size, self.size)
        label = torch.tensor([self.labels[i] for i in ids], dtype=torch.int64)
        return Batch(image, label, torch.tensor(ids, dtype=torch.int64), skipped=skipped)


class ImageFolderData(ImageData):
    """A folder of pictures: `root/[split/][class/]picture.jpg`, in any depth below the class.

    Splits are the sub folders train, val and test where there are such; a missing evaluation split is the other one, and without split
    folders all splits are the whole folder. Classes are the names of the first-level folders, sorted; pictures outside of class folders
    have label -1. File and class order is that of the sorted names, so that sample ids are stable.

    Args:
        root: the folder.
        size: height and width that pictures are brought to, in pixels: the shorter side is resized, then the center is cut.
        class_names: what the model's classes are called, in its order (a list, or a text file with one name a line); the folders must be
            among them. None: the folders themselves.
        num_classes: number of the model's classes; None: as many as there are names.
    """

    def __init__(
        self,
        root: str | Path,
        size: int = 224,
        class_names: Sequence[str] | str | Path | None = None,
        num_classes: int | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, augment)
        self.root, self.image_size = Path(root).expanduser(), check_size(size)
        if not self.root.is_dir():
            raise UserError(f"no folder {self.root}; give a folder of pictures as data.root")
        self.class_names = self._read_names(class_names)
        if num_classes is not None and num_classes < len(self.class_names):
            raise UserError(
                f"data.num_classes={num_classes}, but there are {len(self.class_names)} class names in {self.root}"
            )
        self.num_classes = len(self.class_names) if num_classes is None else num_classes

    def split_folder(self, split: str) -> Path:
        """The folder of a split (see the class)."""
        found = {
            s: self.root / name
            for s, names in SPLIT_FOLDERS.items()
            for name in reversed(names)
            if (self.root / name).is_dir()
        }
        if not found:
            return self.root
        if split in found:
            return found[split]
        other = {"val": "test", "test": "val"}.get(split)
        if other in found:
            return found[other]
        raise UserError(
            f"{self.root} has folders for {', '.join(found)}, but none for {split}; add {self.root / split}"
        )

    def make_dataset(self, split: str) -> ImageFolderDataset:
        folder = self.split_folder(split)
        paths = find_pictures(folder)
        if not paths:
            raise UserError(f"no pictures in {folder}; expected files ending in {', '.join(sorted(SUFFIXES))}")
        number = {name: k for k, name in enumerate(self.class_names)}
        double = (
            {name for name in number if self.class_names.count(name) > 1}
            if len(number) < len(self.class_names)
            else set()
        )
        labels = []
        for path in paths:
            parts = path.relative_to(folder).parts
            if len(parts) == 1:
                labels.append(-1)
            elif parts[0] in double:
                raise UserError(
                    f"class folder {folder / parts[0]} could be any of several classes called {parts[0]!r}; make the names differ"
                )
            elif parts[0] in number:
                labels.append(number[parts[0]])
            else:
                raise UserError(
                    f"class folder {folder / parts[0]} is not among the class names; the nearest are {nearest(parts[0], number)}"
                )
        return ImageFolderDataset(paths, labels, self.class_names, self.image_size, replace=split == "train")

    def _read_names(self, class_names: Sequence[str] | str | Path | None) -> list[str]:
        if class_names is None:
            folders = {self.split_folder(s) for s in SPLIT_FOLDERS if self._has(s)}
            return sorted(
                {
                    p.name
                    for folder in folders
                    for p in folder.iterdir()
                    if p.is_dir() and any(True for _ in walk_pictures(p))
                }
            )
        if isinstance(class_names, (str, Path)):
            path = Path(class_names).expanduser()
            try:
                class_names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(
                    f"data.class_names={str(path)!r} cannot be read as a text file with one name a line ({error})"
                ) from error
        return [str(name) for name in class_names]

    def _has(self, split: str) -> bool:
        try:
            return self.split_folder(split).is_dir()
        except UserError:
            return False


def walk_pictures(folder: Path) -> Iterator[Path]:
    """Files below a folder whose suffix is that of a picture; hidden ones are left out, links are followed, once."""
    seen = set()
    for top, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(top)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (
            Path(top, name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
        )


def find_pictures(folder: Path) -> list[Path]:
    """The pictures below a folder, sorted by path."""
    return sorted(walk_pictures(folder))
