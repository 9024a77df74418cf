"""conf/ is the register: what can be chosen, what it is, and how an entry becomes an object."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from explainode.errors import UserError, nearest

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

GROUPS = (
    "model",
    "solver",
    "data",
    "module",
    "trainer",
    "composite",
    "explainer",
    "metric",
    "attack",
    "callback",
    "logger",
    "experiment",
)
MANY_OF = (
    "explainer",
    "metric",
    "attack",
    "callback",
    "logger",
)  # several entries may be chosen; each sits under its own name
ALLOWED_TARGETS = (
    "explainode.",
    "torch.nn.",
    "torch.optim.",
    "torchvision.models.",
    "torchvision.transforms.",
    "torchmetrics.",
    "lightning.pytorch.",
    "captum.attr.",
)
_extra_targets: list[str] = []
_extra_folders: list[Path] = []


@dataclass(frozen=True)
class Entry:
    """One choice of a group: its name, what it is in a line, and where it comes from."""

    group: str
    name: str
    summary: str
    source: str


def conf_folder() -> Traversable:
    """The configuration tree, wherever the package is installed."""
    return resources.files("explainode.conf")


def add_config_folder(folder: Path) -> None:
    """Look for entries in a folder of the user's own too, laid out like conf/.

    Raises:
        UserError: if it is not a folder.
    """
    if not folder.is_dir():
        raise UserError(f"--config-dir {folder} is not a folder; it holds groups such as explainer/mine.yaml")
    if folder.resolve() not in _extra_folders:
        _extra_folders.append(folder.resolve())


def extra_config_folders() -> list[Path]:
    """The folders that `--config-dir` named."""
    return list(_extra_folders)


def _files(group: str) -> dict[str, Traversable | Path]:
    """The yaml files of a group by entry name; the user's folders add to ours."""
    files: dict[str, Traversable | Path] = {}
    for folder in (*_extra_folders, conf_folder()):
        place = folder / group
        if place.is_dir():
            files |= {file.name.removesuffix(".yaml"): file for file in place.iterdir() if file.name.endswith(".yaml")}
    return files


def names(group: str) -> list[str]:
    """The entries of a group, sorted.

    Raises:
        UserError: for an unknown group.
    """
    if group not in GROUPS:
        raise UserError(f"no group named {group!r}; the nearest are {nearest(group, GROUPS)}")
    return sorted(_files(group))


def _text(group: str, name: str) -> str:
    known = names(group)
    if name not in known:
        raise UserError(f"no {group} named {name!r}; the nearest are {nearest(name, known)}")
    return _files(group)[name].read_text(encoding="utf-8")


def describe(group: str) -> Iterator[Entry]:
    """The entries of a group, read from the yaml files' summary lines; imports nothing."""
    for name in names(group):
        comments = [line.removeprefix("#").strip() for line in _text(group, name).splitlines() if line.startswith("#")]
        summary = next((line for line in comments if not line.startswith("@package")), "")
        text, _, source = summary.partition(" | ")
        yield Entry(group, name, text.strip(), source.strip())


def allow_targets(prefixes: list[str]) -> None:
    """Also allow targets that begin with these prefixes: the user's own packages, named by the user."""
    _extra_targets.extend(prefix if prefix.endswith(".") else prefix + "." for prefix in prefixes)


def _allowed() -> tuple[str, ...]:
    return (*ALLOWED_TARGETS, *_extra_targets)


def check_targets(config: Any, where: str = "") -> None:
    """Refuse every `_target_` outside the allowed packages, and every entry of a many-of group that has none.

    Raises:
        UserError: naming the key and the target.
    """
    if isinstance(config, Mapping):
        target = config.get("_target_")
        if target is not None and not str(target).startswith(_allowed()):
            raise UserError(_not_allowed(f"{where}._target_={target}" if where else f"_target_={target}"))
        for key, value in config.items():
            check_targets(value, f"{where}.{key}" if where else str(key))
    elif isinstance(config, (list, tuple)):
        for index, value in enumerate(config):
            check_targets(value, f"{where}[{index}]")


