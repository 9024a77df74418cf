"""From a composed configuration to objects: data, networks, and the measuring that verbs share."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from explainode.cli.registry import instantiate
from explainode.errors import UserError
from explainode.evaluation import evaluate
from explainode.metrics.results import Results
from explainode.report.run import RunDirectory

LINE_EVERY = 2.0  # seconds between progress lines


def choose_device(name: str) -> torch.device:
    """The device a name asks for; "auto" takes a GPU where there is one.

    Raises:
        UserError: for an unknown or absent device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}); choose cpu, cuda or auto") from error
    return device


def many(config: Mapping[str, Any], group: str) -> dict[str, Any]:
    """The objects of a many-of group, by name.

    Raises:
        UserError: where nothing is chosen.
    """
    chosen = config.get(group) or {}
    if not chosen:
        raise UserError(f"no {group} is chosen; choose some with {group}=[...] (explainode list {group})")
    return {name: instantiate(entry) for name, entry in chosen.items()}


def build_network(model: Mapping[str, Any]) -> nn.Module:
    """The network that a model's settings describe."""
    return instantiate(model)


def progress_line(prefix: str) -> Callable[[str, int, int], None]:
    """A progress function that prints a line at most every two seconds, to stderr."""
    last = 0.0

    def show(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_EVERY:
            last = now
            print(f"{prefix}: {what}, {done}/{total} images", file=sys.stderr, flush=True)

    return show


def measure(config: Mapping[str, Any], networks: Mapping[str, nn.Module], data: Any, folder: RunDirectory, epoch: int) -> Results:
    """Explain and measure each network on the chosen images of a split, and write what was found.

    Raises:
        UserError: for a split or image selection that the data does not have, or a metric without what it needs.
    """
    settings = config["evaluation"]
    device = choose_device(settings["device"])
    explainers, metrics = many(config, "explainer"), many(config, "metric")
    split = settings["split"]
    length = len(data.dataset(split))
    images = settings["images"]
    indices = data.select_images(length, min(images, length) if isinstance(images, int) else images)
    shown = max(1, min(settings["panel"], len(indices)))
    panel = [indices[i * len(indices) // shown] for i in range(shown)]
    everything = Results()
    for name, network in networks.items():
        found = evaluate(
            network.to(device),
            explainers,
            metrics,
            data.batches(split, indices, settings["batch_size"]),
            n=length,
            name=name,
            split=split,
            epoch=epoch,
            noise=settings["noise"],
            seed=settings["seed"],
            chunk_size=settings["chunk_size"],
            panel=panel,
            total=len(indices),
            progress=progress_line(f"explaining {name}"),
        )
        data.check_skipped()
        folder.write_results(found)
        everything.extend(found)
    return everything


def run_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run directory.

    Raises:
        UserError: if the folder is not a run directory.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is not a run directory (it has no config.yaml); runs are under runs/<name>/<run id>")
    return RunDirectory(folder).read_config()


def merge_settings(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` laid over `base`, nested mappings merged."""
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge_settings(merged[key], value)
        else:
            merged[key] = value
    return merged
