"""What feeds the device, what a step costs, and what we add to a plain loop.

    python scripts/benchmarks/throughput.py [--pictures FOLDER] [--size 224] [--rounds 5] [--only data,step,loop]

data  decoding and cropping JPEGs, augmentation, against the training step of torchvision's ResNet-18 on the same pictures; loaders with 0, 1, 2 workers
      (started anew in each epoch, and kept), in pictures per second. Without `--pictures`, 256 JPEGs of 500 x 375 pixels of smooth noise are made.
step  the same training step with channels_last, bfloat16 and a fused optimizer.
loop  our training through Lightning, with all default callbacks but the explanations, CSV and offline W&B loggers, against a plain PyTorch loop of
      the same network on the same batches; each epoch takes its turn.

CPU seconds of this process except for the loaders, whose workers are other processes: those are wall seconds, to be read as ratios of one run.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from PIL import Image
from timing import ratios, row
from torchvision.models import resnet18

from explainode.data.augment import Augment
from explainode.data.base import BatchLoader
from explainode.data.batch import Batch
from explainode.data.image_folder import ImageFolderData
from explainode.data.pictures import load_picture
from explainode.training.classifier import Classifier
from explainode.training.profile import REST, StepProfiler

BATCH = 16
TARGET = 1.01


def make_pictures(folder: Path, count: int = 256) -> Path:
    """JPEGs as large as ImageNet's, two classes."""
    draw = np.random.default_rng(0)
    for k in range(count):
        path = folder / "ab"[k % 2] / f"{k:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
    return folder


def plain_step(
    channels_last: bool = False, bfloat16: bool = False, fused: bool = False, size: int = 224
) -> Callable[[], None]:
    """One training step of ResNet-18 on a batch that is there."""
    torch.manual_seed(0)
    order = torch.channels_last if channels_last else torch.contiguous_format
    network = resnet18(num_classes=1000).to(memory_format=order)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, fused=fused)
    image, label = torch.rand(BATCH, 3, size, size).to(memory_format=order), torch.randint(0, 1000, (BATCH,))

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(network(image), label)
        loss.backward()
        optimizer.step()

    return step


