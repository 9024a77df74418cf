"""Masks, boxes, fixation maps and points follow their picture through cutting and resizing, pixel for pixel."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from explainode.data.annotated import (
    ANNOTATIONS,
    AnnotatedData,
    AnnotatedDataset,
    Record,
    cut_boxes,
    cut_map,
    cut_mask,
    cut_points,
    read_plane,
)
from explainode.data.pictures import load_picture
from explainode.errors import UserError
from explainode.metrics.localization import bounding_boxes, fill_boxes

SHARED = Path(__file__).parents[3] / "shared" / "data" / "voc_masks"
SIZES = [(12, 12), (12, 20), (20, 12), (13, 20), (20, 13), (31, 57)]


class Drawn(Record):
    """The annotations of a plane of numbers: object where it is 1, border where it is 255, looked at where it is above 0."""

    def __init__(
        self, path: Path, plane: np.ndarray, boxes: tuple[tuple[float, ...], ...] = ((2, 3, 7, 8),), label: int = 0
    ) -> None:
        super().__init__(path, label)
        self.plane, self.boxes = plane, boxes

    def read_mask(self) -> np.ndarray:
        return np.where(self.plane == 255, -1, self.plane == 1)

    def read_boxes(self) -> np.ndarray:
        return np.array(self.boxes, dtype=np.float64).reshape(-1, 4)

    def read_fixation_map(self) -> np.ndarray:
        return self.plane / 255

    def read_fixation_points(self) -> np.ndarray:
        return self.plane == 1


def write(path: Path, plane: np.ndarray) -> Path:
    Image.fromarray(plane).convert("RGB").save(path)
    return path


def random_plane(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([0, 1, 255], np.uint8), (height, width))


@pytest.mark.parametrize(("height", "width"), [s for s in SIZES if (s[0] - s[1]) % 2 == 0])
def test_a_cut_without_resizing_takes_the_same_pixels(tmp_path: Path, height: int, width: int) -> None:
    """The picture shows the mask's own numbers: cut at their own size, picture and annotations agree in every pixel."""
    plane, size = random_plane(height, width), min(height, width)
    record = Drawn(write(tmp_path / "a.png", plane), plane)
    batch = AnnotatedDataset([record], frozenset(ANNOTATIONS), size, ["a"], 1)[0]
    shown = (batch.image[0, 0] * 255).round().long()
    assert (
        torch.equal(batch.mask[0], torch.where(shown == 255, -1, (shown == 1).long()))
        and batch.mask.dtype == torch.int64
    )
    torch.testing.assert_close(batch.fixation_map[0], shown / 255)
    assert torch.equal(batch.fixation_points[0], shown == 1)
    top, left = (height - size) // 2, (width - size) // 2
    assert torch.equal(batch.mask[0], torch.from_numpy(record.read_mask()[top : top + size, left : left + size]))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("size", [7, 12, 24, 33])
def test_mask_and_box_of_a_rectangle_lie_where_the_picture_shows_it(
    tmp_path: Path, height: int, width: int, size: int
) -> None:
    """Where the resized picture is fully white the mask is 1, where it is fully black 0, and the moved box has those edges."""
    side, plane = min(height, width), np.zeros((height, width), np.uint8)
    y0, x0 = (height - side) // 2 + 2, (width - side) // 2 + 3
    y1, x1 = y0 + side // 2, x0 + side // 3
    plane[y0:y1, x0:x1] = 1
    record = Drawn(write(tmp_path / "a.png", plane * 255), plane, ((x0, y0, x1, y1),))
    batch = AnnotatedDataset([record], frozenset({"mask", "boxes"}), size, ["a"], 1)[0]
    shown = batch.image[0, 0]
    assert (batch.mask[0][shown == 1] == 1).all() and (batch.mask[0][shown == 0] == 0).all()
    if (
        size > side
    ):  # enlarged: gray is the product of two ramps that run through 1/2 at the edges, where nearest neighbor changes
        assert (batch.mask[0][shown > 0.51] == 1).all() and (batch.mask[0][shown < 0.24] == 0).all()
    # the box's continuous edges are those of the mask, to the half pixel that nearest neighbor may round off
    assert (bounding_boxes(batch.mask == 1)[0] - batch.boxes[0][0]).abs().max() <= 0.5 + 1e-5
    assert torch.equal(fill_boxes(batch.boxes, (size, size)), batch.mask)


def test_boxes_are_moved_scaled_and_clipped() -> None:
    """Against arithmetic by hand: 20x40 pixels, the square begins at column 10, and 40 pixels stand for 20."""
    boxes = np.array(
        [[10, 0, 30, 20], [0, 5, 15, 10], [20, 10, 40, 20], [0, 0, 10, 20], [12.5, 1, 13, 2]], dtype=np.float64
    )
    expected = [
        [0, 0, 40, 40],
        [0, 10, 10, 20],
        [20, 20, 40, 40],
        [5, 2, 6, 4],
    ]  # the fourth lies outside of the square
    assert cut_boxes(boxes, 20, 40, 40).tolist() == expected
    assert cut_boxes(np.zeros((0, 4)), 20, 40, 40).shape == (0, 4)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("size", [6, 12, 29])
def test_fixation_maps_are_resized_as_the_picture(tmp_path: Path, height: int, width: int, size: int) -> None:
    plane = np.random.default_rng(1).integers(0, 256, (height, width), dtype=np.uint8)
    image = load_picture(write(tmp_path / "a.png", plane), size).image[0]
    assert (cut_map(plane / 255, size) - image).abs().max() <= 1.01 / 255  # the picture is rounded to 8 bits


