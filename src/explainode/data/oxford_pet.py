"""Oxford-IIIT Pet: cats and dogs of 37 breeds with trimaps of the whole animal."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from explainode.data.annotated import BOXES, MASK, AnnotatedData, Record, read_plane
from explainode.data.augment import Augment
from explainode.data.voc_xml import read_boxes
from explainode.errors import UserError, nearest

LABELS = {"breed": 37, "species": 2}
SPECIES = ("cat", "dog")

_CODES = np.array([0, 1, 0, -1])  # of a trimap: 1 foreground, 2 background, 3 the border between them
_FIRST_PIXEL = np.array(
    [1, 1, 0, 0]
)  # as in VOC, whose form the XML files have: counted from 1 with the last pixel inside


class PetRecord(Record):
    """A picture, its trimap, and the box of the head where there is one (training pictures only)."""

    def __init__(self, path: Path, label: int, trimap: Path, head: Path) -> None:
        super().__init__(path, label)
        self.trimap, self.head = trimap, head

    def read_mask(self) -> np.ndarray:
        """(H, W).

        Raises:
            UserError: if the trimap is missing, damaged, in colors, or holds other values than 1, 2 and 3.
        """
        stored = read_plane(self.trimap, "trimap")
        if stored.min() < 1 or stored.max() > 3:
            raise UserError(
                f"the trimap {self.trimap} holds {stored.min()}..{stored.max()}; expected 1 (pet), 2 (background), 3 (border)"
            )
        return _CODES[stored]

    def read_boxes(self) -> np.ndarray:
        """(n, 4) boxes of the head; none without a file."""
        return read_boxes(self.head) - _FIRST_PIXEL if self.head.is_file() else np.zeros((0, 4))


class OxfordPetData(AnnotatedData):
    """`images/*.jpg`, `annotations/trimaps/*.png`, `annotations/{trainval,test}.txt` and `annotations/xmls/*.xml`, in root or root/oxford-iiit-pet.

    The border of a trimap (3) is ignored. "train" is trainval.txt, "val" and "test" both test.txt.

    Args:
        labels: "breed" (37 classes) or "species" (cat 0, dog 1).
        heads: read the boxes of the heads as well, not of the whole animals; pictures of the test list have none.
        size: see `AnnotatedData`.
        num_classes: 37 for breeds, 2 for species; None: as many as the labels have.

    Raises:
        UserError: for unknown labels; when a split is asked for, naming what is missing.

    Source: Parkhi et al. 2012 and its read-me.
    """

    provides = frozenset({MASK})
    test_only = False

    def __init__(
        self,
        root: str | Path,
        labels: str = "breed",
        heads: bool = False,
        size: int = 224,
        num_classes: int | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        if labels not in LABELS:
            raise UserError(
                f"data.labels must be breed or species, got {labels!r}; the nearest are {nearest(labels, LABELS)}"
            )
        if num_classes not in (None, LABELS[labels]):
            raise UserError(
                f"data.labels={labels} has {LABELS[labels]} classes, got data.num_classes={num_classes}; leave it at null"
            )
        super().__init__(root, size, (), LABELS[labels], batch_size, num_workers, seed, augment)
        self.labels = labels
        self.class_names = list(SPECIES) if labels == "species" else []
        self.provides = frozenset({MASK, BOXES} if heads else {MASK})

    def records(self, split: str) -> list[PetRecord]:
        base = next(
            (p for place in ("", "oxford-iiit-pet") if ((p := self.root / place) / "annotations").is_dir()), None
        )
        if base is None:
            raise UserError(f"no folder annotations in {self.root}; unpack images.tar.gz and annotations.tar.gz there")
        path = base / "annotations" / ("trainval.txt" if split == "train" else "test.txt")
        try:
            rows = [
                line.split()
                for line in path.read_text(encoding="utf-8").splitlines()
                if line.strip() and not line.startswith("#")
            ]
            listed = [(row[0], int(row[1]) - 1, int(row[2]) - 1) for row in rows]
        except (OSError, UnicodeDecodeError, ValueError, IndexError) as error:
            raise UserError(
                f"{path} is not a list of pictures ({error}); expected lines 'name class species breed'"
            ) from error
        if self.labels == "breed":
            names = {breed: name.rpartition("_")[0].replace("_", " ") for name, breed, _ in listed}
            self.class_names = [names.get(k, f"breed {k + 1}") for k in range(self.num_classes)]
        records = []
        for name, breed, species in listed:
            label = breed if self.labels == "breed" else species
            if not 0 <= label < self.num_classes:
                raise UserError(f"{path}: {name} is of {self.labels} {label + 1}; expected 1..{self.num_classes}")
            trimap, head = (base / "annotations" / place for place in (f"trimaps/{name}.png", f"xmls/{name}.xml"))
            records.append(PetRecord(base / "images" / f"{name}.jpg", label, trimap, head))
        return records