def data(pictures: Path, size: int, rounds: int) -> None:
    """What a picture costs before the step, and what loaders deliver."""
    files = sorted(pictures.rglob("*.jp*g"))[:BATCH]
    batch = Batch(torch.rand(BATCH, 3, size, size), torch.zeros(BATCH, dtype=torch.int64), torch.arange(BATCH))
    augment = Augment(padding=size // 8)
    costs, step = ratios(
        {
            "training step": plain_step(size=size),
            "decode and crop": lambda: [load_picture(path, size) for path in files],
            "crop and flip (augmentation)": lambda: augment.batch(batch, 0, 0),
        },
        rounds,
    )
    print(f"ResNet-18 at {size} px, batch {BATCH}, one thread: {step / BATCH:.1f} ms a picture in the training step")
    for name, cost in costs.items():
        print(f"  {name:<34}{cost * step / BATCH:8.2f} ms a picture{cost:9.3f} of the step")
    for workers in (0, 1, 2):
        for keep in (False, True) if workers else (False,):
            module = ImageFolderData(pictures, size=size, batch_size=BATCH, num_workers=workers)
            loader = module.train_dataloader()
            if workers and not keep:
                loader = started_anew(loader)
            seconds = [epoch_seconds(loader) for _ in range(3)]
            count = len(module.dataset("train")) // BATCH * BATCH
            how = "" if not workers else ", kept" if keep else ", started anew"
            print(
                f"  loader, {workers} workers{how:<16}{count / seconds[0]:8.0f} pictures/s in the first epoch{count / median(seconds[1:]):8.0f} later"
            )


def started_anew(loader: BatchLoader) -> Any:
    """The same loader without persistent workers."""
    loader.__dict__["persistent_workers"] = False  # DataLoader refuses to be asked
    return loader


def epoch_seconds(loader: Any) -> float:
    start = time.monotonic()
    for _ in loader:
        pass
    return time.monotonic() - start


def step(size: int, rounds: int) -> None:
    """Variants of the training step."""
    calls = {
        "as it is": plain_step(size=size),
        "channels_last": plain_step(channels_last=True, size=size),
        "bfloat16 autocast": plain_step(bfloat16=True, size=size),
        "fused optimizer": plain_step(fused=True, size=size),
        "channels_last and fused": plain_step(channels_last=True, fused=True, size=size),
    }
    found, milliseconds = ratios(calls, rounds)
    print(f"training step of ResNet-18, batch {BATCH}, {size} px, one thread: {milliseconds:.0f} ms")
    for name, ratio in found.items():
        row(f"  {name} / as it is", ratio, None)


class Ready(torch.utils.data.Dataset):
    """Batches that lie in memory, so that neither loop waits for data."""

    num_classes, class_names = 10, [str(k) for k in range(10)]

    def __init__(self, n: int, size: int) -> None:
        self.image = torch.rand(n, 3, size, size)
        self.label = torch.arange(n) % 10

    def __len__(self) -> int:
        return len(self.image)

    def __getitems__(self, indices: list[int]) -> Batch:
        rows = torch.tensor(indices)
        return Batch(self.image[rows], self.label[rows], rows)


class Booked(StepProfiler):
    """Books CPU time, and keeps its table for itself."""

    def _now(self) -> float:
        return time.process_time()

    def _end(self) -> None:
        self._unwatch()
        self._done = True

    def share(self) -> float:
        """Of a step: callbacks, and the loop with the loggers."""
        whole = sum(self.step_seconds.values()) / self.timed
        loop = self.epoch_seconds[REST] / self.batches  # what the loop does between steps
        return (sum(self.step_seconds[part] for part in ("callbacks", REST)) / self.timed + loop) / whole


class Steps(Callback):
    """CPU seconds from the end of one training step to the end of the next: the loop, the data and every other callback are inside."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.ends.append(time.process_time())


def loop(rounds: int, steps: int = 30) -> None:
    """Lightning with our callbacks and loggers against a plain loop, turn by turn."""
    from lightning.pytorch.callbacks import LearningRateMonitor
    from lightning.pytorch.loggers import CSVLogger

    from explainode.callbacks.finite import Finite
    from explainode.callbacks.interrupt import Interrupt
    from explainode.callbacks.loggers import wandb_logger
    from explainode.callbacks.progress import Progress
    from explainode.callbacks.random_state import RandomState
    from explainode.data.base import ImageData
    from explainode.registry.build import get

    ready = Ready(steps * 64, 32)

    class Memory(ImageData):
        num_classes, class_names, image_size = 10, Ready.class_names, 32

        def make_dataset(self, split: str) -> Ready:
            return ready

    def network() -> torch.nn.Module:
        torch.manual_seed(0)
        return get("model/resnet20", num_classes=10)

    optimizer = partial(torch.optim.SGD, lr=0.01, momentum=0.9)

    def plain() -> float:
        """Median CPU seconds of a step."""
        net = network()
        steps_taken, ends = optimizer(net.parameters()), []
        for batch in Memory(batch_size=64).train_dataloader():
            loss = F.cross_entropy(net(batch.image), batch.label)
            steps_taken.zero_grad()
            loss.backward()
            steps_taken.step()
            ends.append(time.process_time())
        return median(np.diff(ends[3:]))

    def ours(everything: bool, profiler: Booked | None = None) -> float:
        with tempfile.TemporaryDirectory() as folder:
            watch = Steps()
            callbacks: list[Callback] = [watch]
            loggers: list[Any] = []
            if everything:
                callbacks += [Finite(), Interrupt(), Progress(), RandomState(), LearningRateMonitor("step")]
                loggers = [CSVLogger(folder), wandb_logger(folder, mode="offline", code=False, model_mib=0)]
            trainer = Trainer(
                accelerator="cpu",
                devices=1,
                max_epochs=1,
                limit_val_batches=0,
                callbacks=callbacks,
                logger=loggers or False,
                enable_progress_bar=everything,
                enable_model_summary=False,
                enable_checkpointing=False,
                use_distributed_sampler=False,
                log_every_n_steps=10,
                profiler=profiler,
                default_root_dir=folder,
            )
            trainer.fit(Classifier(network(), optimizer, 10), datamodule=Memory(batch_size=64))
            import wandb

            wandb.finish()
            return median(np.diff(watch.ends[3:]))

    found: dict[str, list[float]] = {"bare Lightning and our module": [], "with callbacks and loggers": []}
    base, shares = [], []
    for turn in range(rounds):
        base.append(plain())
        for everything in (False, True) if turn % 2 else (True, False):  # nobody always follows the same neighbor
            found["with callbacks and loggers" if everything else "bare Lightning and our module"].append(
                ours(everything)
            )
        booked = Booked("unused", steps=steps - 5, skip=3)
        ours(True, booked)
        shares.append(booked.share())
    print(
        f"ResNet-20 on 32 px, batch 64, one thread, {steps} steps an epoch: {1000 * median(base):.1f} ms a step in a plain loop"
    )
    bare, full = (np.array(found[name]) for name in found)
    row(
        "  Lightning and our module / plain loop",
        median(bare / np.array(base)),
        None,
        "noise scope, metrics of training, hooks",
    )
    row(
        "  with callbacks and loggers / without, turn by turn",
        median(full / bare),
        None,
        f"between {min(full / bare):.3f} and {max(full / bare):.3f}",
    )
    who = "finite, interrupt, progress, random state, learning rate, CSV, W&B"
    row("  1 + callbacks, loggers and loop, booked where they run", 1 + median(shares), TARGET, who)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="a folder of JPEGs; noise is made without it")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="data,step,loop")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("WANDB_SILENT", "true")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    parts = options.only.split(",")
    with tempfile.TemporaryDirectory() as folder:
        pictures = options.pictures or (make_pictures(Path(folder)) if "data" in parts else None)
        if "data" in parts:
            data(pictures, options.size, options.rounds)
        if "step" in parts:
            step(options.size, options.rounds)
        if "loop" in parts:
            loop(options.rounds)


if __name__ == "__main__":
    main()
