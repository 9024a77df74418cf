"""Fixation maps beside pictures: found by name, resized with them, named where they are missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import explainode
from explainode.data.saliency_folder import SaliencyFolderData
from explainode.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data" / "mit1003"


@pytest.fixture
def looked(tmp_path: Path) -> Path:
    """Six pictures of 16x24 whose red is their fixation map; points where it is brightest; one picture in a folder of its own."""
    for k in range(6):
        name = f"{k}" if k else "indoor/0"
        for folder in ("images", "fixation_maps", "points"):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
        density = np.random.default_rng(k).integers(0, 255, (16, 24), dtype=np.uint8)
        density[k, 12] = 255
        Image.fromarray(np.stack([density, density * 0, density * 0], 2)).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(density).save(tmp_path / "fixation_maps" / f"{name}.png")
        Image.fromarray(((density == 255) * 255).astype(np.uint8)).save(tmp_path / "points" / f"{name}.png")
    return tmp_path


@pytest.mark.parametrize("size", [8, 16, 40])
def test_maps_lie_on_their_pictures(looked: Path, size: int) -> None:
    (batch,) = SaliencyFolderData(looked, points="points", size=size, batch_size=6).test_dataloader()
    assert batch.fixation_map.shape == (6, size, size) and batch.label.tolist() == [-1] * 6
    assert (batch.fixation_map / 255 - batch.image[:, 0]).abs().max() <= 1.01 / 255
    assert (batch.fixation_map >= 0).all() and batch.fixation_points.sum((1, 2)).tolist() == [1] * 6
    order = [1, 2, 3, 4, 5, 0]  # "indoor" is sorted behind the digits
    expected = [[order[k] * size // 16 + (size > 16), 8 * size // 16 + (size > 16)] for k in range(6)]
    at = batch.fixation_points.nonzero()[:, 1:]
    assert (at - torch.tensor(expected)).abs().max() <= 1


def test_without_points_there_are_none(looked: Path) -> None:
    data = explainode.get("data/saliency_folder", root=str(looked), size=8)
    batch = data.dataset("val")[0]
    assert batch.fixation_points is None and batch.fixation_map is not None and data.class_names == []
    with pytest.raises(UserError, match="SaliencyFolderData has no training pictures"):
        data.dataset("train")


def test_missing_and_bad_maps_cost_their_picture(looked: Path) -> None:
    (looked / "fixation_maps" / "1.png").unlink()
    Image.new("L", (9, 9), 3).save(looked / "fixation_maps" / "2.png")
    Image.new("L", (24, 16), 0).save(looked / "fixation_maps" / "3.png")
    data = SaliencyFolderData(looked, size=8)
    (batch,) = data.test_dataloader()
    assert batch.sample_id.tolist() == [3, 4, 5]
    reasons = {Path(path).stem: reason for path, reason in data.skipped.items()}
    assert "no fixation map" in reasons["1"] and "has 9x9 pixels, but the picture 24x16" in reasons["2"]
    assert "somewhere positive" in reasons["3"]


def test_messages(looked: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*pictures; pictures are expected in"):
        SaliencyFolderData(looked, images="pictures").dataset("test")
    (looked / "other").mkdir()
    with pytest.raises(
        UserError, match=r"no picture in .*images has a map of its name in .*other; expected .*\.png there"
    ):
        SaliencyFolderData(looked, maps="other").dataset("test")


@pytest.mark.skipif(not SHARED.is_dir(), reason="mit1003 is not there")
def test_real_maps() -> None:
    data = SaliencyFolderData(SHARED, size=64)
    batch = data.dataset("test").__getitems__(list(range(0, 60, 6)))
    assert len(batch) == 10 and not batch.skipped and (batch.fixation_map.flatten(1).amax(1) > 100).all()
