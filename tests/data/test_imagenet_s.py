"""ImageNet-S' folders, made small: the class in two of three colors, and where labels come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import explainode
from explainode.data.imagenet_s import ImageNetSData
from explainode.errors import UserError

WNIDS = ["n01440764", "n01443537", "n02084071", "n02089867"]


def write(root: Path, wnid: str, name: str, numbers: np.ndarray, split: str = "validation") -> None:
    """The picture shows the mask's R and G as red and green."""
    colors = np.stack([numbers % 256, numbers // 256, np.zeros_like(numbers)], -1).astype(np.uint8)
    for folder, suffix, kind in ((split, "JPEG", "PNG"), (f"{split}-segmentation", "png", "PNG")):
        path = root / folder / wnid / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colors).save(path, kind)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for k, wnid in enumerate(WNIDS, 1):
        for n in range(2):
            write(tmp_path, wnid, f"ILSVRC2012_val_{10 * k + n:08d}", rng.choice([0, k, 1 + k % 4, 1000], (10, 16)))
    write(tmp_path, WNIDS[2], "semi", np.full((9, 9), 3), "train-semi")
    for wnid in (WNIDS[0], WNIDS[1], WNIDS[3]):
        write(tmp_path, wnid, "semi", np.full((9, 9), WNIDS.index(wnid) + 1), "train-semi")
    return tmp_path


@pytest.mark.parametrize("target", ["own", "foreground"])
def test_masks_are_read_from_red_and_green(root: Path, target: str) -> None:
    data = explainode.get("data/imagenet_s", root=str(root), target=target, num_classes=4, size=10)
    (batch,) = data.test_dataloader()
    assert batch.label.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and len(data.dataset("val")) == 8
    number = (batch.image[:, :2] * 255).round().long()
    number = number[:, 0] + 256 * number[:, 1]
    own = number == batch.label[:, None, None] + 1
    expected = own if target == "own" else (number > 0) & (number < 1000)
    assert torch.equal(batch.mask, torch.where(number == 1000, -1, expected.long()))
    assert {-1, 0, 1} == set(batch.mask.unique().tolist())
    train = data.dataset("train")
    assert len(train) == 4 and (train[2].mask == 1).all() and train[2].label.tolist() == [2]


def test_classes_beyond_255(tmp_path: Path) -> None:
    """Class 300 is stored as R 44, G 1; 44 alone is another class."""
    wnids = [f"n{k:08d}" for k in range(1, 301)]
    (tmp_path / "categories.txt").write_text("\n".join(reversed(wnids)))
    write(tmp_path, wnids[-1], "a", np.where(np.eye(10) > 0, 300, 44))
    data = ImageNetSData(
        tmp_path, categories=tmp_path / "categories.txt", synsets=tmp_path / "categories.txt", num_classes=300, size=10
    )
    batch = data.dataset("test")[0]
    assert torch.equal(batch.mask[0], torch.eye(10, dtype=torch.int64))
    assert batch.label.tolist() == [0]  # the network's order is that of `synsets`, the masks' that of the sorted ones


def test_labels_of_a_network_of_more_classes(root: Path) -> None:
    order = ["n00000001", WNIDS[3], WNIDS[0], "n00000002", WNIDS[1], WNIDS[2]]
    (root / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} some name, other\n" for wnid in order))
    data = ImageNetSData(root, synsets=root / "LOC_synset_mapping.txt", num_classes=6, size=10)
    assert data.dataset("test").__getitems__([0, 2, 4, 6]).label.tolist() == [2, 4, 5, 1]


def test_messages(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be own or foreground"):
        ImageNetSData(root, "all")
    with pytest.raises(UserError, match=r"4 synsets in .*validation, but data\.num_classes=1000; name the list"):
        ImageNetSData(root).dataset("test")
    with pytest.raises(UserError, match=r"no folder .*validation-segmentation; give the folder of ImageNet-S"):
        (tmp_path / "bare" / "validation").mkdir(parents=True)
        ImageNetSData(tmp_path / "bare").dataset("test")
    with pytest.raises(UserError, match=r"none\.txt cannot be read as a list with one synset a line"):
        ImageNetSData(root, synsets="none.txt", num_classes=4).dataset("test")
    (root / "few.txt").write_text("\n".join([*WNIDS[:3], "n09999999"]))
    with pytest.raises(UserError, match=r"is of synset 'n02089867', which is not among the 4"):
        ImageNetSData(root, categories=root / "few.txt", num_classes=4).dataset("test")
    first = next((root / "validation-segmentation" / WNIDS[0]).iterdir())
    Image.new("L", (16, 10)).save(first)
    write(root, WNIDS[3], "ILSVRC2012_val_00000040", np.full((10, 16), 2))  # as if a class folder were missing
    (root / "validation-segmentation" / WNIDS[1] / "ILSVRC2012_val_00000020.png").unlink()
    data = ImageNetSData(root, num_classes=4, size=10)
    (batch,) = data.test_dataloader()
    assert batch.sample_id.tolist() == [1, 3, 4, 5, 7]
    reasons = sorted(data.skipped.values())
    assert any("has one number per pixel" in r for r in reasons) and any(
        "no pixel of its own class 4 (n02089867)" in r for r in reasons
    )
    assert any(r.startswith("no mask ") for r in reasons)
