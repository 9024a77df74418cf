"""Which replacement of pixels orders explanations as exact in-distribution deletion does? Only `shapes` can say, whose pixels can be redrawn.

    python scripts/benchmarks/exact_baseline.py [--images 48] [--epochs 6]

A small network is trained on `shapes`, several methods and controls explain the same test pictures, and every deletion curve of 11 points is measured
with every replacement, for the probability and for the margin. For each replacement: Kendall's tau of the methods' mean areas with those of the exact
deletion, and the mean over images of each image's own tau, with a 95 % interval over images (bootstrap of images, 2000 draws, for the first).
"""

from __future__ import annotations

import argparse
from itertools import combinations

import numpy as np
import torch

import explainode
from explainode.data.redraw import ShapesRedraw
from explainode.data.shapes import ShapesDataset
from explainode.explainers.base import Explainer
from explainode.explaining import explain_many
from explainode.metrics.exact_deletion import ExactDeletion
from explainode.metrics.faithfulness import Deletion
from explainode.metrics.means import mean_interval

EXPLAINERS = (
    "saliency", "input_x_gradient", "ig", "smoothgrad", "gradcam", "layercam", "guided_backprop", "lrp_epsilon_plus",
    "random_map", "centre_prior", "edge_map", "inverted_map",
)  # fmt: skip
BASELINES = ("blur", "zero", "mean", "noise", "inpaint")


def trained(size: int, epochs: int) -> torch.nn.Module:
    """A small VGG that knows `shapes`."""
    torch.manual_seed(0)
    network = explainode.get("model/small_vgg", num_classes=8)
    data = ShapesDataset(4096, size)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    steps = epochs * 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    network.train()
    for _ in range(steps):
        rows = torch.randint(0, 4096, (64,)).tolist()
        batch = data.__getitems__(rows)
        loss = torch.nn.functional.cross_entropy(network(batch.image), batch.label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def tau(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(..., E) twice -> (...) Kendall's tau-a of the orders."""
    pairs = np.array(list(combinations(range(a.shape[-1]), 2)))
    return (
        np.sign(a[..., pairs[:, 0]] - a[..., pairs[:, 1]]) * np.sign(b[..., pairs[:, 0]] - b[..., pairs[:, 1]])
    ).mean(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--size", type=int, default=32)
    given = parser.parse_args()
    network = trained(given.size, given.epochs)
    batch = ShapesDataset(given.images, given.size, "test").__getitems__(list(range(given.images)))
    with torch.no_grad():
        print(
            f"accuracy {float((network(batch.image).argmax(1) == batch.label).float().mean()):.3f}, n = {given.images}"
        )
    metrics = {
        (score, baseline): Deletion(points=11, baseline=baseline, score=score)
        for score in ("probability", "margin")
        for baseline in BASELINES
    }
    redraw = ShapesRedraw(tries=4)
    metrics |= {(score, "exact"): ExactDeletion(Remembered(redraw), score=score) for score in ("probability", "margin")}
    explainers: list[Explainer] = [explainode.get(f"explainer/{name}") for name in EXPLAINERS]
    areas: dict[tuple[str, str], list[np.ndarray]] = {key: [] for key in metrics}
    for record in explain_many(explainers, network, batch.image, sample_ids=batch.sample_id):
        for key, metric in metrics.items():
            areas[key].append(metric.measure(record)[:, 0].numpy())
    table = {key: np.stack(columns, 1) for key, columns in areas.items()}  # (n, E)
    for score in ("probability", "margin"):
        exact = table[score, "exact"]
        print(
            f"\n{score}: mean area by method, lower is more faithful\n\n| | {' | '.join(EXPLAINERS)} |\n|---|{'---:|' * len(EXPLAINERS)}"
        )
        for baseline in ("exact", *BASELINES):
            print(f"| {baseline} | {' | '.join(f'{v:.3f}' for v in np.nanmean(table[score, baseline], 0))} |")
        print("\n| baseline | tau of the mean areas | of each image |\n|---|---:|---:|")
        draws = np.random.default_rng(0).integers(0, len(exact), (2000, len(exact)))
        for baseline in BASELINES:
            of = table[score, baseline]
            alike = tau(np.nanmean(of, 0), np.nanmean(exact, 0))
            spread = np.quantile(tau(np.nanmean(of[draws], 1), np.nanmean(exact[draws], 1)), (0.025, 0.975))
            each = tau(of, exact)
            low, high = mean_interval(each)
            print(
                f"| {baseline} | {alike:.2f} ({spread[0]:.2f} to {spread[1]:.2f}) | {each.mean():.2f} ({low:.2f} to {high:.2f}) |"
            )


class Remembered:
    """A redraw that keeps its last answers, since both scores ask for the same."""

    def __init__(self, redraw: ShapesRedraw) -> None:
        self.redraw, self.known = redraw, {}

    def __call__(self, x, sample_ids, removed, seed, draw):  # type: ignore[no-untyped-def]
        key = hash(removed.numpy().tobytes()), draw
        if key not in self.known:
            self.known[key] = self.redraw(x, sample_ids, removed, seed, draw)
        return self.known[key]


if __name__ == "__main__":
    main()
