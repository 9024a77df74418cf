"""Measuring trained networks: the one that a model's settings describe, or those of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from explainode.jobs.images import build_data, count_classes, select_images
from explainode.jobs.measure import measure
from explainode.jobs.networks import change_settings, fill_classes, run_networks, run_teachers, single_network
from explainode.registry.build import check_parameters, instantiate
from explainode.registry.composing import plain
from explainode.registry.foreign import foreign_run
from explainode.runs.directory import RunDirectory


@dataclass
class Subjects:
    """What is measured: networks by the name in tables, what surrogates among them were distilled from, data and settings."""

    networks: dict[str, nn.Module]
    teachers: dict[str, nn.Module]
    data: Any
    settings: dict[str, Any]


def prepare(
    config: DictConfig, chosen: set[str], changes: list[str], say: Callable[[str], None] = lambda sentence: None
) -> Subjects:
    """The networks and the data of a configuration, everything checked before anything is measured.

    Args:
        chosen: which of the groups data and model the configuration chooses itself; the others are the run's, where it names one.
        changes: `key=value` words that change single settings of the run's.
        say: told what is not measured, and why.

    Raises:
        UserError: for settings that do not fit, or networks, weights or data that are not there.
    """
    if config.run is None:
        data = build_data(config)
        count_classes(config, data)
        if config.data.num_classes is None:  # pictures without labels: the network says how many classes it knows
            config.data.num_classes = fill_classes(plain(config)["model"])
        settings = plain(config)
    else:
        settings = _with_run(config, chosen, changes)
        data = instantiate(settings["data"], "data")
    select_images(settings["evaluation"], data)
    check_parameters({key: settings[key] for key in ("data", "model", "explainer", "metric")})
    if settings["run"] is None:
        return Subjects({settings["variant"]: single_network(settings)}, {}, data, settings)
    networks = run_networks(settings)
    return Subjects(networks, run_teachers(settings, networks, say), data, settings)


def evaluate(subjects: Subjects) -> RunDirectory:
    """Explain and measure; the run directory that holds what was found."""
    settings, data = subjects.settings, subjects.data
    folder = RunDirectory(Path(settings["output_dir"]))
    folder.write_config(settings)
    folder.write_class_names(data.class_names)
    measure(settings, subjects.networks, data, folder, epoch=0, teachers=subjects.teachers)
    return folder


def _with_run(config: DictConfig, chosen: set[str], changes: list[str]) -> dict[str, Any]:
    """The settings with data and model of the run, except for what the configuration chooses itself."""
    trained = foreign_run(Path(config.run))
    merged = OmegaConf.to_container(config, resolve=False)
    assert isinstance(merged, dict)
    merged |= {group: trained[group] for group in ("data", "model") if group in trained and group not in chosen}
    settings: Mapping[str, Any] = plain(change_settings(OmegaConf.create(merged), changes))
    return {
        **settings,
        "variants": trained.get("variants") or {},
        "trained_as": trained.get("variant", "model"),
    }
