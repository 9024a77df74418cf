"""A run that somebody sent is data: what its settings name is looked up, its names are names, and nothing in it is resolved or fetched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from explainode.errors import UserError
from explainode.registry.kinds import NOWHERE, inside, slot_named
from explainode.registry.targets import check_targets
from explainode.runs.directory import check_name, run_config

PARTS = ("model", "data", "variants")  # what is built of a run; everything else in its config.yaml is only read
MAX_SIDE = 4096  # pixels of a network's input


def foreign_run(folder: Path) -> dict[str, Any]:
    """The settings of a run directory, fit to be built from.

    Raises:
        UserError: for a folder without a run; a target that is neither registered nor allowed by the user; a reference; a name or a value that
            cannot be one.
    """
    config = run_config(folder)
    for part in PARTS:
        check_targets(config.get(part), part, slot_named(part), foreign=True)
        for where, value in _values(config.get(part), part):
            if isinstance(value, str) and "${" in value:
                raise UserError(
                    f"{where}={value[:200]} of {folder} is a reference, and the settings of a run are values; write the value there"
                )
    _check_shapes(config, folder)
    for name in config.get("variants") or {}:
        check_name(name, f"a variant of {folder}")
    if config.get("variant") is not None:
        check_name(config["variant"], f"the variant of {folder}")
    return config | {part: _without_fetching(config[part]) for part in PARTS if config.get(part) is not None}


def _check_shapes(config: Mapping[str, Any], folder: Path) -> None:
    for part in PARTS:
        if part in config and not isinstance(config[part] or {}, Mapping):
            raise UserError(
                f"{folder}/config.yaml is damaged: {part} is a {type(config[part]).__name__}, expected settings"
            )
    for name, changes in (config.get("variants") or {}).items():
        if not isinstance(changes or {}, Mapping):
            raise UserError(
                f"{folder}/config.yaml is damaged: variants.{name} is a {type(changes).__name__}, expected settings"
            )
    size = config.get("image_size")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= MAX_SIDE):
        raise UserError(
            f"image_size={size} of {folder} is no size of a network's input; expected 1 to {MAX_SIDE} pixels (size=... sets it)"
        )


def _values(node: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        yield from ((where, key) for key in node)
    if isinstance(node, (Mapping, list)):
        for step, value, _ in inside(node, NOWHERE):
            yield from _values(value, f"{where}{step}")
    else:
        yield where, node


def _without_fetching(node: Any) -> Any:
    """The settings with `download` off: nothing is fetched and unpacked because a run says so."""
    if isinstance(node, Mapping):
        return {key: False if key == "download" else _without_fetching(value) for key, value in node.items()}
    return [_without_fetching(value) for value in node] if isinstance(node, list) else node
