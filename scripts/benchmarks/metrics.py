"""What metrics cost beyond the network: forwards against their floor, time over the forward floor, the engine alone, and the statistics.

    python scripts/benchmarks/metrics.py [--large] [--peers]

Times are CPU time of one thread, the best of several alternating runs; ratios come from one run of this script. `--large` adds ResNet-18 at
224x224 (minutes). `--peers` compares with captum, with RISE's protocol one image at a time, and with Quantus and pytorch-grad-cam where they
are installed.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import resnet18

from explainode.attribution import Explanation
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.baselines import baseline_image
from explainode.metrics.confidence import AverageDrop
from explainode.metrics.erasure import AOPC, Comprehensiveness, FlipRate, Sufficiency
from explainode.metrics.faithfulness import Deletion, Insertion
from explainode.metrics.infidelity import Infidelity
from explainode.metrics.inpainting import inpaint
from explainode.metrics.localization import SegmentationAgreement
from explainode.metrics.means import mean_interval
from explainode.metrics.perturbation import Walk, order_of
from explainode.metrics.perturbation_accuracy import NegativePerturbation, PositivePerturbation
from explainode.metrics.road import ROAD
from explainode.metrics.robustness import HeatmapGuidedPGD
from explainode.metrics.sanity import ClassSensitivity, ParameterRandomization
from explainode.metrics.sensitivity import LocalLipschitz, MaxSensitivity, MeanSensitivity
from explainode.metrics.smoothness import Smoothness
from explainode.metrics.statistics import paired_comparison


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

    def explain(self, x: Tensor, rows: Tensor | None = None, draw: int | None = None, **of: object) -> Tensor:
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
            label=self.logits.argmax(1),
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
    return nn.Sequential(
        *stem, *(SmallBlock(*w) for w in widths), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    ).eval()


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
                    counted.x[: min(64, rows - first)]
                    if batch >= 64
                    else counted.x.repeat(64 // batch, 1, 1, 1)[: min(64, rows - first)]
                )

    engine, model = best(lambda: run(pair, counted), plain, repeats=repeats)
    print(
        f"| deletion + insertion, {points} points, {name}, B={batch} | {rows} of {floor} | {engine / model:.3f} |",
        flush=True,
    )


class Operations(TorchDispatchMode):
    """Counts the tensor operations that reach the kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.counts[function.__name__] += 1
        return function(*args, **(kwargs or {}))


def operations(metrics: Sequence[ExplanationMetric], counted: Counted) -> float:
    """Tensor operations per perturbed image."""
    explanation = counted.record()
    for metric in metrics:
        metric.setup(len(counted.x))
    with Operations() as seen:
        for metric in metrics:
            metric.update(explanation)
    return sum(seen.counts.values()) / counted.forwards


def one_baseline() -> list[ExplanationMetric]:
    """Every metric that reads the walks from x to its blur."""
    return [
        Deletion(),
        Insertion(),
        PositivePerturbation(baseline="blur"),
        NegativePerturbation(baseline="blur"),
        AOPC(),
        Comprehensiveness(),
        Sufficiency(),
        FlipRate(),
        AverageDrop(baseline="blur", keep=50),
        ROAD(baseline="blur"),
    ]


def counts() -> None:
    """Forwards and explanations per image, by counting."""
    network, batch = resnet20(), 16
    counted = Counted(network, batch, 32)
    explanation = counted.record()
    for metric in one_baseline():
        metric.setup(batch)
        metric.update(explanation)
    first = counted.forwards / batch
    again = counted.record()
    again.shared = explanation.shared
    again.attribution = -again.attribution
    for metric in one_baseline():
        metric.setup(batch)
        metric.update(again)
    print(
        f"\n{len(one_baseline())} metrics of one baseline: {first:g} forwards per image, each further explainer {counted.forwards / batch:g}"
    )
    steps = {
        "sensitivity maximum, mean and local Lipschitz, 10 draws": [
            MaxSensitivity(),
            MeanSensitivity(),
            LocalLipschitz(),
        ]
    }
    steps["sensitivity of Jha et al. 2021, 5 repetitions of 10 draws"] = [MaxSensitivity(repetitions=5)]
    steps["parameter randomization, 10 stages"] = [ParameterRandomization()]
    steps["class sensitivity"] = [ClassSensitivity()]
    for name, metrics in steps.items():
        run(metrics, counted)
        print(f"{name}: {counted.explained / batch:g} explanations per image beside the record's own")
    run([Infidelity()], counted)
    print(f"infidelity, 50 draws: {counted.forwards / batch:g} forwards per image, shared by all explainers")


