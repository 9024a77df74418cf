"""From a composed configuration to objects: data, networks, and the measuring that verbs share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from torch import nn

from explainode.cli.heartbeat import Heartbeat
from explainode.cli.registry import check_parameters, instantiate, locate
from explainode.errors import UserError
from explainode.evaluation import concatenate_maps, evaluate, is_correct
from explainode.explainers.adjoint import Surrogate
from explainode.gap import measure_gap
from explainode.metrics.results import Results
from explainode.report.picks import worst_images
from explainode.report.run import RunDirectory


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
        raise UserError(
            f"device {name!r} cannot be used ({str(error).splitlines()[0]}); choose cpu, cuda or auto"
        ) from error
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


def build_data(config: DictConfig) -> Any:
    """The data module of a composed configuration, its settings checked first.

    Raises:
        UserError: naming a setting that is unknown or of the wrong type, or data that is not there.
    """
    check_parameters({"data": OmegaConf.to_container(config.data, resolve=True)})
    return instantiate(config.data)


def count_classes(config: DictConfig, data: Any) -> None:
    """Fill in the number of classes where the configuration leaves it to the data to count them."""
    if OmegaConf.select(config, "data.num_classes") is None and data.num_classes:
        config.data.num_classes = data.num_classes


def fill_classes(model: dict[str, Any]) -> int | None:
    """The number of classes of the network that a model's settings describe, filled in where they leave it open.

    A model around a model has the inner one's.
    """
    parameters = inspect.signature(locate(model["_target_"])).parameters
    if "num_classes" in parameters:
        if model.get("num_classes") is None:
            model["num_classes"] = parameters["num_classes"].default
        return model["num_classes"]
    inner = [fill_classes(value) for value in model.values() if isinstance(value, dict) and "_target_" in value]
    return next((count for count in inner if count is not None), None)


def without_weights(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's settings without the files of weights that it, or a model in it, was made from: a checkpoint holds everything."""
    return {
        key: without_weights(value) if isinstance(value, Mapping) else None if key == "weights" else value
        for key, value in model.items()
    }


def build_network(model: Mapping[str, Any]) -> nn.Module:
    """The network that a model's settings describe."""
    return instantiate(model)


