"""What methods of attention cost on a vision transformer at 224 pixels, in units of one forward and backward to the pixels.

    python scripts/benchmarks/attention.py [--model deit_tiny_patch16_224] [--rounds 5]

The model is one of timm's or torchvision's, with random weights; CPU time of one thread, medians of runs that take turns. The passes of each
method are printed beside its time: a forward is about a third of the unit.
"""

from __future__ import annotations

import argparse

import torch
import torchvision
from timing import ratios
from torch import nn

from explainode.explainers.base import count_passes, guard
from explainode.registry.build import get

METHODS = ["raw_attention", "attention_rollout", "gradient_rollout", "i_vit", "attn_lrp", "cp_lrp", "dtd_z_plus"]


def load(name: str) -> nn.Module:
    if name in torchvision.models.list_models():
        return torchvision.models.get_model(name, num_classes=10)
    import timm

    return timm.create_model(name, num_classes=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = load(options.model).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if name.startswith("head"):
            nn.init.normal_(parameter, 0, 0.02)
    x, target = torch.rand(options.batch, 3, 224, 224), torch.arange(options.batch)

    def unit() -> None:
        rows = x.clone().requires_grad_()
        with guard(network):
            torch.autograd.grad(network(rows).gather(1, target[:, None]).sum(), rows)

    def forward() -> None:
        with guard(network), torch.no_grad():
            network(x)

    explainers = {name: get(f"explainer/{name}") for name in METHODS}
    calls = {
        "unit": unit,
        "forward": forward,
        **{name: lambda e=e: e(network, x, target) for name, e in explainers.items()},
    }
    measured, milliseconds = ratios(calls, options.rounds)
    print(
        f"{options.model}, {options.batch} images 224x224, unit {milliseconds:.0f} ms of CPU time\n{'method':<20}{'forwards':>9}{'backwards':>10}{'U':>7}"
    )
    for name, ratio in measured.items():
        if name not in explainers:
            print(f"{name:<20}{'':>19}{ratio:>7.2f}")
            continue
        with count_passes() as passes:
            explainers[name](network, x, target)
        print(
            f"{name:<20}{passes.forwards / options.batch:>9.0f}{passes.backwards / options.batch:>10.0f}{ratio:>7.2f}"
        )


if __name__ == "__main__":
    main()
