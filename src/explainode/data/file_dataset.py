"""What data sets of files share: a row that cannot be read is named and left out, or replaced by its neighbor while training."""

from __future__ import annotations

from pathlib import Path
from typing import Generic, TypeVar

from explainode.data.batch import Batch
from explainode.errors import UserError

Item = TypeVar("Item")

_STAND_INS = 20  # neighbors tried for an unreadable training picture: a folder of nothing but bad files must not be read over and over


def check_size(size: int) -> int:
    """`size` if pictures can be brought to size x size pixels.

    Raises:
        UserError: otherwise.
    """
    if size < 2:
        raise UserError(f"data.size must be at least 2 pixels, got {size}")
    return size


class FileDataset(Generic[Item]):
    """Items by position, each read when it is asked for: a subclass says how many there are, their paths, how to load one, and makes batches.

    Args:
        size: pictures are cut to their central square and resized to size x size.
        replace: put the next readable item where one cannot be read, so that training batches keep their size (ranks that disagree about
            it wait for each other forever); otherwise its row is left out.
    """

    def __init__(self, size: int, class_names: list[str], num_classes: int, replace: bool = False) -> None:
        self.size, self.class_names, self.num_classes, self.replace = size, class_names, num_classes, replace

    def __len__(self) -> int:
        raise NotImplementedError

    def path(self, position: int) -> Path:
        """The file that names the item."""
        raise NotImplementedError

    def load(self, position: int) -> Item:
        """The item itself.

        Raises:
            UserError: if it cannot be read.
        """
        raise NotImplementedError

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([range(len(self))[index]])

    def __getitems__(self, indices: list[int]) -> Batch:
        raise NotImplementedError

    def read(self, indices: list[int]) -> tuple[list[int], list[Item], dict[str, str]]:
        """Positions and items that could be read, in order, and path -> reason of those that could not."""
        positions: list[int] = []
        items: list[Item] = []
        skipped: dict[str, str] = {}
        for index in indices:
            for k in range(min(len(self), _STAND_INS + 1 if self.replace else 1)):
                position = (index + k) % len(self)
                try:
                    items.append(self.load(position))
                except UserError as error:
                    skipped[str(self.path(position))] = str(error)
                else:
                    positions.append(position)
                    break
        return positions, items, skipped
