"""Which networks and which data the words of `explainode benchmark` choose: entries of conf/ with their weights, and trained runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from explainode.errors import UserError
from explainode.registry.composing import compose

if TYPE_CHECKING:
    from omegaconf import DictConfig


def compose_benchmark(arguments: Sequence[str]) -> DictConfig:
    """The configuration of the words: `models=` as entries of the group model, and the data of the first run where no data is chosen.

    Raises:
        UserError: if there is no network or no data, or a setting is unknown.
    """
    from omegaconf import open_dict

    words = with_models(arguments)
    named = any(word.startswith("data=") for word in words)
    # settings of data that may be a run's: composed once we know
    late = [] if named else [word for word in words if word.startswith("data.")]
    config = compose("benchmark", [word for word in words if word not in late])
    if not config.models and not config.runs and config.get("model") is None:
        raise UserError(
            "there is no network to benchmark; name trained runs (runs=[runs/demo]), or networks and their weights "
            "('models=[resnet20,resnet32]' models.resnet20.weights=PATH ...; explainode list model)"
        )
    if config.get("data") is not None:
        config = compose("benchmark", words) if late else config
    elif config.runs:
        from explainode.jobs.networks import change_settings, data_of_runs, run_folders

        data = data_of_runs(run_folders(config.runs))
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
