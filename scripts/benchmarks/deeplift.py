"""What DeepLIFT promises and costs: the sum of its maps on stock networks, and time in forward-and-backward units, beside captum's.

    python scripts/benchmarks/deeplift.py [--networks resnet18 vit_b_16 ...] [--skip-cost] [--size 64]

Weights are random, batch statistics those of one batch of noise; double precision, two images, a gray baseline. The error of a sum is relative to the
difference of the scores, the worst of both images. Captum gets the network as it is, and then, where its rectifiers are modules, with a module
of its own for each call. Times are medians over turns taken one after the other, process CPU time, in units of one forward and backward of the same
batch (U).
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torchvision.models as stock
from timing import ratios, row
from torch import Tensor, nn

from explainode.dynamics.noise import Noise
from explainode.dynamics.solver import RungeKutta
from explainode.dynamics.tableau import TABLEAUS
from explainode.explainers.base import Explainer, count_passes, guard
from explainode.explainers.deeplift import DeepLIFT, DeepSHAP
from explainode.models.neural_ode import NeuralODE
from explainode.models.resnet import six_block_resnet, torchvision_resnet
from explainode.randomness import noise_scope

BASELINE = 0.5
STOCK = [
    "resnet18", "resnet50", "wide_resnet101_2", "resnext101_32x8d", "vgg11_bn", "vgg19", "densenet121", "mobilenet_v2", "mobilenet_v3_small",
    "efficientnet_b0", "convnext_tiny", "vit_b_16", "swin_t",
]  # fmt: skip


def continuous(method: str) -> Callable[[int], nn.Module]:
    return lambda size: NeuralODE.from_resnet(six_block_resnet(width=16), RungeKutta(method, steps=2))


def transformer(size: int) -> nn.Module:
    import timm

    return timm.create_model("deit_tiny_patch16_224", img_size=size)


OURS: dict[str, Callable[[int], nn.Module]] = {
    "deit_tiny (timm)": transformer,
    "six-block net": lambda size: six_block_resnet(),
    **{f"neural ODE, {method}": continuous(method) for method in TABLEAUS},
    "resnet18, noise twin": lambda size: torchvision_resnet("resnet18", noise=Noise(0.25)),
    "six-block net, multiplicative noise": lambda size: six_block_resnet(noise=Noise(0.25, "multiplicative")),
}


def stock_network(name: str, size: int) -> nn.Module:
    return getattr(stock, name)(**({"image_size": size} if name.startswith("vit") else {}))


def with_signal(network: nn.Module, size: int) -> nn.Module:
    """The network with batch statistics of its own and logits that differ, so that scores are more than rounding."""
    network = network.double().train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.normal_(last.weight, 0, last.in_features**-0.5)
    with torch.no_grad():
        network(torch.rand(4, 3, size, size, dtype=torch.float64))
    return network.eval().requires_grad_(False)


def own_rectifiers(network: nn.Module) -> nn.Module:
    """A copy in which each block of torchvision's ResNets has a rectifier for each call, none in place: the usual mend for captum."""
    network = copy.deepcopy(network)
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.ReLU())
        if isinstance(module, (stock.resnet.BasicBlock, stock.resnet.Bottleneck)):
            module.relu = _InTurn(3 if isinstance(module, stock.resnet.Bottleneck) else 2)
    return network


