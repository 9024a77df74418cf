"""Pictures and where people looked at them: a folder of images beside a folder of fixation maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from explainode.data.annotated import FIXATION_MAP, FIXATION_POINTS, AnnotatedData, Record, read_plane
from explainode.data.augment import Augment
from explainode.data.image_folder import find_pictures
from explainode.errors import UserError


class SaliencyRecord(Record):
    """A picture, its fixation map and, where there are, its fixation points."""

    def __init__(self, path: Path, fixation_map: Path, fixation_points: Path | None) -> None:
        super().__init__(path)
        self.fixation_map, self.fixation_points = fixation_map, fixation_points

    def read_fixation_map(self) -> np.ndarray:
        """(H, W) floats >= 0, as they are stored: metrics normalize them.

        Raises:
            UserError: if the map is missing, damaged, negative, not finite, or zero everywhere.
        """
        density = read_plane(self.fixation_map, "fixation map").astype(np.float32)
        if not (np.isfinite(density).all() and density.min() >= 0 and density.max() > 0):
            raise UserError(
                f"the fixation map {self.fixation_map} must be finite, nowhere negative and somewhere positive"
            )
        return density

    def read_fixation_points(self) -> np.ndarray:
        """(H, W) bool: every pixel that is not 0."""
        assert self.fixation_points is not None
        return read_plane(self.fixation_points, "map of fixation points") != 0


class SaliencyFolderData(AnnotatedData):
    """`root/images/NAME.jpg` with `root/fixation_maps/NAME.png`, as MIT1003, CAT2000 or SALICON can be laid out. There is no training split.

    A map belongs to the picture of the same name; folders below images are kept below the maps' folder. Classes are not known (label -1):
    the network's prediction is explained.

    Args:
        images, maps: folders in root.
        points: folder in root of pictures whose pixels other than 0 were fixated; None: there are none, and metrics that need fixation points
            refuse.
        size: see `AnnotatedData`.
        num_classes: of the network; None: as many as it has.

    Raises:
        UserError: when a split is asked for, if a folder is missing or no picture has a map.
    """

    def __init__(
        self,
        root: str | Path,
        images: str = "images",
        maps: str = "fixation_maps",
        points: str | None = None,
        size: int = 224,
        num_classes: int | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        super().__init__(root, size, (), num_classes or 0, batch_size, num_workers, seed, augment)
        self.images, self.maps, self.points = images, maps, points
        self.provides = frozenset({FIXATION_MAP} | ({FIXATION_POINTS} if points else set()))

    def records(self, split: str) -> list[SaliencyRecord]:
        folder = self._folder(self.images)
        maps = self._by_name(self.maps)
        points = self._by_name(self.points) if self.points else {}
        paths = find_pictures(folder)
        names = [path.relative_to(folder).with_suffix("") for path in paths]
        if paths and not any(name in maps for name in names):
            raise UserError(
                f"no picture in {folder} has a map of its name in {self.root / self.maps}; expected {names[0]}.png there"
            )
        # a map that is missing is looked for where it should be, and said when its picture is asked for
        return [
            SaliencyRecord(
                path,
                maps.get(name, self.root / self.maps / f"{name}.png"),
                points.get(name, self.root / self.points / f"{name}.png") if self.points else None,
            )
            for path, name in zip(paths, names, strict=True)
        ]

    def _folder(self, name: str) -> Path:
        folder = self.root / name
        if not folder.is_dir():
            raise UserError(
                f"no folder {folder}; pictures are expected in {self.root / self.images} and their maps in {self.root / self.maps}"
            )
        return folder

    def _by_name(self, name: str) -> dict[Path, Path]:
        """The pictures of a folder by their path in it, without the suffix."""
        folder = self._folder(name)
        return {path.relative_to(folder).with_suffix(""): path for path in find_pictures(folder)}
