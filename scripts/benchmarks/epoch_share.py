"""What explanations at the end of an epoch cost beside the epoch: the default callback in `cifar10_compare`, on one thread.

    python scripts/benchmarks/epoch_share.py [--steps 20] [--passes 2] [--data ROOT]

The experiment is composed as the command line does it: its network, optimizer, batches, explainers, metrics and budget. Only a few training steps
of each epoch are run, and their median time is scaled to all of them; validation and the explanations are run in full. Without `--data` (a folder
that holds CIFAR-10) the pictures are random ones of the same number and size. The callback takes as many images as the rate that it measures
lets into its budget, or explains less often, so that the share says whether that rate was right, and the number of images how fast we are.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from statistics import median
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from timing import row

from explainode.callbacks.explanations import ExplanationCallback
from explainode.data.cifar10 import CIFAR10Data, CIFAR10Dataset
from explainode.jobs.networks import build_network
from explainode.registry.build import instantiate
from explainode.registry.composing import compose, plain

TARGET = 0.1
SKIP = 3  # the first steps fill caches


class RandomPictures(CIFAR10Data):
    """45,000 training and 5,000 validation pictures of noise, read, augmented and batched as CIFAR-10's are."""

    def make_dataset(self, split: str) -> CIFAR10Dataset:
        n = {"train": 45_000, "val": 5_000, "test": 10_000}[split]
        draw = np.random.default_rng(0)
        return CIFAR10Dataset(
            draw.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8), draw.integers(0, 10, n), torch.arange(n)
        )


class Clock(Callback):
    """Tells the explanations how long the epoch would have been with all of its steps; stands before them."""

    def __init__(self, explanations: ExplanationCallback, steps: int) -> None:
        self.explanations, self.steps = explanations, steps
        self.epoch = 0.0, 0.0  # seconds of a step, of the whole epoch
        self._ends: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ends = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._ends.append(time.monotonic())  # from end to end: what the data costs belongs to the step

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = median(np.diff(self._ends[SKIP:]).tolist())
        validation = time.monotonic() - self._ends[-1]
        self.epoch = step, self.steps * step + validation
        self.explanations._epoch_started = time.monotonic() - self.epoch[1]


class Shares(Callback):
    """Collects what the explanations took, and stops when that is enough; stands behind them."""

    def __init__(self, clock: Clock, enough: int) -> None:
        self.clock, self.enough = clock, enough
        self.passes: list[
            tuple[float, float, int, float]
        ] = []  # seconds of a step, of the epoch; images, seconds of the explanations

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.clock.explanations.latest is None:
            return  # an epoch without
        self.clock.explanations.latest = None
        found = trainer.callback_metrics
        self.passes.append((*self.clock.epoch, int(found["explain/images"]), float(found["explain/seconds"])))
        trainer.should_stop = len(self.passes) == self.enough


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="training steps that are run in each epoch")
    parser.add_argument("--passes", type=int, default=2, help="epochs with explanations that are measured")
    parser.add_argument("--data", help="a folder that holds cifar-10-batches-py/; random pictures without it")
    options = parser.parse_args()
    if options.steps < SKIP + 2:
        parser.error(f"--steps must be at least {SKIP + 2}, got {options.steps}")
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        "The '.*_dataloader' does not have many workers",
        "The number of training batches",
        ".*LeafSpec.*is deprecated",
    ):
        warnings.filterwarnings("ignore", message=message)

    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            f"output_dir={folder}",
            "variant=resnet20",
            f"data.root={options.data or folder}",
            "data.verify=false",
        ]
        settings = plain(compose("train", ["experiment=cifar10_compare", *overrides]))
        seed_everything(settings["seed"], verbose=False)
        read = settings["data"]
        synthetic = RandomPictures(folder, batch_size=read["batch_size"], augment=instantiate(read["augment"]))
        data = instantiate(read) if options.data else synthetic
        module = instantiate(settings["module"], network=build_network(settings["model"]))
        explanations = instantiate(settings["callback"]["explanations"])
        steps = len(data.train_dataloader())
        clock = Clock(explanations, steps)
        shares = Shares(clock, options.passes)
        trainer = instantiate(
            settings["trainer"] | {"limit_train_batches": options.steps, "enable_checkpointing": False},
            callbacks=[clock, explanations, shares],
            logger=False,
            enable_progress_bar=False,
        )
        trainer.fit(module, datamodule=data)

    everything = []
    for step, epoch, images, seconds in shares.passes:
        everything.append(seconds / (epoch * explanations.every))
        print(
            f"{steps} steps of {1000 * step:.0f} ms and validation: {epoch:.1f} s; {images} images explained in {seconds:.1f} s"
        )
    count = f"{len(explanations.explainers)} explainers, {len(explanations.metrics)} metrics, every {explanations.every} epoch(s)"
    row("epoch-end explanations / epoch, cifar10_compare", median(everything), TARGET, count)


if __name__ == "__main__":
    main()
