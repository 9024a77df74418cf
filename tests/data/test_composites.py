"""Composites: masks exact to the pixel, backgrounds of another class, the same bits however they are fetched."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import explainode
from explainode.data.batch import Batch
from explainode.data.composites import (
    CompositesData,
    CompositesDataset,
    FigureSilhouettes,
    MaskSilhouettes,
    fill_share,
    place_shape,
)
from explainode.data.image_folder import ImageFolderData
from explainode.data.shapes import ShapesData
from explainode.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data" / "voc_aug_mask_shapes"


class Flat:
    """Pictures of one color each: red is the position, green the class."""

    def __init__(self, labels: list[int], height: int = 24, width: int = 24, bad: tuple[int, ...] = ()) -> None:
        self.labels, self.height, self.width, self.bad = labels, height, width, bad
        self.num_classes, self.class_names = 4, list("abcd")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> Batch:
        good = [i for i in indices if i not in self.bad]
        label = torch.tensor([self.labels[i] for i in good], dtype=torch.int64)
        color = torch.stack([torch.tensor(good) / 256, (label + 1) / 8, torch.zeros(len(good))], 1)
        image = color[:, :, None, None].expand(-1, -1, self.height, self.width).clone()
        return Batch(
            image,
            label,
            torch.tensor(good, dtype=torch.int64),
            skipped={f"{i}.png": "torn" for i in indices if i in self.bad},
        )


class Coordinates(Flat):
    """Pictures whose red and green are the pixel's row and column, and blue the class."""

    def __getitems__(self, indices: list[int]) -> Batch:
        batch = super().__getitems__(indices)
        row, column = torch.meshgrid(torch.arange(self.height), torch.arange(self.width), indexing="ij")
        image = torch.stack([row, column, row * 0]).float().expand(len(batch), -1, -1, -1).clone()
        image[:, 2] = batch.label[:, None, None].float()
        return Batch(image, batch.label, batch.sample_id, skipped=batch.skipped)


@pytest.fixture
def silhouettes(tmp_path: Path) -> Path:
    """Three masks of 40x60: a disk of class 9 with a border, a bar of class 3 beside something else, and one without a class."""
    y, x = np.mgrid[:40, :60]
    distance = np.hypot(y - 20, x - 25)
    disk = np.where(distance < 12, 9, np.where(distance < 16, 255, 0)).astype(np.uint8)
    bar = np.where((y > 5) & (y < 15), 3, np.where(y > 30, 7, 0)).astype(np.uint8)
    free = np.where((x > 10) & (x < 30) & (y > 10), 5, 0).astype(np.uint8)
    for name, mask in (("disk", disk), ("bar", bar), ("free", free)):
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
    write_list(
        tmp_path,
        [{"file": "disk.png", "class": 9}, {"file": "bar.png", "class": 3, "fraction": 0.2}, {"file": "free.png"}],
    )
    return tmp_path


def write_list(folder: Path, masks: list[dict]) -> None:
    (folder / "masks.json").write_text(json.dumps({"source": "made", "masks": masks}))


def test_silhouettes_are_the_object_cut_out(silhouettes: Path) -> None:
    shapes = MaskSilhouettes(silhouettes)
    assert len(shapes) == 3 and [Path(shapes.name(k)).stem for k in range(3)] == ["disk", "bar", "free"]
    disk, bar, free = (shapes[k] for k in range(3))
    y, x = np.mgrid[:40, :60]
    distance = np.hypot(y - 20, x - 25)[9:32, 14:37]
    assert torch.equal(
        disk, torch.from_numpy(np.where(distance < 12, 1, np.where(distance < 16, -1, 0))).to(torch.int8)
    )
    assert bar.shape == (9, 60) and (bar == 1).all()
    assert free.shape == (29, 19) and (free == 1).all()


