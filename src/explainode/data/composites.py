"""Objects pasted in real mask shapes over any background: pictures of any labeled data, with masks that are exact because we cut them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from explainode.blur import blur
from explainode.data.augment import Augment
from explainode.data.base import ImageData, ImageDataset
from explainode.data.batch import Batch
from explainode.data.figures import FIGURES
from explainode.errors import UserError, nearest
from explainode.randomness import sample_keys, uniform

BACKGROUNDS = ("picture", "blurred", "flat")
BORDER = 255  # in VOC's masks: neither object nor background

_DRAWS = 16  # keyed draws of a background before the split is walked through for a picture of another class


class Silhouettes(Protocol):
    """Shapes by position: (h, w) int8, 1 object, 0 outside, -1 border, cut to the object's bounding box.

    Raises:
        UserError: from `__getitem__`, if the shape cannot be read.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Tensor: ...
    def name(self, index: int) -> str: ...


class FigureSilhouettes:
    """The eight figures of `data=shapes`, drawn with `side` pixels."""

    def __init__(self, side: int = 256) -> None:
        line = (torch.arange(side) + 0.5) / side * 2 - 1
        self.shapes = [cut_to_object((figure(line[None, :], line[:, None]) < 0).to(torch.int8)) for figure in FIGURES]

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> Tensor:
        return self.shapes[index]

    def name(self, index: int) -> str:
        return FIGURES[index].__name__


