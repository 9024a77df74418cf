"""What a network says of the signal and the root that are inferred at its pixels (root inference (anonymous), Fig. 6), beside two divisions that infer nothing.

    python scripts/benchmarks/pixel_roots.py --data DATA --weights resnet20.th [--images 60]

A published ResNet-20 on CIFAR-10. Roots are inferred in every layer and, unlike in the shipped composite, at the pixels too: what arrives at the
first convolution is divided as x = S + N. The controls divide it with the same shares in shuffled places, and with each image's mean share everywhere.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from torch import Tensor, nn

from explainode import get
from explainode.explainers.guard import guard
from explainode.explainers.roots import Decomposition, RootInference
from explainode.relevance.composite import Composite
from explainode.relevance.rules.lrp import ZBox

LAYER = "conv1"


def without_box(composite: Composite) -> Composite:
    """The composite with roots at the pixels too."""
    return replace(composite, assignments=tuple(a for a in composite.assignments if not isinstance(a.rule, ZBox)))


def logits_of(network: nn.Module, x: Tensor, z: Tensor) -> Tensor:
    """(B, K): what the network says where the first convolution reads z instead of what x became."""
    handle = network.get_submodule(LAYER).register_forward_pre_hook(lambda module, inputs: (z,))
    try:
        with torch.no_grad():
            return network(x)
    finally:
        handle.remove()


def divisions(found: Decomposition, generator: torch.Generator) -> dict[str, tuple[Tensor, Tensor]]:
    """(S, N) of the inference and of the controls, by name."""
    x = found.signal + found.root
    share = torch.where(x == 0, 0.0, found.signal / torch.where(x == 0, 1.0, x))
    flat = share.flatten(2)
    places = torch.rand(len(flat), 1, flat.shape[2], generator=generator).argsort(-1).expand_as(flat)
    shuffled = flat.gather(2, places).view_as(share)
    mean = share.flatten(1).mean(1).view(-1, 1, 1, 1)
    return {
        "inferred": (found.signal, found.root),
        "the same shares, shuffled": (shuffled * x, (1 - shuffled) * x),
        "the mean share everywhere": (mean * x, (1 - mean) * x),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder that holds cifar-10-batches-py")
    parser.add_argument("--weights", required=True, help="ResNet-20 for CIFAR-10")
    parser.add_argument("--images", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = get("model/resnet20", weights=arguments.weights).eval()
    data = get("data/cifar10", root=arguments.data, verify=False)
    (batch,) = data.batches("test", list(range(arguments.images)), arguments.images)
    explainer = RootInference(without_box(get("composite/root_inference")))
    with guard(network) as safe, torch.no_grad():
        target = safe(batch.image).argmax(1)
        found = explainer.decompose(safe, batch.image, target, [LAYER])[LAYER]
    x = found.signal + found.root

    print(
        "| division of x | part | its norm / x | f, the target's logit | probability | class kept |\n|---|---|---:|---:|---:|---:|"
    )
    parts = {("", "x"): x}
    for name, (signal, root) in divisions(found, torch.Generator().manual_seed(0)).items():
        parts |= {(name, "S"): signal, (name, "N"): root}
    for (name, part), z in parts.items():
        logits = logits_of(network, batch.image, z)
        of_target = logits.gather(1, target[:, None])[:, 0]
        probability = logits.softmax(1).gather(1, target[:, None]).mean()
        norm = (z.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)).mean()
        kept = (logits.argmax(1) == target).double().mean()
        print(
            f"| {name} | {part} | {norm:.2f} | {of_target.mean():.2f} ± {of_target.std():.2f} | {probability:.3f} | {kept:.3f} |"
        )


if __name__ == "__main__":
    main()
