"""A training run of seconds, as a program, that the scripts about ranks, sweeps and resuming start, end, and compare with others of its kind."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from explainode.runs.directory import RunDirectory

SETTINGS = shlex.split(
    """model.width=16 model.noise.magnitude=0.1 data.size=32 data.batch_size=16 data.train_size=768 data.val_size=513 data.test_size=63
    module.scheduler=null trainer.max_epochs=3 explainer=[saliency,smoothgrad] metric=[deletion_fast,smoothness] evaluation.images=63
    callback.explanations.images=25 callback.explanations.budget=null callback.progress.every=0.25"""
)
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}


def command(*words: str) -> list[str]:
    """`explainode train` with the small settings and `words`."""
    return [sys.executable, "-m", "explainode", "train", *SETTINGS, *words]


def train(*words: str, folder: Path | None = None) -> None:
    """Train to the end; the script stops where that fails."""
    done = subprocess.run(command(*words), env=ONE_THREAD, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with status {done.returncode}:\n{done.stderr[-2000:]}")


def table(run: Path) -> dict[tuple[Any, ...], tuple[float, ...]]:
    """What every report reads of a run: value, interval and count of each row, without the seconds that it took."""
    rows = RunDirectory(run).read_results().rows
    return {(r.epoch, r.split, r.model, r.explainer, r.metric): (r.value, r.low, r.high, r.n) for r in rows}


def repeated_lines(run: Path) -> int:
    """Lines of metrics.csv that a later line replaces."""
    return len((run / "metrics.csv").read_text().splitlines()) - 1 - len(table(run))


def largest_difference(
    a: Mapping[tuple[Any, ...], tuple[float, ...]], b: Mapping[tuple[Any, ...], tuple[float, ...]]
) -> float:
    """The largest difference between two tables; infinite where they do not have the same rows in the same order."""
    if list(a) != list(b):
        return float("inf")
    return max((abs(x - y) for key in a for x, y in zip(a[key], b[key], strict=True)), default=0.0)


def checkpoint(run: Path) -> dict[str, Any]:
    """The newest checkpoint of the only variant."""
    (folder,) = (run / "checkpoints").iterdir()
    return torch.load(folder / "last.ckpt", weights_only=True)


def steps(run: Path) -> int:
    """At which step the newest checkpoint was written; 0 without any."""
    manifest = next((run / "checkpoints").glob("*/manifest.json"), None) if (run / "checkpoints").is_dir() else None
    return 0 if manifest is None else json.loads(manifest.read_text()).get("last.ckpt", {}).get("global_step", 0)


def same_weights(a: Path, b: Path) -> bool:
    """Whether two runs ended with the same bits: weights, running statistics and the optimizer's moments."""
    first, second = (checkpoint(run) for run in (a, b))
    pairs = [*zip(_tensors(first["state_dict"]), _tensors(second["state_dict"]), strict=True)]
    pairs += zip(_tensors(first["optimizer_states"]), _tensors(second["optimizer_states"]), strict=True)
    return bool(pairs) and all(torch.equal(x, y) for x, y in pairs)


def _tensors(node: Any) -> list[torch.Tensor]:
    if isinstance(node, torch.Tensor):
        return [node]
    parts: Sequence[Any] = (
        list(node.values()) if isinstance(node, Mapping) else node if isinstance(node, (list, tuple)) else []
    )
    return [tensor for part in parts for tensor in _tensors(part)]


def wait_for(condition: Any, seconds: float, every: float = 0.1) -> bool:
    """Whether the condition came true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(every)
    return bool(condition())
