"""Metrics measured on a network whose truth is known: do they put it first, stay with what does not matter, and fall with what does?

    python scripts/benchmarks/meta_evaluation.py [--images 40] [--perturbations 3]

The evidence of the planted network is a sum of known contributions of pixels, large on a patch. Four methods are scored by each metric: the
contributions themselves (truth), the gradient (learned), random numbers, and the contributions with the other sign (inverted).

`first` is truth's rank by its mean score (1 is best of 4). Then, for perturbations of the maps and of the network, the four numbers of
`metrics.meta_evaluation`: resilience and rank resilience to small ones, reactivity to disruptions and the share of scores that they worsen, over
truth and gradient (random maps cannot be disrupted, inverted ones get better). Small: noise of 1 % of the map's deviation, or of each weight.
Disrupted: the map's pixels shuffled; maps of the network judged on one whose weights were drawn anew ("-": the metric does not look at the
network). The truth is that against black; `road` replaces pixels by their neighbors and `infidelity` up to a factor, so they ask for other maps.
Resilience is a p-value, which sees the smallest change if it is always in one direction: read it beside the ranks.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import explainode
from explainode.attribution import Explanation
from explainode.explainers.base import Explainer
from explainode.explaining import explain
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.meta_evaluation import meta_evaluate, ranks
from explainode.randomness import input_keys, normal_like, uniform_like

SIZE = 16
ZERO = {"baseline": "zero"}  # the contributions are those against black
METRICS: dict[str, dict[str, str]] = {
    "deletion": ZERO, "insertion": ZERO, "deletion_fast": ZERO, "insertion_fast": ZERO, "aopc": ZERO, "average_drop": {},
    "comprehensiveness": ZERO, "sufficiency": ZERO, "flip_rate": ZERO, "positive_perturbation": ZERO, "negative_perturbation": ZERO, "road": {},
    "infidelity": {}, "max_sensitivity": {}, "local_lipschitz": {}, "segmentation_agreement": {}, "pixel_auroc": {}, "pointing_game": {},
    "relevance_mass": {}, "relevance_rank": {}, "class_sensitivity": {}, "parameter_randomization": {}, "complexity": {}, "smoothness": {},
}  # fmt: skip


class Planted(nn.Module):
    """Two classes; a pixel contributes w tanh(3 x), with large weights on a patch: the gradient only resembles the contribution."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = 0.05 * torch.randn(SIZE, SIZE, generator=generator)
        row, column = torch.randint(0, SIZE - 5, (2,), generator=generator).tolist() if seed else (4, 6)
        weight[row : row + 5, column : column + 5] += 0.5
        self.weight = nn.Parameter(weight)
        self.patch = (row, column)

    def contributions(self, x: Tensor) -> Tensor:
        return self.weight * torch.tanh(3 * x.mean(1))

    def forward(self, x: Tensor) -> Tensor:
        evidence = self.contributions(x).sum((1, 2)) - 4.0
        return torch.stack((evidence, -evidence), dim=1)


@dataclass(frozen=True)
class Truth(Explainer):
    """The contributions themselves, times `sign`."""

    sign: float = 1.0

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        side = torch.where(target == 0, self.sign, -self.sign)[:, None, None, None]
        return side * model.contributions(x)[:, None]  # type: ignore[operator]


@dataclass(frozen=True)
class Altered(Explainer):
    """Another method's map with noise of `noise` of its deviation, or with its pixels in a random order; keyed by the image and `draw`."""

    explainer: Explainer
    noise: float = 0.0
    shuffled: bool = False
    draw: int = 0

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        found = self.explainer.attribute(model, x, target)
        keys = input_keys(x, "altered map", self.draw)
        if self.shuffled:
            order = uniform_like(found[:, 0], keys).flatten(1).argsort(1)[:, None].expand(-1, found.shape[1], -1)
            return found.flatten(2).gather(2, order).view_as(found)
        return found + self.noise * found.std((1, 2, 3), keepdim=True) * normal_like(found, keys)


@dataclass(frozen=True)
class Of(Explainer):
    """A method's map of another network than the one that is judged."""

    explainer: Explainer
    network: nn.Module

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return self.explainer.attribute(self.network, x, target)


