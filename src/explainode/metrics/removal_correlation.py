"""Does the relevance of what is removed say how far the score falls? Correlations over sets of pixels, for maps that are contributions.

Letters: D sets, B images, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from explainode.attribution import Explanation, check_reduction
from explainode.errors import UserError
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.baselines import baseline_image, check_baseline
from explainode.metrics.input_perturbation import ROWS
from explainode.metrics.perturbation import check_percent, check_score, target_score, usable
from explainode.randomness import sample_keys, uniform


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """(D, B) twice -> (B,) correlations over the sets: 0 where `a` is the same for all sets, NaN where `b` is."""
    a, b = a.double() - a.double().mean(0), b.double() - b.double().mean(0)
    size = (a.square().sum(0) * b.square().sum(0)).sqrt()
    found = torch.where(size > 0, (a * b).sum(0) / size.clamp(min=1e-300), 0.0)
    return torch.where(b.square().sum(0) > 0, found, torch.nan)


class RemovalCorrelation(ExplanationMetric):
    """Base of metrics that correlate the sum of the map over a set of pixels with the fall of the score when that set is replaced.

    The exact contributions of a linear network against its baseline get 1. Maps that are constant or not finite are excluded and counted;
    so are images whose score is the same without any of the sets.

    Args:
        baseline: what replaces a pixel, a name in `baselines.BASELINES` (holes are not inpainted one by one: "inpaint" is refused).
        reduction: of the channels.
        score, target: see `points.ScoreAtPoints`.
    """

    higher_is_better = True
    role = "faithfulness"

    def __init__(self, baseline: str, reduction: str, score: str, target: str) -> None:
        self.baseline, self.reduction = check_baseline(baseline), check_reduction(reduction)
        if baseline == "inpaint":
            raise UserError("sets of pixels are replaced by one picture, which baseline=inpaint is not; blur is usual")
        self.score, self.target = score, target
        check_score(score, target)
        super().__init__()

    def removed(self, explanation: Explanation) -> Tensor:
        """(D, B, H, W) bool: the sets, the same for every explainer."""
        raise NotImplementedError

    def falls(self, explanation: Explanation, removed: Tensor) -> Tensor:
        """(D, B) f(x) - f(x without the set)."""

        def compute() -> Tensor:
            x, end = explanation.x, baseline_image(explanation, self.baseline)
            followed = explanation.logits.argmax(1) if self.target == "predicted" else explanation.target
            clean = target_score(explanation.logits.float(), followed, self.score)
            group = max(1, ROWS // len(x))
            found = []
            for gone in removed.split(group):
                mixed = torch.where(gone[:, :, None], end, x).flatten(0, 1)
                rows = torch.arange(len(x), device=x.device).repeat(len(gone))
                logits = explanation.forward(mixed, rows=rows).float().unflatten(0, (len(gone), len(x)))
                found.append(clean - target_score(logits.transpose(0, 1), followed, self.score).T)
            return torch.cat(found)

        # explainers that were given other classes do not share the store
        key = ("falls", self.protocol_hash, tuple(explanation.target.tolist()))
        return explanation.memo(key, compute, shared=True)

    def relevance(self, explanation: Explanation, removed: Tensor) -> Tensor:
        """(D, B) sum of the map over each set; NaN for maps that order nothing."""
        heat = explanation.heatmap(self.reduction).flatten(1)
        total = torch.einsum("dbp,bp->db", removed.flatten(2).to(heat.dtype), heat.nan_to_num())
        return total.masked_fill(~usable(explanation, self.reduction), torch.nan)

    def measure(self, explanation: Explanation) -> Tensor:
        removed = self.removed(explanation)
        correlation = pearson(self.relevance(explanation, removed), self.falls(explanation, removed))
        return correlation.masked_fill(~usable(explanation, self.reduction), torch.nan)[:, None]


def random_sets(explanation: Explanation, sizes: Sequence[int], stream: str) -> Tensor:
    """(D, B, H, W) bool: one random set of each of the D sizes, keyed by (seed, sample id, number)."""
    height, width = explanation.x.shape[-2:]
    ids = explanation.sample_ids.to(explanation.x.device)
    sets = []
    for number, size in enumerate(sizes):
        draw = uniform(sample_keys(ids, explanation.seed, stream, number), height * width)
        rank = draw.argsort(1).argsort(1)
        sets.append((rank < size).view(-1, height, width))
    return torch.stack(sets)


class FaithfulnessCorrelation(RemovalCorrelation):
    """Pearson correlation, over random sets of pixels of one size, of the map's sum over the set and the fall of the score without it.

    Args:
        percent: of the pixels in a set.
        draws: sets.
        baseline, reduction, score, target: see `RemovalCorrelation`.

    Shapes:
        compute(): (), in [-1, 1]. Costs `draws` forwards per image, once for all explainers of a batch.

    Source: Bhatt et al. 2020, Eq. 3: corr_S(sum_{i in S} g_i, f(x) - f(x_{S = baseline})). We draw sets of pixels, all channels at once, and follow the logit.
    """

    kind = "faithfulness_correlation"

    def __init__(
        self,
        percent: float = 20,
        draws: int = 100,
        baseline: str = "blur",
        reduction: str = "sum",
        score: str = "logit",
        target: str = "explained",
    ) -> None:
        self.percent, self.draws = percent, draws
        check_percent([percent], 0.01, 99.99)
        if draws < 3:
            raise UserError(f"a correlation needs at least 3 draws, got {draws}; 100 is usual")
        super().__init__(baseline, reduction, score, target)

    def removed(self, explanation: Explanation) -> Tensor:
        size = max(1, round(self.percent * explanation.x[0, 0].numel() / 100))
        return random_sets(explanation, [size] * self.draws, "faithfulness correlation")

    def settings(self) -> tuple[str, ...]:
        return f"{self.percent:g}%", f"n{self.draws}", self.baseline, f"{self.score}({self.target})"


class SensitivityN(RemovalCorrelation):
    """Mean over sizes n of the correlation, over random sets of n pixels, of the map's sum and the fall of the score.

    Curve: the correlation against the share of pixels removed.

    Args:
        percent: sizes of the sets, ascending.
        draws: sets of each size.
        baseline, reduction, score, target: see `RemovalCorrelation`.

    Shapes:
        compute(): (), in [-1, 1]. Costs len(percent) * draws forwards per image, once for all explainers of a batch.

    Source: Ancona et al. 2018, Def. 3.1 and Sec. 3 (100 sets a size, sizes from 1 feature to 80 %, in steps of the logarithm; baseline zero). We take
    whole pixels, and the mean over sizes as the one number.
    """

    kind = "sensitivity_n"

    def __init__(
        self,
        percent: Sequence[float] = (1, 3, 10, 30, 80),
        draws: int = 30,
        baseline: str = "blur",
        reduction: str = "sum",
        score: str = "logit",
        target: str = "explained",
    ) -> None:
        self.percent, self.draws = percent, draws
        self.levels = check_percent(percent, 0.01, 99.99)
        if draws < 3:
            raise UserError(f"a correlation needs at least 3 draws, got {draws}; 30 is usual")
        super().__init__(baseline, reduction, score, target)

    def curve_axis(self) -> tuple[np.ndarray, str, str]:
        return np.array(self.levels) / 100, "share of pixels removed", "correlation of relevance and fall"

    def removed(self, explanation: Explanation) -> Tensor:
        pixels = explanation.x[0, 0].numel()
        sizes = [max(1, round(p * pixels / 100)) for p in self.levels for _ in range(self.draws)]
        return random_sets(explanation, sizes, "sensitivity-n")

    def curves(self, explanation: Explanation) -> Tensor:
        def compute() -> Tensor:
            removed = self.removed(explanation)
            relevance, falls = self.relevance(explanation, removed), self.falls(explanation, removed)
            of_each = [pearson(a, b) for a, b in zip(relevance.split(self.draws), falls.split(self.draws), strict=True)]
            return torch.stack(of_each, 1).masked_fill(~usable(explanation, self.reduction)[:, None], torch.nan)

        return explanation.memo(("sensitivity-n", self.protocol_hash), compute)

    def measure(self, explanation: Explanation) -> Tensor:
        return self.curves(explanation).mean(1, keepdim=True)

    def settings(self) -> tuple[str, ...]:
        sizes = f"{len(self.levels)}x{self.levels[0]:g}-{self.levels[-1]:g}%"
        return sizes, f"n{self.draws}", self.baseline, f"{self.score}({self.target})"


class SinglePatchDeletion(RemovalCorrelation):
    """Correlation, over the patches of a grid, of the map's sum in a patch and the fall of the score without this patch alone.

    One patch is a small change. On a network that was trained with single patches missing the changed picture is not even a strange one; on any
    other this is the same protocol out of distribution.

    Args:
        grid: patches along each side.
        baseline, reduction, score, target: see `RemovalCorrelation`.

    Shapes:
        compute(): (), in [-1, 1]. Costs grid^2 forwards per image, once for all explainers of a batch.

    Source: Hesse et al. 2024 (IDSDS: in-domain single deletion score; 4 x 4 patches, Spearman's correlation, networks fine-tuned with patches set to zero).
    We take Pearson's correlation, for which the exact contributions of a linear network get 1, and leave the fine-tuning to training.
    """

    kind = "single_patch_deletion"

    def __init__(
        self,
        grid: int = 4,
        baseline: str = "blur",
        reduction: str = "sum",
        score: str = "logit",
        target: str = "explained",
    ) -> None:
        self.grid = grid
        if grid < 2:
            raise UserError(f"a grid has at least 2 patches along each side, got {grid}; 4 is usual")
        super().__init__(baseline, reduction, score, target)

    def removed(self, explanation: Explanation) -> Tensor:
        patches = grid_segments(explanation.x.shape[-2], explanation.x.shape[-1], self.grid).to(explanation.x.device)
        sets = patches == torch.arange(self.grid**2, device=patches.device).view(-1, 1, 1)
        return sets[:, None].expand(-1, len(explanation), -1, -1)

    def settings(self) -> tuple[str, ...]:
        return f"{self.grid}x{self.grid}", self.baseline, f"{self.score}({self.target})"


def grid_segments(height: int, width: int, grid: int) -> Tensor:
    """(H, W) int64 numbers 0 .. grid^2 - 1 of patches as equal as pixels allow.

    Raises:
        UserError: if there are more patches along a side than pixels.
    """
    if grid > min(height, width):
        raise UserError(f"a grid of {grid} patches needs as many pixels a side, the images have {height}x{width}")
    row, column = (torch.arange(side) * grid // side for side in (height, width))
    return row[:, None] * grid + column