def in_memory_order(networks: Mapping[str, nn.Module], settings: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The networks, their weights in channels_last order where the evaluation asks for it: what they compute then is, too."""
    if not settings["channels_last"]:
        return dict(networks)
    return {name: network.to(memory_format=torch.channels_last) for name, network in networks.items()}  # type: ignore[call-overload]


def ranks() -> tuple[int, int]:
    """This process's rank and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def select_images(settings: Mapping[str, Any], data: Any) -> tuple[list[int], int]:
    """The chosen images of the evaluation's split, and the split's length.

    Raises:
        UserError: for a split or images that the data does not have.
    """
    length = len(data.dataset(settings["split"]))
    images = settings["images"]
    return data.select_images(length, min(images, length) if isinstance(images, int) else images), length


def choose_panel(indices: list[int], images: int) -> list[int]:
    """So many of the chosen images, evenly spaced, at least one: those whose maps are kept."""
    shown = max(1, min(images, len(indices)))
    return [indices[i * len(indices) // shown] for i in range(shown)]


def correct_images(
    settings: Mapping[str, Any], networks: Mapping[str, nn.Module], data: Any, device: torch.device
) -> tuple[list[int], dict[str, dict[int, float]]]:
    """The images that all networks classify correctly among those that the settings choose, and what each network's accuracy is.

    A count is a count of correctly classified images, at most so many: evenly spaced positions, and for a wrongly classified one the next that
    is right. A slice or a list is searched as it is. Accuracy is counted on the positions that were looked at whatever came out: the evenly
    spaced ones, the slice or the list.

    Returns:
        The positions, ascending (a list in its own order), and {network: {position: 1 or 0}}.

    Raises:
        UserError: if there are no labels, or no image is classified correctly by all networks.
    """
    split, images = settings["split"], settings["images"]
    first, length = select_images(settings, data)
    seen: dict[str, dict[int, float]] = {name: {} for name in networks}

    options = {key: settings[key] for key in ("noise", "seed", "chunk_size")}

    def look(positions: list[int]) -> None:
        new = [position for position in positions if any(position not in found for found in seen.values())]
        for name, network in networks.items():
            seen[name] |= is_correct(network.to(device), data.batches(split, new, settings["batch_size"]), **options)

    def right(position: int) -> bool:
        return all(found.get(position) == 1 for found in seen.values())

    look(first)
    accuracy = {name: dict(found) for name, found in seen.items()}
    if not all(accuracy.values()):
        raise UserError(
            "only_correct=true asks for labels, but this data has none; choose data with labels, or only_correct=false"
        )
    chosen = [position for position in first if right(position)]
    if isinstance(images, int):
        chosen = _next_right(first, length, look, right)
    if not chosen:
        raise UserError(
            f"only_correct=true, but none of {len(next(iter(seen.values())))} images is classified correctly by {', '.join(networks)}; "
            "check the weights and the order of the classes, or choose only_correct=false"
        )
    return chosen, accuracy


def _next_right(
    first: list[int], length: int, look: Callable[[list[int]], None], right: Callable[[int], bool]
) -> list[int]:
    """For each of the evenly spaced positions itself or the next one that is right, then any others, until there are as many."""
    ends = [*first[1:], length]
    chosen = {k: position for k, position in enumerate(first) if right(position)}
    longest = max(end - start for start, end in zip(first, ends, strict=True))
    for offset in range(1, longest):
        wave = {k: first[k] + offset for k in range(len(first)) if k not in chosen and first[k] + offset < ends[k]}
        if not wave:
            break
        look(list(wave.values()))
        chosen |= {k: position for k, position in wave.items() if right(position)}
    found = set(chosen.values())
    for offset in range(1, longest):  # stretches without any: the images right after the evenly spaced ones of others
        spare = [
            start + offset
            for start, end in zip(first, ends, strict=True)
            if start + offset < end and start + offset not in found
        ]
        while len(found) < len(first) and spare:
            wanted, spare = spare[: len(first) - len(found)], spare[len(first) - len(found) :]
            look(wanted)
            found |= {position for position in wanted if right(position)}
    return sorted(found)


def fit_explainers(
    explainers: Mapping[str, Any], network: nn.Module, data: Any, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The explainers of one network; those that learn from data have seen `fit_images` training images, evenly spaced.

    Raises:
        UserError: if the data has no training images for those that need them.
    """
    if not any(explainer.learns for explainer in explainers.values()):
        return dict(explainers)
    length = len(data.dataset("train"))
    indices = data.select_images(length, min(settings["fit_images"], length))
    found = {}
    for name, explainer in explainers.items():
        with Heartbeat(f"fitting {name}"):
            found[name] = explainer.fit(network, data.batches("train", indices, settings["batch_size"]))
    return found


def measure(
    config: Mapping[str, Any],
    networks: Mapping[str, nn.Module],
    data: Any,
    folder: RunDirectory,
    epoch: int,
    teachers: Mapping[str, nn.Module] | None = None,
) -> Results:
    """Explain and measure each network on the chosen images of a split, and write what was found; every rank takes its share of the images.

    Maps are kept of the panel's images, which are evenly spaced, and of those that all networks together explain worst.

    Args:
        teachers: by network, the one that it stands for: their gap is measured too, by rank 0 on all of the images.

    Raises:
        UserError: for a split or image selection that the data does not have, or a metric without what it needs.
    """
    settings = config["evaluation"]
    device = choose_device(settings["device"])
    networks = in_memory_order(networks, settings)
    explainers, metrics = many(config, "explainer"), many(config, "metric")
    split = settings["split"]
    indices, length = select_images(settings, data)
    accuracy: dict[str, dict[int, float]] = {}
    if settings.get("only_correct"):
        with Heartbeat("looking for correctly classified images"):
            indices, accuracy = correct_images(settings, networks, data, device)
    panel = choose_panel(indices, settings["panel"])
    rank, world_size = ranks()
    everything = Results()

    def look(
        name: str, metrics: Mapping[str, Any], images: list[int], panel: list[int], progress: Heartbeat
    ) -> Results:
        """What `evaluate` finds of one network; every rank takes its share of the images."""
        mine = images[rank::world_size]
        return evaluate(
            networks[name].to(device),
            fitted[name],
            metrics,
            data.batches(split, mine, settings["batch_size"]),
            n=length,
            name=name,
            split=split,
            epoch=epoch,
            noise=settings["noise"],
            seed=settings["seed"],
            chunk_size=settings["chunk_size"],
            panel=panel,
            world_size=world_size,
            total=len(mine),
            progress=progress,
            correct=accuracy.get(name),
        )

    fitted = {
        name: fit_explainers(explainers, network.to(device), data, settings) for name, network in networks.items()
    }
    for name in networks:
        with Heartbeat(f"explaining {name}") as progress:
            found = look(name, metrics, indices, panel, progress)
        data.check_skipped()
        if rank == 0:
            folder.write_results(found)
        everything.extend(found)
    worst = [sample for sample in worst_images(everything) if sample not in panel]
    for name in (
        networks if worst else ()
    ):  # which images are worst is known only now: their maps are made again, to be drawn
        with Heartbeat(f"drawing what {name} explains worst") as progress:
            more = {maps.explainer: maps for maps in look(name, {}, worst, worst, progress).maps}
        for place, maps in enumerate(everything.maps):
            if maps.model == name and maps.explainer in more:
                both = concatenate_maps([maps, more[maps.explainer]], [*panel, *worst])
                everything.maps[place] = replace(both, added=len(more[maps.explainer].sample_id))
                if rank == 0:
                    folder.write_maps(everything.maps[place], split)
    for name, teacher in (teachers or {}).items() if rank == 0 else ():
        with Heartbeat(f"comparing {name} with its teacher") as progress:
            gap = measure_gap(
                teacher.to(device),
                networks[name].to(device),
                {
                    e: explainer
                    for e, explainer in explainers.items()
                    if not explainer.needs_ode and not isinstance(explainer, Surrogate) and not explainer.learns
                },
                data.batches(split, indices, settings["batch_size"]),
                name=name,
                split=split,
                epoch=epoch,
                seed=settings["seed"],
                total=len(indices),
                progress=progress,
            )
        folder.write_results(gap)
        everything.extend(gap)
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
