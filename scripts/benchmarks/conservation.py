"""How much of the logit the relevance of the pixels adds up to, on stock networks: `python scripts/benchmarks/conservation.py`.

Nothing of the networks is changed but their numbers: random weights, BatchNorm statistics as after training, heads that begin at zero drawn
anew; float64. For rules that conserve the table shows |sum R - logit| / |logit|, the worst of the batch, and how much relevance had to be
spread over the inputs of units that had no share to give (in logits). For rules that absorb by design it shows how much they absorb. The
first columns say whether the tape is right: the logits beside those of a plain forward, the gradient by the rules beside autograd's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torchvision
from torch import Tensor, nn

from explainode import get
from explainode.explainers.guard import guard
from explainode.models.neural_ode import NeuralODE
from explainode.randomness import noise_scope
from explainode.relevance.composite import Composite
from explainode.relevance.composites import backpropagation
from explainode.relevance.rules.gradient import Gradient
from explainode.relevance.tape import record
from explainode.relevance.walk import Walk, seed

CONSERVING = ("dtd_z_plus", "lrp_gamma", "dtd_z_box", "dtd_w2", "lrp_flat")
ABSORBING = ("lrp_epsilon", "lrp_combination")
TARGET = 1e-10
# name: pixels of a side; less than 224 where the network allows
STOCK = {
    "resnet18": 64, "resnet50": 64, "wide_resnet101_2": 64, "resnext101_32x8d": 64, "vgg11_bn": 64, "vgg19": 64, "densenet121": 64,
    "mobilenet_v2": 64, "mobilenet_v3_small": 64, "efficientnet_b0": 64, "convnext_tiny": 64, "vit_b_16": 64, "swin_t": 96,
    "deit_tiny_patch16_224": 224,
}  # fmt: skip
SOLVERS = (
    "euler",
    "midpoint",
    "heun2",
    "ralston",
    "fehlberg2",
    "heun3",
    "rk4",
    "rk4_38",
    "bosh3",
    "dopri5",
    "tsit5",
    "torchdiffeq",
)


def lived_in(network: nn.Module) -> nn.Module:
    """The network in float64, as if it had been trained."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
        elif isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.05)
    return network.double().eval()


def stock(name: str) -> nn.Module:
    if name.startswith("deit"):
        import timm

        return lived_in(timm.create_model(name, pretrained=False))
    settings = {"image_size": STOCK[name]} if name.startswith("vit") else {}
    return lived_in(torchvision.models.get_model(name, weights=None, **settings))


def solved(solver: str) -> nn.Module:
    settings = {"method": "rk4", "steps": 2} if solver == "torchdiffeq" else {}
    return lived_in(NeuralODE.from_resnet(get("model/six_block"), get(f"solver/{solver}", **settings)))


def cases() -> dict[str, tuple[Callable[[], nn.Module], int, bool]]:
    """name: how to build the network, pixels of a side, whether its noise speaks."""
    found: dict[str, tuple[Callable[[], nn.Module], int, bool]] = {}
    for name, size in STOCK.items():
        found[name] = (lambda name=name: stock(name)), size, False
    found["six-block"] = (lambda: lived_in(get("model/six_block"))), 32, False
    found["six-block, noise"] = (lambda: lived_in(get("model/six_block", noise={"magnitude": 0.5}))), 32, True
    found["resnet20, noise"] = (lambda: lived_in(get("model/resnet20", noise={"magnitude": 0.5}))), 32, True
    for solver in SOLVERS:
        found[f"neural ODE, {solver}"] = (lambda solver=solver: solved(solver)), 32, False
    return found


def measure(network: nn.Module, size: int, noise: bool) -> tuple[float, float, dict[str, tuple[float, float]]]:
    """The errors of the logits and of the gradient, and per composite: |sum R - logit| / |logit| and the spread relevance / |logit|."""
    x = torch.rand(2, 3, size, size, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    scope = noise_scope(torch.arange(2), seed=3) if noise else nullcontext()
    with guard(network) as network, scope:
        leaf = x.clone().requires_grad_()
        logits = network(leaf)
        target = logits.argmax(1)
        score = logits.gather(1, target[:, None])[:, 0]
        (gradient,) = torch.autograd.grad(score.sum(), leaf)
        score = score.detach()
        tape = record(network, x)
        forward_error = float((tape.output.data - logits.detach()).abs().max() / logits.detach().abs().max())
        # noise is a constant of the rules, but its strength depends on the state: autograd sees that, relevance does not
        found = walk(tape, target, backpropagation(Gradient()))[0]
        gradient_error = float("nan") if noise else float((found - gradient).norm() / gradient.norm())
        results = {}
        for name in (*CONSERVING, *ABSORBING):
            R, spread = walk(tape, target, get(f"explainer/{name}").composite)
            error = ((R.sum((1, 2, 3)) - score) / score).abs().max()
            results[name] = float(error), float((spread / score.abs()).max())
    return forward_error, gradient_error, results


def walk(tape: object, target: Tensor, composite: Composite) -> tuple[Tensor, Tensor]:
    way = Walk(tape)  # type: ignore[arg-type]
    R = way.back({way.tape.output: seed(way.tape, target, composite.seed)}, composite)
    return R, way.amounts.get("spread", torch.zeros(way.tape.batch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of the networks; all without")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = cases()
    worst = 0.0
    print(
        f"{'network':26}{'logits':>9}{'gradient':>10}"
        + "".join(f"{name:>13}" for name in (*CONSERVING, "z+ spread", *ABSORBING))
    )
    for name in options.names or found:
        build, size, noise = found[name]
        torch.manual_seed(0)
        start = time.process_time()
        forward_error, gradient_error, results = measure(build(), size, noise)
        worst = max(worst, *(results[composite][0] for composite in CONSERVING))
        shown = [
            *(results[composite][0] for composite in CONSERVING),
            results["dtd_z_plus"][1],
            *(results[name][0] for name in ABSORBING),
        ]
        print(
            f"{name:26}{forward_error:>9.0e}{gradient_error:>10.0e}" + "".join(f"{value:>13.1e}" for value in shown)
            + f"   {time.process_time() - start:.0f} s",
            flush=True,
        )  # fmt: skip
    print(f"worst of the conserving rules {worst:.1e} (target {TARGET:.0e}: {'met' if worst <= TARGET else 'MISSED'})")


if __name__ == "__main__":
    main()
