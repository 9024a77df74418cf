"""Randomization tests without their two flaws: gradients that shatter, and a measure of likeness that decides the order."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from explainode.attribution import Explanation, check_reduction, reduce_channels, upsample
from explainode.errors import UserError
from explainode.metrics.agreement import check_measure
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.input_perturbation import Steps, perturbed
from explainode.metrics.perturbation import usable
from explainode.metrics.sanity import layers_from_the_top, randomize


def _random_network(explanation: Explanation) -> torch.nn.Module:
    """A copy of the network with all parameters random; one for all explainers of a batch."""

    def build() -> torch.nn.Module:
        with torch.inference_mode(False):
            network = copy.deepcopy(explanation.model)
            randomize(network, layers_from_the_top(network), explanation.seed)
            return network

    if not layers_from_the_top(explanation.model):
        raise UserError("the network has no parameters that could be randomized; leave the metric out")
    return explanation.memo("network of random parameters", build, shared=True)


class EfficientRandomization(ExplanationMetric):
    """Relative rise of the map's complexity once all parameters are random: higher, the map had structure that came from training.

    (xi(A') - xi(A)) / xi(A), xi the entropy of the histogram of the map's values. Two maps are never compared pixel by pixel.
    Maps that are constant or not finite are excluded and counted; so are those that are so in the random network.

    Args:
        bins: of the histogram, between the map's minimum and maximum.
        reduction: of the channels.

    Shapes:
        compute(): (), at least -1. Costs one explanation per image. A map that does not look at the network gets 0.

    Source: Hedström et al. 2024 (efficient MPRT), Eq. 7 and 8, 100 bins.
    """

    higher_is_better = True
    role = "sanity"
    kind = "efficient_randomization"

    def __init__(self, bins: int = 100, reduction: str = "sum") -> None:
        self.bins, self.reduction = bins, check_reduction(reduction)
        if bins < 2:
            raise UserError(f"a histogram has at least two bins, got {bins}; 100 is usual")
        super().__init__()

    def measure(self, explanation: Explanation) -> Tensor:
        heat = explanation.heatmap(self.reduction)
        other = explanation.explain(explanation.x, model=_random_network(explanation))
        before = histogram_entropy(heat, self.bins)
        after = histogram_entropy(upsample(reduce_channels(other, self.reduction), heat.shape[-2:]), self.bins)
        return torch.where(before > 0, (after - before) / before, torch.nan)[:, None]

    def settings(self) -> tuple[str, ...]:
        return f"{self.bins}bins", self.reduction


def histogram_entropy(heatmap: Tensor, bins: int) -> Tensor:
    """(B, H, W) -> (B,) entropy in nats of the histogram of the values, in [0, log bins]; NaN for constant maps and maps that are not finite."""
    flat = heatmap.flatten(1).double()
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    fine = torch.isfinite(low) & torch.isfinite(high) & (high > low)
    place = torch.where(fine, (flat - low) / (high - low) * bins, 0.0).long().clamp(0, bins - 1)
    share = torch.zeros(len(flat), bins, dtype=torch.float64, device=flat.device)
    share.scatter_add_(1, place, torch.full_like(flat, 1 / flat.shape[1]))
    return torch.where(fine[:, 0], torch.special.entr(share).sum(1), torch.nan)


class SmoothRandomization(ExplanationMetric):
    """Likeness of the map to that of a network with random parameters, both averaged over noisy copies of the picture: lower is better.

    Gradients of deep networks are noisy from pixel to pixel; without the average a method passes because its map is noise, not because it depends on
    what was learned.

    Args:
        draws, radius: noisy copies, uniform in [-radius, radius].
        similarity: a name in `agreement.MEASURES`.
        reduction: of the channels.

    Shapes:
        compute(): (). Costs 2 * draws explanations per image.

    Source: Hedström et al. 2024 (smooth MPRT), Eq. 5. We compare with the network whose parameters are all random, which their curve ends with.
    """

    higher_is_better = False
    role = "sanity"
    kind = "smooth_randomization"

    def __init__(
        self, draws: int = 10, radius: float = 0.1, similarity: str = "spearman", reduction: str = "sum"
    ) -> None:
        self.draws, self.radius, self.similarity = draws, radius, similarity
        self.reduction = check_reduction(reduction)
        self.steps = Steps(radius, draws)
        check_measure(similarity)
        super().__init__()

    def measure(self, explanation: Explanation) -> Tensor:
        network = _random_network(explanation)
        sums: list[Tensor] = [torch.zeros(()), torch.zeros(())]
        for draw in range(self.draws):
            x = perturbed(explanation, self.steps, draw)
            for side, model in enumerate((None, network)):
                sums[side] = sums[side].to(x.device) + explanation.explain(x, model=model)
        own, other = (
            upsample(reduce_channels(total, self.reduction), explanation.x.shape[-2:]) / self.draws for total in sums
        )
        span = other.flatten(1).amax(1) - other.flatten(1).amin(1)
        says_something = torch.isfinite(span) & (span > 0)  # see `sanity.likeness`
        alike = check_measure(self.similarity)(own, torch.where(says_something[:, None, None], other, 0))
        found = torch.where(says_something, alike, 0).masked_fill(~usable(explanation, self.reduction), torch.nan)
        return found[:, None]

    def settings(self) -> tuple[str, ...]:
        return f"n{self.draws}", f"r{self.radius:g}", self.similarity, self.reduction
