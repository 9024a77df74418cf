"""W&B as a logger that never asks: online where somebody is logged in, offline into the run directory everywhere else."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from explainode.callbacks.artifacts_wandb import log_code, log_model
from explainode.callbacks.wandb_id import stable_id
from explainode.callbacks.wandb_login import logged_in
from explainode.errors import UserError
from explainode.runs.directory import RunDirectory

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline", "disabled")
BY_EPOCH = (
    "train/*",
    "val/*",
    "test/*",
    "explain/*",
)  # what is drawn over epochs; everything else over trainer/global_step
# W&B's own limits are 90 s for the start and none for the end: a run must not wait for a server that does not answer
START_SECONDS, END_SECONDS = 30.0, 120.0


@lru_cache(maxsize=1)
def _say_offline() -> None:
    """Once: a run of several networks begins several W&B runs."""
    log.info("not logged in to W&B: this run is recorded offline (after `wandb login`, `explainode sync` uploads it)")


def wandb_mode(mode: str = "auto") -> str:
    """The mode of the next run: what is asked for, else WANDB_MODE, else online exactly if somebody is logged in.

    Raises:
        UserError: for an unknown mode, or "online" without a login.
    """
    if mode not in MODES:
        raise UserError(f"W&B's mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE", "").replace("dryrun", "offline") or "auto"
    if mode == "auto":
        if logged_in():
            return "online"
        _say_offline()
        return "offline"
    if mode == "online" and not logged_in():
        raise UserError(
            "W&B's mode is 'online', but nobody is logged in; run `wandb login`, or set logger.wandb.mode=offline"
        )
    return mode


def group_of(folder: str | Path) -> str:
    """The group of a run: its run directory, which all variants share, or its sweep's, which all points share, as `name/id`."""
    folder = Path(folder).resolve()
    if _is_point(folder):
        folder = folder.parent
    return f"{folder.parent.name}/{folder.name}"


def _is_point(folder: Path) -> bool:
    """Whether a run directory is that of a sweep's point."""
    return folder.name.isdecimal() and (folder.parent / "multirun.yaml").is_file()


def given_id(folder: Path, name: str) -> str | None:
    """The id that `WANDB_RUN_ID` asks for; with the point of a sweep, and of several variants the variant, behind it: each is a curve of its own.

    None where nothing is asked for.
    """
    given = os.environ.get("WANDB_RUN_ID")
    if not given:
        return None
    folder = folder.resolve()
    several = (folder / "config.yaml").is_file() and len(RunDirectory(folder).read_config().get("variants") or {}) > 1
    variant = [hashlib.blake2b(name.encode(), digest_size=4).hexdigest()] if several else []
    return "-".join([given, *([folder.name] if _is_point(folder) else []), *variant])


def finish() -> None:
    """End the W&B run that is open, if there is one; where the server did not take everything in time, say how to upload the rest."""
    run = wandb.run
    if run is None:
        return
    folder, start = Path(run.dir).parents[2], time.monotonic()
    run.finish()
    if time.monotonic() - start >= END_SECONDS:
        rank_zero_warn(
            f"W&B did not take everything in time; upload the rest later with `explainode sync --include-online {folder}`"
        )


