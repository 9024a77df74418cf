"""Networks: as a model's settings describe them, with weights from files, and those of trained runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from explainode.errors import UserError
from explainode.jobs.protocol import PARTIAL
from explainode.models.weights import load_weights
from explainode.registry.aliases import current_name
from explainode.registry.build import instantiate
from explainode.registry.foreign import foreign_run
from explainode.registry.targets import locate
from explainode.runs.merge import name_runs
from explainode.training.checkpoint import latest_checkpoint, verify
from explainode.training.surrogate import Surrogate, check_surrogate

MIB_64 = 64 << 20
SURROGATE = f"{Surrogate.__module__}.{Surrogate.__qualname__}"  # compared by name: what a run names is not imported to be looked at


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
    """The network that a model's settings describe.

    Raises:
        UserError: for settings that make none.
    """
    try:
        return instantiate(model, "model")
    except UserError:
        raise
    except (ArithmeticError, AssertionError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the settings of the model make no network ({reason}); compare them with conf/model"
        ) from error


def check_size(model: Mapping[str, Any], checkpoint: Path) -> None:
    """Refuse a model that needs far more memory than its checkpoint has, before it takes it: built without values first.

    Raises:
        UserError: saying both.
    """
    try:
        with torch.device("meta"):
            network = build_network(model)
    except (
        UserError,
        NotImplementedError,
        AttributeError,
    ):  # it computes with values while it is built, or makes none: told when it is built
        return
    needed = sum(tensor.numel() * tensor.element_size() for tensor in (*network.parameters(), *network.buffers()))
    held = checkpoint.stat().st_size
    if needed > 8 * held + MIB_64:
        raise UserError(
            f"the model of the run has {needed >> 20} MiB of weights and its checkpoint {checkpoint} {held >> 20} MiB; they do not belong together"
        )


def in_memory_order(networks: Mapping[str, nn.Module], settings: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The networks, their weights in channels_last order where the evaluation asks for it: what they compute then is, too."""
    if not settings["channels_last"]:
        return dict(networks)
    return {name: network.to(memory_format=torch.channels_last) for name, network in networks.items()}  # type: ignore[call-overload]


