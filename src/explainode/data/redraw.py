"""Part of a `shapes` picture redrawn from its true conditional distribution, given the pixels that stay.

A picture is a known function x = g(z) of independent draws z. Let R be the removed pixels; we want x' ~ p(x | x outside R). The draws that made x are
a sample of p(z | x outside R), since (z, x) is a sample of their joint distribution. Every move below leaves that conditional as it is: it proposes
some of the draws anew from their prior and accepts where the picture outside R stays the same in every bit, which is Metropolis' rule for a
likelihood of 0 or 1. So z', and with it x' = g(z'), has the conditional distribution exactly, after any number of moves: pictures with redrawn
regions are distributed as `shapes` themselves, whatever the region.

The number of moves decides how much of the old x in R is forgotten beyond what the pixels outside tell. Grain, and clutter that reaches no other
pixel, are forgotten at once. A distractor or a figure that is hidden entirely is drawn anew by rejection, the figure's class too. Of a figure that is
partly seen, the class is drawn anew among those that look the same outside R; its pose and colors are kept, since its visible pixels are functions
of them in 24 bits each.

Letters: n pictures, h their side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from explainode.data.scene import COARSE, EACH, FINE, KINDS, Draws, paint, stretch
from explainode.data.shapes import ShapesDataset
from explainode.errors import UserError
from explainode.randomness import normal, sample_keys, uniform

# columns of a row of draws, in the order in which `scene.paint` takes them
_LATTICE = 8  # first of the coarse lattice, after the lightness of both sides and the ground's hues, texture and phase
_GRAIN = _LATTICE + COARSE**2 + FINE**2  # strength of the grain, then the ground's second color
_DISTRACTORS = _GRAIN + 3
_SHOWN = _DISTRACTORS + KINDS * EACH * 8
_FIGURE = _SHOWN + 1
GROUND = [*range(_LATTICE), *range(_GRAIN, _DISTRACTORS), _SHOWN]
DISTRACTORS = [[*range(_DISTRACTORS + 8 * k, _DISTRACTORS + 8 * (k + 1))] for k in range(KINDS * EACH)]
FIGURE = [*range(_FIGURE, Draws.COUNT)]


@dataclass(frozen=True)
class ShapesRedraw:
    """Redraws regions of pictures of `data=shapes`.

    Args:
        split: that the pictures are of; their `spurious` must be 0, as it always is in validation and test.
        image_seed: the data's.
        tries: of a new figure, and of a new class for the old one, in each of the `sweeps` over all moves.

    Raises:
        UserError: on use, for pictures that are not those of the split.
    """

    split: str = "test"
    image_seed: int = 0
    tries: int = 8
    sweeps: int = 1

    def __call__(self, x: Tensor, sample_ids: Tensor, removed: Tensor, seed: int = 0, draw: int = 0) -> Tensor:
        """(n, 3, h, h): x with the pixels `removed` (n, h, h) drawn anew, keyed by (seed, sample id, draw); the others keep their bits."""
        picture, ids = self._picture(x, sample_ids), sample_ids.cpu()
        removed = removed.cpu()
        keys = sample_keys(ids, seed, "redraw", draw)
        for sweep in range(self.sweeps):
            picture = _forget_ground(picture, removed, sample_keys(keys, seed, "local", sweep))
            moves = [GROUND, *DISTRACTORS, *[FIGURE] * self.tries]
            for number, columns in enumerate(moves):
                fresh = uniform(sample_keys(keys, seed, "move", sweep, number), len(columns) + 1)
                values = picture.values.clone()
                values[:, columns] = fresh[:, 1:]
                label = (fresh[:, 0] * ShapesDataset.num_classes).long() if columns is FIGURE else picture.label
                picture = picture.accept(_Picture.painted(values, picture.grain, label), removed)
            for number in range(self.tries):
                fresh = uniform(sample_keys(keys, seed, "class", sweep, number), 1)[:, 0]
                label = (fresh * ShapesDataset.num_classes).long()
                picture = picture.accept(_Picture.painted(picture.values, picture.grain, label), removed)
        return picture.x.to(x)

    def _picture(self, x: Tensor, sample_ids: Tensor) -> _Picture:
        """The draws behind x.

        Raises:
            UserError: if these do not paint x.
        """
        ids, size = sample_ids.cpu(), x.shape[-1]
        data = ShapesDataset(int(ids.max()) + 1, size, self.split, self.image_seed)

        def keys(stream: str) -> Tensor:
            return sample_keys(ids, self.image_seed, "shapes", self.split, stream)

        made = _Picture.painted(uniform(keys("scene"), Draws.COUNT), normal(keys("grain"), size**2), data.labels(ids))
        if x.shape[1:] != made.x.shape[1:] or not torch.equal(made.x, x.cpu()):
            raise UserError(
                f"only pictures of data=shapes can be redrawn, and these are not those of split={self.split}, image_seed={self.image_seed}; "
                "set both as the data has them, or take a metric with another baseline, such as deletion"
            )
        return made


@dataclass(frozen=True)
class _Picture:
    """Draws and what they paint: values (n, Draws.COUNT) uniform, grain (n, h * h) normal, label (n,), x (n, 3, h, h)."""

    values: Tensor
    grain: Tensor
    label: Tensor
    x: Tensor

    @classmethod
    def painted(cls, values: Tensor, grain: Tensor, label: Tensor) -> _Picture:
        side = round(grain.shape[1] ** 0.5)
        x = torch.empty(len(values), 3, side, side)
        for top in range(0, len(values), 32):  # see `shapes`: more leave the cache
            rows = slice(top, top + 32)
            paint(Draws(values[rows]), grain[rows], label[rows], x[rows])
        return cls(values, grain, label, x)

    def accept(self, other: _Picture, removed: Tensor) -> _Picture:
        """The other picture where it is the same outside `removed`, else this one."""
        same = ((self.x == other.x).all(1) | removed).flatten(1).all(1)
        return _Picture(
            torch.where(same[:, None], other.values, self.values),
            torch.where(same[:, None], other.grain, self.grain),
            torch.where(same, other.label, self.label),
            torch.where(same[:, None, None, None], other.x, self.x),
        )


def _forget_ground(picture: _Picture, removed: Tensor, keys: Tensor) -> _Picture:
    """New grain in the removed pixels, and new values at the lattice points that no other pixel depends on: Gibbs moves, always accepted."""
    new_grain = normal(sample_keys(keys, 0, "grain"), picture.grain.shape[1])
    grain = torch.where(removed.flatten(1), new_grain, picture.grain)
    values, fresh = picture.values.clone(), uniform(sample_keys(keys, 0, "lattice"), Draws.COUNT)
    first = _LATTICE
    for points in (COARSE, FINE):
        reach = _reach(points, removed.shape[-1])  # (points, h): which lines of pixels a line of lattice points reaches
        kept = torch.einsum("ai,nij,bj->nab", reach, (~removed).float(), reach).flatten(1)
        columns = slice(first, first + points**2)
        values[:, columns] = torch.where(kept == 0, fresh[:, columns], values[:, columns])
        first += points**2
    return _Picture.painted(values, grain, picture.label)


def _reach(points: int, size: int) -> Tensor:
    """(points, size) 1 where a pixel of a line is interpolated from a lattice point."""
    left, _ = stretch(points, size)
    point = torch.arange(points)[:, None]
    return ((left == point) | (left + 1 == point)).float()
