"""Keyed augmentation: against a crop and flip written out per image, and independent of the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from explainode.data.augment import Augment
from explainode.data.batch import Batch


@pytest.fixture
def images() -> Tensor:
    return torch.rand(64, 3, 9, 12, generator=torch.Generator().manual_seed(0))


IDS = torch.arange(64) * 37 + 5


@pytest.mark.parametrize(("border", "mode"), [("reflect", "reflect"), ("black", "constant")])
def test_equals_pad_crop_flip(images: Tensor, border: str, mode: str) -> None:
    augment = Augment(padding=3, border=border)
    geometry = augment.geometry(IDS, seed=1, epoch=2)
    moved = augment(images, IDS, seed=1, epoch=2)
    for image, out, (dy, dx), flip in zip(images, moved, geometry.shift.tolist(), geometry.flip.tolist(), strict=True):
        crop = pad(image[None], (3, 3, 3, 3), mode=mode)[0, :, 3 + dy : 12 + dy, 3 + dx : 15 + dx]
        assert torch.equal(out, crop.flip(-1) if flip else crop)


def test_same_bits_in_any_batch(images: Tensor) -> None:
    augment = Augment()
    together = augment(images, IDS, seed=0, epoch=3)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(augment(images[order], IDS[order], 0, 3), together[order])
    for k in (0, 17, 63):
        assert torch.equal(augment(images[k : k + 1], IDS[k : k + 1], 0, 3)[0], together[k])


def test_draws_are_uniform_and_change_with_seed_and_epoch() -> None:
    augment, ids = Augment(padding=4), torch.arange(20_000)
    geometry = augment.geometry(ids, seed=0, epoch=0)
    for axis in (0, 1):
        counts = torch.bincount(geometry.shift[:, axis] + 4, minlength=9)
        assert len(counts) == 9
        assert (counts / 20_000 - 1 / 9).abs().max() < 5 * (1 / 9 * 8 / 9 / 20_000) ** 0.5  # five standard errors
    assert abs(geometry.flip.float().mean() - 0.5) < 5 * 0.5 / 20_000**0.5
    for other in (augment.geometry(ids, 0, 1), augment.geometry(ids, 1, 0)):
        assert (other.shift == geometry.shift).all(1).float().mean() < 0.02  # 1/81 by chance


def test_nothing_to_do_is_identity(images: Tensor) -> None:
    assert torch.equal(Augment(padding=0, flip=False)(images, IDS, 0, 0), images)


def test_global_generator_untouched(images: Tensor) -> None:
    before = torch.get_rng_state()
    Augment()(images, IDS, 0, 0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("border", ["reflect", "black"])
def test_mask_and_boxes_follow_the_image(border: str) -> None:
    """Each picture is a white rectangle: after augmentation the mask is still where the picture is white, and the box encloses it."""
    n, size = 40, 24
    image, mask, boxes = torch.zeros(n, 3, size, size), torch.zeros(n, size, size, dtype=torch.int64), []
    for k in range(n):
        y, x = 8 + k % 4, 9 + k % 3
        image[k, :, y : y + 6, x : x + 5] = 1
        mask[k, y : y + 6, x : x + 5] = 1
        boxes.append(torch.tensor([[x, y, x + 5, y + 6]], dtype=torch.float32))
    batch = Batch(
        image,
        torch.zeros(n, dtype=torch.int64),
        torch.arange(n),
        mask=mask,
        boxes=boxes,
        fixation_map=mask.float(),
        fixation_points=mask.bool(),
    )
    augment = Augment(padding=5, border=border)
    out = augment.batch(batch, seed=0, epoch=0)
    assert torch.equal(out.image, augment(image, batch.sample_id, 0, 0))
    assert torch.equal(out.image[:, 0] == 1, out.mask == 1)
    assert torch.equal(out.fixation_map, out.image[:, 0]) and torch.equal(out.fixation_points, out.mask == 1)
    assert (out.mask == -1).any() == (border == "black")
    for k in range(n):
        y, x = (out.mask[k] == 1).nonzero().unbind(1)
        assert out.boxes[k].tolist() == [[x.min(), y.min(), x.max() + 1, y.max() + 1]]
    assert torch.equal(batch.mask, mask) and batch.boxes is boxes  # inputs untouched


@pytest.mark.parametrize("options", [{"padding": -1}, {"border": "mirror"}])
def test_bad_options(options: dict) -> None:
    with pytest.raises(ValueError, match="got"):
        Augment(**options)


def test_padding_larger_than_the_image() -> None:
    with pytest.raises(ValueError, match="9x12"):
        Augment(padding=9)(torch.zeros(1, 3, 9, 12), torch.zeros(1, dtype=torch.int64), 0, 0)