@pytest.mark.parametrize("folder", [True, False], ids=["masks", "figures"])
def test_mask_says_where_every_pixel_comes_from(silhouettes: Path, folder: bool) -> None:
    """One color a picture: the object's exactly where the mask is 1, one other picture's where it is 0, their mean where it is -1."""
    shapes = MaskSilhouettes(silhouettes) if folder else FigureSilhouettes()
    source = Flat([i % 4 for i in range(40)])
    batch = CompositesDataset(source, shapes, "test").__getitems__(list(range(40)))
    assert batch.label.tolist() == source.labels and batch.sample_id.tolist() == list(range(40))
    borders = 0
    for k in range(40):
        own = torch.tensor([k / 256, (k % 4 + 1) / 8, 0])
        pixels, mask = batch.image[k].permute(1, 2, 0), batch.mask[k]
        assert torch.equal(pixels[mask == 1], own.expand(int((mask == 1).sum()), 3))
        other = pixels[mask == 0][0]
        assert torch.equal(pixels[mask == 0], other.expand(int((mask == 0).sum()), 3))
        assert other[1] != own[1], "a background of the same class"
        torch.testing.assert_close(pixels[mask == -1], ((own + other) / 2).expand(int((mask == -1).sum()), 3))
        borders += int((mask == -1).sum())
    assert (borders > 0) is folder


def test_same_bits_alone_and_in_any_batch() -> None:
    dataset = CompositesDataset(ShapesData(test_size=40, size=32).dataset("test"), FigureSilhouettes(), "test", seed=3)
    order = [7, 3, 3, 39, 0, 12]
    together = dataset.__getitems__(order)
    for row, index in enumerate(order):
        alone = dataset[index]
        assert torch.equal(alone.image[0], together.image[row]) and torch.equal(alone.mask[0], together.mask[row])
    for other in (
        CompositesDataset(dataset.source, dataset.silhouettes, "test", seed=4),
        CompositesDataset(dataset.source, dataset.silhouettes, "val", seed=3),
    ):
        assert not torch.equal(other.__getitems__(order).mask, together.mask)


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.2), (0.4, 0.7)])
@pytest.mark.parametrize("folder", [True, False], ids=["masks", "figures"])
def test_share_is_drawn_between_its_bounds(silhouettes: Path, low: float, high: float, folder: bool) -> None:
    shapes = MaskSilhouettes(silhouettes) if folder else FigureSilhouettes()
    dataset = CompositesDataset(Flat([i % 4 for i in range(200)], 64, 64), shapes, "test", 0, low, high)
    share = (dataset.__getitems__(list(range(200))).mask == 1).double().mean((1, 2))
    inside = (share > low - 0.02) & (share < high + 0.02)
    # a bar of 9x60 that hangs over both edges by half a bar covers 30 % at most
    assert inside.double().mean() > (0.6 if folder and high > 0.3 else 0.99)
    drawn = share[inside]
    assert drawn.min() < low + 0.2 * (high - low) and drawn.max() > high - 0.2 * (high - low)


def test_shapes_lie_anywhere_and_hang_over_the_edge_where_they_are_large() -> None:
    shape = torch.ones(4, 6, dtype=torch.int8)
    plane, dy, dx = place_shape(shape, 10, 10, 0.0, 1.0)
    assert (plane == 1).nonzero().amin(0).tolist() == [0, 4] and (plane == 1).sum() == 24 and (dy, dx) == (-3, 2)
    plane, dy, dx = place_shape(torch.ones(20, 4, dtype=torch.int8), 10, 10, 0.5, 0.0)
    assert (plane == 1).sum() == 40 and (dy, dx) == (0, -3)  # along the side that it covers there is nothing to move
    bar = torch.ones(2, 12, dtype=torch.int8)
    plane, _, _ = fill_share(bar, 0.3, 24, 24, 0.3, 0.3)
    assert abs((plane == 1).double().mean() - 0.3) < 0.05  # fits up to 0.167, hangs over for more


