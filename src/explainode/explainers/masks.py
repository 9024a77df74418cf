"""Maps from random masks: which parts of the picture go with the score, by mean, by variance, by dependence.

Letters: B images, N masks, C = side^2 cells of a coarse grid; m (B, N, C) in [0, 1], f (B, N) scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import tee
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainode.errors import UserError
from explainode.explainers.base import Explainer
from explainode.explainers.baselines import Baseline, make_baseline
from explainode.explainers.passes import each_copy, predict
from explainode.explainers.targets import select_score
from explainode.randomness import input_keys, uniform


@dataclass(frozen=True)
class MaskExplainer(Explainer):
    """What methods with coarse masks have in common: masks of `side` x `side` cells, upsampled, through which the image is seen.

    Args:
        side: cells of a mask along each side.
        baseline: what is seen where a mask is 0 (see `make_baseline`).
    """

    stochastic: ClassVar[bool] = True

    side: int = 7
    baseline: Baseline = "black"

    def __post_init__(self) -> None:
        if self.side < 1:
            raise UserError(f"side must be at least 1 cell, got {self.side}")

    def scores(self, model: nn.Module, x: Tensor, target: Tensor, masks: Iterator[Tensor]) -> Iterator[Tensor]:
        """(B,) float64 for each mask (B, 1, H, W): the target's logit of the image seen through it."""
        hidden = make_baseline(self.baseline, x)

        def score(rows: Tensor, classes: Tensor) -> tuple[Tensor]:
            return (select_score(predict(model, rows).double(), classes),)

        for (s,) in each_copy(score, (hidden + mask * (x - hidden) for mask in masks), target):
            yield s

    def upsampled(self, cells: Tensor, x: Tensor) -> Tensor:
        """(B, C) -> (B, 1, H, W), nearest: a cell is one rectangle."""
        return F.interpolate(
            cells.view(len(cells), 1, self.side, self.side).to(x.dtype), size=x.shape[-2:], mode="nearest"
        )


@dataclass(frozen=True)
class RISE(MaskExplainer):
    """S(p) = sum_i f(x seen through m_i) m_i(p) / (N share): the mean score of the masks that show pixel p. N forwards.

    Masks are coins on a coarse grid, enlarged bilinearly by one cell more than the image and shifted at random. They are drawn for each image and
    never stored: memory is that of one chunk.

    Args:
        samples: N; the paper takes 4000 to 8000 for 224 pixels.
        share: probability that a cell is to be seen, in (0, 1).

    Returns (B, 1, H, W).

    Source: Petsiuk et al. 2018, Eq. 6, with the logit in place of the probability, which is what the other methods explain.
    """

    samples: int = 2000
    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1 or not 0 < self.share < 1:
            raise UserError(f"RISE needs samples >= 1 and a share in (0, 1), got {self.samples} and {self.share}")

    def masks(self, x: Tensor) -> Iterator[Tensor]:
        """N masks (B, 1, H, W) in [0, 1], the same ones whenever they are asked for."""
        height, width = x.shape[-2:]
        cell = tuple(-(-pixels // self.side) for pixels in (height, width))
        size = tuple((self.side + 1) * c for c in cell)
        for draw in range(self.samples):
            numbers = uniform(input_keys(x, "rise", draw), self.side**2 + 2)
            coins = (numbers[:, :-2] < self.share).to(x.dtype).view(-1, 1, self.side, self.side)
            large = F.interpolate(coins, size=size, mode="bilinear", align_corners=False)
            corners = (numbers[:, -2:] * torch.tensor(cell, device=x.device)).long().tolist()
            cut = [
                part[:, top : top + height, left : left + width]
                for part, (top, left) in zip(large, corners, strict=True)
            ]
            yield torch.stack(cut)

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        total = torch.zeros(len(x), 1, *x.shape[-2:], dtype=torch.float64, device=x.device)
        seen, again = tee(self.masks(x))  # no more than a chunk of them is held
        for s, mask in zip(self.scores(model, x, target, seen), again, strict=True):
            total += s[:, None, None, None] * mask
        return (total / (self.samples * self.share)).to(x.dtype)


@dataclass(frozen=True)
class Sobol(MaskExplainer):
    """Total Sobol index of each cell: the share of the score's variance that is lost when the cell stops varying. N (C + 2) forwards.

    T_c = mean_n (f(A_n) - f(A_n with cell c of B_n))^2 / (2 Var f), by Jansen's estimator.

    Args:
        samples: N pairs of masks A, B, uniform in [0, 1].

    Returns (B, 1, side, side), in [0, inf), 0 where the score does not vary.

    Source: Fel et al. 2021, Eq. 6; Jansen 1999. Keyed uniform numbers in place of a quasi-random sequence.
    """

    samples: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 2:
            raise UserError(f"Sobol's indices need at least 2 samples, got {self.samples}")

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        cells = self.side**2
        A, B = (
            uniform(input_keys(x, "sobol", draw), self.samples * cells).view(len(x), -1, cells) for draw in range(2)
        )

        def masks() -> Iterator[Tensor]:
            for n in range(self.samples):
                yield self.upsampled(A[:, n], x)
                yield self.upsampled(B[:, n], x)
                for c in range(cells):
                    mixed = A[:, n].clone()
                    mixed[:, c] = B[:, n, c]
                    yield self.upsampled(mixed, x)

        f = torch.stack(list(self.scores(model, x, target, masks())), 1).view(len(x), self.samples, cells + 2)
        variance = f[:, :, :2].flatten(1).var(1, correction=0)
        total = (f[:, :, :1] - f[:, :, 2:]).square().mean(1) / 2
        flat = variance <= (torch.finfo(x.dtype).eps * f.abs().amax((1, 2))).square()
        return torch.where(flat[:, None], 0, total / variance[:, None]).view(-1, 1, self.side, self.side).to(x.dtype)


@dataclass(frozen=True)
class HSIC(MaskExplainer):
    """How far each cell's coin and the score depend on each other, by the Hilbert-Schmidt independence criterion. N forwards.

    HSIC_c = trace(K_c H L H) / (N - 1)^2: K_c says whether two masks agree in cell c, L = exp(-(f_i - f_j)^2 / (2 s^2)) with s the median distance, H centers.

    Args:
        samples: N.

    Returns (B, 1, side, side), >= 0 up to rounding: how much, not in which direction.

    Source: Novello et al. 2022; Gretton et al. 2005.
    """

    samples: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 3:
            raise UserError(f"HSIC needs at least 3 samples, got {self.samples}")

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        N, cells = self.samples, self.side**2
        m = (uniform(input_keys(x, "hsic", 0), N * cells).view(len(x), N, cells) < 0.5).double()
        f = torch.stack(list(self.scores(model, x, target, (self.upsampled(mask, x) for mask in m.unbind(1)))), 1)
        distance = (f[:, :, None] - f[:, None, :]).abs()
        upper = torch.ones(N, N, dtype=torch.bool, device=x.device).triu(1)
        scale = distance[:, upper].median(1).values[:, None, None]
        L = torch.exp(-(distance / torch.where(scale > 0, scale, 1)).square() / 2)
        L = L - L.mean(1, keepdim=True) - L.mean(2, keepdim=True) + L.mean((1, 2), keepdim=True)  # H L H
        # K_c = m m' + (1 - m) (1 - m)' is linear in products of coins, and rows of H L H add up to 0: only 2 m m' is left
        found = 2 * torch.einsum("bic,bij,bjc->bc", m, L, m) / (N - 1) ** 2
        return found.view(-1, 1, self.side, self.side).to(x.dtype)
