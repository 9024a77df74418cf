"""Where other libraries fail, and what we say there: `python scripts/benchmarks/peers.py [words of cases ...]`.

Each case has a truth that needs no trained weights: the sum that the map owes (the logit, or the difference of the scores of image and baseline), or
an equal network whose map must be the same. Two images of 64x64 pixels, random weights, batch statistics of noise, double precision. A peer that
is not installed is skipped by name. `absorbed` is what our method itself reports to be missing from its sum, as a part of |logit|: our LRP lets
biases absorb, as the peers' does by default, and says so. Canonized, zennit is asked to leave biases out, with which its sum is the logit.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
import torch.nn.functional as F
import torchvision.models as stock
from deeplift import own_rectifiers, with_signal
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from explainode import get
from explainode.explainers.base import Explainer
from explainode.explainers.deeplift import DeepLIFT
from explainode.explaining import explain

SIZE, BASELINE = 64, 0.5
REFUSALS = (
    RuntimeError,
    AssertionError,
    TypeError,
    ValueError,
    AttributeError,
    NotImplementedError,
)  # what peers were seen to raise
Method = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Plain(nn.Module):
    """Two convolutions and a dense layer, the activation as a function or as a module of its own for each call."""

    def __init__(self, activation: Callable[[Tensor], Tensor], module: Callable[[], nn.Module] | None = None) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 16, 3, 2), nn.Conv2d(16, 16, 3, 2), nn.Linear(16, 10)
        self.act1, self.act2 = (module(), module()) if module else (activation, activation)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act2(self.second(self.act1(self.first(x))))
        return self.head(x.mean((2, 3)))


class Steps(nn.Module):
    """Euler's method: z + f(z) / N in N steps, by one field that is called N times, or by N fields in turn."""

    def __init__(self, fields: Sequence[nn.Module], steps: int = 4) -> None:
        super().__init__()
        self.stem, self.fields, self.head, self.steps = (
            nn.Conv2d(3, 8, 3, 2),
            nn.ModuleList(fields),
            nn.Linear(8, 10),
            steps,
        )

    def forward(self, x: Tensor) -> Tensor:
        z = self.stem(x)
        for step in range(self.steps):
            z = z + self.fields[step % len(self.fields)](z) / self.steps
        return self.head(z.mean((2, 3)))


class Halved(BasicBlock):
    """A block with a forward of its own: half of the branch is added."""

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(branch / 2 + (x if self.downsample is None else self.downsample(x)))


def plain(activation: Callable[[Tensor], Tensor], module: Callable[[], nn.Module] | None = None) -> nn.Module:
    torch.manual_seed(0)
    return with_signal(Plain(activation, module), SIZE)


def loop(unrolled: bool) -> nn.Module:
    torch.manual_seed(0)
    net = Steps([nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))])
    if unrolled:
        net.fields.extend(copy.deepcopy(net.fields[0]) for _ in range(net.steps - 1))
    return net.double().eval().requires_grad_(False)


def resnet18() -> nn.Module:
    return with_signal(stock.resnet18(), SIZE)


def vit() -> nn.Module:
    return with_signal(stock.VisionTransformer(SIZE, 16, 4, 4, 64, 128, num_classes=10), SIZE)


def compiled(network: nn.Module) -> nn.Module:
    """Compiled, and warm: one forward and backward have gone through it, as after training."""
    found = torch.compile(network, backend="aot_eager")
    found(torch.rand(2, 3, SIZE, SIZE, dtype=torch.float64, requires_grad=True)).sum().backward()
    return found  # type: ignore[return-value]


