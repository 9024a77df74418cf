"""What a trainer's settings say about processes and GPUs, also to launchers that ask before there is a trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from explainode.errors import UserError


def count_devices(trainer: Mapping[str, Any]) -> int:
    """How many ranks a trainer's settings ask for on one node; "auto" and -1 are all GPUs, or one where there are none."""
    devices = trainer.get("devices", 1)
    if isinstance(devices, (list, tuple)) or OmegaConf.is_list(devices):
        return len(devices)
    text = str(devices)
    if text not in ("auto", "-1"):
        return int(text) if text.isdigit() else len([part for part in text.split(",") if part.strip()])
    if trainer.get("accelerator") == "cpu":
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def ranks_of(devices: Any) -> int:
    """`${ranks:${trainer.devices}}`: tasks per node for a launcher, which cannot know what "auto" will be on another machine.

    Raises:
        UserError: for anything but a number.
    """
    if isinstance(devices, bool) or not str(devices).isdigit() or int(devices) < 1:
        raise UserError(
            f"trainer.devices={devices} does not say how many tasks a job needs; give a number, as in trainer.devices=2"
        )
    return int(devices)


def gpus_of(accelerator: Any, devices: Any) -> int | None:
    """`${gpus:${trainer.accelerator},${trainer.devices}}`: GPUs per node, None for a trainer that does not insist on any."""
    return ranks_of(devices) if accelerator in ("gpu", "cuda") else None
