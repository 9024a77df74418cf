"""`explainode train`: train the model, or each of its variants, explain while it learns, measure at the end, write the report."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from explainode.cli.help import verb_help
from explainode.cli.launch import (
    check_launcher,
    forget_failures,
    with_our_launchers,
)
from explainode.cli.main import VERB
from explainode.cli.points import Points
from explainode.errors import UserError
from explainode.jobs.slurm import (
    keep_preemptions,
)
from explainode.registry.composing import CONFIG_MODULE, compose, compose_launcher, register_resolvers, search_path
from explainode.registry.entries import extra_config_folders

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
    config = compose("train", overrides)
    sweeps = bool({"-m", "--multirun"} & set(options))
    launcher, sweep = compose_launcher("train", overrides)
    check_launcher(config, launcher, sweeps)
    if sweeps:
        forget_failures(Path(sweep))
    else:
        _make_folder(Path(config.run_dir))
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

    hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name="train")(task)()
    return points.status(Path(sweep))


def _make_folder(folder: Path) -> None:
    """Make the run directory before Hydra does, which would not say it in a sentence."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the run directory {folder} cannot be made ({error.strerror}); choose another with run_dir=..."
        ) from error
