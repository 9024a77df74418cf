"""What gallery and tutorials share: the small ResNet of the package, pictures that it has not seen, and a folder in which commands run."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from pathlib import Path

from torch import nn

from explainode.data import Batch, ShapesDataset
from explainode.jobs.demo_pair import PICTURES_SEED, SIZE, demo_networks


def network(name: str = "resnet") -> nn.Module:
    """One of the pair that comes with the package: "resnet", or its noise-injected twin "sde"."""
    return demo_networks()[name]


def pictures(count: int = 4, **settings: float) -> Batch:
    """Drawn shapes that the networks have not seen."""
    return ShapesDataset(count, size=SIZE, split="test", seed=PICTURES_SEED, **settings).__getitems__(
        list(range(count))
    )


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
