"""The data of a configuration, and which of its images are explained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from explainode.errors import UserError
from explainode.evaluation import is_correct
from explainode.registry.build import check_parameters, instantiate


def build_data(config: DictConfig) -> Any:
    """The data module of a composed configuration, its settings checked first.

    Raises:
        UserError: naming a setting that is unknown or of the wrong type, or data that is not there.
    """
    check_parameters({"data": OmegaConf.to_container(config.data, resolve=True)})
    return instantiate(config.data, "data")


def count_classes(config: DictConfig, data: Any) -> None:
    """Fill in the number of classes where the configuration leaves it to the data to count them."""
    if OmegaConf.select(config, "data.num_classes") is None and data.num_classes:
        with open_dict(config.data):  # a run need not name it
            config.data.num_classes = data.num_classes


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
