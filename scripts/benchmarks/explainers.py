"""What explainers cost beyond the network: passes against their definition, time over the pass floor, and steps that completeness needs.

    python scripts/benchmarks/explainers.py [--device cuda] [--data CIFAR-10-ROOT --weights FOLDER-OF-PUBLISHED-RESNETS]

Times are medians of runs that alternate with their floor, CPU time of one thread (wall time on a GPU); ratios come from one run of this
script. The floor of a gradient method is the bare loop of forward and `torch.autograd.grad` over the same batches. With `--data` and
`--weights`, adaptive integrated gradients run on the trained ResNet-20, 32 and 44, on evenly spaced test images.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from explainode.explainers.base import Explainer, count_passes, guard
from explainode.explainers.cam import GradCAM
from explainode.explainers.gradient import AdaptiveIntegratedGradients, IntegratedGradients, Saliency
from explainode.explainers.sampling import SmoothGrad


def seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def ratio(
    work: Callable[[], object], floor: Callable[[], object], device: torch.device, repeats: int
) -> tuple[float, float]:
    """Median over `repeats` of work / floor, each pair timed back to back in alternating order, and the median seconds of the floor."""
    work(), floor()
    ratios, floors = [], []
    for repeat in range(repeats):
        first, second = (work, floor) if repeat % 2 else (floor, work)
        a, b = seconds(first, device), seconds(second, device)
        of_work, of_floor = (a, b) if repeat % 2 else (b, a)
        ratios.append(of_work / of_floor)
        floors.append(of_floor)
    return statistics.median(ratios), statistics.median(floors)


def bare_loop(network: nn.Module, x: Tensor, target: Tensor, passes: int) -> Callable[[], None]:
    """`passes` forwards and backwards to the input, in eval mode with frozen parameters, nothing else."""

    def run() -> None:
        for _ in range(passes):
            rows = x.detach().requires_grad_()
            torch.autograd.grad(network(rows).gather(1, target[:, None]).sum(), rows)

    return run


def pass_floor(device: torch.device, size: int, batch: int, repeats: int) -> None:
    network = resnet18().to(device).eval().requires_grad_(False)
    x, target = torch.rand(batch, 3, size, size, device=device), torch.arange(batch, device=device)
    cases: list[tuple[str, Explainer, int, float]] = [
        ("saliency", Saliency(), 1, 1.05),
        ("ig, 50 steps", IntegratedGradients(50), 50, 1.05),
        ("smoothgrad, 20 samples", SmoothGrad(Saliency(), 20), 20, 1.05),
        ("gradcam", GradCAM(), 1, 0.50),
    ]
    print(f"\nResNet-18, {batch} images {size}x{size}, {device}, {repeats} repeats")
    print(f"{'method':<24}{'forwards':>10}{'backwards':>10}{'time/floor':>12}{'target':>9}   (passes per image)")
    for name, explainer, passes, aim in cases:
        explainer(network, x, target)  # a default layer is found in the first call
        with count_passes() as counted:
            explainer(network, x, target)
        over, _ = ratio(
            partial(explainer, network, x, target),
            bare_loop(network, x, target, passes),
            device,
            max(3, repeats // passes),
        )
        print(
            f"{name:<24}{counted.forwards / batch:>10.2f}{counted.backwards / batch:>10.2f}{over:>12.3f}{'<= ' + format(aim, '.2f'):>9}"
        )


def completeness(data: str, weights: str, images: int, device: torch.device) -> None:
    from explainode.data.cifar10 import CIFAR10Data
    from explainode.models.resnet import cifar_resnet

    cifar = CIFAR10Data(data, verify=False)
    test = cifar.dataset("test")
    x = test.__getitems__(cifar.select_images(len(test), images)).image.to(device)
    print(
        f"\nIntegrated gradients, black baseline, {images} CIFAR-10 test images: gradient evaluations and completeness error per image"
    )
    print(
        f"{'network':<10}{'method':<26}{'evaluations':>12}{'largest':>9}{'median error':>14}{'within 1 %':>12}{'map error':>11}"
    )
    for depth in (20, 32, 44):
        (path,) = sorted(Path(weights).glob(f"resnet{depth}-*"))
        network = cifar_resnet(depth, weights=str(path)).to(device).eval()
        with guard(network), torch.no_grad():
            target = network(x).argmax(1)
        limit = IntegratedGradients(256, "midpoint")(network, x, target)
        methods: dict[str, IntegratedGradients | AdaptiveIntegratedGradients] = {
            "adaptive to 1 %": AdaptiveIntegratedGradients(),
            "fixed, gauss_legendre 16": IntegratedGradients(16),
            "fixed, midpoint 16": IntegratedGradients(16, "midpoint"),
            "fixed, gauss_legendre 50": IntegratedGradients(50),
        }
        for name, explainer in methods.items():
            expected = explainer.expected_sum(network, x, target)
            evaluations, maps = [], []
            for row in range(images):
                with count_passes() as passes:
                    maps.append(explainer(network, x[row : row + 1], target[row : row + 1]))
                evaluations.append(passes.backwards)
            attribution = torch.cat(maps)
            error = ((attribution.sum((1, 2, 3)) - expected) / expected).abs()
            distance = (attribution - limit).flatten(1).norm(dim=1) / limit.flatten(1).norm(dim=1)
            print(
                f"{'ResNet-' + str(depth):<10}{name:<26}{statistics.mean(evaluations):>12.2f}{max(evaluations):>9}"
                f"{error.median().item():>14.2%}{(error <= 0.0101).double().mean().item():>12.0%}{distance.mean().item():>11.1%}"
            )
    print(
        "Captum's default is gauss_legendre with 50 steps; map error: relative distance to 256 midpoint steps; target: adaptive <= 16."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument(
        "--repeats",
        type=int,
        default=21,
        help="of a single pass; methods of many passes are repeated less, at least 3 times",
    )
    parser.add_argument("--data", help="root of CIFAR-10, for completeness on trained networks")
    parser.add_argument("--weights", help="folder of the published resnet20-*.th, resnet32-*.th, resnet44-*.th")
    parser.add_argument("--images", type=int, default=24)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device(options.device)
    pass_floor(device, options.size, options.batch, options.repeats)
    if options.data and options.weights:
        completeness(options.data, options.weights, options.images, device)


if __name__ == "__main__":
    main()
