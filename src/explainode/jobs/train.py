"""Training as a configuration says: every variant, then all of them measured on the same images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from omegaconf import DictConfig, OmegaConf, open_dict

from explainode.errors import UserError
from explainode.jobs.images import build_data, count_classes, select_images
from explainode.jobs.measure import measure
from explainode.jobs.networks import build_network
from explainode.jobs.slurm import check_tasks, cluster_plugins, is_first_rank, own, was_requeued
from explainode.ranks import rank_and_size
from explainode.registry.build import check_parameters, instantiate
from explainode.registry.composing import plain
from explainode.registry.devices import count_devices
from explainode.runs.directory import RunDirectory, check_name
from explainode.signals import TrainingInterrupted, at_once
from explainode.training.checkpoint import AtomicCheckpointIO, latest_checkpoint, resume_path
from explainode.training.precision import slow_precision
from explainode.training.profile import StepProfiler

# what of a trainer changes the numbers, and Lightning's defaults: runs of the first version may not say all of it
_OF_THE_STEPS = {
    "precision": "32-true",
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "gradient_clip_algorithm": "norm",
    "limit_train_batches": 1.0,
    "overfit_batches": 0.0,
    "sync_batchnorm": False,
}


@dataclass
class Training:
    """A training that came to its end, or to the user's.

    Attributes:
        folder: where everything lies; settings: of each variant, by the name in tables, also of the one that was interrupted.
        interrupted: by the user; nothing was measured then.
    """

    folder: RunDirectory
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    interrupted: TrainingInterrupted | None = None


def prepare(config: DictConfig) -> tuple[Any, dict[str, Any]]:
    """The data and the plain settings of a training, checked before anything is trained.

    Raises:
        UserError: for settings that do not fit, or data that is not there.
    """
    data = build_data(config)
    data.dataset("train")
    if not data.num_classes:
        raise UserError("training needs labels, and this data has none; sort the pictures into one folder per class")
    count_classes(config, data)
    settings = {"callback": {}, "logger": {}, **plain(config)}  # an empty list means none
    check_name(settings["variant"], "the variant")
    variants(config)
    select_images(settings["evaluation"], data)
    check_parameters(
        {key: settings[key] for key in ("model", "module", "trainer", "explainer", "metric", "callback", "logger")}
    )
    check_tasks(count_devices(settings["trainer"]), settings["trainer"].get("num_nodes", 1))
    return data, settings


def train(config: DictConfig, data: Any, settings: Mapping[str, Any], say: Callable[[str], None]) -> Training:
    """Train every variant of a configuration, measure all of them on the same images.

    Args:
        data, settings: what `prepare` made of the configuration.
        say: told what a distilled surrogate is worth, by the first rank.

    Raises:
        UserError: if the run directory is somebody else's, or holds a run that this one would overwrite or mix with.
        TrainingPreempted: if the machine is needed elsewhere.
    """
    folder = RunDirectory(Path(settings["output_dir"]))
    with own(folder.path):
        return _train(config, data, settings, folder, say)


def _train(
    config: DictConfig, data: Any, settings: Mapping[str, Any], folder: RunDirectory, say: Callable[[str], None]
) -> Training:
    check_same_run(folder, settings)
    if is_first_rank() and not any((folder.path / "checkpoints").glob("*/*.ckpt")):
        folder.begin_anew()
    folder.write_config({**settings, "image_size": data.image_size})
    folder.write_class_names(data.class_names)
    training = Training(folder)
    networks: dict[str, Any] = {}
    teachers: dict[str, Any] = {}
    epochs: dict[str, int] = {}
    for variant in variants(config):
        name = variant.variant
        training.settings[name] = plain(variant)
        try:
            module = fit(training.settings[name], folder)
        except TrainingInterrupted as left:
            training.interrupted = left
            return training
        networks[name], epochs[name] = module.network.eval(), module.trainer.current_epoch
        if rank_and_size()[0] == 0 and (cut := cut_short(name, module.trainer)) is not None:
            folder.write_warnings([cut])
        if (teacher := getattr(module, "teacher", None)) is not None:
            teachers[name] = teacher
            if rank_and_size()[0] == 0:
                say(f"{name}: {module.verdict()}")
    with at_once():
        measure(settings, networks, data, folder, epochs, teachers)
    return training


def check_same_run(folder: RunDirectory, settings: Mapping[str, Any]) -> None:
    """Refuse a run directory that holds a run which this one does not go on with: its checkpoints and tables would be mixed with ours.

    What may differ is where the data lies and how it is read, how much longer and on which devices is trained, and what is explained and measured.

    Raises:
        UserError: if nothing says that the run goes on, or naming a setting that differs.
    """
    if not any((folder.path / "checkpoints").glob("*/*.ckpt")):
        return
    if settings["ckpt_path"] is None and not was_requeued(folder.path):
        raise UserError(
            f"{folder.path} holds a run already, which would be overwritten; go on with it by ckpt_path=auto, or name another run_dir"
        )
    before, now = folder.read_config(), _yaml(settings)
    for group in ("model", "data", "module", "variants", "seed"):
        for key, then in sorted(_leaves(before.get(group), group).items()):
            value = _leaves(now.get(group), group).get(key)
            if value != then and key not in ("data.root", "data.num_workers", "data.download", "data.verify"):
                raise UserError(
                    f"{folder.path} holds a run with {key}={then}, and not {value}; go on with the same settings, or name another run_dir"
                )
    averaging, averages = ((run.get("callback") or {}).get("ema") for run in (before, now))
    if averaging != averages:
        raise UserError(
            f"{folder.path} holds a run with callback.ema={averaging}, and not {averages}; go on with the same, or name another run_dir"
        )
    _check_trainer(folder, before.get("trainer") or {}, now["trainer"])


def _check_trainer(folder: RunDirectory, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse another way of making steps, and fewer epochs than were planned: the schedule was made for them.

    Raises:
        UserError: naming the setting.
    """
    for key, default in _OF_THE_STEPS.items():
        then, value = before.get(key, default), now.get(key, default)
        if str(then) != str(value):
            raise UserError(
                f"{folder.path} holds a run with trainer.{key}={then}, and not {value}; go on with the same settings, or name another run_dir"
            )
    planned, epochs = before.get("max_epochs"), now.get("max_epochs")
    if planned is not None and epochs is not None and 0 <= epochs < planned:
        raise UserError(
            f"{folder.path} holds a run of trainer.max_epochs={planned}, and not {epochs}; go on with as many or more, or name another run_dir"
        )


