"""How what explainers cost grows: passes, time and peak memory with the batch, the network's depth and the picture's side.

    python scripts/benchmarks/growth.py [--explainers saliency ig lrp_epsilon] [--rounds 3]

Cost is fitted as a power of batch, depth or side; printed is the exponent (1: proportional). A picture of twice the side has four times the
pixels, so a pass has exponent 2 there. ResNets for CIFAR (depth 20 to 44), batches of 1 to 4, pictures of 16 to 48 pixels, in chunks that the
library chooses itself. Time is CPU time of one thread, the best of the rounds; memory is the peak of what the explanation allocates, weights left
out. The last three columns are what one explanation of batch 2, depth 20 and 32 pixels costs, in forwards and backwards per image, in times
of a plain forward of the batch, and in MiB.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import explainode
from explainode.explainers.base import Explainer
from explainode.explaining import explain

EXPLAINERS = [
    "saliency",
    "gradcam",
    "ig",
    "smoothgrad",
    "occlusion",
    "scorecam",
    "guided_backprop",
    "lrp_epsilon",
    "deep_lift",
    "root_inference",
]
AXES = {"batch": (1, 2, 4), "depth": (20, 32, 44), "side": (16, 32, 48)}
USUAL = {"batch": 2, "depth": 20, "side": 32}
QUANTITIES = ("passes", "time", "memory")


@dataclass(frozen=True)
class Cost:
    """Of one explanation of a batch: rows sent forwards and backwards, CPU seconds, and MiB at the peak."""

    forwards: int
    backwards: int
    seconds: float
    memory: float


def peak(call: Callable[[], object]) -> float:
    """The most memory in MiB that a call holds at one time beyond what was there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held = most = 0
    for _, change in sorted(events, key=lambda event: event[0]):
        held += change
        most = max(most, held)
    return most / 2**20


def best_seconds(call: Callable[[], object], rounds: int) -> float:
    """CPU seconds of the fastest of several calls."""
    found = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return min(found)


def network(depth: int) -> nn.Module:
    """A ResNet for CIFAR of random weights, which costs what a trained one does."""
    torch.manual_seed(0)
    return explainode.get("model/resnet20", depth=depth, num_classes=10).eval()


def measure(explainer: Explainer, batch: int, depth: int, side: int, rounds: int) -> Cost:
    net, x = network(depth), torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    record = explain(explainer, net, x, 0)  # warm: caches and tables are not the method's
    return Cost(
        record.forwards,
        record.backwards,
        best_seconds(lambda: explain(explainer, net, x, 0), rounds),
        peak(lambda: explain(explainer, net, x, 0)),
    )


def exponent(sizes: tuple[int, ...], costs: list[float]) -> float:
    """Slope of log cost over log size, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--explainers", nargs="+", default=EXPLAINERS)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    net, x = network(USUAL["depth"]), torch.rand(USUAL["batch"], 3, USUAL["side"], USUAL["side"])
    with torch.no_grad():
        plain = best_seconds(lambda: net(x), 5)
    print(f"{'':18}" + "".join(f"{f'with the {axis}':^24}" for axis in AXES) + f"{'itself':^30}")
    print(
        f"{'explainer':18}"
        + "".join(f"{q:>8}" for _ in AXES for q in QUANTITIES)
        + f"{'fwd+bwd':>10}{'forwards':>10}{'MiB':>10}"
    )
    for name in options.explainers:
        explainer, done = explainode.get(f"explainer/{name}"), {}
        cells = []
        for axis, sizes in AXES.items():
            costs = []
            for size in sizes:
                place = USUAL | {axis: size}
                key = tuple(place.values())
                if key not in done:
                    done[key] = measure(explainer, **place, rounds=options.rounds)
                costs.append(done[key])
            cells += [exponent(sizes, [c.forwards + c.backwards for c in costs])]
            cells += [exponent(sizes, [c.seconds for c in costs]), exponent(sizes, [c.memory for c in costs])]
        own = done[tuple(USUAL.values())]
        passes = f"{own.forwards / USUAL['batch']:g}+{own.backwards / USUAL['batch']:g}"
        print(
            f"{name:18}"
            + "".join(f"{v:8.2f}" for v in cells)
            + f"{passes:>10}{own.seconds / plain:10.1f}{own.memory:10.1f}",
            flush=True,
        )
    print(f"{time.process_time() - start:.0f} s of CPU time; a plain forward takes {1000 * plain:.1f} ms")


if __name__ == "__main__":
    main()
