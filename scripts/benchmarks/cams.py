"""What class activation maps cost, in units U of one forward and backward, and what the maps weighted by forwards cost over those forwards.

    python scripts/benchmarks/cams.py [--size 224] [--batch 4] [--rounds 9]

ResNet-18 with random weights, frozen, eval mode, one thread; CPU time, contenders take turns. The floor of Score-CAM and Group-CAM is the bare
loop of as many forwards as they count, in passes of as many rows; Score-CAM is measured at a layer of `--channels` channels, since time
grows with their number alone. Passes are per image.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from timing import ratios, row
from torch import nn
from torchvision.models import resnet18

from explainode.explainers.base import count_passes, guard
from explainode.explainers.cam import CAM, GradCAM, GradCAMPlusPlus, LayerCAM
from explainode.explainers.fem import FEM
from explainode.explainers.gradient import InputXGradient, Saliency
from explainode.explainers.one_pass import read_together
from explainode.explainers.passes import copies_per_pass
from explainode.explainers.score_cam import GroupCAM, ScoreCAM
from explainode.explaining import explain, explain_many

FIVE = [Saliency(), InputXGradient(), GradCAM(), GradCAMPlusPlus(), LayerCAM("layer3")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument(
        "--rounds", type=int, default=9, help="of single passes; methods of many passes take turns three times"
    )
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--channels", type=int, default=64, help="of the layer that Score-CAM explains")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = resnet18().eval().requires_grad_(False)
    x, target = torch.rand(options.batch, 3, options.size, options.size), torch.arange(options.batch)

    def unit() -> None:
        rows = x.detach().requires_grad_()
        torch.autograd.grad(network(rows).gather(1, target[:, None]).sum(), rows)

    def together() -> None:
        with guard(network) as frozen:
            read_together(FIVE, frozen, x, target)

    def passes(call) -> str:
        call()  # a default layer is found in the first call
        with count_passes() as counted:
            call()
        return f"{counted.forwards / options.batch:g} forwards, {counted.backwards / options.batch:g} backwards"

    shared: dict = {}
    many = partial(explain_many, FIVE, network, x, target, shared=shared)
    print(f"ResNet-18, {options.batch} images {options.size}x{options.size}; in units of one forward and backward")
    calls = {
        "unit": unit,
        "Grad-CAM": partial(GradCAM(), network, x, target),
        "CAM": partial(CAM(), network, x, target),
        "FEM": partial(FEM(), network, x, target),
        "five shared maps": together,
        "the same as records, clean forward known": many,
        "the same, one by one": lambda: [explain(explainer, network, x, target, shared=shared) for explainer in FIVE],
    }
    aims = {"Grad-CAM": 0.5, "five shared maps": 1.1}
    found, milliseconds = ratios(calls, options.rounds)
    print(f"one unit takes {milliseconds:.0f} ms")
    for name in list(calls)[1:]:
        row(name, found[name], aims.get(name), passes(calls[name]))

    def floor(forwards: int, backward: bool) -> None:
        """`forwards` of every image, in passes of as many rows as explainers send."""
        copies = copies_per_pass(options.batch)
        rows = x.repeat(copies, 1, 1, 1)
        with torch.no_grad():
            for first in range(0, forwards, copies):
                network(rows[: options.batch * min(copies, forwards - first)])
        if backward:
            GradCAM()(network, x, target)

    class Narrow(nn.Module):
        """The network with a layer that shows the first channels of the last map."""

        def __init__(self) -> None:
            super().__init__()
            self.network, self.narrow = network, nn.Identity()
            network.layer4.register_forward_hook(
                lambda module, args, output: (self.narrow(output[:, : options.channels]), output)[1]
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x)

    score = partial(ScoreCAM("narrow"), Narrow().eval(), x, target)
    group = partial(GroupCAM(groups=options.groups), network, x, target)
    print("\nover the floor of their own forwards")
    found, _ = ratios({"floor": partial(floor, options.channels + 1, False), "Score-CAM": score}, 3)
    row(f"Score-CAM, {options.channels} channels", found["Score-CAM"], 1.1, passes(score))
    found, _ = ratios({"floor": partial(floor, options.groups + 1, True), "Group-CAM": group}, 3)
    row(f"Group-CAM, {options.groups} groups", found["Group-CAM"], 1.1, passes(group))


if __name__ == "__main__":
    main()