def test_points_are_never_lost_by_shrinking() -> None:
    points = np.zeros((40, 60), bool)
    points[[5, 6, 39], [10, 31, 49]] = True
    points[3, 2] = True  # outside of the central square
    small = cut_points(points, 8)
    assert small.nonzero().tolist() == [[1, 0], [1, 4], [7, 7]]
    assert torch.equal(cut_points(points, 40), torch.from_numpy(points[:, 10:50]))


def test_annotations_belong_to_the_stored_picture(tmp_path: Path) -> None:
    """EXIF turns what people see, not what was annotated."""
    plane = random_plane(12, 20)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(plane).convert("RGB").save(tmp_path / "a.png", exif=exif)
    batch = AnnotatedDataset([Drawn(tmp_path / "a.png", plane)], frozenset({"mask"}), 12, ["a"], 1)[0]
    assert torch.equal(batch.mask[0] == 1, (batch.image[0, 0] * 255).round() == 1)
    assert not torch.equal(load_picture(tmp_path / "a.png", 12).image, batch.image[0])
    assert load_picture(tmp_path / "a.png", 12).source_size == (12, 20)


class DrawnData(AnnotatedData):
    provides = frozenset({"mask", "boxes"})

    def __init__(self, root: Path, drawn: list[Drawn], size: int = 12) -> None:
        super().__init__(root, size, ["a", "b"], 2, batch_size=4)
        self.drawn = drawn

    def records(self, split: str) -> list[Drawn]:
        return self.drawn


def test_bad_files_are_named_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    planes = [random_plane(12, 14, seed) for seed in range(10)]
    drawn = [Drawn(write(tmp_path / f"{k}.png", plane), plane, label=k % 2) for k, plane in enumerate(planes)]
    (tmp_path / "2.png").write_bytes(b"torn")
    drawn[5].plane = planes[5][:, :-1]
    data = DrawnData(tmp_path, drawn)
    with caplog.at_level(logging.WARNING):
        batches = list(data.test_dataloader())
    assert torch.cat([b.sample_id for b in batches]).tolist() == [0, 1, 3, 4, 6, 7, 8, 9]
    assert torch.cat([b.label for b in batches]).tolist() == [0, 1, 1, 0, 0, 1, 0, 1]
    for batch in batches:
        for k, sample in enumerate(batch.sample_id.tolist()):
            assert torch.equal(batch.mask[k], cut_mask(drawn[sample].read_mask(), 12)) and len(batch.boxes[k]) == 1
    assert {Path(p).name for p in data.skipped} == {"2.png", "5.png"} and len(caplog.records) == 2
    reason = data.skipped[str(tmp_path / "5.png")]
    assert "the mask of" in reason and "has 13x12 pixels, but the picture 14x12; they must be of one size" in reason
    with pytest.raises(UserError, match="2 of 10 pictures could not be read"):
        data.check_skipped()


def test_a_batch_of_nothing_has_the_right_kinds(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"torn")
    dataset = AnnotatedDataset(
        [Drawn(tmp_path / "0.png", random_plane(9, 9))], frozenset({"mask", "fixation_points"}), 8, ["a"], 1
    )
    batch = dataset[0]
    assert len(batch) == 0 and batch.mask.shape == (0, 8, 8) and batch.fixation_points.dtype == torch.bool
    assert batch.boxes is None and batch.fixation_map is None


def test_sets_without_training_pictures_say_so(tmp_path: Path) -> None:
    data = DrawnData(tmp_path, [])
    with pytest.raises(UserError, match="DrawnData has no training pictures"):
        data.dataset("train")
    with pytest.raises(UserError, match="no pictures of the test split"):
        data.dataset("test")
    with pytest.raises(UserError, match=r"no folder .*nowhere; give the folder of the data set as data\.root"):
        DrawnData(tmp_path / "nowhere", []).dataset("test")
    with pytest.raises(UserError, match="at least 2 pixels"):
        DrawnData(tmp_path, [], size=1)


def test_planes_are_numbers_not_colors(tmp_path: Path) -> None:
    palette = Image.fromarray(random_plane(5, 6)).convert("P")
    palette.putdata(list(range(30)))
    palette.save(tmp_path / "p.png")
    assert read_plane(tmp_path / "p.png", "mask").tolist() == np.arange(30).reshape(5, 6).tolist()
    Image.new("RGB", (5, 5)).save(tmp_path / "c.png")
    with pytest.raises(UserError, match=r"the mask .*c\.png is a picture in colors"):
        read_plane(tmp_path / "c.png", "mask")
    with pytest.raises(UserError, match=r"no mask .*none\.png; each picture needs one"):
        read_plane(tmp_path / "none.png", "mask")
    (tmp_path / "t.png").write_bytes(b"\x89PNG torn")
    with pytest.raises(UserError, match=r"the mask .*t\.png is damaged"):
        read_plane(tmp_path / "t.png", "mask")


@pytest.mark.skipif(not SHARED.is_dir(), reason="voc_masks is not there")
@pytest.mark.parametrize("size", [64, 224])
def test_real_masks(size: int) -> None:
    """Each class keeps its share of the central square, and its border is ignored."""
    for path in sorted((SHARED / "images").iterdir()):
        stored = read_plane(SHARED / "masks" / f"{path.stem}.png", "mask")
        batch = AnnotatedDataset([Drawn(path, stored)], frozenset({"mask"}), size, ["a"], 1)[0]
        side = min(stored.shape)
        top, left = (stored.shape[0] - side) // 2, (stored.shape[1] - side) // 2
        square = stored[top : top + side, left : left + side]
        for value, kept in ((255, -1), (1, 1)):
            assert abs((batch.mask == kept).double().mean().item() - (square == value).mean()) < 0.01
