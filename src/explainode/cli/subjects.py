"""Which networks and which data the words of `explainode benchmark` choose: entries of conf/ with their weights, and trained runs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from explainode.cli.compose import compose
from explainode.errors import UserError

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig

PARTIAL = (
    "root",
    "verify",
    "download",
    "batch_size",
    "num_workers",
    "seed",
    "augment",
)  # of data: they do not decide which pictures are in it


def compose_benchmark(arguments: Sequence[str]) -> DictConfig:
    """The configuration of the words: `models=` as entries of the group model, and the data of the first run where no data is chosen.

    Raises:
        UserError: if there is no network or no data, or a setting is unknown.
    """
    from omegaconf import open_dict

    words = with_models(arguments)
    named = any(word.startswith("data=") for word in words)
    late = (
        [] if named else [word for word in words if word.startswith("data.")]
    )  # of data that may be a run's: composed once we know
    config = compose("benchmark", [word for word in words if word not in late])
    if not config.models and not config.runs and config.get("model") is None:
        raise UserError(
            "there is no network to benchmark; name trained runs (runs=[runs/demo]), or networks and their weights "
            "('models=[resnet20,resnet32]' models.resnet20.weights=PATH ...; explainode list model)"
        )
    if config.get("data") is not None:
        config = compose("benchmark", words) if late else config
    elif config.runs:
        from explainode.cli.evaluate import change_settings

        data = _data_of(run_folders(config))
        with open_dict(config):
            config.data = data
        config = change_settings(config, late)
    else:
        raise UserError(
            "there is no data to explain; choose some with data=... (explainode list data), such as data=cifar10 data.root=PATH"
        )
    if config.get("model") is not None:
        name = next((word.partition("=")[2] for word in words if word.startswith("model=")), "model")
        with open_dict(config):
            config.models[name] = config.pop("model")
    return config


def with_models(words: Sequence[str]) -> list[str]:
    """The words with `models=[a,b]` or `models={mine:a,other:b}` as Hydra's choices of the group model, in the place of an experiment's.

    Raises:
        UserError: if the value is neither, or a name cannot be one.
    """
    chosen: dict[str, str] | None = None
    rest = []
    for word in words:
        key, equals, value = word.partition("=")
        if key == "models" and equals:
            chosen = _choices(word, value)
        else:
            rest.append(word)
    if chosen is None:
        return rest
    known: list[str] = []
    if any(word.startswith("experiment=") for word in rest):
        known = list(
            compose("benchmark", [word for word in rest if word.startswith(("experiment=", "allow_targets="))]).models
        )
    dropped = [f"~model@models.{name}" for name in known if name not in chosen]
    return [
        *dropped,
        *(f"{'' if name in known else '+'}model@models.{name}={entry}" for name, entry in chosen.items()),
        *rest,
    ]


def _choices(word: str, value: str) -> dict[str, str]:
    """{name: entry of conf/model} of the value of `models=`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(f"models={value}").value()
    except HydraException as error:
        raise UserError(
            f"cannot read {word!r}: write 'models=[resnet20,resnet32]' or 'models={{mine:resnet20,other:resnet20}}'"
        ) from error
    listed = parsed if isinstance(parsed, list) else [parsed]
    found = (
        {str(k): str(v) for k, v in parsed.items()} if isinstance(parsed, dict) else {str(v): str(v) for v in listed}
    )
    for name in found:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UserError(
                f"a network cannot be called {name!r}: names have letters, digits and _, as in 'models={{mine:resnet20}}'"
            )
    if len(found) < len(listed):
        raise UserError(
            f"{word} names a network twice; give each its own name: 'models={{mine:resnet20,other:resnet20}}'"
        )
    return found


def run_folders(config: DictConfig) -> dict[str, Path]:
    """The run directories by the name that they have in tables: the folder's, with its parent's where two are alike.

    Raises:
        UserError: if two have one name.
    """
    from explainode.report.merge import name_runs

    return {source.label: source.folder for source in name_runs([Path(str(run)) for run in listed(config.runs)])}


def listed(value: Any) -> list[Any]:
    """The values of a list, or the only one."""
    return [value] if isinstance(value, str) else list(value)


def _data_of(runs: Mapping[str, Path]) -> dict[str, Any]:
    """The settings of the data that the runs were trained on.

    Raises:
        UserError: if they differ.
    """
    from explainode.cli.build import run_config

    trained = {name: run_config(folder).get("data") for name, folder in runs.items()}
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
    from explainode.cli.build import run_config
    from explainode.cli.evaluate import chosen_variants, run_networks

    trained = run_config(folder)
    if not trained.get("model"):
        raise UserError(
            f"{folder} is no run of explainode train (its config.yaml names no model); name one that was trained"
        )
    asked = trained | {"run": str(folder), "checkpoint": None, "variant": "model", "trained_as": trained.get("variant")}
    networks = run_networks(asked)
    return {name: (model, networks[name]) for name, (model, _) in chosen_variants(asked).items()}


def digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """16 hex digits of the sha256 of named tensors: their names, types, shapes and bytes."""
    import torch

    found = hashlib.sha256()
    for name, tensor in tensors:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]