def captum_deep_lift(net: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    from captum.attr import DeepLift

    return DeepLift(net).attribute(x, torch.full_like(x, BASELINE), target=target)


def captum_lrp(net: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    from captum.attr import LRP

    return LRP(net).attribute(x, target=target)


def captum_guided(net: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    from captum.attr import GuidedBackprop

    return GuidedBackprop(net).attribute(x, target=target)


def zennit_epsilon_plus(net: nn.Module, x: Tensor, target: Tensor, canonize: bool = False) -> Tensor:
    from zennit.composites import EpsilonPlus
    from zennit.torchvision import ResNetCanonizer

    composite = EpsilonPlus(canonizers=[ResNetCanonizer()], zero_params="bias") if canonize else EpsilonPlus()
    with composite.context(net) as modified:
        x = x.clone().requires_grad_()
        logits = modified(x)
        seed = torch.zeros_like(logits).scatter_(1, target[:, None], logits.detach().gather(1, target[:, None]))
        return torch.autograd.grad(logits, x, seed)[0]


def zennit_canonized(net: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    return zennit_epsilon_plus(net, x, target, canonize=True)


@dataclass(frozen=True)
class Case:
    """What a peer and we say of one network, and what is true: a sum, or the peer's map of an equal network that it understands.

    Attributes:
        network: build it; peer: the peer's package; method: the peer's; ours: our method.
        equal: build the network whose map must be the same, each method's own; None: the sum is held to what it must be.
        baseline: the sum must be the difference of the scores of image and baseline, else the logit.
    """

    name: str
    network: Callable[[], nn.Module]
    peer: str
    method: Method
    ours: Explainer
    equal: Callable[[], nn.Module] | None = None
    baseline: bool = False


def cases() -> list[Case]:
    lift, guided = DeepLIFT("rescale", BASELINE), get("explainer/guided_backprop")
    epsilon, plus, attention = (get(f"explainer/{name}") for name in ("lrp_epsilon", "lrp_epsilon_plus", "attn_lrp"))
    relu = lambda: plain(F.relu)  # noqa: E731
    modules = lambda: plain(F.relu, nn.ReLU)  # noqa: E731
    subclass = lambda: with_signal(ResNet(Halved, [1, 1, 1, 1], num_classes=10), SIZE)  # noqa: E731
    return [
        Case("DeepLIFT, resnet18", resnet18, "captum", captum_deep_lift, lift, baseline=True),
        Case(
            "DeepLIFT, resnet18, own ReLUs",
            lambda: own_rectifiers(resnet18()),
            "captum",
            captum_deep_lift,
            lift,
            baseline=True,
        ),
        Case("DeepLIFT, F.relu", relu, "captum", captum_deep_lift, lift, baseline=True),
        Case("DeepLIFT, nn.GELU", lambda: plain(F.gelu, nn.GELU), "captum", captum_deep_lift, lift, baseline=True),
        Case("DeepLIFT, loop of a solver", lambda: loop(False), "captum", captum_deep_lift, lift, baseline=True),
        Case("DeepLIFT, vit", vit, "captum", captum_deep_lift, lift, baseline=True),
        Case("LRP, resnet18", resnet18, "captum", captum_lrp, epsilon),
        Case("LRP, vit", vit, "captum", captum_lrp, attention),
        Case("LRP, loop of a solver", lambda: loop(False), "captum", captum_lrp, epsilon),
        Case("LRP epsilon plus, resnet18", resnet18, "zennit", zennit_epsilon_plus, plus),
        Case("the same, canonized", resnet18, "zennit", zennit_canonized, plus),
        Case("the same, subclass of BasicBlock", subclass, "zennit", zennit_canonized, plus),
        Case("LRP epsilon plus, vit", vit, "zennit", zennit_epsilon_plus, attention),
        Case(
            "LRP, loop against unrolled",
            lambda: loop(False),
            "zennit",
            zennit_epsilon_plus,
            plus,
            equal=lambda: loop(True),
        ),
        Case("guided, F.relu against nn.ReLU", relu, "captum", captum_guided, guided, equal=modules),
        Case(
            "guided, compiled against eager",
            lambda: compiled(modules()),
            "captum",
            captum_guided,
            guided,
            equal=modules,
        ),
    ]


def installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def sums(values: Tensor) -> str:
    return " ".join(f"{value:.4g}" for value in values.tolist())


def said(case: Case, method: Method, network: nn.Module, x: Tensor, target: Tensor) -> str:
    """The map's sums; or how far it is from that of the equal network; or the first words of the refusal, which is an answer too."""
    try:
        found = method(network, x.clone(), target).detach()
    except REFUSALS as refusal:
        words = " ".join(str(refusal).split())
        return f"{type(refusal).__name__}: {words[:44]}"
    if case.equal is None:
        return sums(found.sum((1, 2, 3)))
    expected = method(case.equal(), x.clone(), target).detach()
    return f"off by {float((found - expected).norm() / expected.norm()):.1%}"


def owed(case: Case, network: nn.Module, x: Tensor, target: Tensor) -> str:
    if case.equal is not None:
        return "off by 0.0%"
    with torch.no_grad():
        score = network(x).gather(1, target[:, None])[:, 0]
        if case.baseline:
            score = score - network(torch.full_like(x, BASELINE)).gather(1, target[:, None])[:, 0]
    return sums(score)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="of the cases' names; all cases without")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    print(f"{'case':34}{'peer':8}{'peer says':60}{'truth':22}{'ours':22}{'absorbed':>16}")
    for case in cases():
        if options.words and not any(word in case.name for word in options.words):
            continue
        torch.manual_seed(0)
        network = case.network()
        x, target = (
            torch.rand(2, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
            torch.tensor([1, 3]),
        )
        peer = said(case, case.method, network, x, target) if installed(case.peer) else "skipped, not installed"
        truth = owed(case, network, x, target)
        record = explain(case.ours, network, x, target)
        ours = said(case, case.ours, network, x, target)
        absorbed = sums(record.diagnostics["relevance_absorbed"]) if "relevance_absorbed" in record.diagnostics else ""
        print(f"{case.name:34}{case.peer:8}{peer:60}{truth:22}{ours:22}{absorbed:>16}", flush=True)


if __name__ == "__main__":
    main()