class MaskSilhouettes:
    """The masks that `folder/masks.json` lists, read when first asked for and kept.

    The file holds `{"masks": [{"file": "a.png", "class": 9}, ...]}`: pixels of a mask that have the value `class` are the object, 255 is the
    border, all others are outside; without `class` the object is everything but 0 and 255.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        path = self.folder / "masks.json"
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))["masks"]
            self.entries = [(str(entry["file"]), entry.get("class")) for entry in entries]
        except FileNotFoundError:
            raise UserError(
                f"no file {path}; data.silhouettes is a folder of masks with a masks.json, or null for drawn figures"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f'{path} is not a list of masks ({error!r}); expected {{"masks": [{{"file": "a.png", "class": 9}}]}}'
            ) from error
        if not self.entries:
            raise UserError(f"{path} lists no masks; add some, or set data.silhouettes=null for drawn figures")
        self._read: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Tensor:
        if index not in self._read:
            self._read[index] = self._load(index)
        return self._read[index]

    def name(self, index: int) -> str:
        return str(self.folder / self.entries[index][0])

    def _load(self, index: int) -> Tensor:
        path, wanted = self.folder / self.entries[index][0], self.entries[index][1]
        try:
            with Image.open(path) as image:
                values = np.array(image)
        except Exception as error:  # foreign bytes may break a decoder in any way
            raise UserError(f"{path} is not a mask that can be read ({error}); get it anew") from error
        if values.ndim != 2:
            raise UserError(f"{path} is a picture in colors; expected a mask with one number per pixel")
        inside = (values != 0) & (values != BORDER) if wanted is None else values == wanted
        if not inside.any():
            raise UserError(
                f"{path} has no pixel of {'an object' if wanted is None else f'class {wanted}'}; mend masks.json"
            )
        return cut_to_object(torch.from_numpy(inside.astype(np.int8) - ((values == BORDER) & ~inside)))


def cut_to_object(shape: Tensor) -> Tensor:
    """(H, W) int8 -> (h, w), the bounding box of its ones."""
    rows, columns = (shape == 1).any(1).nonzero()[:, 0], (shape == 1).any(0).nonzero()[:, 0]
    return shape[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].clone()


def resize_shape(shape: Tensor, scale: float) -> Tensor:
    """(h, w) resized by nearest neighbor: each pixel takes what lies under its center."""
    h, w = shape.shape
    new_h, new_w = max(1, round(h * scale)), max(1, round(w * scale))
    row = ((torch.arange(new_h) + 0.5) * (h / new_h)).long()
    column = ((torch.arange(new_w) + 0.5) * (w / new_w)).long()
    return shape[row[:, None], column]


def place_shape(shape: Tensor, height: int, width: int, down: float, across: float) -> tuple[Tensor, int, int]:
    """The shape (h, w) in a plane (height, width) of zeros, and how far the middle of a picture moves with it, in rows and columns.

    `down` and `across` in [0, 1] say where: 0 at the upper left edge, 1 at the lower right one. A shape longer than the plane always covers
    it along that side; the picture below it then stays where it is, as it has no more to show.
    """
    h, w = shape.shape
    y, x = round(down * (height - h)), round(across * (width - w))
    rows, columns = slice(max(0, y), min(height, y + h)), slice(max(0, x), min(width, x + w))
    plane = shape.new_zeros(height, width)
    plane[rows, columns] = shape[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
    return plane, y - (height - h) // 2 if h <= height else 0, x - (width - w) // 2 if w <= width else 0


def fill_share(
    shape: Tensor, share: float, height: int, width: int, down: float, across: float
) -> tuple[Tensor, int, int]:
    """`place_shape` at the scale at which the object covers `share` of the plane.

    A shape that reaches further than the plane hangs over its edge, as objects near the camera do: at most half of it along each side. Where
    that is not enough, the scale is taken that comes closest.
    """
    h, w = shape.shape
    scale, fit = (share * height * width / int((shape == 1).sum())) ** 0.5, min(height / h, width / w)
    if scale <= fit:
        return place_shape(resize_shape(shape, scale), height, width, down, across)
    best = place_shape(resize_shape(shape, fit), height, width, down, across)
    low, high = fit, 2 * fit
    for _ in range(8):  # halving the scale's range; 1/256 of it is less than a pixel at 224
        middle = (low + high) / 2
        placed = place_shape(resize_shape(shape, middle), height, width, down, across)
        low, high = (middle, high) if _share(placed[0]) < share else (low, middle)
        best = min(best, placed, key=lambda choice: abs(_share(choice[0]) - share))
    return best


def _share(plane: Tensor) -> float:
    return float((plane == 1).float().mean())


class CompositesDataset:
    """Composite i: picture i of a source, cut by a silhouette and laid over another picture of the source.

    Shape, share, place and background are functions of (seed, split, i). The middle of the picture moves to where the silhouette lies, so
    the object's picture never ends inside it.

    Args:
        source: where pictures and labels come from.
        silhouettes: the shapes.
        split, seed: parts of the key.
        min_share, max_share: share of the pixels that the object covers, drawn uniformly between them (see `fill_share`).
        background: "picture", a picture of another class; "blurred", the same blurred; "flat", its mean color.
    """

    def __init__(
        self,
        source: ImageDataset,
        silhouettes: Silhouettes,
        split: str,
        seed: int = 0,
        min_share: float = 0.4,
        max_share: float = 0.7,
        background: str = "picture",
    ) -> None:
        self.source, self.silhouettes, self.split, self.seed = source, silhouettes, split, seed
        self.min_share, self.max_share, self.background = min_share, max_share, background
        self.num_classes, self.class_names = source.num_classes, source.class_names

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([range(len(self))[index]])

    def __getitems__(self, indices: list[int]) -> Batch:
        objects = self.source.__getitems__(indices)
        skipped = dict(objects.skipped)
        b, _, height, width = objects.image.shape
        mask = torch.zeros(b, height, width, dtype=torch.int64)
        if not b:
            return Batch(objects.image, objects.label, objects.sample_id, mask=mask, skipped=skipped)
        image = self._backgrounds(objects, skipped)
        draws = uniform(self._keys(objects.sample_id, "scene"), 4).double()
        for picture, out, plane, (which, size, down, across) in zip(
            objects.image, image, mask, draws.tolist(), strict=True
        ):
            shape = self._silhouette(int(which * len(self.silhouettes)), skipped)
            share = self.min_share + size * (self.max_share - self.min_share)
            placed, dy, dx = fill_share(shape, share, height, width, down, across)
            cover = torch.where(placed == -1, 0.5, placed.float())  # the border shows both, and belongs to neither
            out.lerp_(picture.roll((dy, dx), (1, 2)), cover)  # what rolls over the edge lies outside the shape
            plane.copy_(placed)
        return Batch(image, objects.label, objects.sample_id, mask=mask, skipped=skipped)

    def _keys(self, ids: Tensor, stream: str) -> Tensor:
        return sample_keys(ids, self.seed, "composites", self.split, stream)

    def _silhouette(self, index: int, skipped: dict[str, str]) -> Tensor:
        """The shape at `index`, or the next one that can be read."""
        reason = ""
        for k in range(len(self.silhouettes)):
            position = (index + k) % len(self.silhouettes)
            try:
                return self.silhouettes[position]
            except UserError as error:
                skipped[self.silhouettes.name(position)] = reason = str(error)
        raise UserError(f"none of the {len(self.silhouettes)} silhouettes can be read; the last: {reason}")

    def _backgrounds(self, objects: Batch, skipped: dict[str, str]) -> Tensor:
        """(B, 3, H, W): for each object a picture of another class (another picture, where classes are unknown).

        Raises:
            UserError: if there is none.
        """
        n = len(self.source)
        draws = (uniform(self._keys(objects.sample_id, "background"), _DRAWS).double() * n).long()
        found = torch.empty_like(objects.image)
        missing = list(range(len(objects)))
        for attempt in range(_DRAWS + n):
            step = min(attempt, _DRAWS - 1)  # after the draws: from the last one on, one picture after the other
            positions = [(int(draws[row, step]) + attempt - step) % n for row in missing]
            still = []
            for row, ground in zip(missing, self._read(positions, skipped), strict=True):
                if ground is None or not _differs(objects, row, ground):
                    still.append(row)
                else:
                    found[row] = ground.image[0]
            missing = still
            if not missing:
                break
        else:
            name = f"class {int(objects.label[missing[0]])}"
            raise UserError(
                f"no picture of another class than {name} in the {self.split} split; a background needs two classes"
            )
        if self.background == "blurred":
            return blur(found).clamp_(0, 1)
        if self.background == "flat":
            return found.mean((2, 3), keepdim=True).expand_as(found).clone()
        return found

    def _read(self, positions: list[int], skipped: dict[str, str]) -> Sequence[Batch | None]:
        """One row for each position; None where the picture cannot be read."""
        batch = self.source.__getitems__(positions)
        if len(batch) < len(positions) and len(positions) > 1:  # which one is missing only single reads can tell
            return [row for position in positions for row in self._read([position], skipped)]
        skipped |= batch.skipped
        return [batch[k : k + 1] for k in range(len(batch))] or [None]


def _differs(objects: Batch, row: int, ground: Batch) -> bool:
    if objects.label[row] == -1 or ground.label[0] == -1:
        return bool(objects.sample_id[row] != ground.sample_id[0])
    return bool(objects.label[row] != ground.label[0])


class CompositesData(ImageData):
    """Pictures of `source`, cut out in the shape of real objects and laid over pictures of other classes, with exact masks.

    The label is the object's. The object is all that a network can know the class by, and the background argues for another one: a map
    that marks the background is wrong. Networks trained on the source can be judged as they are; how many composites they
    still classify is their accuracy. The masks' borders (-1, ignored) show object and background in equal parts. Splits, number and
    order of the images are the source's.

    Args:
        source: any other data with labels.
        silhouettes: a folder of masks with a masks.json (see `MaskSilhouettes`); None: eight drawn figures.
        min_share, max_share: share of the pixels that the object covers, in (0, 1]: drawn uniformly; large shapes hang over the edge.
        background: "picture", "blurred" (the picture under the blur that stands for "nothing there") or "flat" (its mean color).
        image_seed: key of shapes, places and backgrounds; apart from `seed`, so that runs with different seeds are tested on the same images.
        num_classes: the source's; None takes it from there.

    Raises:
        UserError: for unknown settings; on reading, if the source has one class only or no silhouette can be read.

    Source: ours; after the pasted objects of Yang & Kim 2019 (BAM), which lie on scenes, not in their own shape.
    """

    def __init__(
        self,
        source: ImageData,
        silhouettes: str | Path | None = None,
        min_share: float = 0.4,
        max_share: float = 0.7,
        background: str = "picture",
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        augment: Augment | None = None,
        image_seed: int = 0,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, augment)
        if not 0 < min_share <= max_share <= 1:
            raise UserError(f"data.min_share and max_share must rise within (0, 1], got {min_share} and {max_share}")
        if background not in BACKGROUNDS:
            raise UserError(
                f"data.background must be picture, blurred or flat, got {background!r}; the nearest are {nearest(background, BACKGROUNDS)}"
            )
        if num_classes is not None and num_classes != source.num_classes:
            raise UserError(
                f"data.source has {source.num_classes} classes, got data.num_classes={num_classes}; leave it at null"
            )
        self.source, self.silhouettes, self.background, self.image_seed = source, silhouettes, background, image_seed
        self.min_share, self.max_share = min_share, max_share
        self.num_classes, self.class_names, self.image_size = source.num_classes, source.class_names, source.image_size

    def prepare_data(self) -> None:
        self.source.prepare_data()

    def make_dataset(self, split: str) -> CompositesDataset:
        shapes: Silhouettes = FigureSilhouettes() if self.silhouettes is None else MaskSilhouettes(self.silhouettes)
        source = self.source.dataset(split)
        return CompositesDataset(
            source, shapes, split, self.image_seed, self.min_share, self.max_share, self.background
        )
