"""CIFAR-10 from torchvision's folder, the official files or, on request, a folder whose checksums differ."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_md5

from explainode.data.augment import Augment
from explainode.data.base import ImageData
from explainode.data.batch import Batch
from explainode.errors import UserError
from explainode.randomness import permutation

FOLDER = CIFAR10.base_folder
CLASS_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class ArrayUnpickler(pickle.Unpickler):
    """Reads containers, numbers, text and numpy arrays, and refuses whatever else a pickle may call: loading must not run foreign code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        # Where numpy 1 and numpy 2 keep the function that makes an empty array.
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        if module == "numpy._core.numeric" and name == "_frombuffer":  # pickle protocol 5
            return np.empty(0).__reduce_ex__(5)[0]
        if (module, name) == ("_codecs", "encode"):  # how protocols below 3 write bytes
            return _encode_latin1
        raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not part of an array")
    return text.encode("latin1")


def read_file(path: Path) -> dict[str, Any]:
    """The dictionary in one of the folder's files.

    Raises:
        UserError: if the file is missing, is not such a file, or holds anything but arrays, numbers and text.
    """
    try:
        with path.open("rb") as file:
            content = ArrayUnpickler(file, encoding="latin1").load()
    except FileNotFoundError:
        raise UserError(
            f"no file {path}; give the folder that holds {FOLDER}/ as data.root, or set data.download=true"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except Exception as error:  # foreign bytes may break an unpickler in any way
        raise UserError(
            f"{path} is not a file of CIFAR-10 ({error}); download the set again with data.download=true"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path} is not a file of CIFAR-10: it holds a {type(content).__name__}; download the set again with data.download=true"
        )
    return content


def read_images(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3, 32, 32) uint8 pixels and (n,) int64 labels of one file."""
    content = read_file(path)
    data, labels = content.get("data"), content.get("labels")
    if (
        not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3072)
        or not (isinstance(labels, list) and len(labels) == len(data))
        or not all(isinstance(k, int) and 0 <= k < 10 for k in labels)
    ):
        raise UserError(
            f"{path} is not a file of CIFAR-10: it needs 'data' (n, 3072) uint8 and as many 'labels' in 0..9"
        )
    return data.reshape(-1, 3, 32, 32), np.asarray(labels, dtype=np.int64)


def find_changed(folder: Path) -> list[str]:
    """Names of the files whose MD5 differs from the official one.

    Raises:
        UserError: if the folder or a file is missing.
    """
    if not folder.is_dir():
        raise UserError(
            f"no folder {folder}; give the folder that holds {FOLDER}/ as data.root, or set data.download=true to fetch it"
        )
    changed = []
    for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]:
        if not (folder / name).is_file():
            raise UserError(
                f"no file {folder / name}; the set is incomplete, remove the folder and set data.download=true to fetch it again"
            )
        if not check_md5(str(folder / name), md5):
            changed.append(name)
    return changed


class CIFAR10Dataset:
    """Rows of the set, held in memory as uint8; position i of the split is row `rows[i]`."""

    num_classes = 10
    class_names = CLASS_NAMES

    def __init__(self, images: np.ndarray, labels: np.ndarray, rows: Tensor) -> None:
        self.images, self.labels, self.rows = torch.from_numpy(images), torch.from_numpy(labels), rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Batch:
        return self.__getitems__([range(len(self))[position]])

    def __getitems__(self, positions: list[int]) -> Batch:
        ids = torch.as_tensor(positions, dtype=torch.int64)
        rows = self.rows[ids]
        return Batch(self.images[rows].to(torch.float32).div_(255), self.labels[rows], ids)


class CIFAR10Data(ImageData):
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 in ten classes.

    Args:
        root: folder that holds `cifar-10-batches-py/`, as torchvision writes it.
        verify: refuse files whose checksum differs from the official one; off, they are read with a warning. In both cases the reader
            admits arrays only, so that no file can run code.
        download: fetch the set into `root` if it is not there.
        train_size: images used for training, the first of the keyed order; None: all that validation leaves.
        val_size: training images kept for validation, by a permutation keyed by `split_seed`; 0: validation is on the test set.
        split_seed: key of that permutation; apart from `seed`, so that runs with different seeds are validated on the same images.

    Source: Krizhevsky 2009. We pad by mirroring before cropping (`augment`), where He et al. 2016 pad with zeros.
    """

    num_classes = 10
    class_names = CLASS_NAMES
    image_size = 32

    def __init__(
        self,
        root: str | Path,
        verify: bool = True,
        download: bool = False,
        train_size: int | None = None,
        val_size: int = 5000,
        split_seed: int = 0,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
        augment: Augment | None = None,
        num_classes: int = 10,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, augment)
        if num_classes != 10:
            raise UserError(f"CIFAR-10 has 10 classes, got data.num_classes={num_classes}; leave it at 10")
        if val_size < 0:
            raise UserError(f"data.val_size must be 0 (validate on the test set) or more, got {val_size}")
        if train_size is not None and train_size < 1:
            raise UserError(f"data.train_size must be at least 1, got {train_size}; null takes all")
        self.root, self.verify, self.download = Path(root).expanduser(), verify, download
        self.train_size, self.val_size, self.split_seed = train_size, val_size, split_seed
        self._checked = False
        self._train: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def folder(self) -> Path:
        return self.root / FOLDER

    def prepare_data(self) -> None:
        """Fetches the set if asked to; Lightning calls it on one process of each node."""
        if self.download and not self.folder.is_dir():
            try:
                CIFAR10(str(self.root), download=True)
            except (OSError, RuntimeError) as error:
                raise UserError(
                    f"CIFAR-10 could not be fetched into {self.root} ({error}); put {FOLDER}/ there by hand"
                ) from error

    def check(self) -> None:
        """Looks at the folder, once.

        Raises:
            UserError: naming what is missing, or the file whose checksum differs and how to accept it.
        """
        if self._checked:
            return
        changed = find_changed(self.folder)
        if changed:
            what = f"the checksum of {self.folder / changed[0]}" + (
                f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            )
            if self.verify:
                raise UserError(
                    f"{what} differs from the official CIFAR-10; fetch the set anew, or accept the folder as it is with data.verify=false"
                )
            warnings.warn(
                f"{what} differs from the official CIFAR-10: results may differ from published ones", stacklevel=2
            )
        self._checked = True

    def make_dataset(self, split: str) -> CIFAR10Dataset:
        self.prepare_data()
        self.check()
        if split == "test" or (split == "val" and not self.val_size):
            images, labels = read_images(self.folder / CIFAR10.test_list[0][0])
            return CIFAR10Dataset(images, labels, torch.arange(len(images)))
        images, labels = self._read_train()
        if self.val_size + (self.train_size or 1) > len(images):
            raise UserError(
                f"data.train_size={self.train_size} and data.val_size={self.val_size} do not fit into the {len(images)} training images;"
                " choose less"
            )
        order = permutation(len(images), self.split_seed, "cifar10")
        rest = order[self.val_size :]
        rows = order[: self.val_size] if split == "val" else rest[: self.train_size]
        # In file order: position in the split says nothing about the draw, and a full training set is the file's.
        return CIFAR10Dataset(images, labels, rows.sort().values)

    def _read_train(self) -> tuple[np.ndarray, np.ndarray]:
        if self._train is None:
            parts = [read_images(self.folder / name) for name, _ in CIFAR10.train_list]
            self._train = (
                np.concatenate([images for images, _ in parts]),
                np.concatenate([labels for _, labels in parts]),
            )
        return self._train
