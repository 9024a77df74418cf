"""conf/ is the register: what can be chosen, and what it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from explainode.errors import UserError, nearest
from explainode.plain_yaml import read_yaml
from explainode.registry.former import current

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
        UserError: if it is not a folder, or a file in it is damaged or unfolds without bounds.
    """
    if not folder.is_dir():
        raise UserError(f"--config-dir {folder} is not a folder; it holds groups such as explainer/mine.yaml")
    for depth in ("*", "*/*", "*/*/*"):  # groups, and Hydra's own below hydra/; read within bounds before Hydra does
        for file in folder.glob(f"{depth}.yaml"):
            read_yaml(file)
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
    name = current(group, name)
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