def merge_settings(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` laid over `base`, nested mappings merged."""
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge_settings(merged[key], value)
        else:
            merged[key] = value
    return merged


def change_settings(config: Any, words: Sequence[str]) -> Any:
    """The config with the single settings of a run changed as the words `data.x=...` and `model.x=...` say.

    Raises:
        UserError: for a setting that the run does not have.
    """

    OmegaConf.set_struct(config, True)
    for word in words:
        key, _, value = word.partition("=")
        try:
            OmegaConf.update(config, key, OmegaConf.create(f"value: {value}").value)
        except Exception as error:
            raise UserError(
                f"{word}: the run's {key.split('.')[0]} has no such setting ({str(error).splitlines()[0]})"
            ) from error
    return config


def single_network(settings: Mapping[str, Any]) -> Any:
    """The network that model, its weights and checkpoint describe.

    Raises:
        UserError: if the file is missing, damaged, or of another network.
    """
    network = build_network(settings["model"])
    if settings["checkpoint"] is not None:
        load_weights(network, settings["checkpoint"])
    return network.eval()


def run_networks(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The networks of a run: every variant with its newest checkpoint, or the one that `variant` or `checkpoint` picks.

    Raises:
        UserError: if a checkpoint is missing, damaged, or of another network.
    """
    networks = {}
    for name, (model, path) in chosen_variants(settings).items():
        verify(path)
        check_size(without_weights(model), path)
        network = build_network(without_weights(model))
        load_weights(network, path)
        networks[name] = network.eval()
    return networks


def run_teachers(
    settings: Mapping[str, Any], networks: Mapping[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """What the surrogates among a run's `networks` were distilled from, by the same names; nothing for a run without distillation.

    A checkpoint holds the surrogate alone, so its teacher is made again from the file of weights that the run names, or that `model.teacher.weights`
    names now. Where the run's own file is not there any more, the surrogate is measured as any network, and `say` is told what is not.

    Raises:
        UserError: if the file that was named now is missing or damaged, or the surrogate was made of other weights.
    """
    trained = foreign_run(Path(settings["run"]))
    module = trained.get("module") or {}
    if not isinstance(module, Mapping) or current_name(str(module.get("_target_"))) != SURROGATE:
        return {}
    teachers = {}
    for name, (model, _) in chosen_variants(settings).items():
        weights = model["teacher"].get("weights")
        if weights == trained["model"]["teacher"].get("weights") and (weights is None or not Path(weights).is_file()):
            say(
                f"{name}: the gap to the teacher is not measured, since its weights ({weights}) are not there; "
                "name them with model.teacher.weights=..."
            )
            continue
        teachers[name] = build_network(model["teacher"]).eval()
        check_surrogate(networks[name], teachers[name], copied=not module.get("train_discrete", False))
    return teachers


def chosen_variants(settings: Mapping[str, Any]) -> dict[str, tuple[dict[str, Any], Path]]:
    """Of a run the variants that `variant` or `checkpoint` picks: the model's settings and the checkpoint, by the name in tables.

    Raises:
        UserError: if there is no such variant or checkpoint, or it lies outside of the run.
    """
    folder = Path(settings["run"]) / "checkpoints"
    if not isinstance(settings.get("model"), Mapping):
        raise UserError(
            f"{settings['run']} is no run of explainode train (its config.yaml names no model); name one that was trained"
        )
    trained = settings.get("variants") or {settings.get("trained_as") or settings["variant"]: {}}
    if settings["checkpoint"] is not None:
        wanted = Path(settings["checkpoint"]).resolve()
        trained = {name: changes for name, changes in trained.items() if (folder / name).resolve() in wanted.parents}
        if not trained:
            raise UserError(f"checkpoint {settings['checkpoint']} does not lie under {folder}")
    elif settings["variant"] in trained:
        trained = {settings["variant"]: trained[settings["variant"]]}
    elif settings["variant"] != "model":
        raise UserError(f"the run has no variant {settings['variant']!r}; it has {', '.join(trained)}")
    chosen = {}
    for name, changes in trained.items():
        path = Path(settings["checkpoint"]) if settings["checkpoint"] is not None else latest_checkpoint(folder / name)
        if path is None:
            raise UserError(f"no checkpoint under {folder / name}; train first, or name one with checkpoint=...")
        if folder.resolve() not in path.resolve().parents:
            raise UserError(f"the checkpoint {path} leads out of {folder} to {path.resolve()}; copy it into the run")
        shown = name if settings["checkpoint"] is None else f"{name}@{path.stem}"
        chosen[shown] = (merge_settings(settings["model"], changes or {}), path)
    return chosen


def check_weights(models: Mapping[str, Any]) -> None:
    """Refuse networks that could be filled with weights and are not.

    Raises:
        UserError: naming the setting.
    """

    def found(node: Any) -> list[Any]:
        if not isinstance(node, Mapping):
            return []
        own = [node["weights"]] if "weights" in node else []
        return own + [value for key, inner in node.items() if key != "weights" for value in found(inner)]

    for name, model in models.items():
        places = found(model)
        if places and all(place is None for place in places):
            raise UserError(
                f"models.{name} has no weights, and a network with random ones has nothing to explain: add models.{name}.weights=PATH, "
                f"or leave it out ('~model@models.{name}')"
            )


def trained_networks(folder: Path) -> dict[str, tuple[dict[str, Any], Any]]:
    """The settings and the network of each variant of a run, with its newest checkpoint."""
    trained = foreign_run(folder)
    if not trained.get("model"):
        raise UserError(
            f"{folder} is no run of explainode train (its config.yaml names no model); name one that was trained"
        )
    asked = trained | {"run": str(folder), "checkpoint": None, "variant": "model", "trained_as": trained.get("variant")}
    networks = run_networks(asked)
    return {name: (model, networks[name]) for name, (model, _) in chosen_variants(asked).items()}


def run_folders(runs: Any) -> dict[str, Path]:
    """The run directories by the name that they have in tables: the folder's, with its parent's where two are alike.

    Args:
        runs: one path, or several.

    Raises:
        UserError: if two have one name.
    """
    return {source.label: source.folder for source in name_runs([Path(str(run)) for run in listed(runs)])}


def listed(value: Any) -> list[Any]:
    """The values of a list, or the only one."""
    return [value] if isinstance(value, str) else list(value)


def data_of_runs(runs: Mapping[str, Path]) -> dict[str, Any]:
    """The settings of the data that the runs were trained on.

    Raises:
        UserError: if they differ.
    """
    trained = {name: foreign_run(folder).get("data") for name, folder in runs.items()}
    first = next(iter(trained))
    found = trained[first]
    if not found:
        raise UserError(f"{runs[first]} does not say what data it was trained on; choose some with data=...")
    for name, data in trained.items():
        differing = [
            key
            for key in {**found, **(data or {})}
            if key not in PARTIAL[1:] and (data or {}).get(key) != found.get(key)
        ]
        if differing:
            raise UserError(
                f"{first} and {name} were trained on different data (data.{differing[0]}); choose what to explain with data=..."
            )
    return found
