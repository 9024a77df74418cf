"""What metrics cost beyond the network: forwards against their floor, time over the forward floor, the engine alone, and the statistics.

    python scripts/benchmarks/metrics.py [--large]

Times are CPU time of one thread, the best of several alternating runs; ratios come from one run of this script. `--large` adds ResNet-18 at
224x224 (minutes).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from explainode.attribution import Explanation
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.baselines import baseline_image
from explainode.metrics.faithfulness import Deletion, Insertion
from explainode.metrics.localization import SegmentationAgreement
from explainode.metrics.perturbation import Walk, order_of
from explainode.metrics.sensitivity import MaxSensitivity
from explainode.metrics.smoothness import Smoothness
from explainode.metrics.statistics import bootstrap_interval, paired_sign_flip


class Counted:
    """A record whose forwards and explanations are plain calls of the network, and counted in rows."""

    def __init__(self, network: nn.Module, batch: int, size: int) -> None:
        self.network, self.forwards, self.explained = network, 0, 0
        self.x = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
        self.attribution = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))
        self.mask = (torch.arange(size) < size // 2).long().expand(batch, size, size)
        with torch.no_grad():
            self.logits = network(self.x)

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        self.forwards += len(x)
        with torch.no_grad():
            return self.network(x)

    def explain(self, x: Tensor, rows: Tensor | None = None, draw: int | None = None) -> Tensor:
        self.explained += len(x)
        return x

    def record(self) -> Explanation:
        """A new record, nothing computed yet."""
        self.forwards = self.explained = 0
        batch = len(self.x)
        return Explanation(
            x=self.x,
            target=self.logits.argmax(1),
            attribution=self.attribution,
            logits=self.logits,
            score=self.logits.amax(1),
            completeness_error=None,
            forwards=0,
            backwards=0,
            noise="off",
            seed=0,
            stochastic=False,
            sample_ids=torch.arange(batch),
            label=None,
            mask=self.mask,
            boxes=None,
            seconds=0.0,
            forward=self.forward,
            explain=self.explain,
            model=self.network,
        )


class Corner(nn.Module):
    """A network that costs nothing: logits are the first pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 0, 0]


class SmallBlock(nn.Module):
    """A residual block of ResNet-20 for CIFAR."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.stride, self.extra = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra, self.extra))
        return torch.relu(shortcut + self.branch(x))


def resnet20() -> nn.Module:
    """ResNet-20 for 32x32 images, random weights: the cost is that of the trained one."""
    widths = [(16, 16, 1)] * 3 + [(16, 32, 2), (32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 1)]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *(SmallBlock(*w) for w in widths), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def best(*works: Callable[[], object], repeats: int = 5) -> list[float]:
    """Best CPU time of each, in alternating order so that a busy machine hits all alike."""
    times = [[cpu_seconds(work) for work in works] for _ in range(repeats)]
    return [min(column) for column in zip(*times, strict=True)]


def run(metrics: Sequence[ExplanationMetric], counted: Counted) -> None:
    explanation = counted.record()
    for metric in metrics:
        metric.setup(len(counted.x))
        metric.update(explanation)


def curves(name: str, network: nn.Module, batch: int, size: int, points: int, repeats: int) -> None:
    counted = Counted(network, batch, size)
    pair = [Deletion(points=points), Insertion(points=points)]
    run(pair, counted)
    rows = counted.forwards
    floor = batch * (2 * (points - 2) + 1)

    def plain() -> None:
        with torch.no_grad():
            for first in range(0, rows, 64):
                network(
                    counted.x[: min(64, rows - first)] if batch >= 64 else counted.x.repeat(64 // batch, 1, 1, 1)[: min(64, rows - first)]
                )

    engine, model = best(lambda: run(pair, counted), plain, repeats=repeats)
    print(f"| deletion + insertion, {points} points, {name}, B={batch} | {rows} of {floor} | {engine / model:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="also ResNet-18 at 224x224")
    large = parser.parse_args().large
    torch.set_num_threads(1)

    print("| curves | forwards of floor | CPU time / forward floor (target <= 1.1) |\n|---|---|---|")
    curves("ResNet-20 at 32x32", resnet20(), 64, 32, 51, 4)
    curves("ResNet-20 at 32x32", resnet20(), 1, 32, 101, 5)
    if large:
        curves("ResNet-18 at 224x224", resnet18().eval(), 16, 224, 11, 2)

    counted = Counted(Corner(), 64, 224)
    pair: list[ExplanationMetric] = [Deletion(), Insertion()]
    fast: list[ExplanationMetric] = [Deletion(points="adaptive"), Insertion(points="adaptive")]
    run(pair, counted)
    images = counted.forwards
    full, order, blur = (1e3 * t / images for t in best(lambda: run(pair, counted), lambda: rank(counted), lambda: blurred(counted)))
    print(f"\nBeyond the network, 224x224, B=64, per perturbed image: {full:.4f} ms (target <= 0.04)")
    print(f"  of these the walk itself {full - order - blur:.4f}, ranking {order:.4f}, blur {blur:.4f}")
    print(f"  blur is shared by all explainers of a batch: with five of them {full - 0.8 * blur:.4f} ms")
    run(fast, counted)
    adaptive = counted.forwards
    seconds = best(lambda: run(fast, counted), repeats=3)[0]
    print(f"  adaptive curves: {adaptive / 64:.1f} forwards per image for both, {1e3 * seconds / adaptive:.3f} ms each beyond the network")

    run([MaxSensitivity()], counted)
    print(f"MaxSensitivity, 10 draws: {counted.explained // 64} explanations per image beside the record's own")
    maps: list[ExplanationMetric] = [Smoothness(), SegmentationAgreement()]
    for metric in maps:
        seconds = best(lambda metric=metric: run([metric], counted), repeats=3)[0]  # type: ignore[misc]
        print(f"{type(metric).__name__}, 224x224: {1e3 * seconds / 64:.2f} ms per image")

    values = np.random.default_rng(0).normal(size=1000)
    first = cpu_seconds(lambda: (bootstrap_interval(values), paired_sign_flip(values)))
    again = cpu_seconds(lambda: (bootstrap_interval(values), paired_sign_flip(values)))
    print(f"Statistics, 1000 images x 10,000 resamples: {first:.3f} s, the next metric of the same images {again:.3f} s (target <= 0.5)")


def rank(counted: Counted) -> None:
    """Once per explanation, for both directions."""
    order_of(counted.record(), Walk())


def blurred(counted: Counted) -> None:
    """Once per batch, for all explanations."""
    baseline_image(counted.record(), "blur")


if __name__ == "__main__":
    main()
