"""From a `_target_` node to an object: its settings are held against the signature first."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from omegaconf import OmegaConf

from explainode.errors import UserError, nearest
from explainode.registry.entries import load
from explainode.registry.kinds import ANYWHERE, Slot, inside, slot_named
from explainode.registry.targets import check_targets, locate

_PLAIN: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), bool: (bool,), str: (str,)}


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a plain config value may be passed where `annotation` is asked; True for anything that is not a plain type."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice) for choice in typing.get_args(annotation))
    if annotation is type(None):
        return value is None
    if annotation not in _PLAIN:
        return annotation not in (list, tuple) or isinstance(value, list)
    if isinstance(value, bool) and annotation is not bool:
        return False
    return isinstance(value, _PLAIN[annotation])


def check_parameters(config: Mapping[str, Any]) -> None:
    """Hold every `_target_` node of some groups of a configuration, or of a group's entries, against the signature of what it names: whether it may
    stand there, unknown parameters and values of the wrong type.

    Raises:
        UserError: naming the key, the value, and what was expected.
    """
    for key, value in config.items():
        slot = slot_named(str(key))
        slot = slot if slot.kinds else ANYWHERE  # an entry under its own name
        check_targets(value, str(key), slot)
        _check_parameters(value, str(key), slot)


def _check_parameters(config: Any, where: str, slot: Slot) -> None:
    if isinstance(config, Mapping) and "_target_" in config:
        target = locate(config["_target_"], slot if slot.kinds else ANYWHERE)
        parameters = inspect.signature(target).parameters
        hints = _hints(target)
        open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        for key, value in config.items():
            if key in ("_target_", "_partial_", "_convert_", "_recursive_", "_args_"):
                continue
            if key not in parameters:
                if open_ended:
                    continue
                raise UserError(
                    f"{where}.{key}: {config['_target_']} has no parameter {key!r}; the nearest are {nearest(str(key), parameters)}"
                )
            if not isinstance(value, Mapping) and not _fits(value, hints.get(key, Any)):
                expected = hints[key]
                expected = (
                    getattr(expected, "__name__", None)
                    if isinstance(expected, type)
                    else str(expected).replace("typing.", "")
                )
                raise UserError(
                    f"{where}.{key}={value} has the wrong type: expected {expected}, got {type(value).__name__}"
                )
    for step, value, inner in inside(config, slot):
        _check_parameters(value, f"{where}{step}".lstrip("."), inner)


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Resolved annotations of a class's constructor or of a function; empty where they cannot be resolved."""
    function = target.__init__ if inspect.isclass(target) else target  # type: ignore[misc]
    try:
        return typing.get_type_hints(function)
    except (
        NameError,
        TypeError,
        AttributeError,
    ):  # annotations that only a type checker can see: nothing to hold values against
        return {}


def instantiate(config: Any, key: str | None = None, /, **extra: Any) -> Any:
    """A `_target_` node as an object, checked first; nested nodes become objects too, lists and mappings stay plain.

    Args:
        key: where the node stands in a configuration ("model", "data", "explainer"), which says of what kind it must be; None for any.
        extra: parameters that no configuration can hold.

    Raises:
        UserError: for a target that is not allowed, an unknown parameter, or a value of the wrong type.
    """
    plain = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    slot = ANYWHERE if key is None else Slot(slot_named(key).kinds)
    where = key or ""
    check_targets(plain, where, slot)
    if not isinstance(plain, Mapping) or (key is not None and "_target_" not in plain):
        raise UserError(
            f"{where or 'the configuration'} names nothing to build: expected settings with a _target_, got {str(plain)[:80]}"
        )
    _check_parameters(plain, where, slot)
    return _build(plain, slot, extra)


def _build(node: Any, slot: Slot, extra: Mapping[str, Any] | None = None) -> Any:
    if isinstance(node, list):
        return [_build(value, slot) for value in node]
    if not isinstance(node, Mapping):
        return node
    values = {
        step.removeprefix("."): _build(value, inner)
        for step, value, inner in inside(node, slot)
        if not step.startswith("._")
    } | dict(extra or {})
    if "_target_" not in node:
        return values
    target = locate(node["_target_"], slot if slot.kinds else ANYWHERE)
    return partial(target, **values) if node.get("_partial_") else target(**values)


def _without_references(values: Mapping[Any, Any]) -> dict[Any, Any]:
    """The values that stand for themselves, in nested nodes too."""
    return {
        key: _without_references(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if not (isinstance(value, str) and value.startswith("${"))
    }


def get(path: str, **overrides: Any) -> Any:
    """Any entry of conf/ as an object: `explainode.get("explainer/ig", steps=20)`.

    Raises:
        UserError: for an unknown entry or parameter, or a value of the wrong type.
    """
    objects = {
        key: value
        for key, value in overrides.items()
        if not isinstance(value, (str, int, float, bool, list, dict, type(None)))
    }
    plain = {key: value for key, value in overrides.items() if key not in objects}
    config = load(path, plain)
    values = OmegaConf.to_container(config, resolve=False)
    assert isinstance(values, dict)
    # what a composed configuration would fill in (${data.num_classes}, ${seed}) is left to the constructor's default here
    values = _without_references(values)
    for key in objects:
        if key not in set(config):
            known = [str(name) for name in config if not str(name).startswith("_")]
            raise UserError(f"{path} has no key {key!r}; the nearest are {nearest(key, known)}")
        values.pop(key, None)
    return instantiate(values, path.partition("/")[0], **objects)
