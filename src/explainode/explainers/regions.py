"""Parts of a picture as players: what the score is when some of them are hidden, and how the score is shared out among them.

Letters: B images, R regions, N coalitions; z (B, N, R) which regions are to be seen, f (B, N) the scores, phi (B, R) what each region gets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor, nn

from explainode.errors import UserError
from explainode.explainers.base import Explainer
from explainode.explainers.baselines import Baseline, make_baseline
from explainode.explainers.passes import each_copy, predict, report
from explainode.explainers.targets import select_score
from explainode.randomness import input_keys, uniform

MOST_PLAYERS = 12  # 2^12 coalitions of each image


def grid_of(x: Tensor, side: int) -> Tensor:
    """(B, H, W) int64: side x side rectangles, as equal as can be."""
    height, width = x.shape[-2:]
    rows, columns = (torch.arange(pixels, device=x.device) * side // pixels for pixels in (height, width))
    return (rows[:, None] * side + columns).expand(len(x), height, width)


def superpixels_of(x: Tensor, count: int) -> Tensor:
    """(B, H, W) int64: about `count` superpixels of each image, numbered from 0 without gaps.

    Raises:
        UserError: without scikit-image.

    Source: SLIC, Achanta et al. 2012, by scikit-image.
    """
    try:
        from skimage.segmentation import slic
    except ImportError as error:
        raise UserError(
            "superpixels need scikit-image, which is not installed; pip install 'explainode[superpixels]', or regions=grid"
        ) from error
    found = []
    for image in x.detach().double().cpu():
        labels = slic(image.permute(1, 2, 0).numpy(), n_segments=count, compactness=10, start_label=0, channel_axis=-1)
        found.append(torch.from_numpy(labels).unique(return_inverse=True)[1])
    return torch.stack(found).to(x.device)


@dataclass(frozen=True)
class RegionExplainer(Explainer):
    """What methods that hide regions have in common: which regions, what hides them, and how shares become a map.

    Args:
        regions: "grid" of `side` x `side` rectangles, or "superpixels", about `side` squared of them.
        side: see there.
        baseline: what a hidden region shows (see `make_baseline`).

    Returns (B, 1, H, W): each region's share spread evenly over its pixels, so that pixels add up to what regions do.

    Raises:
        UserError: for another word or no region, and without scikit-image where it is needed.
    """

    regions: str = "grid"
    side: int = 7
    baseline: Baseline = "black"

    def __post_init__(self) -> None:
        if self.regions not in ("grid", "superpixels"):
            raise UserError(f"regions are 'grid' or 'superpixels', got {self.regions!r}")
        if self.side < 1:
            raise UserError(f"side must be at least 1 region, got {self.side}")

    def shares(self, model: nn.Module, x: Tensor, target: Tensor, labels: Tensor, count: int) -> Tensor:
        """(B, R) float64: what each region gets; regions that an image lacks count as hidden and seen alike."""
        raise NotImplementedError

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        labels = self.cut(x)
        count = int(labels.max()) + 1
        phi = self.shares(model, x, target, labels, count)
        area = torch.zeros_like(phi).scatter_add_(
            1, labels.flatten(1), torch.ones_like(labels, dtype=phi.dtype).flatten(1)
        )
        each = phi / area.clamp(min=1)
        return each.gather(1, labels.flatten(1)).view(len(x), 1, *labels.shape[1:]).to(x.dtype)

    def cut(self, x: Tensor) -> Tensor:
        """(B, H, W) int64: the region of each pixel."""
        height, width = x.shape[-2:]
        if self.regions == "grid":
            return grid_of(x, min(self.side, height, width))
        return superpixels_of(x, self.side**2)

    def scores(self, model: nn.Module, x: Tensor, target: Tensor, labels: Tensor, z: Tensor) -> Tensor:
        """(B, N) float64: the target's logit where only the regions of z (B, N, R) are to be seen."""
        hidden = make_baseline(self.baseline, x)

        def copies() -> Iterator[Tensor]:
            for coalition in z.unbind(1):
                seen = coalition.gather(1, labels.flatten(1)).view(len(x), 1, *labels.shape[1:])
                yield torch.where(seen, x, hidden)

        def score(rows: Tensor, classes: Tensor) -> tuple[Tensor]:
            return (select_score(predict(model, rows).double(), classes),)

        return torch.stack([s for (s,) in each_copy(score, copies(), target)], 1)

    def gain(self, model: nn.Module, x: Tensor, target: Tensor, labels: Tensor, count: int) -> Tensor:
        """(B,): the score of the image less that of the baseline."""
        ends = torch.stack([torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)]).to(x.device)
        f = self.scores(model, x, target, labels, ends.expand(len(x), 2, count))
        return f[:, 0] - f[:, 1]