def _not_allowed(what: str) -> str:
    return f"{what} is not allowed; allowed are names in {', '.join(_allowed())} (add your own package with allow_targets=[...])"


def locate(path: str) -> Callable[..., Any]:
    """The class or function behind a dotted path.

    Raises:
        UserError: if there is none, or if it belongs to another package than the path says (a module seen through a module).
    """
    module_name, _, attribute = path.rpartition(".")
    owner: Any = None
    while module_name:
        try:
            owner = import_module(module_name)
            break
        except ModuleNotFoundError as error:
            if error.name is None or not module_name.startswith(error.name):
                raise  # the module exists, something that it needs does not
            module_name, _, head = module_name.rpartition(".")
            attribute = f"{head}.{attribute}"
    for part in attribute.split("."):
        owner = getattr(owner, part, None)
    if owner is None:
        raise UserError(f"nothing is called {path}")
    home = f"{getattr(owner, '__module__', '')}."
    if not home.startswith(_allowed()) or "." in getattr(owner, "__qualname__", "."):
        raise UserError(_not_allowed(f"_target_={path}, which is {home}{getattr(owner, '__qualname__', owner)},"))
    return owner


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


def check_parameters(config: Any, where: str = "") -> None:
    """Hold every `_target_` node against the signature of what it names: unknown parameters and values of the wrong type.

    Raises:
        UserError: naming the key, the value, and what was expected.
    """
    if isinstance(config, list):
        for index, value in enumerate(config):
            check_parameters(value, f"{where}[{index}]")
        return
    if not isinstance(config, Mapping):
        return
    if "_target_" in config:
        target = locate(config["_target_"])
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
    for key, value in config.items():
        check_parameters(value, f"{where}.{key}" if where else str(key))


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


def instantiate(config: Any, **extra: Any) -> Any:
    """A `_target_` node as an object, checked first; nested nodes become objects too, lists and mappings stay plain.

    Raises:
        UserError: for a target that is not allowed, an unknown parameter, or a value of the wrong type.
    """
    plain = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    check_targets(plain)
    check_parameters(plain)
    return _build(plain, extra)


def _build(node: Any, extra: Mapping[str, Any] | None = None) -> Any:
    if isinstance(node, list):
        return [_build(value) for value in node]
    if not isinstance(node, Mapping):
        return node
    values = {key: _build(value) for key, value in node.items() if not str(key).startswith("_")} | dict(extra or {})
    if "_target_" not in node:
        return values
    target = locate(node["_target_"])
    return partial(target, **values) if node.get("_partial_") else target(**values)


def load(path: str, overrides: Mapping[str, Any] | None = None) -> DictConfig:
    """The yaml of an entry such as "explainer/ig", unresolved, the entries that its `defaults` list names in place, with `overrides` merged in.

    Raises:
        UserError: for an unknown group, name or key.
    """
    group, _, name = path.partition("/")
    if not name:
        raise UserError(f"an entry is named as group/name (explainer/ig), got {path!r}")
    config = OmegaConf.create(_text(group, name))
    assert isinstance(config, DictConfig)
    for default in config.pop("defaults", []):  # such as {"/model@teacher": "six_block"}
        if default == "_self_":
            continue
        (place, entry), *_ = default.items()
        other, _, key = place.lstrip("/").partition("@")
        config[key] = OmegaConf.merge(load(f"{other}/{entry}"), config.get(key) or {})
    for key, value in (overrides or {}).items():
        if key not in set(config):  # `in config` is false for a key whose value is still missing (???)
            raise UserError(
                f"{path} has no key {key!r}; the nearest are {nearest(key, [str(k) for k in config if not str(k).startswith('_')])}"
            )
        config[key] = (
            OmegaConf.merge(config[key], value)
            if isinstance(value, Mapping) and isinstance(config[key], DictConfig)
            else value
        )
    return config


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
    return instantiate(values, **objects)
