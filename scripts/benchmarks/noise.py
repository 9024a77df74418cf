"""What keyed noise costs against `torch.randn`, and what it adds to a training step: `python scripts/benchmarks/noise.py`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import ratios, row
from torch import Tensor, nn

from explainode.dynamics.noise import Noise
from explainode.models.resnet import cifar_resnet
from explainode.randomness import noise_scope, normal_like, sample_keys, uniform_like

SHAPE = (128, 64, 16, 16)


class PlainRandn(Noise):
    """What anybody would write: torch.randn, scaled by a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return self.magnitude * torch.randn_like(x)


class BatchStd(Noise):
    """EnResNet's line: torch.randn, scaled by the standard deviation of the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.magnitude * x.std() * torch.randn_like(x)


def draws(rounds: int) -> None:
    ids = torch.arange(SHAPE[0])
    for name, x in {
        "": torch.empty(SHAPE),
        ", channels_last": torch.empty(SHAPE).to(memory_format=torch.channels_last),
    }.items():
        result, milliseconds = ratios(
            {
                "randn": lambda: torch.randn(SHAPE),
                "keyed": lambda x=x: normal_like(x, sample_keys(ids, 0, 1, 0, 2)),
                "uniform": lambda x=x: uniform_like(x, sample_keys(ids, 0, 1, 0, 2)),
                "randn_like": lambda x=x: torch.randn_like(x),
            },
            rounds,
            repeat=8,
        )
        note = f"randn {milliseconds:.1f} ms"
        row(f"keyed normals / torch.randn, {SHAPE}{name}", result["keyed"], 0.6, note)
        row(f"keyed uniforms / torch.randn{name}", result["uniform"], None)
        row(f"torch.randn_like / torch.randn{name}", result["randn_like"], None)


def training_step(network: nn.Module, channels_last: bool) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    x, label = torch.rand(128, 3, 32, 32, generator=generator), torch.randint(10, (128,), generator=generator)
    if channels_last:
        network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        with noise_scope(torch.arange(128), seed=0, draw=1):
            F.cross_entropy(network(x), label).backward()
        optimizer.step()

    return step


def steps(rounds: int) -> None:
    for channels_last in (False, True):
        kinds = {
            "ours: keyed, std of each sample, exact gradient": Noise(0.1),
            "ours, not normalized": Noise(0.1, normalize=False),
            "ours, multiplicative": Noise(0.1, kind="multiplicative"),
            "torch.randn_like alone": PlainRandn(0.1),
            "torch.randn_like, std of the batch": BatchStd(0.1),
        }
        networks = {"none": cifar_resnet(20)} | {name: cifar_resnet(20, noise=noise) for name, noise in kinds.items()}
        calls = {name: training_step(network, channels_last) for name, network in networks.items()}
        result, milliseconds = ratios(calls, rounds)
        layout = "channels_last" if channels_last else "contiguous"
        print(f"\ntraining step of ResNet-20, CIFAR, batch 128, {layout}; without noise {milliseconds:.0f} ms")
        for name in kinds:
            row(f"  {name}", result[name], 1.25 if name.startswith("ours") else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'one thread, CPU time, medians':64}{'ratio':>8}  target")
    draws(options.rounds)
    steps(options.rounds)


if __name__ == "__main__":
    main()
