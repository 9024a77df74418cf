"""Explaining and measuring networks as a configuration says: what train and evaluate share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from explainode.errors import UserError
from explainode.evaluation import evaluate
from explainode.explainers.adjoint import ThroughSurrogate
from explainode.explainers.learning import Learned, LearningExplainer
from explainode.gap import measure_gap
from explainode.hashing import digest, network_digest
from explainode.heartbeat import Heartbeat
from explainode.jobs.images import choose_panel, correct_images, select_images
from explainode.jobs.networks import in_memory_order
from explainode.metrics.maps import concatenate_maps
from explainode.metrics.results import Results
from explainode.ranks import rank_and_size
from explainode.registry.build import instantiate
from explainode.report.picks import worst_images
from explainode.runs.directory import RunDirectory


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
    return {name: instantiate(entry, group) for name, entry in chosen.items()}


def fit_explainers(
    explainers: Mapping[str, Any],
    network: nn.Module,
    data: Any,
    settings: Mapping[str, Any],
    folder: RunDirectory,
    name: str,
) -> dict[str, Any]:
    """The explainers of one network; those that learn have seen `fit_images` training images, evenly spaced.

    What one learned lies in the run directory, by the network's name and its own; where it is there already, of this very network and learned in
    the same way, it is taken from there.

    Raises:
        UserError: if the data has no training images for those that need them, or a file is damaged.
    """
    if not any(explainer.learns for explainer in explainers.values()):
        return dict(explainers)
    length = len(data.dataset("train"))
    positions = data.select_images(length, min(settings["fit_images"], length))
    found = {}
    for key, explainer in explainers.items():
        if not isinstance(explainer, LearningExplainer):  # a user's own may learn in its own way
            found[key] = explainer.fit(network, data.batches("train", positions, settings["batch_size"]))
            continue
        path = folder.learned_path(name, key)
        recipe = f"{explainer!r}, {digest([('images', torch.tensor(positions))])} of {length} images"
        learned = Learned.load(path) if path.is_file() else None
        if learned is None or (learned.network, learned.recipe) != (network_digest(network), recipe):
            with Heartbeat(f"fitting {key}"):
                fitted = explainer.fit(network, data.batches("train", positions, settings["batch_size"]))
            assert fitted.learned is not None  # what fit promises
            learned = replace(fitted.learned, recipe=recipe)
            if rank_and_size()[0] == 0:
                learned.save(path)
        found[key] = explainer.knowing(learned)
    return found


def measure(
    config: Mapping[str, Any],
    networks: Mapping[str, nn.Module],
    data: Any,
    folder: RunDirectory,
    epoch: int | Mapping[str, int],
    teachers: Mapping[str, nn.Module] | None = None,
) -> Results:
    """Explain and measure each network on the chosen images of a split, and write what was found; every rank takes its share of the images.

    Maps are kept of the panel's images, which are evenly spaced, and of those that all networks together explain worst.

    Args:
        epoch: after which it is measured; or after how many each network was trained, by name.
        teachers: by network, the one that it stands for: their gap is measured too, by rank 0 on all of the images.

    Raises:
        UserError: for a split or image selection that the data does not have, or a metric without what it needs.
    """
    settings = config["evaluation"]
    device = choose_device(settings["device"])
    networks = in_memory_order(networks, settings)
    explainers, metrics = many(config, "explainer"), many(config, "metric")
    split = settings["split"]
    positions, length = select_images(settings, data)
    accuracy: dict[str, dict[int, float]] = {}
    if settings.get("only_correct"):
        with Heartbeat("looking for correctly classified images"):
            positions, accuracy = correct_images(settings, networks, data, device)
    panel = choose_panel(positions, settings["panel"])
    rank, world_size = rank_and_size()
    epochs = epoch if isinstance(epoch, Mapping) else dict.fromkeys(networks, epoch)
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
            epoch=epochs[name],
            noise=settings["noise"],
            seed=settings["seed"],
            chunk_size=settings["chunk_size"],
            panel=panel,
            total=len(mine),
            progress=progress,
            correct=accuracy.get(name),
        )

    fitted = {
        name: fit_explainers(explainers, network.to(device), data, settings, folder, name)
        for name, network in networks.items()
    }
    for name in networks:
        with Heartbeat(f"explaining {name}") as progress:
            found = look(name, metrics, positions, panel, progress)
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
                    if not explainer.needs_ode and not isinstance(explainer, ThroughSurrogate) and not explainer.learns
                },
                data.batches(split, positions, settings["batch_size"]),
                name=name,
                split=split,
                epoch=epochs[name],
                seed=settings["seed"],
                total=len(positions),
                progress=progress,
            )
        folder.write_results(gap)
        everything.extend(gap)
    return everything
