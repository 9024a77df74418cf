"""PASCAL VOC's XML files of boxes, which ImageNet and Oxford-IIIT Pet have taken over with coordinates of their own."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from explainode.errors import UserError


def read_boxes(path: Path, name: str | None = None) -> np.ndarray:
    """(n, 4) boxes xmin, ymin, xmax, ymax as they stand in the file, of the objects called `name`; None: of all.

    Where pixels are counted from, and whether the last one is inside, is the data set's own.

    Raises:
        UserError: if it is not such a file.
    """
    try:
        found = [
            [float(box.findtext(key, "")) for key in ("xmin", "ymin", "xmax", "ymax")]
            for item in ElementTree.parse(path).iter("object")
            if name in (None, item.findtext("name")) and (box := item.find("bndbox")) is not None
        ]
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise UserError(f"{path} is not a file of boxes that can be read ({error}); get it anew") from error
    return np.asarray(found, dtype=np.float64).reshape(-1, 4)
