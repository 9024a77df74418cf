"""What walks back cost: time in forward + backward passes, and peak memory: `python scripts/benchmarks/relevance.py`.

The unit U is one forward and one backward to the input of torchvision's resnet18 in eval mode with frozen parameters, at 224 pixels, batch 4;
contenders take turns with it, CPU time of one thread counts, and the ratio is the median over turns. Passes (per image) stand beside each
time; a rule's extra convolutions are not passes of the network. Memory is the peak of what a call holds, temporaries inside operations
included, in units of what all operations of one forward make (out of place). Peers (captum, zennit) are shown where installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Callable

os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch
import torchvision
from timing import ratios, row
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from explainode import get
from explainode.errors import UserError
from explainode.explainers.base import count_passes
from explainode.explainers.guard import guard
from explainode.relevance.tape import record

# explainer of conf/ -> units it may cost; those that are not there are left out
TARGETS: dict[str, float | None] = {
    "saliency": None, "lrp_epsilon": 1.2, "dtd_z_plus": 1.7, "dtd_z_box": None, "lrp_gamma": None, "lrp_epsilon_gamma_box": 2.5,
    "lrp_alpha2_beta1": None, "guided_backprop": 1.05, "deconvnet": None, "full_grad": 1.5, "gradcam": 0.5, "guided_gradcam": None,
    "deep_lift": 2.3, "deep_shap": 10.0, "root_inference": 20.0,
}  # fmt: skip


def build() -> nn.Module:
    network = torchvision.models.resnet18(weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return network.eval().requires_grad_(False)


def unit(network: nn.Module, x: Tensor, target: Tensor) -> Callable[[], object]:
    def call() -> Tensor:
        rows = x.detach().requires_grad_()
        return torch.autograd.grad(network(rows).gather(1, target[:, None]).sum(), rows)[0]

    return call


def peak(call: Callable[[], object]) -> int:
    """The most bytes that a call holds at one time."""
    call()
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
    return most


def activations(network: nn.Module, x: Tensor) -> int:
    """Bytes of everything that the operations of one forward make, each out of place; views are counted once, with what they look at."""
    with guard(network) as network:
        tape = record(network, x)
    storages = {
        value.data.untyped_storage().data_ptr(): value.data.untyped_storage().nbytes()
        for o in tape.operations
        for value in o.outputs
    }
    # what BatchNorm reads is as large as what it makes, and is not held on the tape
    folded = sum(o.output.data.nbytes for o in tape.operations if type(o).__name__ == "Folded")
    return sum(storages.values()) + folded


def peers(network: nn.Module, x: Tensor, target: Tensor) -> dict[str, Callable[[], object]]:
    found: dict[str, Callable[[], object]] = {}
    if importlib.util.find_spec("captum"):
        from captum.attr import GuidedBackprop, Saliency

        found["captum Saliency"] = lambda: Saliency(network).attribute(x.clone().requires_grad_(), target=target)
        found["captum GuidedBackprop"] = lambda: GuidedBackprop(network).attribute(
            x.clone().requires_grad_(), target=target
        )
    if importlib.util.find_spec("zennit"):
        from zennit.attribution import Gradient
        from zennit.composites import EpsilonGammaBox, EpsilonPlus
        from zennit.torchvision import ResNetCanonizer

        def zennits(make: Callable[[], object]) -> Callable[[], object]:
            def call() -> object:
                with Gradient(model=network, composite=make()) as attributor:
                    return attributor(x.clone(), torch.eye(1000)[target])

            return call

        found["zennit EpsilonPlus"] = zennits(lambda: EpsilonPlus(canonizers=[ResNetCanonizer()]))
        found["zennit EpsilonGammaBox"] = zennits(
            lambda: EpsilonGammaBox(low=0.0, high=1.0, canonizers=[ResNetCanonizer()])
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of the explainers; all without")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network, x, target = build(), torch.rand(4, 3, options.size, options.size), torch.arange(4)
    calls: dict[str, Callable[[], object]] = {"U": unit(network, x, target)}
    for name in options.names or TARGETS:
        try:
            explainer = get(f"explainer/{name}")
        except UserError:
            if options.names:
                raise
            print(f"{name} is left out: no such entry in conf/explainer")
            continue
        calls[name] = lambda explainer=explainer: explainer(network, x, target)  # type: ignore[misc]
    if not options.names:
        calls |= peers(network, x, target)
    passes = {}
    for name, call in calls.items():
        with count_passes() as counted:
            call()
        passes[name] = f"{counted.forwards / 4:g} F, {counted.backwards / 4:g} G" if name in TARGETS else ""
    if options.memory:
        whole = activations(network, x)
        print(f"peak memory over the {whole / 2**20:.0f} MiB that one forward makes")
        for name, call in calls.items():
            row(name, peak(call) / whole, None)
        return
    found, milliseconds = ratios(calls, options.rounds)
    print(f"time in U = forward + backward of resnet18, {options.size} pixels, batch 4: {milliseconds:.0f} ms of CPU")
    for name in list(calls)[1:]:
        row(name, found[name], TARGETS.get(name), passes[name])


if __name__ == "__main__":
    main()
