"""Folders of pictures: classes, splits, labels, and files that cannot be read."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from explainode.data.image_folder import ImageFolderData, find_pictures
from explainode.errors import UserError


def write(path: Path, shade: int = 100, size: tuple[int, int] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 0, 255 - shade)).save(path)
    return path


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Two classes of 6 pictures; picture k has red 10 k."""
    for k in range(12):
        write(tmp_path / ("cat" if k < 6 else "dog") / f"{k:02d}.png", 10 * k)
    return tmp_path


def test_classes_are_sorted_folders(animals: Path) -> None:
    data = ImageFolderData(animals, size=8, batch_size=5)
    assert data.class_names == ["cat", "dog"] and data.num_classes == 2 and data.image_size == 8
    batches = list(data.val_dataloader())
    assert torch.cat([b.label for b in batches]).tolist() == [0] * 6 + [1] * 6
    assert torch.cat([b.sample_id for b in batches]).tolist() == list(range(12))
    image = torch.cat([b.image for b in batches])
    assert image.shape == (12, 3, 8, 8)
    assert (image[:, 0, 4, 4] * 255).round().tolist() == [10 * k for k in range(12)]
    assert data.skipped == {}
    data.check_skipped()


def test_unlabelled_folder(tmp_path: Path) -> None:
    for k in range(3):
        write(tmp_path / f"{k}.jpg")
    (tmp_path / "notes.txt").write_text("no picture")
    write(tmp_path / ".hidden.png")
    data = ImageFolderData(tmp_path, size=8, num_classes=10)
    assert data.num_classes == 10 and data.class_names == []
    assert data.dataset("test").__getitems__([0, 1, 2]).label.tolist() == [-1, -1, -1]


def test_class_names_give_the_order(animals: Path, tmp_path: Path) -> None:
    names = ["bird", "dog", "cat", "fish"]
    data = ImageFolderData(animals, size=8, class_names=names)
    assert data.num_classes == 4
    assert data.dataset("val").__getitems__([0, 11]).label.tolist() == [2, 1]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    assert ImageFolderData(animals, size=8, class_names=tmp_path / "names.txt").class_names == names


def test_split_folders(tmp_path: Path) -> None:
    for split, n in (("train", 3), ("val", 2)):
        for name in ("a", "b"):
            for k in range(n):
                write(tmp_path / split / name / f"{k}.png")
    data = ImageFolderData(tmp_path, size=8)
    assert data.class_names == ["a", "b"]
    assert [len(data.dataset(s)) for s in ("train", "val", "test")] == [6, 4, 4]
    write(tmp_path / "test" / "b" / "only.png")
    data = ImageFolderData(tmp_path, size=8)
    assert len(data.dataset("test")) == 1 and data.dataset("test")[0].label.tolist() == [1]


def test_training_without_a_training_folder(tmp_path: Path) -> None:
    write(tmp_path / "val" / "a" / "0.png")
    with pytest.raises(UserError, match="none for train"):
        ImageFolderData(tmp_path, size=8).dataset("train")


def test_deep_folders_and_links(animals: Path) -> None:
    write(animals / "cat" / "persian" / "white" / "snow.PNG")
    (animals / "dog" / "loop").symlink_to(animals / "dog")
    data = ImageFolderData(animals, size=8)
    assert data.class_names == ["cat", "dog"]
    assert len(find_pictures(animals)) == 13 == len(data.dataset("val"))


BAD = {"00.png": b"", "03.png": None, "07.png": b"<html>not found</html>"}


