"""`explainode train`: train the model, or each of its variants, explain while it learns, measure at the end, write the report."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from explainode.cli.compose import CONFIG_MODULE, check_entries, compose, plain, register_resolvers, search_path
from explainode.cli.heartbeat import Heartbeat
from explainode.cli.help import verb_help
from explainode.cli.main import VERB
from explainode.cli.registry import check_parameters
from explainode.errors import UserError

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
    overrides = [word for word in arguments if not word.startswith("-")]
    config = compose("train", overrides)
    sweeps = bool({"-m", "--multirun"} & set(options))
    if sweeps and isinstance(config.trainer.get("devices"), int) and config.trainer.devices > 1 and not _has_launcher(overrides):
        raise UserError(
            "a sweep of runs with several devices needs a launcher that starts the ranks; add hydra/launcher=submitit_local or submitit_slurm"
        )
    if not sweeps:
        _make_folder(Path(config.run_dir))
    import hydra

    register_resolvers()
    os.environ[VERB] = "train"  # ranks that Lightning starts repeat the command line as Hydra sees it, which has no verb
    sys.argv[1:] = [*options, *search_path(), *overrides]  # options first: argparse stops at the first override
    outcome = _Outcome()

    def task(point: DictConfig) -> None:
        outcome.note(point)

    hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name="train")(task)()
    return outcome.status(sweeps)


def _make_folder(folder: Path) -> None:
    """Make the run directory before Hydra does, which would not say it in a sentence."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the run directory {folder} cannot be made ({error.strerror}); choose another with run_dir=...") from error


class _Outcome:
    """What became of each point: Hydra's main returns nothing, and would print a failure before we can say it in a sentence."""

    def __init__(self) -> None:
        self.interrupted = False
        self.failures: list[tuple[str, Exception]] = []

    def note(self, point: DictConfig) -> None:
        """Train one point of a sweep, or the only run; a failure is kept, so that the other points go on."""
        check_entries(point)
        try:
            self.interrupted |= train(point)
        except Exception as error:
            self.failures.append((str(point.run_dir), error))

    def status(self, sweeps: bool) -> int:
        """The exit status; the only run's failure is raised, those of a sweep are listed."""
        if not sweeps and self.failures:
            raise self.failures[0][1]
        for place, error in self.failures:
            print(f"explainode: {place}: {error}", file=sys.stderr)
        return 1 if self.failures else 130 if self.interrupted else 0


def _has_launcher(overrides: Sequence[str]) -> bool:
    return any(word.startswith("hydra/launcher=") for word in overrides)


def train(config: DictConfig) -> bool:
    """Train every variant, measure all of them on the same images, write the report; True if the user interrupted.

    Raises:
        UserError: for settings that do not fit, before anything is trained.
    """
    with Heartbeat("starting"):
        from explainode.cli.build import build_data, count_classes, measure, ranks, select_images
        from explainode.report.run import RunDirectory

        data = build_data(config)
        data.dataset("train")  # data that is not there is found before anything is trained
        if not data.num_classes:
            raise UserError("training needs labels, and this data has none; sort the pictures into one folder per class")
        count_classes(config, data)
        settings = plain(config)
        select_images(settings["evaluation"], data)
        check_parameters({key: settings[key] for key in ("model", "module", "trainer", "explainer", "metric", "callback", "logger")})
    folder = RunDirectory(Path(settings["output_dir"]))
    folder.write_config(settings | {"image_size": data.image_size})
    folder.write_class_names(data.class_names)
    networks: dict[str, Any] = {}
    teachers: dict[str, Any] = {}
    interrupted = False
    for variant in variants(config):
        module, interrupted = fit(plain(variant), folder)
        networks[variant.variant] = module.network.eval()
        if (teacher := getattr(module, "teacher", None)) is not None:
            teachers[variant.variant] = teacher
            if not interrupted and ranks()[0] == 0:
                print(f"{variant.variant}: {module.verdict()}", flush=True)
        if interrupted:
            break
    epoch = settings["trainer"].get("max_epochs") or 0
    if not interrupted:
        measure(settings, networks, data, folder, epoch, teachers)
    if ranks()[0] == 0:
        finish(folder, interrupted)
    return interrupted


def variants(config: DictConfig) -> list[DictConfig]:
    """The configuration once per variant, its settings merged into the model's.

    Raises:
        UserError: for a setting that the model does not have.
    """
    if not config.variants:
        return [config]
    configs = []
    for name, settings in config.variants.items():
        one = config.copy()
        OmegaConf.set_struct(one, True)
        try:
            one.model = OmegaConf.merge(one.model, settings or {})
        except Exception as error:
            raise UserError(f"variants.{name}: {str(error).splitlines()[0]}") from error
        with open_dict(one):
            one.variant = str(name)
        configs.append(one)
    return configs


def fit(settings: Mapping[str, Any], folder: Any) -> tuple[Any, bool]:
    """Train one variant; its module, and whether the user interrupted.

    Raises:
        KeyboardInterrupt: at the second Ctrl-C (exit status 130), which Lightning would turn into an exit with status 1.
    """
    from lightning.pytorch import seed_everything
    from lightning.pytorch.utilities.rank_zero import rank_zero_warn

    from explainode.callbacks.interrupt import TrainingInterrupted
    from explainode.cli.build import build_network
    from explainode.cli.registry import instantiate
    from explainode.training.checkpoint import AtomicCheckpointIO, resume_path
    from explainode.training.precision import slow_precision

    seed_everything(settings["seed"], workers=True, verbose=False)
    data = instantiate(settings["data"])
    network = build_network(settings["model"])
    module = instantiate(settings["module"], network=network)
    callbacks = averaging_last([instantiate(entry) for entry in (settings.get("callback") or {}).values()])
    loggers = [instantiate(entry) for entry in (settings.get("logger") or {}).values()]
    trainer = instantiate(settings["trainer"], callbacks=callbacks, logger=loggers or False, plugins=[AtomicCheckpointIO()])
    slow = slow_precision(str(trainer.precision), trainer.strategy.root_device)
    if slow is not None:
        rank_zero_warn(slow)
    checkpoints = Path(folder.path) / "checkpoints" / settings["variant"]
    interrupted = False
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume_path(settings["ckpt_path"], checkpoints))
    except TrainingInterrupted:
        interrupted = True
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise
    return module, interrupted


def averaging_last(callbacks: Sequence[Any]) -> list[Any]:
    """The callbacks in their order, those that average weights behind all others: the weights explained are the weights validated."""
    from lightning.pytorch.callbacks import WeightAveraging

    return sorted(callbacks, key=lambda callback: isinstance(callback, WeightAveraging))


def finish(folder: Any, interrupted: bool = False) -> None:
    """Write the report and its tables; print what was found, the verdict, and where the report lies."""
    from rich.console import Console

    from explainode.report.exports import write_tables
    from explainode.report.html import write_report
    from explainode.report.panels import panel
    from explainode.report.tables import print_results
    from explainode.report.verdict import verdict

    with Heartbeat("writing the report"):
        path = write_report(folder.path)
        results = folder.read_results()
        write_tables(folder, results)
        if results.maps:
            panel(results.maps, folder.read_class_names(), images=4).save(folder.path / "panel.png")
        sentence = verdict(results)
    console = Console()
    print_results(results, console)
    if interrupted:
        console.print("Interrupted: the checkpoint and the report hold what was finished; go on with ckpt_path=auto and the same run_dir.")
    console.print(sentence, soft_wrap=True, highlight=False, markup=False)
    console.print(f"report: {path}", soft_wrap=True, highlight=False, markup=False)