@dataclass(frozen=True)
class FeatureAblation(RegionExplainer):
    """phi_r = f(x) - f(x without region r): what is lost when one region is hidden. R + 1 forwards.

    Source: Zeiler and Fergus 2014, without overlap; Captum's `FeatureAblation`.
    """

    def shares(self, model: nn.Module, x: Tensor, target: Tensor, labels: Tensor, count: int) -> Tensor:
        z = torch.cat([torch.ones(1, count, dtype=torch.bool), ~torch.eye(count, dtype=torch.bool)]).to(x.device)
        f = self.scores(model, x, target, labels, z.expand(len(x), -1, -1))
        return f[:, :1] - f[:, 1:]


class Efficient(RegionExplainer):
    """Shares that add up to f(x) - f(baseline)."""

    def expected_sum(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        labels = self.cut(x)
        return self.gain(model, x, target, labels, int(labels.max()) + 1).to(x.dtype)


@dataclass(frozen=True)
class ShapleyValues(Efficient):
    """phi_r = sum over coalitions S without r of |S|! (R - |S| - 1)! / R! (f(S and r) - f(S)): exact, by all 2^R coalitions.

    Args:
        side: at most 12 regions, so at most 3 for a grid.

    Raises:
        UserError: for more regions: their coalitions are too many; `shapley_sampling` draws some.

    Source: Shapley 1953; Lundberg and Lee 2017, Eq. 4.
    """

    side: int = 3

    def shares(self, model: nn.Module, x: Tensor, target: Tensor, labels: Tensor, count: int) -> Tensor:
        if count > MOST_PLAYERS:
            raise UserError(
                f"{count} regions have 2^{count} coalitions, expected at most {MOST_PLAYERS} regions; lower side, or take shapley_sampling"
            )
        numbers = torch.arange(2**count, device=x.device)
        z = (numbers[:, None] >> torch.arange(count, device=x.device) & 1).bool()
        f = self.scores(model, x, target, labels, z.expand(len(x), -1, -1))
        size = z.sum(1)
        weight = torch.tensor(
            [math.factorial(s) * math.factorial(count - s - 1) / math.factorial(count) for s in range(count)],
            dtype=torch.float64,
            device=x.device,
        )
        phi = []
        for r in range(count):
            without = numbers[~z[:, r]]
            phi.append((weight[size[without]] * (f[:, without | (1 << r)] - f[:, without])).sum(1))
        return torch.stack(phi, 1)


@dataclass(frozen=True)
class ShapleySampling(Efficient):
    """Shapley values from random orders: what each region adds when it joins those before it. Each order is walked back too.

    2 orders (R - 1) + 2 forwards. The mean over all orders is the Shapley value; a pair of opposite orders has less variance than two others.

    Args:
        orders: pairs of an order and its reverse.

    Source: Castro et al. 2009; antithetic pairs: Mitchell et al. 2022.
    """

    stochastic: ClassVar[bool] = True

    orders: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.orders < 1:
            raise UserError(f"orders must be at least 1, got {self.orders}")

    def shares(self, model: nn.Module, x: Tensor, target: Tensor, labels: Tensor, count: int) -> Tensor:
        order = torch.cat(
            [uniform(input_keys(x, "shapley", draw), count).argsort(1)[:, None] for draw in range(self.orders)], 1
        )
        order = torch.cat([order, order.flip(2)], 1)  # (B, orders, R)
        place = order.argsort(2)
        joined = place[:, :, None] < torch.arange(count + 1, device=x.device)[:, None]  # (B, orders, R + 1, R)
        f = self.scores(
            model, x, target, labels, torch.cat([joined[:, 0, ::count], joined[:, :, 1:-1].flatten(1, 2)], 1)
        )
        inner = f[:, 2:].view(len(x), order.shape[1], count - 1)
        ends = f[:, :2, None].expand(-1, -1, order.shape[1])
        steps = torch.cat([ends[:, 0, :, None], inner, ends[:, 1, :, None]], 2).diff(dim=2)  # (B, orders, R) by place
        return steps.gather(2, place).mean(1)


def weighted_least_squares(Z: Tensor, f: Tensor, weight: Tensor, ridge: float = 0.0) -> Tensor:
    """The least squares of each image: Z (B, N, P) float64, f and weight (B, N) -> (B, P)."""
    ZW = Z * weight[:, :, None]
    gram = ZW.transpose(1, 2) @ Z
    gram = gram + ridge * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.lstsq(gram, (ZW.transpose(1, 2) @ f[:, :, None])).solution[:, :, 0]


def determination(f: Tensor, fitted: Tensor, weight: Tensor) -> Tensor:
    """(B,): R squared of a weighted fit; 1 where there is nothing to explain."""
    mean = (weight * f).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
    total, left = (weight * (f - mean).square()).sum(1), (weight * (f - fitted).square()).sum(1)
    return torch.where(total > 0, 1 - left / total, 1.0)


@dataclass(frozen=True)
class LIME(RegionExplainer):
    """The weights of a linear model of the score, fitted to coalitions near the image. N forwards.

    Coalitions are drawn by a coin for each region and weighted by exp(-d^2 / width^2) with d the cosine distance to the whole image; the
    diagnostic `r_squared` says how much of the score such a model holds.

    Args:
        samples: N.
        width: of the kernel.
        ridge: what is added to the diagonal of the normal equations.

    Source: Ribeiro et al. 2016; kernel and cosine distance as in their code for images (width 0.25, ridge 1). We give shares of the logit, not
    of the probability, and keep all regions.
    """

    stochastic: ClassVar[bool] = True

    samples: int = 500
    width: float = 0.25
    ridge: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 2 or not self.width > 0 or self.ridge < 0:
            raise UserError(
                f"LIME needs samples >= 2, width > 0 and ridge >= 0, got {self.samples}, {self.width}, {self.ridge}"
            )

    def shares(self, model: nn.Module, x: Tensor, target: Tensor, labels: Tensor, count: int) -> Tensor:
        coin = uniform(input_keys(x, "lime", 0), self.samples * count).view(len(x), self.samples, count) < 0.5
        z = torch.cat([torch.ones_like(coin[:, :1]), coin[:, 1:]], 1)  # the image itself is one of them
        f = self.scores(model, x, target, labels, z)
        Z = z.double()
        cosine = Z.sum(2) / (Z.sum(2) * count).clamp(min=1).sqrt()
        weight = torch.exp(-((1 - cosine) ** 2) / self.width**2)
        design = torch.cat([Z, torch.ones_like(Z[:, :, :1])], 2)
        mean = (weight * f).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        beta = weighted_least_squares(design, f - mean, weight, self.ridge)
        report("r_squared", determination(f - mean, (design @ beta[:, :, None])[:, :, 0], weight))
        return beta[:, :-1]


@dataclass(frozen=True)
class KernelSHAP(Efficient):
    """Shapley values as the least squares of coalitions under Shapley's kernel, held to add up to f(x) - f(baseline). N + 2 forwards.

    Sizes are drawn by the kernel, (R - 1) / (s (R - s)), coalitions of a size by chance, each with its complement, so that all weigh alike; where all
    2^R - 2 are not more than N they are all taken, with their weights, and the values are exact.

    Args:
        samples: N, an even number.

    Source: Lundberg and Lee 2017, Theorem 2; sampling in pairs: Covert and Lee 2021.
    """

    stochastic: ClassVar[bool] = True

    samples: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 2 or self.samples % 2:
            raise UserError(f"samples must be an even number of at least 2, got {self.samples}")

    def shares(self, model: nn.Module, x: Tensor, target: Tensor, labels: Tensor, count: int) -> Tensor:
        total = self.gain(model, x, target, labels, count)
        if count == 1:
            return total[:, None]
        z, weight = self._all(x, count) if 2**count - 2 <= self.samples else self._some(x, count)
        empty = torch.zeros_like(z[:, :1])
        f = self.scores(model, x, target, labels, torch.cat([empty, z], 1))
        Z, f = z.double(), f[:, 1:] - f[:, :1]
        last = Z[:, :, -1:]  # the constraint takes the last region out: phi_R = total - the others
        rest = weighted_least_squares(Z[:, :, :-1] - last, f - last[:, :, 0] * total[:, None], weight)
        phi = torch.cat([rest, (total - rest.sum(1))[:, None]], 1)
        report("r_squared", determination(f, (Z @ phi[:, :, None])[:, :, 0], weight))
        return phi

    def _all(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        rows, weights = [], []
        for size in range(1, count):
            kernel = (count - 1) / (math.comb(count, size) * size * (count - size))
            for members in combinations(range(count), size):
                rows.append([r in members for r in range(count)])
                weights.append(kernel)
        z = torch.tensor(rows, device=x.device).expand(len(x), -1, -1)
        return z, torch.tensor(weights, dtype=torch.float64, device=x.device).expand(len(x), -1)

    def _some(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        pairs = self.samples // 2
        size = torch.arange(1, count, dtype=torch.float64, device=x.device)
        cumulative = (1 / (size * (count - size))).cumsum(0)
        drawn = uniform(input_keys(x, "kernel shap", 0), pairs * (count + 1)).view(len(x), pairs, count + 1).double()
        chosen = 1 + torch.searchsorted(cumulative / cumulative[-1], drawn[:, :, 0].contiguous()).clamp(max=count - 2)
        z = drawn[:, :, 1:].argsort(2).argsort(2) < chosen[:, :, None]
        z = torch.cat([z, ~z], 1)
        return z, torch.ones(z.shape[:2], dtype=torch.float64, device=x.device)
