"""`explainode train`: train the model, or each of its variants, explain while it learns, measure at the end, write the report."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from omegaconf import DictConfig

from explainode.cli.help import verb_help
from explainode.cli.launch import (
    check_launcher,
    check_settings,
    forget_failures,
    with_our_launchers,
)
from explainode.cli.main import VERB
from explainode.cli.points import Points
from explainode.jobs.slurm import is_first_rank, keep_preemptions, own, restarts
from explainode.registry.composing import (
    CONFIG_MODULE,
    check_words,
    compose,
    compose_launcher,
    register_resolvers,
    run_id,
    search_path,
)
from explainode.registry.entries import extra_config_folders
from explainode.runs.claim import fresh_directory
from explainode.runs.sweep import read_overrides

EXAMPLES = (
    "explainode train                                             # six-block net on embedded shapes",
    "explainode train experiment=cifar10_compare data.root=~/data  # ResNet-20 and two noise-injected twins",
    "explainode train model=resnet20 model.noise.magnitude=0.1 data=cifar10 data.root=~/data",
    "explainode train -m model.noise.magnitude=0,0.1,0.5           # a sweep, under multirun/",
    "explainode train run_dir=runs/mine ckpt_path=auto             # go on where that run stopped",
)


def run(arguments: Sequence[str]) -> int:
    """Check the settings, then hand them to Hydra."""
    if "-h" in arguments or "--help" in arguments:
        print(verb_help("train", EXAMPLES))
        return 0
    options = [word for word in arguments if word.startswith("-")]
    overrides = with_our_launchers([word for word in arguments if not word.startswith("-")])
    sweeps = bool({"-m", "--multirun"} & set(options))
    check_words(overrides, sweeps)
    config = compose("train", overrides)
    check_settings(config, sweeps)
    launcher, sweep = compose_launcher("train", overrides)
    check_launcher(config, launcher, sweeps)
    folder = Path(sweep if sweeps else config.run_dir)
    if _may_be_renamed(folder, overrides, config):
        folder = _own_directory(folder, [] if sweeps else overrides)
        overrides.append(f"{'hydra.sweep.dir' if sweeps else 'run_dir'}='{folder}'")
    if sweeps:
        forget_failures(folder)
    import hydra

    register_resolvers()
    keep_preemptions()
    os.environ[VERB] = (
        "train"  # ranks that Lightning starts repeat the command line as Hydra sees it, which has no verb
    )
    sys.argv[1:] = [*options, *search_path(), *overrides]  # options first: argparse stops at the first override
    points = Points(sweeps, launcher, extra_config_folders())

    def task(point: DictConfig) -> None:
        points.train(point)

    with nullcontext() if sweeps else own(folder):  # before Hydra writes into it
        hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name="train")(task)()
        return points.status(folder)


def _may_be_renamed(folder: Path, overrides: Sequence[str], config: DictConfig) -> bool:
    """Whether the directory's name is ours to choose: from the clock or the job, and not for ranks, which could not know what the first one found."""
    given = any(
        word.startswith(("run_dir=", "hydra.run.dir=", "hydra.sweep.dir=", "output_dir=")) for word in overrides
    )
    alone = is_first_rank() and "LOCAL_RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) == 1
    return alone and not given and folder.name == run_id() and config.ckpt_path is None


def _own_directory(folder: Path, overrides: Sequence[str]) -> Path:
    """A new directory; for a job that was restarted the one that a run of the same settings has begun.

    Raises:
        UserError: if it cannot be made.
    """
    if restarts():
        for place in [folder, *sorted(folder.parent.glob(f"{glob.escape(folder.name)}-*"))]:
            if place.is_dir() and (not overrides or _without_place(read_overrides(place)) == list(overrides)):
                return place
    return fresh_directory(folder)


def _without_place(words: Sequence[str]) -> list[str]:
    return [word for word in words if not word.startswith(("run_dir=", "hydra."))]
