"""One of three processes that meet as worlds of 1, 2 and 3 and write what their metric says; started by test_base.py."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from explainode.metrics.base import ExplanationMetric

N = 67


class Table(ExplanationMetric):
    """Two columns and a curve that are functions of the sample id alone, some NaN."""

    columns = ("", "square")

    def measure(self, explanation) -> Tensor:
        value = torch.sin(explanation.sample_ids.double() * 1.7)
        return torch.where((value > 0.9)[:, None], torch.nan, torch.stack((value, value**2), 1))

    def curve_axis(self):
        return np.linspace(0, 1, 3), "x", "y"

    def curves(self, explanation) -> Tensor:
        return self.measure(explanation)[:, :1] * torch.tensor([0.0, 1.0, 2.0])


def run(rank: int, world: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    metric = Table()
    metric.setup(N)
    share = list(range(N))[rank::world] if world < 3 else ([], list(range(40)), list(range(40, N)))[rank]
    size = {1: N, 2: 7, 3: 16}[world]
    for first in range(0, len(share), size):
        metric.update(SimpleNamespace(sample_ids=torch.tensor(share[first : first + size])))
    table, curve = metric.table(), metric.curve()
    rows = [(r.value, r.low, r.high, r.n, r.excluded) for r in metric.summary()]
    np.savez(
        folder / f"world{world}_rank{rank}.npz",
        table=np.stack([table[i] for i in range(N)]),
        summary=np.array(rows),
        curve=np.stack((curve.x, curve.mean, curve.low, curve.high)),
    )
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    own, target = int(sys.argv[1]), Path(sys.argv[2])
    for size_of_world in (1, 2, 3):
        if own < size_of_world:
            run(own, size_of_world, target)