class RunLogger(WandbLogger):
    """Lightning's W&B logger whose run is complete in its folder, drawn over epochs, and never in the way of training.

    - Losses, accuracies and explanation metrics have `epoch` as their axis, so a resumed run goes on where it was; W&B's own step follows the
      trainer's and never falls behind what was logged directly, so nothing is dropped.
    - The settings are the run's config; code and, after training, the last checkpoint are artifacts.
    - A server that refuses the key or does not answer within 30 s costs a warning: the run is recorded offline.

    Args:
        folder: the run directory.
        code: keep the package's source as an artifact.
        model_mib, explanations_mib: see `wandb_logger`.
    """

    def __init__(
        self, folder: Path, code: bool = True, model_mib: float = 512.0, explanations_mib: float = 64.0, **settings: Any
    ) -> None:
        super().__init__(save_dir=str(folder), **settings)
        self._wandb_init.pop("anonymous", None)  # W&B warns of it even where it is None
        self._wandb_init["settings"] = wandb.Settings(
            init_timeout=START_SECONDS, finish_timeout=END_SECONDS, silent=self._offline
        )
        self.folder, self.code = folder, code
        self.model_mib, self.explanations_mib = model_mib, explanations_mib
        self._checkpoints: ModelCheckpoint | None = None

    def describe(self, settings: Mapping[str, Any]) -> None:
        """Make `settings` the config of the run, which has not begun yet."""
        self._wandb_init["config"] = dict(settings)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; begins with the first look."""
        if self._experiment is None and getattr(self, "_attach_id", None) is None and wandb.run is None:
            self._experiment = self._begin()
            self._experiment.define_metric("epoch")
            self._experiment.define_metric("trainer/global_step")
            self._experiment.define_metric("lr-*", step_metric="trainer/global_step")
            for keys in BY_EPOCH:
                self._experiment.define_metric(keys, step_metric="epoch")
            if self.code and not self._experiment.disabled:
                log_code(self._experiment, self.folder)
        return super().experiment

    def _begin(self) -> Any:
        try:
            return wandb.init(**self._wandb_init)
        except (wandb.errors.CommError, wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
            if self._wandb_init.get("mode") != "online":
                raise
            reason = str(error).splitlines()[0].rstrip(".")
            rank_zero_warn(
                f"W&B cannot be used ({reason}): the run is recorded offline, upload it later with `explainode sync {self.folder}`"
            )
            self._offline = True
            quiet = wandb.Settings(silent=True)
            return wandb.init(**{**self._wandb_init, "mode": "offline", "settings": quiet})

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Numbers, pictures or tables at the trainer's step; written at once, so that a killed run has lost none of them."""
        run = self.experiment
        record = dict(metrics) if step is None else {**metrics, "trainer/global_step": step}
        run.log(record, step=max(run.step, step or 0), commit=True)

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        self._checkpoints = checkpoint_callback

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if (
            status == "success"
            and self._experiment is not None
            and self._checkpoints is not None
            and not self._experiment.disabled
        ):
            path = self._checkpoints.last_model_path or self._checkpoints.best_model_path
            if path and self.model_mib:
                log_model(self._experiment, Path(path), self.model_mib)
            self._checkpoints = None


def wandb_logger(
    save_dir: str,
    project: str = "explainode",
    entity: str | None = None,
    name: str | None = None,
    group: str | None = None,
    job_type: str = "train",
    tags: list[str] | None = None,
    id: str | None = None,
    mode: str = "auto",
    code: bool = True,
    model_mib: float = 512.0,
    explanations_mib: float = 64.0,
) -> RunLogger:
    """A logger with everything that it records inside `save_dir`, so that an offline run is complete when the folder is copied.

    Args:
        entity: the user or team; None: the default one of who uploads.
        group: None: `group_of(save_dir)`.
        id: the run's id; None: that of W&B's sweep agent (`given_id`), or else one that the run directory keeps (`stable_id`), so that a requeued or
            resumed run continues the same curves.
        mode: "auto" (see `wandb_mode`), "online", "offline" or "disabled".
        code: keep the package's source as an artifact.
        model_mib, explanations_mib: the checkpoint, and the maps and tables of an evaluation, are kept as artifacts where they are not larger; 0
            keeps none.
    """
    chosen = wandb_mode(mode)
    if model_mib < 0 or explanations_mib < 0:
        raise UserError(f"model_mib and explanations_mib must be 0 or more, got {model_mib} and {explanations_mib}")
    finish()  # the variant before: Lightning would go on in its run, and mix two networks' curves
    folder = Path(save_dir)
    (folder / "wandb-data").mkdir(parents=True, exist_ok=True)
    # pictures in tables and artifacts are staged here: by default in the home folder, which a copied run would leave behind
    os.environ["WANDB_DATA_DIR"] = str((folder / "wandb-data").resolve())
    return RunLogger(
        folder,
        code=code,
        model_mib=model_mib,
        explanations_mib=explanations_mib,
        name=name,
        project=project,
        entity=entity,
        id=id or given_id(folder, name or "") or stable_id(folder, job_type, name or ""),
        offline=chosen == "offline",
        group=group_of(folder) if group is None else group,
        job_type=job_type,
        tags=tags,
        mode=chosen,
    )
