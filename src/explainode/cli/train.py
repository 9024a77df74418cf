"""`explainode train`: train the model, or each of its variants, explain while it learns, measure at the end, write the report."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from explainode.callbacks.signals import TrainingInterrupted, TrainingLeft, TrainingPreempted, at_once
from explainode.cli.compose import (
    CONFIG_MODULE,
    check_entries,
    compose,
    compose_launcher,
    plain,
    register_resolvers,
    search_path,
)
from explainode.cli.heartbeat import Heartbeat
from explainode.cli.help import verb_help
from explainode.cli.launch import (
    check_launcher,
    count_devices,
    failures,
    forget_failures,
    note_failure,
    train_in_own_process,
    with_our_launchers,
)
from explainode.cli.main import VERB
from explainode.cli.quiet import quiet_libraries
from explainode.cli.record import record_evaluation
from explainode.cli.registry import check_parameters, extra_config_folders
from explainode.cli.slurm import (
    check_tasks,
    cluster_plugins,
    is_first_rank,
    join_ranks,
    keep_preemptions,
    local_job,
    requeue,
    slurm_job,
    was_requeued,
)
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
    points = _Points(sweeps, launcher, extra_config_folders())

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


class _Points:
    """The points of a sweep, or the only run. Hydra's main returns nothing, and would print a failure before we can say it in a sentence.

    A copy of this trains in each process that a launcher starts: what went wrong there comes back as files.
    """

    def __init__(self, sweeps: bool, launcher: str, config_folders: Sequence[Path]) -> None:
        self.sweeps, self.launcher, self.config_folders = sweeps, launcher, list(config_folders)
        self.failure: Exception | None = None
        self.left: TrainingLeft | None = None

    def train(self, point: DictConfig) -> None:
        """Train one point; of a sweep, a failure is written down, so that the other points go on.

        Raises:
            SystemExit: where our job was put back into the queue: it is not over, and no launcher may take it for that.
        """
        if self.left is not None:
            return  # an earlier point was stopped, and with it the sweep
        folder = Path(point.output_dir)
        try:
            check_entries(point)
            if self.sweeps and self.launcher == "basic":
                check_launcher(point, self.launcher, self.sweeps)  # its number of devices may be what is swept
            elif self.sweeps:  # a process of its own, which has not come through main
                quiet_libraries()
                keep_preemptions()
                join_ranks()
            if self.sweeps and self.launcher == "joblib" and count_devices(point.trainer) > 1:
                from hydra.core.hydra_config import HydraConfig

                train_in_own_process(folder, HydraConfig.get().overrides.task, self.config_folders)
            else:
                train(point)
        except TrainingPreempted as left:
            self._make_room(left, folder)
        except TrainingLeft as left:
            self.left = left
        except Exception as error:
            self.failure = error
        if self.sweeps and (self.failure or self.left):
            why = self.failure or UserError("it was stopped before its end")
            note_failure(folder, why)
            if self.launcher != "basic":  # into the log of this process; who started the sweep lists all at its end
                print(f"explainode: {why}", file=sys.stderr)
            self.failure = None

    def _make_room(self, left: TrainingPreempted, folder: Path) -> None:
        """Put our job back into the queue, if there is one, or remember that the training was left."""
        first = is_first_rank()
        if first:
            saved = (
                "there was nothing new to save" if left.checkpoint is None else f"everything is in {left.checkpoint}"
            )
            print(f"\nasked to make room: {saved}", file=sys.stderr, flush=True)
        queued = slurm_job() is not None or local_job() is not None
        if queued and (not first or requeue(folder)):
            raise SystemExit(0) from left
        self.left = left

    def status(self, sweep: Path) -> int:
        """The exit status; the only run's failure is raised, those of a sweep are listed."""
        if self.failure is not None:
            raise self.failure
        found = failures(sweep) if self.sweeps else {}
        for place, why in found.items():
            print(f"explainode: {place}: {why}", file=sys.stderr)
        if self.left is None:
            return 1 if found else 0
        if not is_first_rank():
            return (
                0  # Lightning would take it for a rank that died, and kill the first one, which still writes its report
            )
        return 130 if isinstance(self.left, TrainingInterrupted) else 128 + (self.left.signal or signal.SIGTERM)


def train(config: DictConfig) -> None:
    """Train every variant, measure all of them on the same images, write the report.

    Raises:
        UserError: for settings that do not fit, before anything is trained.
        TrainingInterrupted: by the user, after the report of what there is.
        TrainingPreempted: if the machine is needed elsewhere.
    """
    with Heartbeat("starting"):
        from explainode.cli.build import build_data, count_classes, measure, ranks, select_images
        from explainode.report.run import RunDirectory

        data = build_data(config)
        data.dataset("train")  # data that is not there is found before anything is trained
        if not data.num_classes:
            raise UserError(
                "training needs labels, and this data has none; sort the pictures into one folder per class"
            )
        count_classes(config, data)
        settings = plain(config)
        select_images(settings["evaluation"], data)
        check_parameters(
            {key: settings[key] for key in ("model", "module", "trainer", "explainer", "metric", "callback", "logger")}
        )
        check_tasks(count_devices(settings["trainer"]), settings["trainer"].get("num_nodes", 1))
    folder = RunDirectory(Path(settings["output_dir"]))
    check_same_run(folder, settings)
    folder.write_config(settings | {"image_size": data.image_size})
    folder.write_class_names(data.class_names)
    networks: dict[str, Any] = {}
    teachers: dict[str, Any] = {}
    trained_with: dict[str, Any] = {}
    interrupted: TrainingInterrupted | None = None
    for variant in variants(config):
        trained_with[variant.variant] = plain(variant)
        try:
            module = fit(trained_with[variant.variant], folder)
        except TrainingInterrupted as left:
            interrupted = left
            break
        networks[variant.variant] = module.network.eval()
        if (teacher := getattr(module, "teacher", None)) is not None:
            teachers[variant.variant] = teacher
            if ranks()[0] == 0:
                print(f"{variant.variant}: {module.verdict()}", flush=True)
    epoch = settings["trainer"].get("max_epochs") or 0
    with at_once():
        if interrupted is None:
            measure(settings, networks, data, folder, epoch, teachers)
        if ranks()[0] == 0:
            finish(folder, interrupted is not None)
            if interrupted is None:
                record_evaluation(trained_with, folder)
    if interrupted is not None:
        raise interrupted


