"""The made-up pictures: the same bits however fetched, exact masks, balanced classes, colors that tell nothing unless asked to."""

from __future__ import annotations

import hashlib

import pytest
import torch

from explainode.data.figures import FIGURES
from explainode.data.shapes import CLASS_NAMES, ShapesData, ShapesDataset
from explainode.errors import UserError


@pytest.mark.parametrize("size", [17, 64])
@pytest.mark.parametrize("spurious", [0.0, 0.6])
def test_same_bits_alone_and_in_any_batch(size: int, spurious: float) -> None:
    dataset = ShapesDataset(1000, size, spurious=spurious)
    indices = [*range(64), 999, 500, 3]  # two tiles and a rest
    together = dataset.__getitems__(indices)
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = dataset.__getitems__([indices[k] for k in order])
    assert torch.equal(shuffled.image, together.image[order]) and torch.equal(shuffled.mask, together.mask[order])
    for k in (0, 5, 31, 33, 64, 66):
        alone = dataset[indices[k]]
        assert torch.equal(alone.image[0], together.image[k])
        assert torch.equal(alone.mask[0], together.mask[k])
        assert (alone.label[0], alone.sample_id[0]) == (together.label[k], indices[k])


def test_same_bits_for_any_number_of_threads() -> None:
    dataset, before = ShapesDataset(64, 48), torch.get_num_threads()
    torch.set_num_threads(1)
    one = dataset.__getitems__(list(range(64)))
    torch.set_num_threads(3)
    try:
        assert torch.equal(dataset.__getitems__(list(range(64))).image, one.image)
    finally:
        torch.set_num_threads(before)


def test_pinned_bits() -> None:
    """The pictures are part of the results that people publish: this hash may only change together with a note in the changelog."""
    batch = ShapesDataset(16, 32, seed=1).__getitems__(list(range(16)))
    pixels = (batch.image * 255).round().to(torch.uint8)
    digest = hashlib.sha256(
        pixels.numpy().tobytes() + batch.mask.numpy().tobytes() + batch.label.numpy().tobytes()
    ).hexdigest()
    assert digest[:16] == "fbf68bd36df8d7ec"


def test_ranges_and_types() -> None:
    batch = ShapesDataset(40, 40).__getitems__(list(range(40)))
    assert batch.image.shape == (40, 3, 40, 40) and batch.image.dtype == torch.float32
    assert batch.image.min() >= 0 and batch.image.max() <= 1
    assert torch.equal((batch.image * 255).round() / 255, batch.image)  # nothing is lost in a PNG
    assert batch.mask.shape == (40, 40, 40) and batch.mask.dtype == torch.int64
    assert set(batch.mask.unique().tolist()) == {0, 1}
    area = batch.mask.float().mean((1, 2))
    assert area.min() > 0.03 and area.max() < 0.45
    border = torch.cat([batch.mask[:, 0], batch.mask[:, -1], batch.mask[:, :, 0], batch.mask[:, :, -1]])
    assert not border.any()  # figures lie inside the picture


def test_mask_is_what_the_figure_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Painted without its figure, a picture differs inside the mask only, and nearly everywhere there: nothing outside tells the class."""
    import explainode.data.scene as scene

    dataset = ShapesDataset(64, 64)
    ids = torch.arange(64)
    label = dataset.labels(ids)
    with_figure = dataset.__getitems__(ids.tolist())
    monkeypatch.setattr(scene, "FIGURES", (lambda x, y: (x * x + y * y) * 0 + 1,) * len(FIGURES))
    empty = dataset.__getitems__(ids.tolist())
    assert torch.equal(empty.label, label) and not empty.mask.any()
    changed = (with_figure.image != empty.image).any(1)
    assert not (changed & (with_figure.mask == 0)).any()
    assert changed[with_figure.mask == 1].float().mean() > 0.99


def test_classes_are_balanced_in_every_block() -> None:
    dataset = ShapesDataset(800)
    labels = dataset.labels(torch.arange(800))
    k = dataset.num_classes
    assert torch.equal(labels.view(-1, k).sort(1).values, torch.arange(k).expand(100, k))
    assert len({tuple(row) for row in labels.view(-1, k).tolist()}) > 90  # each block in an order of its own
    spaced = labels[
        torch.arange(0, 800, k)
    ]  # evenly spaced pictures, as the panels take them, are not all of one class
    assert len(spaced.unique()) == k


def test_splits_and_seeds_differ() -> None:
    first = ShapesDataset(8, 32).__getitems__(list(range(8)))
    for other in (ShapesDataset(8, 32, split="val"), ShapesDataset(8, 32, seed=1)):
        assert (other.__getitems__(list(range(8))).image != first.image).any(1).float().mean() > 0.9


def background_hue(dataset: ShapesDataset, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, 2) mean opponent colors of the background, (n,) labels."""
    batch = dataset.__getitems__(list(range(n)))
    weight = (batch.mask == 0).float()[:, None]
    r, g, b = ((batch.image * weight).sum((2, 3)) / weight.sum((2, 3))).unbind(1)
    return torch.stack([r - g, (r + g) / 2 - b], 1), batch.label


