"""Lists of boxes: both forms, both conventions of the last pixel, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import explainode
from explainode.data.boxes import BoxesData
from explainode.errors import UserError
from explainode.metrics.localization import fill_boxes

SHARED = Path(__file__).parents[3] / "shared" / "data" / "tiny_imagenet_boxes"


def make(root: Path, entries: list[dict], images: str = "images") -> Path:
    """Black pictures of 8x8 with the pixels 2..4 x 1..6 white."""
    (root / images).mkdir(parents=True, exist_ok=True)
    for entry in entries:
        picture = Image.new("RGB", (8, 8))
        picture.paste((255, 255, 255), (2, 1, 5, 7))
        picture.save(root / images / entry["file"])
    (root / "boxes.json").write_text(json.dumps({"images": entries}))
    return root


@pytest.mark.parametrize(("inclusive", "box"), [(True, [2, 1, 4, 6]), (False, [2, 1, 5, 7])])
@pytest.mark.parametrize("size", [8, 16])
def test_the_box_covers_what_the_picture_shows(tmp_path: Path, inclusive: bool, box: list[int], size: int) -> None:
    data = BoxesData(make(tmp_path, [{"file": "a.png", "boxes": [box], "label": 3}]), inclusive=inclusive, size=size)
    batch = data.dataset("test")[0]
    assert batch.boxes[0].tolist() == [[v * size / 8 for v in (2, 1, 5, 7)]] and batch.label.tolist() == [3]
    assert torch.equal(fill_boxes(batch.boxes, (size, size))[0] == 1, batch.image[0, 0] > 0.5)


def test_the_layout_of_tiny_imagenet(tmp_path: Path) -> None:
    entries = [
        {"file": f"val_{k}.png", "wnid": "n01443537", "imagenet_idx": 10 * k, "box_xyxy": [0, 0, 7, 3]}
        for k in range(3)
    ]
    data = explainode.get("data/tiny_imagenet_boxes", root=str(make(tmp_path, entries)), size=8)
    assert data.num_classes == 1000 and len(data.dataset("val")) == len(data.dataset("test")) == 3
    (batch,) = data.test_dataloader()
    assert batch.label.tolist() == [0, 10, 20] and batch.boxes[2].tolist() == [[0, 0, 8, 4]] and batch.mask is None
    with pytest.raises(UserError, match="BoxesData has no training pictures"):
        data.dataset("train")


def test_none_or_several_boxes_and_no_label(tmp_path: Path) -> None:
    root = make(
        tmp_path, [{"file": "a.png", "boxes": []}, {"file": "b.png", "boxes": [[0, 0, 2, 2], [4, 4, 8, 8]]}], images="."
    )
    data = BoxesData(root, images=".", size=8, class_names=["x", "y"])
    assert data.num_classes == 2
    (batch,) = data.test_dataloader()
    assert [len(b) for b in batch.boxes] == [0, 2] and batch.label.tolist() == [-1, -1]


def test_messages(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*boxes\.json; it lists the pictures"):
        BoxesData(tmp_path).dataset("test")
    for text in (
        "{",
        "[]",
        '{"images": [{"file": "a.png"}]}',
        '{"images": [{"file": "a.png", "boxes": [[1, 2, 3]]}]}',
        '{"images": [{"boxes": []}]}',
    ):
        (tmp_path / "boxes.json").write_text(text)
        with pytest.raises(UserError, match="is not a list of boxes"):
            BoxesData(tmp_path).dataset("test")
    data = BoxesData(make(tmp_path, [{"file": "a.png", "boxes": [[5, 1, 5, 7]]}]), size=8)
    assert list(data.test_dataloader()) == []
    assert "ends before it begins" in data.skipped[str(tmp_path / "images" / "a.png")]


@pytest.mark.skipif(not SHARED.is_dir(), reason="tiny_imagenet_boxes is not there")
def test_real_boxes() -> None:
    data = explainode.get("data/tiny_imagenet_boxes", root=str(SHARED), size=64)
    batch = data.dataset("test").__getitems__(list(range(0, 2000, 40)))
    assert len(batch) == 50 and not batch.skipped and all(len(b) == 1 for b in batch.boxes)
    share = fill_boxes(batch.boxes, (64, 64)).double().mean()
    assert 0.35 < share < 0.7  # 52 % over all of them
