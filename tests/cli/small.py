"""A training run of seconds, started as a program by the tests of ranks, sweeps and SLURM."""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import warm

from explainode.runs.directory import RunDirectory

SETTINGS = shlex.split(
    """model.width=16 model.noise.magnitude=0.1 data.size=32 data.batch_size=16 data.train_size=320 data.val_size=17 data.test_size=15
    module.scheduler=null trainer.max_epochs=2 explainer=[saliency] metric=[smoothness] evaluation.images=7
    callback.explanations.images=5 callback.explanations.budget=null callback.explanations.batch_size=1 callback.progress.every=0.1"""
)
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("EXPLAINODE_")} | {
    "OMP_NUM_THREADS": "1"
}


def command(*words: str) -> list[str]:
    """`python -m explainode train` with the small settings and `words`."""
    return ["-m", "explainode", "train", *SETTINGS, *words]


def finish(folder: Path, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run to the end, which must be as expected."""
    done = warm.run(command(*words), folder, ENVIRONMENT)
    assert done.returncode == status, done.stderr[-3000:]
    return done


@contextmanager
def started(folder: Path, *words: str) -> Iterator[warm.Program]:
    """A run in a session of its own, whose whole tree of processes is ended with the context."""
    run = warm.Program(command(*words), folder, ENVIRONMENT, folder / "out.txt")
    try:
        yield run
    finally:
        run.end()


def wait_for(condition: Callable[[], Any], seconds: float) -> None:
    """Return once the condition is true, which must be in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)


def reached(output: Path, text: str) -> bool:
    """Whether the output has a line with `text` (a pattern)."""
    return output.exists() and re.search(text, output.read_text()) is not None


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(word) for word in found.split()]


def table(run: Path) -> dict[tuple[Any, ...], tuple[float | None, ...]]:
    """What reports read of a run, without the seconds that it took; None for NaN, which is not equal to itself."""
    rows = RunDirectory(run).read_results().rows
    return {
        (r.epoch, r.split, r.model, r.explainer, r.metric): tuple(
            None if math.isnan(v) else v for v in (r.value, r.low, r.high, r.n)
        )
        for r in rows
    }


def weights(run: Path) -> list[torch.Tensor]:
    """The weights and running statistics of the newest checkpoint of the only variant."""
    (folder,) = (run / "checkpoints").iterdir()
    return list(torch.load(folder / "last.ckpt", weights_only=True)["state_dict"].values())


def same(a: Path, b: Path) -> bool:
    """Whether two runs have the same table and the same bits."""
    return table(a) == table(b) and all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))