def test_the_middle_of_the_picture_moves_with_the_shape() -> None:
    """Pixels that know where they came from: one shift per composite, and the shape's middle shows the picture's."""
    source = Coordinates([i % 2 for i in range(30)], 32, 32)
    batch = CompositesDataset(source, FigureSilhouettes(), "test", 0, 0.05, 0.3).__getitems__(list(range(30)))
    for image, mask in zip(batch.image, batch.mask, strict=True):
        at = (mask == 1).nonzero()
        shift = at - image[:2].permute(1, 2, 0)[mask == 1]
        assert (shift == shift[0]).all()
        middle = (at.amin(0) + at.amax(0)) / 2
        assert (
            (middle - shift[0]) - 15.5
        ).abs().max() <= 1.5  # cut to whole pixels, and nearest neighbor may lose a thin tip
        assert torch.equal(image[0][mask == 0], torch.arange(32.0)[:, None].expand(32, 32)[mask == 0]), (
            "the background moved"
        )


def test_backgrounds_of_a_rare_class_are_found() -> None:
    source = Flat([0] * 199 + [1])
    batch = CompositesDataset(source, FigureSilhouettes(), "test").__getitems__(list(range(20)))
    for k in range(20):
        assert torch.equal(batch.image[k, 0][batch.mask[k] == 0].unique(), torch.tensor([199 / 256]))
    with pytest.raises(
        UserError, match="no picture of another class than class 2 in the test split; a background needs two classes"
    ):
        CompositesDataset(Flat([2] * 5), FigureSilhouettes(), "test").__getitems__([0])


def test_backgrounds_of_unlabeled_pictures_are_other_pictures() -> None:
    batch = CompositesDataset(Flat([-1] * 3), FigureSilhouettes(), "test").__getitems__([0, 1, 2])
    for k in range(3):
        assert (batch.image[k, 0][batch.mask[k] == 0] != k / 256).all()


def test_kinds_of_background() -> None:
    source = ShapesData(test_size=16, size=32).dataset("test")
    made = {
        kind: CompositesDataset(source, FigureSilhouettes(), "test", background=kind).__getitems__(list(range(8)))
        for kind in ("picture", "blurred", "flat")
    }
    picture = made["picture"]
    outside, inside = (picture.mask == 0)[:, None], (picture.mask == 1)[:, None]
    for batch in made.values():
        assert torch.equal(batch.mask, picture.mask) and torch.equal(batch.image * inside, picture.image * inside)
    spread = {
        kind: torch.stack([b.image[k][:, b.mask[k] == 0].std(1).mean() for k in range(8)]).mean()
        for kind, b in made.items()
    }
    assert spread["flat"] < 1e-6 < spread["blurred"] < spread["picture"]
    assert not torch.equal(made["blurred"].image * outside, picture.image * outside)


def test_pictures_that_cannot_be_read_are_left_out_and_named() -> None:
    source = Flat([i % 2 for i in range(12)], bad=(3, 4, 6))
    batch = CompositesDataset(source, FigureSilhouettes(), "test").__getitems__(list(range(12)))
    assert batch.sample_id.tolist() == [0, 1, 2, 5, 7, 8, 9, 10, 11] and set(batch.skipped) == {
        "3.png",
        "4.png",
        "6.png",
    }
    whole = CompositesDataset(Flat([i % 2 for i in range(12)]), FigureSilhouettes(), "test").__getitems__([5])
    assert torch.equal(whole.mask[0], batch.mask[3])
    nothing = CompositesDataset(Flat([0, 1], bad=(0,)), FigureSilhouettes(), "test").__getitems__([0])
    assert len(nothing) == 0 and nothing.skipped == {"0.png": "torn"}


