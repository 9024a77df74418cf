"""W&B as a logger that never asks: online where somebody is logged in, offline into the run directory everywhere else."""

from __future__ import annotations

import logging
import netrc
import os
from pathlib import Path
from urllib.parse import urlparse

import wandb
from lightning.pytorch.loggers import WandbLogger

from explainode.errors import UserError

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline", "disabled")


def logged_in() -> bool:
    """Whether W&B would find a key: in the environment, or in the netrc file under the server's name. The key itself is not looked at."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    if not path.is_file():
        return False
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except netrc.NetrcParseError as error:
        log.info("%s cannot be read (%s): taken as not logged in to W&B", path, error)
        return False


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
        log.info("not logged in to W&B: this run is recorded offline (upload it later with `wandb sync`, or log in with `wandb login`)")
        return "offline"
    if mode == "online" and not logged_in():
        raise UserError("W&B's mode is 'online', but nobody is logged in; run `wandb login`, or set logger.wandb.mode=offline")
    return mode


def wandb_logger(
    save_dir: str,
    project: str = "explainode",
    name: str | None = None,
    group: str | None = None,
    job_type: str = "train",
    tags: list[str] | None = None,
    id: str | None = None,
    mode: str = "auto",
) -> WandbLogger:
    """Lightning's W&B logger with everything that it records inside `save_dir`, so that an offline run is complete when the folder is copied.

    Args:
        id: the run's id; a run resumed under the same id continues the same curves.
        mode: "auto" (see `wandb_mode`), "online", "offline" or "disabled".
    """
    chosen = wandb_mode(mode)
    if wandb.run is not None:
        wandb.finish()  # the variant before: Lightning would go on in its run, and mix two networks' curves
    folder = Path(save_dir)
    (folder / "wandb-data").mkdir(parents=True, exist_ok=True)
    # pictures in tables and artifacts are staged here: by default in the home folder, which a copied run would leave behind
    os.environ["WANDB_DATA_DIR"] = str((folder / "wandb-data").resolve())
    return WandbLogger(
        name=name,
        save_dir=str(folder),
        project=project,
        id=id,
        offline=chosen == "offline",
        group=group,
        job_type=job_type,
        tags=tags,
        mode=chosen,
    )
