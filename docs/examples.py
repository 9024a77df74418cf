"""What gallery and tutorials share: a small ResNet trained once on drawn shapes, pictures, and a folder in which commands run."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import nn

import explainode
from explainode.data import Batch, ShapesDataset

SIZE = 32


def train(width: int = 16, epochs: int = 6, noise: float = 0.0) -> nn.Module:
    """A six-block ResNet of 32 px, about a minute on one core."""
    torch.manual_seed(0)
    data = ShapesDataset(4096, size=SIZE, seed=1)
    everything = data.__getitems__(list(range(len(data))))
    network = explainode.get("model/six_block", num_classes=data.num_classes, width=width, noise={"magnitude": noise})
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=1e-3)
    batches = len(data) // 128
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * batches)
    for _ in range(epochs):
        for rows in torch.randperm(len(data)).view(batches, -1):
            images = everything.image[rows]
            loss = nn.functional.cross_entropy(network(images), everything.label[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@cache
def network() -> nn.Module:
    """The trained network; its weights are kept under build/, so that a second build of the site is quick."""
    file = Path(__file__).parents[1] / "build" / "example_network.pt"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        with contextlib.redirect_stdout(io.StringIO()):
            torch.save(train().state_dict(), file)
    made = explainode.get("model/six_block", num_classes=8, width=16)
    made.load_state_dict(torch.load(file, weights_only=True))
    return made.eval()


def pictures(count: int = 4, **settings: float) -> Batch:
    """Drawn shapes that the network has not seen."""
    return ShapesDataset(count, size=SIZE, split="test", seed=1, **settings).__getitems__(list(range(count)))


CLASSES = ShapesDataset.class_names
FOLDER = Path(tempfile.mkdtemp(prefix="explainode-"))  # where the commands of a page run


def command(line: str, last: int = 2000) -> None:
    """Run `explainode LINE` in `FOLDER` and print what a terminal would show at the end, without the progress."""
    from explainode.cli.main import main

    out, before = io.StringIO(), Path.cwd()
    os.chdir(FOLDER)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            status = main(line.split())
    finally:
        os.chdir(before)
    said = [text for text in out.getvalue().strip().splitlines() if text.strip()]
    print(f"$ explainode {line}")
    print("\n".join(said)[-last:])
    print(f"(exit status {status})\n")
