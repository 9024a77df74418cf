"""Starting the points of a sweep: what a launcher can do, points in processes of their own, and how failures come back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from explainode.errors import UserError
from explainode.registry.devices import count_devices, ranks_of

FAILURE = "failure.txt"  # in the directory of a point that went wrong: why
# The plugin's own entries know neither ranks nor requeueing, and a file of ours under the same name would be merged with them.
_OURS = {"submitit_slurm": "slurm", "submitit_local": "local"}
_PLUGINS = {"slurm": "hydra_submitit_launcher", "local": "hydra_submitit_launcher", "joblib": "hydra_joblib_launcher"}


def with_our_launchers(overrides: Sequence[str]) -> list[str]:
    """The overrides with submitit's launchers under the names of our settings for them: `submitit_slurm` is `slurm`."""
    ours = {f"hydra/launcher={theirs}": f"hydra/launcher={name}" for theirs, name in _OURS.items()}
    return [ours.get(word, word) for word in overrides]


def check_settings(config: DictConfig, sweeps: bool) -> None:
    """Refuse what could not be trained or measured, before anything is made.

    Raises:
        UserError: for a number of epochs that is none, nothing to explain with or to measure, a GPU that is not there.
    """
    epochs = config.trainer.get("max_epochs")
    if isinstance(epochs, int) and epochs < -1:
        raise UserError(
            f"trainer.max_epochs={epochs} is no number of epochs; expected 1 or more, or -1 to train until trainer.max_steps or max_time"
        )
    for group in ("explainer", "metric"):
        if not config.get(group):
            raise UserError(
                f"no {group} is chosen, so nothing could be measured; choose some with {group}=[...] (explainode list {group})"
            )
    if not sweeps and config.trainer.get("accelerator") in (
        "gpu",
        "cuda",
    ):  # the points of a sweep may run on another machine
        import torch

        if not torch.cuda.is_available() and not torch.backends.mps.is_available():
            raise UserError(
                f"trainer.accelerator={config.trainer.accelerator} needs a GPU, and there is none here; choose trainer=cpu"
            )


def check_launcher(config: DictConfig, launcher: str, sweeps: bool) -> None:
    """Refuse what a launcher cannot do, before anything is started.

    Raises:
        UserError: naming what to use instead.
    """
    if not sweeps:
        if launcher != "basic":
            raise UserError(f"hydra/launcher={launcher} starts the points of a sweep, also a single one; add -m")
        return
    if count_devices(config.trainer) > 1 and launcher == "basic":
        # Lightning would start the other ranks by repeating the command line: they would sweep too, each with settings of its own
        raise UserError(
            "a sweep of runs with several devices needs a launcher that starts the ranks; add hydra/launcher=submitit_local or submitit_slurm"
        )
    if launcher in _OURS:
        raise UserError(
            f"hydra/launcher: {launcher} is the plugin's own, which knows neither ranks nor requeueing; write {_OURS[launcher]}"
        )
    plugin = _PLUGINS.get(launcher)
    if plugin is not None and find_spec(f"hydra_plugins.{plugin}") is None:
        raise UserError(
            f"hydra/launcher={launcher} needs a package that is not installed; pip install 'explainode[sweep]'"
        )
    if launcher in _OURS.values():
        ranks_of(config.trainer.devices)
    if launcher == "slurm" and shutil.which("sbatch") is None:
        raise UserError(
            "hydra/launcher=submitit_slurm submits with sbatch, which is not here; start on a SLURM login node, or use submitit_local"
        )


def train_in_own_process(folder: Path, overrides: Sequence[str], config_folders: Sequence[Path]) -> None:
    """Train one point of a sweep as a program of its own, whose ranks Lightning can start as those of any run.

    Raises:
        UserError: if it fails; what it said stands above.
    """
    folders = [word for place in config_folders for word in ("--config-dir", str(place))]
    own = [f'run_dir="{folder}"', f'hydra.run.dir="{folder}"']  # a point's directory may be named after its settings
    words = [sys.executable, "-m", "explainode", *folders, "train", *overrides, *own]
    environment = {
        key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")
    }
    status = subprocess.run(words, env=environment, check=False).returncode
    if status:
        raise UserError(f"a run of its own ended with status {status}: explainode {' '.join(words[3:])}")


def note_failure(folder: Path, error: BaseException) -> None:
    """Write why a point failed into its directory, where whoever started the sweep finds it; the rank that failed first has the reason."""
    folder.mkdir(parents=True, exist_ok=True)
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    try:
        with open(folder / FAILURE, "x", encoding="utf-8") as file:
            file.write(" ".join(text.split()) + "\n")
    except FileExistsError:
        pass  # another rank was first


def forget_failures(sweep: Path) -> None:
    """Remove what an earlier sweep left in the same directory."""
    for path in sweep.rglob(FAILURE):
        path.unlink()


def failures(sweep: Path) -> dict[str, str]:
    """Which points of a sweep failed, and why."""
    return {str(path.parent): path.read_text(encoding="utf-8").strip() for path in sorted(sweep.rglob(FAILURE))}