def filled_holes() -> None:
    """ROAD's inpainting, against the forwards that it prepares."""
    network = resnet20()
    counted = Counted(network, 64, 32)
    road, plain = [ROAD()], [ROAD(baseline="blur")]
    inpainted, blurred = best(lambda: run(road, counted), lambda: run(plain, counted), repeats=3)
    print(
        f"ROAD, ResNet-20 at 32x32, B=64: {inpainted / blurred:.2f} of the time with a blur instead of the inpainting"
    )
    guided: list[ExplanationMetric] = [HeatmapGuidedPGD()]

    def twenty() -> None:
        for _ in range(20):
            x = counted.x.clone().requires_grad_()
            torch.autograd.grad(network(x).sum(), x)

    ours, floor = best(lambda: run(guided, counted), twenty, repeats=2)
    print(f"guided PGD, random weights, 20 steps: {ours / floor:.2f} of 20 forwards and backwards of the batch")


def single_run(
    network: nn.Module, image: Tensor, order: Tensor, start: Tensor, finish: Tensor, step: int
) -> list[float]:
    """RISE's protocol as its code runs it: one image, one step, one forward."""
    scores = []
    winner = int(network(image).argmax(1))
    state = start.clone()
    for done in range(0, order.shape[0] + 1, step):
        scores.append(float(network(state).softmax(1)[0, winner]))
        places = order[done : done + step]
        state.view(3, -1)[:, places] = finish.view(3, -1)[:, places]
    return scores


def peers() -> None:
    """Time of a peer over ours for the same work."""
    network = resnet20()
    counted = Counted(network, 32, 32)
    blur = baseline_image(counted.record(), "blur")
    pair: list[ExplanationMetric] = [Deletion(points=103), Insertion(points=103)]

    def rise() -> None:
        with torch.no_grad():
            for i in range(32):
                image = counted.x[i : i + 1]
                order = counted.attribution[i].sum(0).flatten().argsort(descending=True)
                single_run(network, image, order, image, blur[i : i + 1], 10)
                single_run(network, image, order, blur[i : i + 1], image, 10)

    theirs, ours = best(rise, lambda: run(pair, counted), repeats=2)
    print(f"\nRISE single_run, 103 points, both directions: {theirs / ours:.2f} of our time (target >= 3)")
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    (columnar,) = best(lambda: run(pair, counted), repeats=2)
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    print(f"  with evaluation.channels_last=true: {theirs / columnar:.2f}")

    from captum.metrics import infidelity, sensitivity_max

    def saliency(x: Tensor, rows: Tensor | None = None, draw: int | None = None, **of: object) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(network(x).amax(1).sum(), x)[0]

    counted.explain = saliency  # type: ignore[method-assign]
    sensitive: list[ExplanationMetric] = [MaxSensitivity()]
    theirs, ours = best(lambda: sensitivity_max(saliency_of_tuple(saliency), counted.x, max_examples_per_batch=64),
                        lambda: run(sensitive, counted), repeats=3)  # fmt: skip
    print(f"captum sensitivity_max, 10 draws: {theirs / ours:.2f} of our time")
    target = counted.logits.argmax(1)

    def noise(x: Tensor) -> tuple[Tensor, Tensor]:
        step = 0.05 * torch.randn_like(x)
        return step, x - step

    faithful: list[ExplanationMetric] = [Infidelity("normal", 0.05, 50)]
    theirs, ours = best(
        lambda: infidelity(
            network,
            noise,
            counted.x,
            counted.attribution,
            target=target,
            n_perturb_samples=50,
            max_examples_per_batch=64,
        ),
        lambda: run(faithful, counted),
        repeats=3,
    )
    print(f"captum infidelity, 50 draws: {theirs / ours:.2f} of our time (both of its normalizations)")
    for name, compare in (("quantus", quantus_flipping), ("pytorch_grad_cam", imputing)):
        try:
            compare(importlib.import_module(name), counted)
        except ImportError as missing:
            print(f"{name} is left out: {missing}")


def saliency_of_tuple(saliency: Callable[..., Tensor]) -> Callable[..., object]:
    """Captum calls with a tuple or a tensor, and wants the same back."""
    return lambda x: (saliency(x[0]),) if isinstance(x, tuple) else saliency(x)


