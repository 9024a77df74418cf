"""ImageNet's layouts, made small: class folders, flat validation, the solution file, XML boxes, the devkit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from explainode.data.imagenet import ImageNetData
from explainode.data.voc_xml import read_boxes
from explainode.errors import UserError

WNIDS = ["n01440764", "n01443537", "n02084071"]
NAMES = [f"ILSVRC2012_val_{k:08d}" for k in range(1, 5)]  # of the classes 2, 0, 1, 1
CLASSES = [2, 0, 1, 1]


def picture(path: Path) -> None:
    """20x10 pixels; the central square begins at column 5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10), (200, 0, 0)).save(path, "JPEG")


def xml(path: Path, objects: list[tuple[str, int, int, int, int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    items = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for name, a, b, c, d in objects
    )
    path.write_text(f"<annotation><size><width>20</width></size>{items}</annotation>")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The archive's own folders: ILSVRC/Data/CLS-LOC, ILSVRC/Annotations/CLS-LOC, the mapping and the solution beside them."""
    (tmp_path / "LOC_synset_mapping.txt").write_text(
        "".join(f"{wnid} name {k}, other\n" for k, wnid in enumerate(WNIDS))
    )
    data, boxes = tmp_path / "ILSVRC/Data/CLS-LOC", tmp_path / "ILSVRC/Annotations/CLS-LOC"
    for k, wnid in enumerate(WNIDS):
        for n in range(k + 1):
            picture(data / "train" / wnid / f"{wnid}_{n}.JPEG")
        xml(boxes / "train" / wnid / f"{wnid}_0.xml", [(wnid, 6, 2, 8, 4), ("n09999999", 0, 0, 19, 9)])
    for name in NAMES:
        picture(data / "val" / f"{name}.JPEG")
    lines = [f"{name},{WNIDS[k]} 5 0 14 9 {WNIDS[k]} 7 2 30 3 " for name, k in zip(NAMES, CLASSES, strict=True)]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(lines)]) + "\n")
    return tmp_path


def test_the_archive_with_its_solution(archive: Path) -> None:
    data = ImageNetData(archive, num_classes=3, size=10)
    for split in ("val", "test"):
        batch = data.dataset(split).__getitems__([0, 1, 2, 3])
        assert batch.label.tolist() == CLASSES
        assert batch.boxes[0].tolist() == [
            [0, 0, 10, 10],
            [2, 2, 10, 4],
        ]  # the last pixel is inside; the second is clipped


def test_training_pictures_have_the_boxes_of_their_xml_or_none(archive: Path) -> None:
    batch = ImageNetData(archive, num_classes=3, size=20).dataset("train").__getitems__(list(range(6)))
    assert batch.label.tolist() == [0, 1, 1, 2, 2, 2]
    # in a picture twice as large: columns 6..8 of the square from 5 are 1..3, so 2 to 8; another synset's box is not the picture's
    assert [box.tolist() for box in batch.boxes] == [[[2, 4, 8, 10]], [[2, 4, 8, 10]], [], [[2, 4, 8, 10]], [], []]


def test_plain_folders_and_a_flat_validation_with_xml(tmp_path: Path) -> None:
    for wnid in WNIDS:
        picture(tmp_path / "train" / wnid / "0.JPEG")
    for name, k in zip(NAMES, CLASSES, strict=True):
        picture(tmp_path / "val" / f"{name}.JPEG")
        xml(tmp_path / "Annotations" / "val" / f"{name}.xml", [(WNIDS[k], 5, 0, 14, 9)])
    data = ImageNetData(tmp_path, num_classes=3, size=10)
    batch = data.dataset("val").__getitems__([0, 1, 2, 3])
    assert batch.label.tolist() == CLASSES and all(box.tolist() == [[0, 0, 10, 10]] for box in batch.boxes)
    (tmp_path / "Annotations" / "val" / f"{NAMES[2]}.xml").write_text("<annotation>")
    with pytest.raises(UserError, match=f"{NAMES[2]}.xml is not a file of boxes"):
        ImageNetData(tmp_path, num_classes=3, size=10).dataset("val")


