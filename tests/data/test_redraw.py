"""Redrawn regions: what stays keeps its bits, what is drawn anew is distributed as the pictures themselves, and nothing hidden is remembered."""

from __future__ import annotations

import pytest
import torch

from explainode.data.redraw import DISTRACTORS, FIGURE, GROUND, ShapesRedraw, _reach
from explainode.data.scene import COARSE, FINE, Draws
from explainode.data.shapes import ShapesDataset
from explainode.errors import UserError

SIZE = 16


@pytest.fixture(scope="module")
def pictures():
    return ShapesDataset(96, SIZE, "test").__getitems__(list(range(96)))


def test_the_columns_are_all_of_the_draws():
    lattice = set(range(8, 8 + COARSE**2 + FINE**2))
    rest = [*GROUND, *[c for columns in DISTRACTORS for c in columns], *FIGURE]
    assert len(rest) == len(set(rest)) and set(rest) | lattice == set(range(Draws.COUNT)) and not set(rest) & lattice


def test_what_stays_keeps_its_bits_and_what_goes_changes(pictures):
    removed = torch.rand(96, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) < 0.5
    removed[:, : SIZE // 2, : SIZE // 2] = True
    drawn = ShapesRedraw(tries=1)(pictures.image, pictures.sample_id, removed)
    kept = (~removed)[:, None].expand_as(drawn)
    assert torch.equal(drawn[kept], pictures.image[kept])
    ground = (removed & (pictures.mask == 0))[:, None].expand_as(drawn)
    assert (drawn[ground] != pictures.image[ground]).float().mean() > 0.5


def test_nothing_removed_is_the_picture_and_all_removed_is_another(pictures):
    nothing = torch.zeros(96, SIZE, SIZE, dtype=torch.bool)
    redraw = ShapesRedraw(tries=1)
    assert torch.equal(redraw(pictures.image, pictures.sample_id, nothing), pictures.image)
    drawn = redraw(pictures.image, pictures.sample_id, ~nothing)
    means = drawn.mean((1, 2, 3)), pictures.image.mean((1, 2, 3))
    assert torch.corrcoef(torch.stack(means))[0, 1].abs() < 0.31  # of 96 independent pairs: three standard errors
    other = redraw(pictures.image, pictures.sample_id, ~nothing, draw=1)
    assert not torch.equal(drawn, other) and torch.equal(drawn, redraw(pictures.image, pictures.sample_id, ~nothing))


def test_each_picture_is_redrawn_by_itself(pictures):
    removed = torch.rand(96, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) < 0.7
    redraw = ShapesRedraw(tries=1)
    many = redraw(pictures.image[:8], pictures.sample_id[:8], removed[:8])
    one = redraw(pictures.image[3:4], pictures.sample_id[3:4], removed[3:4])
    assert torch.equal(many[3:4], one)


def test_redrawn_pictures_are_distributed_as_pictures(pictures):
    """Means and spreads of a region, and how it goes on across its border, over 96 pictures: two samples of one distribution."""
    removed = torch.zeros(96, SIZE, SIZE, dtype=torch.bool)
    removed[:, :, SIZE // 2 :] = True
    drawn = ShapesRedraw(tries=1)(pictures.image, pictures.sample_id, removed)
    for of in (
        lambda x: x[..., SIZE // 2 :].mean((1, 2, 3)),
        lambda x: x[..., SIZE // 2 :].std((1, 2, 3)),
        lambda x: (x[..., SIZE // 2] - x[..., SIZE // 2 - 1]).abs().mean((1, 2)),  # no seam
        lambda x: (x[..., SIZE // 2 + 1] - x[..., SIZE // 2]).abs().mean((1, 2)),
    ):
        a, b = of(drawn), of(pictures.image)
        error = ((a.var() + b.var()) / 96).sqrt()
        assert (a.mean() - b.mean()).abs() < 3 * error


def test_a_hidden_figure_is_forgotten(pictures):
    """With all removed but the corner pixels, the new picture's figure says nothing of the old one's place."""
    removed = torch.ones(96, SIZE, SIZE, dtype=torch.bool)
    removed[:, [0, 0, -1, -1], [0, -1, 0, -1]] = False
    hidden = (pictures.mask.bool() & ~removed).flatten(1).any(1).logical_not()
    x, ids = pictures.image[hidden], pictures.sample_id[hidden]
    drawn = ShapesRedraw(tries=8)(x, ids, removed[hidden])
    middle = slice(SIZE // 4, -SIZE // 4)
    same = (drawn[:, :, middle, middle] == x[:, :, middle, middle]).all(1).float().mean((1, 2))
    assert same.median() < 0.05


def test_reach_of_a_lattice_point():
    """By hand: move one lattice value and see which pixels follow."""
    from explainode.data.scene import _clutter

    lattice = torch.zeros(1, FINE, FINE)
    lattice[0, 4, 7] = 1
    moved = _clutter(lattice, SIZE)[0] != 0
    reach = _reach(FINE, SIZE)
    assert not (moved & ~(reach[4][:, None] * reach[7][None]).bool()).any() and moved.any()


def test_other_pictures_are_refused(pictures):
    removed = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    with pytest.raises(UserError, match="data=shapes"):
        ShapesRedraw()(torch.rand(2, 3, SIZE, SIZE), torch.arange(2), removed)
    with pytest.raises(UserError, match="split=val"):
        ShapesRedraw(split="val")(pictures.image[:2], pictures.sample_id[:2], removed)