class _InTurn(nn.Module):
    """Rectifiers that are called one after the other."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.each = nn.ModuleList(nn.ReLU() for _ in range(count))
        self.call = 0

    def forward(self, x: Tensor) -> Tensor:
        self.call += 1
        return self.each[(self.call - 1) % len(self.each)](x)


def error(attribution: Tensor, expected: Tensor) -> float:
    return float(((attribution.sum((1, 2, 3)) - expected).abs() / expected.abs()).max())


def captums(network: nn.Module, x: Tensor, target: Tensor, expected: Tensor) -> str:
    from captum.attr import DeepLift

    try:  # what a peer does with a network is what is measured, a refusal too
        found = DeepLift(copy.deepcopy(network)).attribute(x.clone(), torch.full_like(x, BASELINE), target=target)
    except (RuntimeError, AssertionError, TypeError, ValueError, AttributeError) as refusal:
        return type(refusal).__name__
    return f"{error(found.detach(), expected):.0e}"


def completeness(names: list[str], size: int) -> None:
    networks: dict[str, Callable[[int], nn.Module]] = {
        name: lambda size, name=name: stock_network(name, size) for name in STOCK
    } | OURS  # type: ignore[misc]
    print(f"\n|sum - (f(x) - f(x'))| / |f(x) - f(x')|, double precision, 2 images {size}x{size}")
    print(f"{'network':<38}{'rescale':>10}{'reveal':>10}{'target':>9}{'captum':>16}{'captum, mended':>16}")
    for name in names or networks:
        torch.manual_seed(0)
        network = with_signal(networks[name](size), size)
        x, target = torch.rand(2, 3, size, size, dtype=torch.float64), torch.tensor([1, 3])
        cells = []
        with noise_scope(torch.arange(2)) if "nois" in name else nullcontext():
            for rule in ("rescale", "reveal_cancel"):
                explainer = DeepLIFT(rule, BASELINE)
                with guard(network) as guarded:
                    expected = explainer.expected_sum(guarded, x, target)
                assert expected is not None
                cells.append(error(explainer(network, x, target), expected))
            peers = [captums(net, x, target, expected) for net in (network, own_rectifiers(network))]
        met = "met" if max(cells) <= 1e-8 else "MISSED"
        print(f"{name:<38}{cells[0]:>10.0e}{cells[1]:>10.0e}{met:>9}{peers[0]:>16}{peers[1]:>16}", flush=True)


def cost(size: int, batch: int, rounds: int) -> None:
    from captum.attr import DeepLift, DeepLiftShap

    torch.manual_seed(0)
    network = stock.resnet18().eval().requires_grad_(False)
    x, target = torch.rand(batch, 3, size, size), torch.arange(batch)
    baselines = torch.rand(8, 3, size, size)

    def unit() -> None:
        rows = x.clone().requires_grad_()
        torch.autograd.grad(network(rows).gather(1, target[:, None]).sum(), rows)

    cases: list[tuple[str, Explainer, float | None]] = [
        ("deep_lift", DeepLIFT(), 2.3),
        ("deep_lift_reveal_cancel", DeepLIFT("reveal_cancel"), None),
        ("deep_shap, 8 baselines", DeepSHAP(baselines), 10),
    ]
    mended = own_rectifiers(network)
    black = torch.zeros_like(x)
    calls: dict[str, Callable[[], object]] = {"unit": unit}
    calls |= {name: lambda explainer=explainer: explainer(network, x, target) for name, explainer, _ in cases}  # type: ignore[misc]
    calls["captum DeepLift, mended network"] = lambda: DeepLift(mended).attribute(x, black, target=target)
    calls["captum DeepLiftShap, mended network"] = lambda: DeepLiftShap(mended).attribute(x, baselines, target=target)
    found, milliseconds = ratios(calls, rounds)
    print(f"\nresnet18, {batch} images {size}x{size}, U = {milliseconds:.0f} ms")
    targets = {name: limit for name, _, limit in cases}
    for name in list(calls)[1:]:
        note = ""
        for case, explainer, _ in cases:
            if case == name:
                with count_passes() as passes:
                    explainer(network, x, target)
                note = f"{passes.forwards / batch:g} forwards, {passes.backwards / batch:g} backwards an image"
        row(name, found[name], targets.get(name), note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=[], help="only these")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-cost", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="captum")
    completeness(options.networks, options.size)
    if not options.skip_cost:
        cost(224, 4, options.rounds)


if __name__ == "__main__":
    main()