def noisy(network: Planted, seed: int, noise: float = 0.01) -> Planted:
    """The network with each weight changed by a normal share of itself."""
    other = Planted()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        other.weight.copy_(network.weight * (1 + noise * torch.randn(network.weight.shape, generator=generator)))
    return other


def scores(
    explainer: Explainer, network: Planted, x: Tensor, metrics: dict[str, ExplanationMetric]
) -> dict[str, np.ndarray]:
    """{metric: (n,)} of its headline, turned so that more is better; NaN where excluded."""
    row, column = Planted().patch
    mask = torch.zeros(len(x), SIZE, SIZE, dtype=torch.int64)
    mask[:, row : row + 5, column : column + 5] = 1
    record: Explanation = explain(explainer, network, x, 0, mask=mask, label=torch.zeros(len(x), dtype=torch.int64))
    found = {}
    for name, metric in metrics.items():
        metric.setup(len(x))
        metric.update(record)
        headline = metric.results[0] if metric.results[0] in metric.columns else "miou_per_image"
        values = metric.per_image()[headline]
        sign = -1.0 if metric.direction(metric.results[0]) is False else 1.0
        found[name] = sign * np.array([values.get(k, np.nan) for k in range(len(x))])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--perturbations", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    coarse = torch.rand(options.images, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x = 0.2 + 0.7 * nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="nearest")
    network, draws = Planted(), range(options.perturbations)
    metrics = {name: explainode.get(f"metric/{name}", **settings) for name, settings in METRICS.items()}
    methods = {
        "truth": Truth(),
        "learned": explainode.get("explainer/saliency"),
        "random": explainode.get("explainer/random_map"),
        "inverted": Truth(-1.0),
    }
    clean = {name: scores(method, network, x, metrics) for name, method in methods.items()}
    probed = [methods["truth"], methods["learned"]]

    def table(change: str, d: int) -> list[dict[str, np.ndarray]]:
        if change == "small map":
            return [scores(Altered(m, noise=0.01, draw=d), network, x, metrics) for m in probed]
        if change == "other map":
            return [scores(Altered(m, shuffled=True, draw=d), network, x, metrics) for m in probed]
        if change == "small network":
            return [scores(m, noisy(network, d), x, metrics) for m in probed]
        return [scores(Of(m, network), Planted(d + 1), x, metrics) for m in probed]

    changed = {c: [table(c, d) for d in draws] for c in ("small map", "other map", "small network", "other network")}
    kinds = ("resilience", "rank_resilience", "reactivity", "worse")
    head = "  ".join(f"{kind[:10]:>10}" for kind in kinds)
    print(f"{'':26}{'':>7}   {'maps perturbed':^46}   {'network perturbed':^46}")
    print(f"{'metric':26}{'first':>7}   {head}   {head}  {'mean':>6}")
    for name in METRICS:
        every = np.array([clean[method][name] for method in methods])
        first = float(ranks(np.nanmean(every, axis=1)[:, None])[0, 0]) if not np.isnan(every).all() else float("nan")
        numbers, means = [], []
        for kind in ("map", "network"):
            small, other = (
                np.array([[m[name] for m in tables] for tables in changed[f"{size} {kind}"]])
                for size in ("small", "other")
            )
            if np.array_equal(other[0], every[:2], equal_nan=True):  # the metric does not look there
                numbers += [np.nan] * 4
                continue
            found = meta_evaluate(every[:2], small, other)
            numbers += [getattr(found, k) for k in kinds]
            means.append(found.consistency)
        cells = [
            "  ".join(f"{value:10.2f}" if value == value else f"{'-':>10}" for value in numbers[k : k + 4])
            for k in (0, 4)
        ]
        direction = "" if metrics[name].direction(metrics[name].results[0]) is not None else "  (a fact, no merit)"
        print(f"{name:26}{first:7.1f}   {cells[0]}   {cells[1]}  {np.mean(means) if means else np.nan:6.2f}{direction}")
    print(
        f"{time.process_time() - start:.0f} s of CPU time, {options.images} images, {options.perturbations} perturbations of each kind"
    )


if __name__ == "__main__":
    main()