def quantus_flipping(quantus: object, counted: Counted) -> None:
    """Quantus' PixelFlipping: as many forwards as the deletion with as many steps."""
    metric = quantus.PixelFlipping(
        features_in_step=32, perturb_baseline="black", disable_warnings=True, display_progressbar=False
    )  # type: ignore[attr-defined]
    x, y = counted.x.numpy(), counted.logits.argmax(1).numpy()
    a = counted.attribution.sum(1, keepdim=True).numpy()
    deletion: list[ExplanationMetric] = [Deletion(points=33, baseline="zero")]
    call = lambda: metric(model=counted.network, x_batch=x, y_batch=y, a_batch=a, device="cpu", batch_size=64)  # noqa: E731
    theirs, ours = best(call, lambda: run(deletion, counted), repeats=2)
    print(f"Quantus PixelFlipping, 32 steps: {theirs / ours:.2f} of our time")


def imputing(cam: object, counted: Counted) -> None:
    """pytorch-grad-cam's imputer solves one image at a time with scipy."""
    imputer = importlib.import_module("pytorch_grad_cam.metrics.road").NoisyLinearImputer(0.0)
    heat = counted.attribution.sum(1)
    removed = heat > heat.flatten(1).median(1).values[:, None, None]
    theirs, ours = best(
        lambda: [imputer(x, (~hole).float()) for x, hole in zip(counted.x, removed, strict=True)],
        lambda: inpaint(counted.x, removed),
        repeats=2,
    )
    print(f"pytorch-grad-cam's linear imputation, half of 32x32 pixels: {theirs / ours:.1f} of our time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="also ResNet-18 at 224x224")
    parser.add_argument("--peers", action="store_true", help="also the same work by other libraries")
    settings = parser.parse_args()
    torch.set_num_threads(1)

    print("| curves | forwards of floor | CPU time / forward floor (target <= 1.1) |\n|---|---|---|")
    curves("ResNet-20 at 32x32", resnet20(), 64, 32, 51, 4)
    curves("ResNet-20 at 32x32", resnet20(), 1, 32, 101, 5)
    if settings.large:
        curves("ResNet-18 at 224x224", resnet18().eval(), 16, 224, 11, 2)

    counted = Counted(Corner(), 64, 224)
    pair: list[ExplanationMetric] = [Deletion(), Insertion()]
    fast: list[ExplanationMetric] = [Deletion(points="adaptive"), Insertion(points="adaptive")]
    run(pair, counted)
    images = counted.forwards
    full, order, blur = (
        1e3 * t / images for t in best(lambda: run(pair, counted), lambda: rank(counted), lambda: blurred(counted))
    )
    print(f"\nBeyond the network, 224x224, B=64, per perturbed image: {full:.4f} ms (target <= 0.04)")
    print(f"  of these the walk itself {full - order - blur:.4f}, ranking {order:.4f}, blur {blur:.4f}")
    print(f"  blur is shared by all explainers of a batch: with five of them {full - 0.8 * blur:.4f} ms")
    print(f"  tensor operations per perturbed image: {operations(pair, counted):.2f} (target <= 0.3)")
    run(fast, counted)
    adaptive = counted.forwards
    seconds = best(lambda: run(fast, counted), repeats=3)[0]
    print(
        f"  adaptive curves: {adaptive / 64:.1f} forwards per image for both, {1e3 * seconds / adaptive:.3f} ms each beyond the network"
    )

    counts()
    filled_holes()
    if settings.peers:
        peers()
    maps: list[ExplanationMetric] = [Smoothness(), SegmentationAgreement()]
    for metric in maps:
        seconds = best(lambda metric=metric: run([metric], counted), repeats=3)[0]  # type: ignore[misc]
        print(f"{type(metric).__name__}, 224x224: {1e3 * seconds / 64:.2f} ms per image")

    values = np.random.default_rng(0).normal(size=1000)
    pair, zero = dict(enumerate(values)), dict.fromkeys(range(1000), 0.0)
    first = cpu_seconds(lambda: (mean_interval(values), paired_comparison(pair, zero)))
    again = cpu_seconds(lambda: (mean_interval(values), paired_comparison(pair, zero)))
    print(f"Statistics, 1000 images: {first:.3f} s, the next metric of the same images {again:.3f} s (target <= 0.5)")


def rank(counted: Counted) -> None:
    """Once per explanation, for both directions."""
    order_of(counted.record(), Walk())


def blurred(counted: Counted) -> None:
    """Once per batch, for all explanations."""
    baseline_image(counted.record(), "blur")


if __name__ == "__main__":
    main()
