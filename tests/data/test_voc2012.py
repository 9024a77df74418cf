"""VOC 2012's folders, made small: which object counts, what is ignored, boxes, lists, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import explainode
from explainode.data.voc2012 import CLASS_NAMES, VOC2012Data
from explainode.errors import UserError
from explainode.evaluation import evaluate, in_batches
from explainode.explainers.gradient import Saliency
from explainode.metrics.localization import SegmentationAgreement, fill_boxes

SHARED = Path(__file__).parents[3] / "shared" / "data" / "voc_masks"
CAT, DOG, COW, PERSON = (CLASS_NAMES.index(name) for name in ("cat", "dog", "cow", "person"))


def save_mask(path: Path, plane: np.ndarray) -> None:
    """As VOC stores them: palette pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(plane.astype(np.uint8)).convert("P")
    image.putpalette([value for k in range(256) for value in (k, 255 - k, 0)])
    image.putdata(plane.astype(np.uint8).ravel().tolist())
    image.save(path)


def make(root: Path, planes: dict[str, np.ndarray], boxes: dict[str, list[tuple]] | None = None) -> Path:
    """Pictures that show their masks' numbers; train.txt and val.txt list all of them, in opposite orders."""
    base = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for name, plane in planes.items():
        Image.fromarray(plane.astype(np.uint8)).convert("RGB").save(
            base / "JPEGImages" / f"{name}.jpg", "PNG"
        )  # lossless
        save_mask(base / "SegmentationClass" / f"{name}.png", plane)
        objects = "".join(
            f"<object><name>{CLASS_NAMES[k]}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
            "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"
            for k, a, b, c, d in (boxes or {}).get(name, [])
        )
        (base / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    (base / "ImageSets/Segmentation/val.txt").write_text("\n".join(planes) + "\n")
    (base / "ImageSets/Segmentation/train.txt").write_text("\n".join(reversed(planes)) + "\n")
    return root


def plane(*objects: tuple[int, slice, slice], size: tuple[int, int] = (12, 12)) -> np.ndarray:
    drawn = np.zeros(size, dtype=np.int64)
    for value, rows, columns in objects:
        drawn[rows, columns] = value
    return drawn


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small cat with a border beside a large dog; a person alone; nothing but void."""
    both = plane(
        (255, slice(0, 4), slice(0, 4)), (CAT + 1, slice(1, 3), slice(1, 3)), (DOG + 1, slice(6, 12), slice(5, 12))
    )
    planes = {
        "both": both,
        "person": plane((PERSON + 1, slice(2, 5), slice(2, 9))),
        "void": plane((255, slice(0, 9), slice(0, 9))),
    }
    # as in VOC, pixels are counted from 1 and the last one is inside
    boxes = {"both": [(CAT, 2, 2, 3, 3), (DOG, 6, 7, 12, 12)], "person": [(PERSON, 3, 3, 9, 5)]}
    return make(tmp_path, planes, boxes)


@pytest.mark.parametrize("target", ["largest", "foreground"])
def test_masks_and_boxes_are_those_of_the_target(root: Path, target: str) -> None:
    data = explainode.get("data/voc2012", root=str(root), target=target, size=12)
    (batch,) = data.test_dataloader()
    shown = (batch.image[:, 0] * 255).round().long()
    counted = [DOG + 1, PERSON + 1] + ([CAT + 1] if target == "foreground" else [])
    expected = torch.isin(shown, torch.tensor(counted)).long() - (shown == 255).long()
    assert torch.equal(batch.mask, expected) and batch.mask[0].sum() != 0
    assert batch.label.tolist() == [DOG, PERSON, -1] and data.num_classes == 20
    filled = fill_boxes(batch.boxes, (12, 12))
    assert torch.equal(filled[:2], (batch.mask == 1).long()[:2]) and len(batch.boxes[2]) == 0


def test_classes_that_do_not_count_are_ignored(root: Path) -> None:
    """Without dogs the cat is the largest; a picture that shows none that counts has no object and no label."""
    for target in ("largest", "foreground"):
        data = VOC2012Data(root, target, ["cat", "cow"], size=12)
        (batch,) = data.test_dataloader()
        shown = (batch.image[:, 0] * 255).round().long()
        assert torch.equal(batch.mask == 1, shown == CAT + 1)
        assert torch.equal(batch.mask == -1, torch.isin(shown, torch.tensor([DOG + 1, PERSON + 1, 255])))
        assert batch.label.tolist() == [CAT, -1, -1] and [len(b) for b in batch.boxes] == [1, 0, 0]


def test_metrics_count_pictures_without_an_object(root: Path) -> None:
    data = VOC2012Data(root, size=12)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(400, 20))
    results = evaluate(net, {"s": Saliency()}, {"seg": SegmentationAgreement()}, data.test_dataloader(), n=3)
    (row,) = [row for row in results.rows if row.metric == "seg.miou_per_image"]
    assert (row.n, row.excluded) == (2, 1)
    assert next(iter(in_batches(torch.rand(1, 3, 4, 4)))).mask is None


def test_lists_and_the_folder_itself(root: Path) -> None:
    base = root / "VOCdevkit" / "VOC2012"
    names = {
        split: [r.path.stem for r in VOC2012Data(base).dataset(split).records] for split in ("train", "val", "test")
    }
    assert names["train"] == ["void", "person", "both"] and names["val"] == names["test"] == ["both", "person", "void"]
    assert [r.path.stem for r in VOC2012Data(root, test_list="train").dataset("test").records] == names["train"]
    shutil.move(base / "SegmentationClass", base / "Other")
    shutil.rmtree(base / "Annotations")
    batch = VOC2012Data(root, masks="Other", boxes=False, size=12).dataset("test").__getitems__([0, 1])
    assert batch.boxes is None and batch.label.tolist() == [DOG, PERSON]


def test_the_mask_follows_the_central_square(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wide = rng.choice([0, CAT + 1, 255], (12, 20))
    (batch,) = VOC2012Data(make(tmp_path, {"wide": wide}), size=12).test_dataloader()
    shown = (batch.image[0, 0] * 255).round().long()
    assert torch.equal(shown, torch.from_numpy(wide[:, 4:16]))
    assert torch.equal(batch.mask[0], (shown == CAT + 1).long() - (shown == 255).long())


def test_bad_files_are_named_and_skipped(root: Path) -> None:
    base = root / "VOCdevkit" / "VOC2012"
    save_mask(base / "SegmentationClass" / "both.png", plane((DOG + 1, slice(0, 5), slice(0, 5)), size=(11, 12)))
    Image.new("RGB", (12, 12)).save(base / "SegmentationClass" / "person.png")
    save_mask(base / "SegmentationClass" / "void.png", plane((21, slice(0, 2), slice(0, 2))))
    data = VOC2012Data(root, size=12)
    assert list(data.test_dataloader()) == []
    reasons = {Path(path).stem: reason for path, reason in data.skipped.items()}
    assert "has 12x11 pixels, but the picture 12x12" in reasons["both"]
    assert "picture in colors" in reasons["person"]
    assert "holds the value 21; expected 0, the classes 1..20 and 255" in reasons["void"]


def test_messages(tmp_path: Path, root: Path) -> None:
    with pytest.raises(UserError, match="must be largest or foreground, got 'biggest'"):
        VOC2012Data(root, "biggest")
    with pytest.raises(UserError, match="VOC has no class 'airplane'; the nearest are aeroplane"):
        VOC2012Data(root, classes=["airplane"])
    with pytest.raises(UserError, match="model=imagenet_as_voc"):
        VOC2012Data(root, num_classes=1000)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no folder JPEGImages in"):
        VOC2012Data(tmp_path / "empty").dataset("test")
    with pytest.raises(UserError, match=r"trainaug.txt cannot be read as a list of pictures"):
        VOC2012Data(root, test_list="trainaug").dataset("test")
    with pytest.raises(UserError, match="no folder"):
        VOC2012Data(tmp_path / "nowhere").dataset("test")


@pytest.mark.skipif(not SHARED.is_dir(), reason="voc_masks is not there")
def test_real_pictures(tmp_path: Path) -> None:
    """Three pictures of VOC in its layout: masks against their own numbers, boxes around what the mask shows."""
    base = tmp_path / "VOC2012"
    for source, folder in (("images", "JPEGImages"), ("masks", "SegmentationClass"), ("boxes", "Annotations")):
        shutil.copytree(SHARED / source, base / folder)
    names = sorted(path.stem for path in (SHARED / "images").iterdir())
    (base / "ImageSets/Segmentation").mkdir(parents=True)
    (base / "ImageSets/Segmentation/val.txt").write_text("\n".join(names))
    data = VOC2012Data(tmp_path, size=224, test_list="val")
    (batch,) = data.test_dataloader()
    assert not batch.skipped and [CLASS_NAMES[k] for k in batch.label] == ["person", "chair", "bus"]
    for k, name in enumerate(names):
        stored = np.array(Image.open(SHARED / "masks" / f"{name}.png"))
        assert batch.label[k] == np.bincount(stored.ravel())[1:21].argmax()
        side, height, width = min(stored.shape), *stored.shape
        square = stored[(height - side) // 2 :, (width - side) // 2 :][:side, :side]
        assert abs((batch.mask[k] == 1).double().mean() - (square == batch.label[k].item() + 1).mean()) < 0.005
        inside = fill_boxes([batch.boxes[k]], (224, 224))[0] == 1
        if len(batch.boxes[k]):  # these files list persons, buses and cars, but no chairs
            assert (inside | (batch.mask[k] != 1)).double().mean() > 0.99  # the object lies in its boxes
    assert [len(box) for box in batch.boxes] == [2, 0, 2]
