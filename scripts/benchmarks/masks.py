"""What random masks cost beside the forwards that they need: time over the forward floor, and peak memory, of RISE on ResNet-18 at 224 pixels.

python scripts/benchmarks/masks.py [--masks 64] [--chunk 16]
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
import torchvision

from explainode.explainers import HSIC, LIME, RISE
from explainode.explaining import explain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=16)
    options = parser.parse_args()
    torch.manual_seed(0)
    net = torchvision.models.resnet18().eval()
    x = torch.rand(1, 3, 224, 224)
    methods = {
        "RISE": RISE(samples=options.masks),
        "HSIC": HSIC(samples=options.masks),
        "LIME": LIME(samples=options.masks),
    }
    with torch.no_grad():
        net(x.expand(options.chunk, -1, -1, -1))
    for name, method in methods.items():
        floors, ours = [], []
        for _ in range(3):  # by turns: a busy machine is busy for both
            start = time.process_time()
            with torch.no_grad():
                for first in range(0, options.masks, options.chunk):
                    net(x.repeat(min(options.chunk, options.masks - first), 1, 1, 1))
            floors.append(time.process_time() - start)
            start = time.process_time()
            explain(method, net, x, 0, chunk_size=options.chunk)
            ours.append(time.process_time() - start)
        per = min(floors) / options.masks
        # `explain` itself asks once what the network says of the picture
        print(f"{name}: {options.masks} masks, time / forward floor {(min(ours) - per) / min(floors):.3f}")
    print(
        f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB with {options.chunk} rows at once"
    )


if __name__ == "__main__":
    main()