def nearest_mean_accuracy(train: tuple[torch.Tensor, torch.Tensor], test: tuple[torch.Tensor, torch.Tensor]) -> float:
    means = torch.stack([train[0][train[1] == k].mean(0) for k in range(8)])
    # by angle: the direction in the color plane is the hue
    similarity = torch.nn.functional.normalize(test[0], dim=1) @ torch.nn.functional.normalize(means, dim=1).T
    return (similarity.argmax(1) == test[1]).float().mean().item()


def test_background_tells_the_class_only_where_it_is_spurious() -> None:
    data = ShapesData(train_size=2000, val_size=1000, size=16, spurious=1.0)
    train, val = background_hue(data.dataset("train"), 2000), background_hue(data.dataset("val"), 1000)
    assert nearest_mean_accuracy(train, train) > 0.7
    chance = 5 * (1 / 8 * 7 / 8 / 1000) ** 0.5  # five standard errors
    assert abs(nearest_mean_accuracy(train, val) - 1 / 8) < chance
    fair = ShapesDataset(3000, 16)
    colors, label = background_hue(fair, 3000)
    assert abs(nearest_mean_accuracy((colors[:2000], label[:2000]), (colors[2000:], label[2000:])) - 1 / 8) < chance


def test_figure_color_does_not_tell_the_class() -> None:
    batch = ShapesDataset(3000, 16).__getitems__(list(range(3000)))
    weight = (batch.mask == 1).float()[:, None]
    r, g, b = ((batch.image * weight).sum((2, 3)) / weight.sum((2, 3))).unbind(1)
    colors, label = torch.stack([r - g, (r + g) / 2 - b], 1), batch.label
    accuracy = nearest_mean_accuracy((colors[:2000], label[:2000]), (colors[2000:], label[2000:]))
    assert abs(accuracy - 1 / 8) < 5 * (1 / 8 * 7 / 8 / 1000) ** 0.5


def test_spurious_strength_is_the_fraction_tied() -> None:
    """The same pictures with and without differ exactly where the background is tied."""
    fair, half = ShapesDataset(2000, 16), ShapesDataset(2000, 16, spurious=0.3)
    ids = list(range(2000))
    one, other = fair.__getitems__(ids), half.__getitems__(ids)
    assert torch.equal(one.mask, other.mask) and torch.equal(one.label, other.label)
    tied = (one.image != other.image).flatten(1).any(1).float().mean()
    assert abs(tied - 0.3) < 5 * (0.3 * 0.7 / 2000) ** 0.5


@pytest.mark.parametrize("figure", FIGURES, ids=CLASS_NAMES)
def test_signed_distances(figure) -> None:
    """Inside the unit circle, and never steeper than a distance: slope at most 1, by finite differences."""
    line = torch.linspace(-1.3, 1.3, 521, dtype=torch.float64)
    y, x = torch.meshgrid(line, line, indexing="ij")
    d = figure(x, y)
    assert ((x * x + y * y).sqrt()[d < 0] <= 1).all()
    assert (d < 0).any() and (d[0] > 0).all()
    step = line[1] - line[0]
    assert d.diff(dim=0).abs().max() <= step * (1 + 1e-9) and d.diff(dim=1).abs().max() <= step * (1 + 1e-9)


AREAS = {
    "disk": torch.pi * 0.86**2,
    "ring": torch.pi * (0.92**2 - 0.46**2),
    "triangle": 3 * 3**0.5 / 4,  # equilateral in the unit circle
    "square": 1.4**2,
    "star": 10
    * 0.5
    * 0.45
    * torch.sin(torch.tensor(torch.pi / 5)).item(),  # ten triangles with sides 1 and 0.45 at 36 degrees
    "cross": 4 * (2 * 0.94 * 0.29) - 4 * 0.29**2,
}


@pytest.mark.parametrize("name", AREAS)
def test_areas(name: str) -> None:
    line = (torch.arange(2000, dtype=torch.float64) + 0.5) / 1000 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    area = (FIGURES[CLASS_NAMES.index(name)](x, y) < 0).double().sum() / 1e6
    assert area == pytest.approx(AREAS[name], rel=2e-3)  # outline pixels: length 6 times 1/1000, random in sign


@pytest.mark.parametrize(
    "options",
    [{"size": 8}, {"spurious": 1.5}, {"spurious": -0.1}, {"train_size": 0}, {"num_classes": 10}, {"batch_size": 0}],
)
def test_bad_options(options: dict) -> None:
    with pytest.raises(UserError):
        ShapesData(**options)


def test_module() -> None:
    data = ShapesData(train_size=40, val_size=9, test_size=5, size=16, batch_size=8)
    assert (data.num_classes, data.image_size, data.class_names[0]) == (8, 16, "disk")
    assert [len(data.dataset(split)) for split in ("train", "val", "test")] == [40, 9, 5]
    assert [len(batch) for batch in data.val_dataloader()] == [8, 1]
    with pytest.raises(IndexError):
        data.dataset("val")[9]


def test_seed_moves_the_order_and_image_seed_the_images() -> None:
    def first(**options) -> torch.Tensor:
        return ShapesData(size=16, **options).dataset("test")[0].image

    assert torch.equal(first(seed=1), first(seed=2))
    assert not torch.equal(first(image_seed=1), first(image_seed=2))
    orders = [next(iter(ShapesData(size=16, seed=seed).train_dataloader())).sample_id.tolist() for seed in (1, 2)]
    assert orders[0] != orders[1]
