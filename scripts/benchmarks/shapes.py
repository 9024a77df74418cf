"""How many `shapes` pictures one core makes per second: `python scripts/benchmarks/shapes.py [--size 64] [--seconds 3]`."""

from __future__ import annotations

import argparse
import time

import torch

from explainode.data.shapes import ShapesDataset

TARGET = 3000  # pictures of 64x64 per second on one core


def rate(dataset: ShapesDataset, batch_size: int, seconds: float) -> float:
    """Pictures per second of this one thread (its own time: a busy machine does not count), batches in order."""
    start, made = time.process_time(), 0
    while time.process_time() - start < seconds:
        dataset.__getitems__([i % len(dataset) for i in range(made, made + batch_size)])
        made += batch_size
    return made / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="in three parts, of which the best and the median are shown"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset = ShapesDataset(100_000, options.size)
    rate(dataset, options.batch_size, 0.3)  # tables and memory
    rates = sorted(rate(dataset, options.batch_size, options.seconds / 3) for _ in range(3))
    print(f"shapes {options.size}x{options.size}, batches of {options.batch_size}, one thread:", end=" ")
    print(f"best {rates[-1]:.0f}, median {rates[1]:.0f} pictures/s", end="")
    print(f" (target {TARGET}: {'met' if rates[-1] >= TARGET else 'missed'})" if options.size == 64 else "")


if __name__ == "__main__":
    main()