def cut_short(name: str, trainer: Any) -> str | None:
    """A sentence on a training that was stopped before its last epoch: after what it was measured. None for a whole one."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.current.completed
    planned, trained = trainer.max_epochs, trainer.current_epoch
    if planned is None or planned < 0 or (trained >= planned and batches in (0, trainer.num_training_batches)):
        return None
    return f"{name} was stopped early: measured after {trainer.global_step} steps, in epoch {trained} of {planned}."


def _yaml(settings: Mapping[str, Any]) -> Any:
    """The settings as they come back from a file."""
    return yaml.safe_load(yaml.safe_dump(dict(settings)))


def _leaves(node: Any, name: str) -> dict[str, Any]:
    """The values of nested settings by their dotted names."""
    if not isinstance(node, Mapping):
        return {name: node}
    return {key: value for part in node for key, value in _leaves(node[part], f"{name}.{part}").items()}


def variants(config: DictConfig) -> list[DictConfig]:
    """The configuration once per variant, its settings merged into the model's.

    Raises:
        UserError: for a setting that the model does not have, or a name that cannot be a folder's.
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
            check_name(name, "a variant")
        configs.append(one)
    return configs


def fit(settings: Mapping[str, Any], folder: RunDirectory) -> Any:
    """Train one variant; its module. A job that SLURM restarted goes on from its own newest checkpoint, whatever it began from.

    Raises:
        TrainingLeft: if a signal asked to leave.
        KeyboardInterrupt: at the second Ctrl-C (exit status 130), which Lightning would turn into an exit with status 1.
    """

    seed_everything(settings["seed"], workers=True, verbose=False)
    data = instantiate(settings["data"], "data")
    network = build_network(settings["model"])
    module = instantiate(settings["module"], "module", network=network)
    callbacks = averaging_last([instantiate(entry, "callback") for entry in (settings.get("callback") or {}).values()])
    loggers = [instantiate(entry, "logger") for entry in (settings.get("logger") or {}).values()]
    for logger in loggers:
        if hasattr(logger, "describe"):  # W&B keeps the settings beside the numbers
            logger.describe(settings)
    plugins = [AtomicCheckpointIO(), *cluster_plugins()]
    trainer = instantiate(
        settings["trainer"] | profiler(settings, folder),
        "trainer",
        callbacks=callbacks,
        logger=loggers or False,
        plugins=plugins,
    )
    slow = slow_precision(str(trainer.precision), trainer.strategy.root_device)
    if slow is not None:
        rank_zero_warn(slow)
    checkpoints = folder.path / "checkpoints" / settings["variant"]
    resume = latest_checkpoint(checkpoints) if was_requeued(folder.path) else None
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume or resume_path(settings["ckpt_path"], checkpoints))
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise
    return module


def profiler(settings: Mapping[str, Any], folder: RunDirectory) -> dict[str, Any]:
    """The trainer's `profiler` where the settings ask for one, else nothing."""
    if not settings.get("profile"):
        return {}

    found = StepProfiler(folder.path / f"profile_{settings['variant']}.txt")
    found.describe_settings(
        workers=settings["data"].get("num_workers"),
        precision=settings["trainer"].get("precision"),
        accelerator=settings["trainer"].get("accelerator"),
        channels_last=settings["module"].get("channels_last"),
    )
    return {"profiler": found}


def averaging_last(callbacks: Sequence[Any]) -> list[Any]:
    """The callbacks in their order, those that average weights behind all others: the weights explained are the weights validated."""
    return sorted(callbacks, key=lambda callback: isinstance(callback, WeightAveraging))
