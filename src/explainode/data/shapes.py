"""Pictures of shapes made on the fly, with exact masks: any size, any number, no download, the same bits however they are fetched."""

from __future__ import annotations

import torch
from torch import Tensor

from explainode.data.augment import Augment
from explainode.data.base import ImageData
from explainode.data.batch import Batch
from explainode.data.figures import FIGURES
from explainode.data.scene import Draws, paint, spurious_style
from explainode.errors import UserError
from explainode.randomness import normal, sample_keys, uniform

CLASS_NAMES = [figure.__name__ for figure in FIGURES]
_TILE = 32  # images painted at once: more leave the cache, fewer pay for the calls


class ShapesDataset:
    """Image i is a function of (seed, split, i).

    Args:
        length: number of images.
        size: height and width in pixels.
        spurious: fraction of the images whose background has its class's hue and texture.
    """

    num_classes = len(FIGURES)
    class_names = CLASS_NAMES

    def __init__(self, length: int, size: int = 64, split: str = "train", seed: int = 0, spurious: float = 0.0) -> None:
        self.length, self.size, self.split, self.seed, self.spurious = length, size, split, seed, spurious

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> Batch:
        return self.__getitems__([range(self.length)[position]])

    def __getitems__(self, positions: list[int]) -> Batch:
        ids = torch.as_tensor(positions, dtype=torch.int64)
        label = self.labels(ids)
        image = torch.empty(len(ids), 3, self.size, self.size)
        mask = torch.empty(len(ids), self.size, self.size, dtype=torch.int64)
        for top in range(0, len(ids), _TILE):
            tile = slice(top, top + _TILE)
            mask[tile] = self._paint(ids[tile], label[tile], image[tile])
        return Batch(image, label, ids, mask=mask)

    def labels(self, ids: Tensor) -> Tensor:
        """(n,) classes: each consecutive block of as many images as there are classes holds each class once, in a keyed order."""
        k = self.num_classes
        block = ids // k * k
        keys = sample_keys((block[:, None] + torch.arange(k)).flatten(), self.seed, "shapes", self.split, "label").view(
            -1, k
        )
        own = keys.gather(1, (ids - block)[:, None])
        return (keys < own).sum(1)

    def _paint(self, ids: Tensor, label: Tensor, out: Tensor) -> Tensor:
        def keys(stream: str) -> Tensor:
            return sample_keys(ids, self.seed, "shapes", self.split, stream)

        style = None
        if self.spurious:
            draw, jitter = uniform(keys("spurious"), 2).unbind(1)
            style = spurious_style(label, draw, jitter, self.spurious)
        return paint(Draws(uniform(keys("scene"), Draws.COUNT)), normal(keys("grain"), self.size**2), label, out, style)


class ShapesData(ImageData):
    """Eight shapes (disk, ring, triangle, square, star, cross, crescent, heart) of random pose, color and texture over clutter.

    Class and color are independent and classes are balanced. `spurious` is the Clever-Hans case: in that fraction of the *training* images
    the background has the class's own hue and texture; in validation and test it never has, so a network that looks there is found out.

    Args:
        train_size, val_size, test_size: images per split.
        size: height and width in pixels, 16 or more.
        spurious: in [0, 1].
        seed: key of the order and the augmentation.
        image_seed: key of the images; apart from `seed`, so that runs with different seeds are tested on the same images.
    """

    num_classes = len(FIGURES)
    class_names = CLASS_NAMES

    def __init__(
        self,
        train_size: int = 4096,
        val_size: int = 512,
        test_size: int = 1024,
        size: int = 64,
        spurious: float = 0.0,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        augment: Augment | None = None,
        image_seed: int = 0,
        num_classes: int = len(FIGURES),
    ) -> None:
        super().__init__(batch_size, num_workers, seed, augment)
        if min(train_size, val_size, test_size) < 1:
            raise UserError(
                f"data.train_size, val_size and test_size must be at least 1, got {train_size}, {val_size} and {test_size}"
            )
        if size < 16:
            raise UserError(f"data.size must be at least 16 pixels for shapes to be told apart, got {size}")
        if not 0 <= spurious <= 1:
            raise UserError(f"data.spurious is a fraction in [0, 1], got {spurious}")
        if num_classes != len(FIGURES):
            raise UserError(
                f"shapes has {len(FIGURES)} classes, got data.num_classes={num_classes}; leave it at {len(FIGURES)}"
            )
        self.length = {"train": train_size, "val": val_size, "test": test_size}
        self.image_size, self.spurious, self.image_seed = size, spurious, image_seed

    def make_dataset(self, split: str) -> ShapesDataset:
        return ShapesDataset(
            self.length[split], self.image_size, split, self.image_seed, self.spurious if split == "train" else 0.0
        )
