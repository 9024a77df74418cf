"""Oxford-IIIT Pet's folders, made small: trimaps, both kinds of labels, heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import OxfordIIITPet

import explainode
from explainode.data.oxford_pet import OxfordPetData
from explainode.errors import UserError

TEST = [("Abyssinian_201", 1, 1, 1), ("english_setter_7", 14, 2, 8), ("Sphynx_3", 34, 1, 12)]
TRAIN = [("Abyssinian_1", 1, 1, 1), ("pug_2", 26, 2, 18)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    base, rng = tmp_path / "oxford-iiit-pet", np.random.default_rng(0)
    for folder in ("images", "annotations/trimaps", "annotations/xmls"):
        (base / folder).mkdir(parents=True)
    for name, *_ in TEST + TRAIN:
        trimap = rng.integers(1, 4, (10, 14), dtype=np.uint8)
        Image.fromarray(trimap).convert("RGB").save(base / "images" / f"{name}.jpg", "PNG")
        Image.fromarray(trimap).save(base / "annotations/trimaps" / f"{name}.png")
    (base / "annotations/xmls/pug_2.xml").write_text(
        "<annotation><object><name>dog</name><bndbox><xmin>4</xmin><ymin>2</ymin><xmax>7</xmax><ymax>5</ymax></bndbox></object></annotation>"
    )
    for name, rows in (("test", TEST), ("trainval", TRAIN)):
        (base / "annotations" / f"{name}.txt").write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))
    return tmp_path


def test_trimaps_and_labels(root: Path) -> None:
    data = explainode.get("data/oxford_pet", root=str(root), size=10)
    (batch,) = data.test_dataloader()
    shown = (batch.image[:, 0] * 255).round().long()
    assert torch.equal(batch.mask, (shown == 1).long() - (shown == 3).long()) and batch.boxes is None
    assert batch.label.tolist() == [0, 13, 33] and data.num_classes == 37
    assert (
        data.class_names[13] == "english setter" and data.class_names[0] == "Abyssinian" and len(data.class_names) == 37
    )
    assert len(data.dataset("train")) == 2
    species = OxfordPetData(root / "oxford-iiit-pet", "species", size=10)
    assert species.dataset("val").__getitems__([0, 1, 2]).label.tolist() == [0, 1, 0] and species.class_names == [
        "cat",
        "dog",
    ]


def test_the_same_pictures_and_labels_as_torchvision(root: Path) -> None:
    """torchvision reads this layout too."""
    peer = OxfordIIITPet(str(root), split="test", target_types=["category", "binary-category", "segmentation"])
    ours = OxfordPetData(root, size=10).dataset("test").__getitems__([0, 1, 2])
    for k in range(3):
        _, (breed, _, trimap) = peer[k]
        plane = np.array(trimap)[:, 2:12]
        assert ours.label[k] == breed and torch.equal(ours.mask[k] == 1, torch.from_numpy(plane == 1))


def test_heads(root: Path) -> None:
    """Columns 4..7 counted from 1 are 3 to 7 from 0, and the central square begins at column 2."""
    train = OxfordPetData(root, heads=True, size=10).dataset("train").__getitems__([0, 1])
    assert [box.tolist() for box in train.boxes] == [[], [[1, 1, 5, 5]]]


def test_messages(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be breed or species"):
        OxfordPetData(root, "color")
    with pytest.raises(UserError, match=r"has 2 classes, got data\.num_classes=37"):
        OxfordPetData(root, "species", num_classes=37)
    with pytest.raises(UserError, match="no folder annotations in"):
        OxfordPetData(root / "oxford-iiit-pet" / "images").dataset("test")
    base = root / "oxford-iiit-pet" / "annotations"
    Image.fromarray(np.zeros((10, 14), np.uint8)).save(base / "trimaps" / "Sphynx_3.png")
    Image.fromarray(np.ones((10, 13), np.uint8)).save(base / "trimaps" / "Abyssinian_201.png")
    data = OxfordPetData(root, size=10)
    (batch,) = data.test_dataloader()
    assert batch.sample_id.tolist() == [1]
    assert any("holds 0..0; expected 1 (pet), 2 (background), 3 (border)" in r for r in data.skipped.values())
    assert any("must be of one size" in r for r in data.skipped.values())
    for text, words in (
        ("Abyssinian_201 x 1 1", "is not a list of pictures"),
        ("Abyssinian_201 38 1 1", "is of breed 38; expected 1..37"),
    ):
        (base / "test.txt").write_text(text)
        with pytest.raises(UserError, match=words):
            OxfordPetData(root).dataset("test")
    (base / "test.txt").unlink()
    with pytest.raises(UserError, match="is not a list of pictures"):
        OxfordPetData(root).dataset("test")