def test_a_torn_silhouette_is_named_and_the_next_one_taken(silhouettes: Path) -> None:
    (silhouettes / "bar.png").write_bytes((silhouettes / "bar.png").read_bytes()[:60])
    data = CompositesData(ShapesData(test_size=12, size=24), silhouettes)
    batch = data.dataset("test").__getitems__(list(range(12)))
    assert len(batch) == 12 and (batch.mask == 1).flatten(1).any(1).all()
    assert [Path(p).name for p in batch.skipped] == ["bar.png"]
    data.note_skipped("test", batch)
    with pytest.raises(UserError, match=r"bar\.png"):
        data.check_skipped()
    write_list(silhouettes, [{"file": "bar.png", "class": 3}])
    with pytest.raises(UserError, match="none of the 1 silhouettes can be read"):
        CompositesData(ShapesData(test_size=12, size=24), silhouettes).dataset("test")[0]


def test_messages(silhouettes: Path, tmp_path: Path) -> None:
    source = ShapesData(test_size=4, size=16)
    with pytest.raises(UserError, match=r"no file .*masks.json; data.silhouettes is a folder"):
        CompositesData(source, tmp_path / "nowhere").dataset("test")
    for text in ("[1, 2", "[]", '{"masks": [3]}', '{"other": []}', '{"masks": [{"class": 1}]}'):
        (silhouettes / "masks.json").write_text(text)
        with pytest.raises(UserError, match="is not a list of masks"):
            MaskSilhouettes(silhouettes)
    write_list(silhouettes, [])
    with pytest.raises(UserError, match="lists no masks"):
        MaskSilhouettes(silhouettes)
    write_list(silhouettes, [{"file": "disk.png", "class": 2}])
    with pytest.raises(UserError, match="no pixel of class 2"):
        MaskSilhouettes(silhouettes)[0]
    Image.new("RGB", (9, 9)).save(silhouettes / "disk.png")
    with pytest.raises(UserError, match="is a picture in colors"):
        MaskSilhouettes(silhouettes)[0]
    with pytest.raises(UserError, match=r"must rise within \(0, 1\], got 0.6 and 0.3"):
        CompositesData(source, min_share=0.6, max_share=0.3)
    with pytest.raises(UserError, match="got 'blur'; the nearest are blurred"):
        CompositesData(source, background="blur")
    with pytest.raises(UserError, match=r"has 8 classes, got data\.num_classes=10"):
        CompositesData(source, num_classes=10)


def test_module_over_any_source(tmp_path: Path) -> None:
    data = explainode.get(
        "data/composites", source=ShapesData(train_size=20, val_size=10, test_size=12, size=20), batch_size=5
    )
    assert data.num_classes == 8 and data.image_size == 20 and data.class_names[0] == "disk"
    batches = list(data.test_dataloader())
    assert (
        [len(b) for b in batches] == [5, 5, 2]
        and batches[0].image.shape == (5, 3, 20, 20)
        and batches[0].mask.dtype == torch.int64
    )
    assert all(b.image.min() >= 0 and b.image.max() <= 1 for b in batches)
    for k in range(6):
        path = tmp_path / ("cat" if k < 3 else "dog") / f"{k}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (30, 20), (40 * k, 0, 0)).save(path)
    (tmp_path / "cat" / "1.png").write_bytes(b"torn")
    data = CompositesData(ImageFolderData(tmp_path, size=16), num_workers=0)
    assert data.class_names == ["cat", "dog"]
    (batch,) = data.val_dataloader()
    assert batch.sample_id.tolist() == [0, 2, 3, 4, 5] and [Path(p).name for p in data.skipped] == ["1.png"]
    (batch,) = data.train_dataloader()
    assert len(batch) == 6  # a neighbor stands in while training
    assert all(len(batch.image[k, 0][batch.mask[k] == 1].unique()) == 1 for k in range(6))


@pytest.mark.skipif(not SHARED.is_dir(), reason="voc_aug_mask_shapes is not there")
def test_real_shapes() -> None:
    data = CompositesData(ShapesData(test_size=60, size=64), SHARED)
    batch = data.dataset("test").__getitems__(list(range(60)))
    share = (batch.mask == 1).double().mean((1, 2))
    assert not batch.skipped and share.min() > 0.1 and 0.45 < share.mean() < 0.6