@pytest.fixture
def torn(animals: Path) -> Path:
    """Three of twelve files are bad: empty, cut in half, a web page."""
    for name, content in BAD.items():
        path = next(animals.rglob(name))
        path.write_bytes(path.read_bytes()[:-30] if content is None else content)
    return animals


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_left_out_named_and_counted(torn: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    data = ImageFolderData(torn, size=8, batch_size=4, num_workers=workers)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):  # a second look says nothing new
            seen = list(data.test_dataloader())
    assert torch.cat([b.sample_id for b in seen]).tolist() == [1, 2, 4, 5, 6, 8, 9, 10, 11]
    for batch in seen:
        assert torch.equal((batch.image[:, 0, 4, 4] * 255).round().long(), 10 * batch.sample_id)
        assert torch.equal(batch.label, (batch.sample_id >= 6).long())
    assert {Path(p).name for p in data.skipped} == set(BAD)
    assert len(caplog.records) == 3 and all(any(n in r.getMessage() for r in caplog.records) for n in BAD)
    with pytest.raises(UserError, match="3 of 12 pictures could not be read"):
        data.check_skipped()
    data.check_skipped(limit=0.25)


def test_training_batches_keep_their_size(torn: Path) -> None:
    data = ImageFolderData(torn, size=8, batch_size=4)
    batches = list(data.train_dataloader())
    assert [len(b) for b in batches] == [4, 4, 4]
    seen = torch.cat([b.sample_id for b in batches]).tolist()
    assert set(seen) == {1, 2, 4, 5, 6, 8, 9, 10, 11}  # 0, 3 and 7 are stood in for by their neighbors 1, 4 and 8
    assert sorted(seen) == [1, 1, 2, 4, 4, 5, 6, 8, 8, 9, 10, 11]
    assert len(data.skipped) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_never_end_an_epoch(torn: Path, workers: int) -> None:
    class Tiny(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.steps, self.checked = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), 0, []

        def training_step(self, batch, index):
            self.steps += 1
            return nn.functional.cross_entropy(self.net(batch.image), batch.label)

        def validation_step(self, batch, index):
            self.checked += batch.sample_id.tolist()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    model = Tiny()
    data = ImageFolderData(torn, size=8, batch_size=1, num_workers=workers)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", num_sanity_val_steps=0, use_distributed_sampler=False, **quiet)
    trainer.fit(model, data)
    assert model.steps == 24 and trainer.current_epoch == 2
    assert model.checked == [1, 2, 4, 5, 6, 8, 9, 10, 11] * 2


def test_folder_of_nothing_but_bad_files(tmp_path: Path) -> None:
    for k in range(30):
        (tmp_path / f"{k}.jpg").write_bytes(b"junk")
    data = ImageFolderData(tmp_path, size=8, num_classes=2, batch_size=8)
    assert list(data.val_dataloader()) == [] and list(data.train_dataloader()) == []
    assert len(data.skipped) == 30
    with pytest.raises(UserError, match="30 of 30"):
        data.check_skipped()


def test_messages(animals: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        ImageFolderData(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no pictures in .*empty"):
        ImageFolderData(tmp_path / "empty").dataset("val")
    with pytest.raises(UserError, match=r"class folder .*dog is not among the class names; the nearest are dogs"):
        ImageFolderData(animals, class_names=["cat", "dogs"]).dataset("val")
    with pytest.raises(UserError, match="num_classes=1, but there are 2"):
        ImageFolderData(animals, num_classes=1)
    with pytest.raises(UserError, match="could be any of several classes called 'dog'"):
        ImageFolderData(animals, class_names=["cat", "dog", "dog"]).dataset("val")
    with pytest.raises(UserError, match="cannot be read as a text file"):
        ImageFolderData(animals, class_names=str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match="at least 2 pixels"):
        ImageFolderData(animals, size=1)


def test_pictures_of_any_shape_become_squares(tmp_path: Path) -> None:
    """Left half black, right half white: the central square keeps the edge in the middle whatever the sides."""
    for k, (h, w) in enumerate([(40, 40), (40, 80), (80, 40), (31, 57)]):
        array = np.zeros((h, w, 3), np.uint8)
        array[:, w // 2 :] = 255
        Image.fromarray(array).save(tmp_path / f"{k}.png")
    batch = ImageFolderData(tmp_path, size=16).dataset("val").__getitems__([0, 1, 2, 3])
    assert batch.image.shape == (4, 3, 16, 16)
    assert (batch.image[:, :, :, :6] == 0).all() and (batch.image[:, :, :, 10:] == 1).all()