def test_validation_in_class_folders_without_boxes(tmp_path: Path) -> None:
    for name, k in zip(NAMES, CLASSES, strict=True):
        picture(tmp_path / "val" / WNIDS[k] / f"{name}.JPEG")
    (batch,) = ImageNetData(tmp_path, num_classes=3, size=10).val_dataloader()
    assert batch.label.tolist() == sorted(CLASSES) and all(len(box) == 0 for box in batch.boxes)


def test_the_devkit_numbers_classes_in_its_own_order(tmp_path: Path) -> None:
    """Without sorted order: ILSVRC's number 1 is the last synset here."""
    io = pytest.importorskip("scipy.io", reason="the devkit's meta.mat needs scipy")
    for name in NAMES:
        picture(tmp_path / "val" / f"{name}.JPEG")
    (tmp_path / "synsets.txt").write_text("\n".join(WNIDS))
    own = {1: WNIDS[2], 2: WNIDS[0], 3: WNIDS[1], 1001: "n00001740"}
    meta = np.array(list(own.items()), dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")])
    (tmp_path / "devkit" / "data").mkdir(parents=True)
    io.savemat(tmp_path / "devkit" / "data" / "meta.mat", {"synsets": meta})
    (tmp_path / "devkit" / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n3\n3\n")
    data = ImageNetData(tmp_path, tmp_path / "synsets.txt", tmp_path / "devkit", size=10, num_classes=3)
    assert data.dataset("val").__getitems__([0, 1, 2, 3]).label.tolist() == CLASSES
    picture(tmp_path / "val" / "mine.JPEG")
    with pytest.raises(UserError, match=r"mine\.JPEG is not among the 4 pictures of the devkit's ground truth"):
        ImageNetData(tmp_path, tmp_path / "synsets.txt", tmp_path / "devkit", size=10, num_classes=3).dataset("val")
    with pytest.raises(UserError, match="does not hold the devkit's"):
        ImageNetData(tmp_path, tmp_path / "synsets.txt", tmp_path, size=10, num_classes=3).dataset("val")


def test_messages(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*empty/val, nor .*CLS-LOC/val"):
        (tmp_path / "empty").mkdir()
        ImageNetData(tmp_path / "empty").dataset("val")
    with pytest.raises(UserError, match=r"3 synsets in .*LOC_synset_mapping\.txt, but data\.num_classes=1000"):
        ImageNetData(archive).dataset("val")
    (archive / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\n{NAMES[0]},n01440764 1 2 3\n")
    with pytest.raises(UserError, match=r"line 2 of .*LOC_val_solution\.csv is not a picture with boxes"):
        ImageNetData(archive, num_classes=3).dataset("val")
    (archive / "LOC_val_solution.csv").unlink()
    with pytest.raises(UserError, match=r"the class of .*00000001\.JPEG is not known; put LOC_val_solution\.csv"):
        ImageNetData(archive, num_classes=3).dataset("val")
    (archive / "short.txt").write_text(f"{WNIDS[0]}\n{WNIDS[1]}\n")
    with pytest.raises(UserError, match="is of synset 'n02084071', which is not among the 2"):
        ImageNetData(archive, archive / "short.txt", num_classes=2).dataset("train")


def test_a_torn_xml_costs_its_picture(archive: Path) -> None:
    bad = archive / "ILSVRC/Annotations/CLS-LOC/train" / WNIDS[1] / f"{WNIDS[1]}_0.xml"
    bad.write_text("<annotation><object><name>n01443537</name><bndbox><xmin>a</xmin></bndbox></object></annotation>")
    with pytest.raises(UserError, match="is not a file of boxes that can be read"):
        read_boxes(bad, WNIDS[1])
    dataset = ImageNetData(archive, num_classes=3, size=10).dataset("train")
    dataset.replace = False
    batch = dataset.__getitems__([0, 1, 2])
    assert batch.sample_id.tolist() == [0, 2] and str(bad) in next(iter(batch.skipped.values()))


def test_names_are_those_of_published_weights() -> None:
    data = ImageNetData("nowhere")
    assert len(data.class_names) == 1000 and data.class_names[0] == "tench" and data.class_names[999] == "toilet tissue"
