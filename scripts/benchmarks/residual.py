"""What torchvision's ResNets cost when built from `Residual`, ours / theirs: `python scripts/benchmarks/residual.py`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torchvision
from timing import ratios, row
from torch import Tensor, nn

from explainode.models.resnet import torchvision_resnet
from explainode.models.weights import fit_state_dict


def forward_and_backward(network: nn.Module, x: Tensor) -> Callable[[], None]:
    x = x.clone().requires_grad_()

    def call() -> None:
        network.zero_grad()
        x.grad = None
        network(x).sum().backward()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--names", nargs="+", default=["resnet18", "resnet50"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.rand(options.batch, 3, options.size, options.size)
    print(f"{f'forward + backward, {tuple(x.shape)}, one thread, CPU time, medians':64}{'ratio':>8}  target")
    for name in options.names:
        theirs = torchvision.models.get_model(name)
        ours = torchvision_resnet(name, mean=(0.0,) * 3, std=(1.0,) * 3)
        fit_state_dict(ours, theirs.state_dict())
        for training in (True, False):
            calls = {
                "theirs": forward_and_backward(theirs.train(training), x),
                "ours": forward_and_backward(ours.train(training), x),
            }
            result, milliseconds = ratios(calls, options.rounds)
            what = f"our {name} / torchvision's, {'train' if training else 'eval'} mode"
            row(what, result["ours"], 1.02, f"theirs {milliseconds:.0f} ms")


if __name__ == "__main__":
    main()