def check_same_run(folder: Any, settings: Mapping[str, Any]) -> None:
    """Refuse a run directory that holds a run of other settings: its checkpoints and tables would be mixed with ours.

    What may differ is where the data lies and how it is read, how long and on which devices is trained, and what is explained and measured.

    Raises:
        UserError: naming a setting that differs.
    """
    if not (folder.path / "checkpoints").is_dir():
        return
    before, now = folder.read_config(), _yaml(settings)
    for group in ("model", "data", "module", "variants", "seed"):
        for key, then in sorted(_leaves(before.get(group), group).items()):
            value = _leaves(now.get(group), group).get(key)
            if value != then and key not in ("data.root", "data.num_workers", "data.download", "data.verify"):
                raise UserError(
                    f"{folder.path} holds a run with {key}={then}, and not {value}; go on with the same settings, or name another run_dir"
                )


def _yaml(settings: Mapping[str, Any]) -> Any:
    """The settings as they come back from a file."""
    import yaml

    return yaml.safe_load(yaml.safe_dump(dict(settings)))


def _leaves(node: Any, name: str) -> dict[str, Any]:
    """The values of nested settings by their dotted names."""
    if not isinstance(node, Mapping):
        return {name: node}
    return {key: value for part in node for key, value in _leaves(node[part], f"{name}.{part}").items()}


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


def fit(settings: Mapping[str, Any], folder: Any) -> Any:
    """Train one variant; its module. A job that SLURM restarted goes on from its own newest checkpoint, whatever it began from.

    Raises:
        TrainingLeft: if a signal asked to leave.
        KeyboardInterrupt: at the second Ctrl-C (exit status 130), which Lightning would turn into an exit with status 1.
    """
    from lightning.pytorch import seed_everything
    from lightning.pytorch.utilities.rank_zero import rank_zero_warn

    from explainode.cli.build import build_network
    from explainode.cli.registry import instantiate
    from explainode.training.checkpoint import AtomicCheckpointIO, latest_checkpoint, resume_path
    from explainode.training.precision import slow_precision

    seed_everything(settings["seed"], workers=True, verbose=False)
    data = instantiate(settings["data"])
    network = build_network(settings["model"])
    module = instantiate(settings["module"], network=network)
    callbacks = averaging_last([instantiate(entry) for entry in (settings.get("callback") or {}).values()])
    loggers = [instantiate(entry) for entry in (settings.get("logger") or {}).values()]
    for logger in loggers:
        if hasattr(logger, "describe"):  # W&B keeps the settings beside the numbers
            logger.describe(settings)
    plugins = [AtomicCheckpointIO(), *cluster_plugins()]
    trainer = instantiate(
        settings["trainer"] | profiler(settings, folder), callbacks=callbacks, logger=loggers or False, plugins=plugins
    )
    slow = slow_precision(str(trainer.precision), trainer.strategy.root_device)
    if slow is not None:
        rank_zero_warn(slow)
    checkpoints = Path(folder.path) / "checkpoints" / settings["variant"]
    resume = latest_checkpoint(checkpoints) if was_requeued(Path(folder.path)) else None
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume or resume_path(settings["ckpt_path"], checkpoints))
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise
    return module


def profiler(settings: Mapping[str, Any], folder: Any) -> dict[str, Any]:
    """The trainer's `profiler` where the settings ask for one, else nothing."""
    if not settings.get("profile"):
        return {}
    from explainode.callbacks.profile import StepProfiler

    found = StepProfiler(Path(folder.path) / f"profile_{settings['variant']}.txt")
    found.describe_settings(
        workers=settings["data"].get("num_workers"),
        precision=settings["trainer"].get("precision"),
        accelerator=settings["trainer"].get("accelerator"),
        channels_last=settings["module"].get("channels_last"),
    )
    return {"profiler": found}


def averaging_last(callbacks: Sequence[Any]) -> list[Any]:
    """The callbacks in their order, those that average weights behind all others: the weights explained are the weights validated."""
    from lightning.pytorch.callbacks import WeightAveraging

    return sorted(callbacks, key=lambda callback: isinstance(callback, WeightAveraging))


def finish(folder: Any, interrupted: bool = False) -> None:
    """Write the report and its tables; print what was found, the verdict, and where the report lies."""
    from rich.console import Console

    from explainode.report.exports import write_exports
    from explainode.report.html import write_report
    from explainode.report.panels import panel
    from explainode.report.tables import print_results
    from explainode.report.verdict import verdict

    with Heartbeat("writing the report"):
        path = write_report(folder.path)
        results = folder.read_results()
        write_exports(folder, results)
        if results.maps:
            panel(results.maps, folder.read_class_names(), images=4).save(folder.path / "panel.png")
        sentence = verdict(results)
    console = Console()
    print_results(results, console)
    if interrupted:
        console.print(
            "Interrupted: the checkpoint and the report hold what was finished; go on with ckpt_path=auto and the same run_dir."
        )
    console.print(sentence, soft_wrap=True, highlight=False, markup=False)
    console.print(f"report: {path}", soft_wrap=True, highlight=False, markup=False)
