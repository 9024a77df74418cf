"""One, two and four processes measure the same checkpoint: the same tables? And how much faster is the explanation pass?

    python scripts/benchmarks/ranks.py [--rounds 5] [--folder FOLDER]

Tables: a finished run is opened by 1, 2 and 4 ranks (gloo), which share an odd number of test images, and one of them fewer images than ranks, so that
ranks come out empty. Weak scaling: one process explains n images on one thread, then two do 2n in the same time if nothing holds them up: the ratio
of their rates, as the median of rounds in which they take turns. Two processes that compute with nothing between them are the floor of the machine.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_runs import largest_difference, table, train

from explainode.data.shapes import ShapesData
from explainode.evaluation import evaluate
from explainode.ranks import agree_on_largest
from explainode.registry.build import get

IMAGES = 48  # for each process


def tables(folder: Path) -> None:
    """The test tables of one checkpoint, by the number of ranks and of images."""
    trained = folder / "trained"
    train(f"run_dir={trained}")
    for images in (7, 3, 1):
        found = {}
        for ranks in (1, 2, 4):
            run = folder / f"images{images}_ranks{ranks}"
            shutil.copytree(trained, run)
            for name in ("metrics.csv", "per_image.csv", "curves.csv"):
                (run / name).unlink()
            trainer = [] if ranks == 1 else ["trainer=ddp_sim", f"trainer.devices={ranks}"]
            train(*trainer, f"run_dir={run}", "ckpt_path=auto", f"evaluation.images={images}")
            found[ranks] = table(run)
        worst = {ranks: largest_difference(found[1], found[ranks]) for ranks in (2, 4)}
        print(
            f"{images} images, {len(found[1])} rows: largest difference from one rank {worst[2]:g} (2 ranks), {worst[4]:g} (4 ranks)",
            flush=True,
        )


def explain(rank: int, world_size: int) -> None:
    """This rank's share of IMAGES x ranks images."""
    torch.manual_seed(0)
    network = get("model/resnet20").eval()
    data = ShapesData(test_size=IMAGES * world_size, size=32)
    mine = list(range(rank, IMAGES * world_size, world_size))
    explainers = {"saliency": get("explainer/saliency"), "smoothgrad": get("explainer/smoothgrad", samples=8)}
    metrics = {"deletion": get("metric/deletion_fast")}

    def safe_point(*_: object) -> None:  # as in training: after each method's explanations of a batch
        agree_on_largest(0, torch.device("cpu"))

    batches = data.batches("test", mine, 16)
    evaluate(network, explainers, metrics, batches, n=IMAGES * world_size, world_size=world_size, progress=safe_point)


def compute(rank: int, world_size: int) -> None:
    """As much arithmetic on every rank, with nothing to say to each other."""
    network, x = get("model/resnet20").eval(), torch.rand(16, 3, 32, 32)
    for _ in range(24):
        network(x.detach().requires_grad_()).sum().backward()


def worker(rank: int, world_size: int, address: str, asked: Any, done: Any) -> None:
    """Does what it is asked for, on one thread, until it is asked for nothing."""
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    while (work := asked.get()) is not None:
        start = time.process_time()
        work(rank, world_size)
        done.put(time.process_time() - start)
    if world_size > 1:
        dist.destroy_process_group()


class Team:
    """Processes that work together."""

    def __init__(self, size: int, address: str) -> None:
        spawn = mp.get_context("spawn")
        self.asked, self.done = [spawn.Queue() for _ in range(size)], spawn.Queue()
        self.processes = [
            spawn.Process(target=worker, args=(rank, size, address, queue, self.done))
            for rank, queue in enumerate(self.asked)
        ]
        for process in self.processes:
            process.start()

    def seconds(self, work: Callable[[int, int], None]) -> tuple[float, float]:
        """How long it takes on the clock, where waiting for another counts too, and how long the busiest process computes."""
        start = time.perf_counter()
        for queue in self.asked:
            queue.put(work)
        busiest = max(self.done.get(timeout=600) for _ in self.asked)
        return time.perf_counter() - start, busiest

    def end(self) -> None:
        """Send them home."""
        for queue in self.asked:
            queue.put(None)
        for process in self.processes:
            process.join(60)


def scaling(folder: Path, rounds: int) -> None:
    """Rates of two processes over one, of the explanation pass and of plain arithmetic; on a busy machine only the second kind means much."""
    one, two = Team(1, ""), Team(2, f"file://{folder}/meet")
    for name, work, note in (
        ("explaining", explain, "target 1.8"),
        ("arithmetic", compute, "what the machine allows now"),
    ):
        times = [(one.seconds(work), two.seconds(work)) for _ in range(rounds + 1)][1:]  # the first fills caches
        for kind, what in enumerate(("on the clock", "of computing")):
            ratios = [2 * alone[kind] / both[kind] for alone, both in times]
            print(
                f"{name}: rate of 2 processes / 1, {what}: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}; {note})",
                flush=True,
            )
    one.end()
    two.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the runs are kept; a temporary folder without it")
    parser.add_argument("--only", choices=("tables", "scaling"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.only != "scaling":
            tables(folder)
        if options.only != "tables":
            scaling(Path(temporary), options.rounds)


if __name__ == "__main__":
    main()
