"""Composing a configuration with Hydra, and turning its complaints into one sentence with the nearest names."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from explainode.errors import UserError, nearest
from explainode.registry.devices import gpus_of, ranks_of
from explainode.registry.entries import GROUPS, MANY_OF, extra_config_folders, names
from explainode.registry.former import current_override
from explainode.registry.targets import CONSENT, allow_targets, check_targets, consent

CONFIG_MODULE = "explainode.conf"


_SPECIAL_STEPS = (
    0xFFFFFFF0  # from here on SLURM numbers what is no step of its own: the batch script, an interactive shell
)


def run_id() -> str:
    """The id of this run: the SLURM job's where there is one, so that a requeued job finds its own folder; else the time.

    Of several steps of one job the first has the job's id, the others `job.step`, as SLURM writes it.
    """
    array, task, job = (os.environ.get(f"SLURM_{name}") for name in ("ARRAY_JOB_ID", "ARRAY_TASK_ID", "JOB_ID"))
    if job:
        step = int(os.environ.get("SLURM_STEP_ID") or 0)
        name = f"{array}_{task}" if array and task else job
        return f"{name}.{step}" if 0 < step < _SPECIAL_STEPS else name
    # ranks that Lightning starts by itself inherit the environment, and with it the folder of rank 0
    return os.environ.setdefault("EXPLAINODE_RUN_ID", datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))


def register_resolvers() -> None:
    """Make `${run_id:}` known to OmegaConf, cached, so that one process has one id; and what launchers ask of the trainer."""
    if not OmegaConf.has_resolver("run_id"):
        OmegaConf.register_new_resolver("run_id", run_id, use_cache=True)
        OmegaConf.register_new_resolver("ranks", ranks_of)
        OmegaConf.register_new_resolver("gpus", gpus_of)


def search_path() -> list[str]:
    """The override that lets Hydra look into the user's own folders; nothing where there are none."""
    folders = extra_config_folders()
    return [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in folders)}]"] if folders else []


def compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """The composed configuration of a verb, unresolved, with `hydra.*` left out.

    Raises:
        UserError: for unknown keys, groups, options and values that cannot be read, with the nearest names.
    """
    allow_targets(consent_words(overrides))
    config = _compose(config_name, overrides)
    check_entries(config)
    return config


def consent_words(words: Sequence[str]) -> list[str]:
    """The names that `allow_targets=` allows among the user's words."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    found: list[str] = []
    for word in words:
        if "allow_targets" in word.partition("=")[0]:
            try:
                value = OverridesParser.create().parse_override(word).value()
            except HydraException:  # told in a sentence when everything is composed
                continue
            found += [str(name) for name in (value if isinstance(value, list) else [value])]
    return found


def compose_launcher(config_name: str, overrides: Sequence[str]) -> tuple[str, str]:
    """The name of the launcher that a sweep would use, and the directory that it would write.

    Raises:
        UserError: if a file sets what Hydra itself does: its callbacks, logging, environment, directories.
    """
    config = _compose(config_name, overrides, with_hydra=True)
    asked = [word for word in overrides if word.lstrip("+~").startswith(("hydra.", "hydra/"))]
    _check_hydra(_hydra(config), _hydra(_compose(config_name, asked, with_hydra=True)))
    return config.hydra.runtime.choices["hydra/launcher"], config.hydra.sweep.dir


_OF_A_RUN = ("overrides", "runtime", "job")  # what Hydra notes itself; of the job, only the words are


def _hydra(config: DictConfig) -> dict[str, Any]:
    node = OmegaConf.to_container(config.hydra, resolve=False)
    assert isinstance(node, dict)
    job = {key: value for key, value in node["job"].items() if key != "override_dirname"}
    return {str(key): value for key, value in node.items() if key not in _OF_A_RUN} | {"job": job}


def _check_hydra(found: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuse a `hydra` node that is not what our configuration and the user's own words about it make: Hydra runs what stands there.

    Raises:
        UserError: naming what differs, or a target that is neither Hydra's, ours nor the user's.
    """
    differing = [key for key in found | asked if found.get(key) != asked.get(key)]
    if differing:
        raise UserError(
            f"a file sets hydra.{differing[0]}, which only the command line may: write hydra.{differing[0]}... as a word, or take it out of the file"
        )
    for where, name in _named(found, "hydra"):
        plugin = where.split(".")[1] in ("launcher", "sweeper") and name.startswith(("hydra.", "hydra_plugins."))
        if not plugin and not any(f"{name}.".startswith(f"{word}.") for word in consent()):
            raise UserError(
                f"{where}._target_={name} is not allowed; allow_targets=[{name}] on the command line allows it"
            )


def _named(node: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield where, str(node["_target_"])
        for key, value in node.items():
            yield from _named(value, f"{where}.{key}")
    elif isinstance(node, list):
        for value in node:
            yield from _named(value, where)


def _compose(config_name: str, overrides: Sequence[str], with_hydra: bool = False) -> DictConfig:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    register_resolvers()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            words = [*search_path(), *(_strip_sweep(current_override(o)) for o in overrides)]
            return hydra_compose(config_name, overrides=words, return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain_failure(config_name, list(overrides), error)) from error


def check_entries(config: DictConfig) -> None:
    """Refuse what an override of something unselected leaves behind, targets that may not stand where they do, and a file that allows some itself.

    Raises:
        UserError: naming the entry.
    """
    told = consent()
    for name in config.get("allow_targets") or []:
        if str(name).rstrip(".") not in told:
            raise UserError(
                f"allow_targets={name} stands in a file, and a file cannot allow what it names; "
                f"say allow_targets=[{name}] on the command line, or {CONSENT}={name}"
            )
    for group in MANY_OF:
        for key, entry in (config.get(group) or {}).items():
            if entry is None:
                raise UserError(
                    f"{group}.{key} is null, expected an entry of conf/{group}; to leave it out write '~{group}.{key}'"
                )
            if isinstance(entry, DictConfig) and "_target_" not in entry:
                raise UserError(
                    f"{group}.{key} is set, but {group} {key!r} is not chosen; choose it with '{group}=[...,{key}]' or drop the override"
                )
    check_targets(OmegaConf.to_container(config, resolve=False))


def check_words(overrides: Sequence[str], sweeps: bool) -> None:
    """Refuse what Hydra would explain in several lines, or take for our fault: several values without a sweep, lists that are null.

    Raises:
        UserError: naming the word.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    for word in overrides:
        key, _, value = word.partition("=")
        if key in MANY_OF and value == "null":
            raise UserError(f"{word} is no choice; an empty list means none: {key}=[]")
        try:
            several = OverridesParser.create().parse_override(word).is_sweep_override()
        except HydraException as error:
            if value.endswith(","):
                raise UserError(
                    f"cannot read {word!r}: it ends with a comma; write {key}={value.rstrip(',')}, or {key}=[{value.rstrip(',')}] for a list"
                ) from error
            continue  # composing explains it
        if several and not sweeps:
            raise UserError(
                f"{word} gives several values; add -m to sweep over them, or brackets for a list: {key}=[{value}]"
            )


def _strip_sweep(override: str) -> str:
    """A multirun choice `key=a,b` reduced to its first value, for checking."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return override
    first = next(iter(parsed.sweep_iterator()))
    return f"{parsed.get_key_element()}={first}"


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    for key in config:
        path = f"{prefix}{key}"
        yield path
        if (
            not OmegaConf.is_missing(config, key)
            and not OmegaConf.is_interpolation(config, key)
            and isinstance(config[key], DictConfig)
        ):
            yield from _keys(config[key], f"{path}.")


def _explain_failure(config_name: str, overrides: list[str], error: Exception) -> str:
    """Hydra's and OmegaConf's messages as one sentence: what came, what was expected, what to try."""
    text = str(error).splitlines()[0]
    missing = re.search(r"Could not (?:find|load) '([^']+)'", str(error))
    if missing:
        group, _, option = missing[1].rpartition("/")
        if group in GROUPS:
            return f"no {group} named {option!r}; the nearest are {nearest(option, names(group))} (all: explainode list {group})"
        return f"no configuration named {missing[1]!r}; groups are {', '.join(GROUPS)}"
    override = re.search(r"Could not override '([^']+)'", text)
    if override:
        key = override[1]
        if (place := re.match(r"In '([^']+)'", text)) is not None:  # not the user's words, but a file that they chose
            return f"{place[1]} overrides {key!r}, which explainode {config_name} does not have with these settings; choose another, or fewer settings"
        known = list(_keys(compose(config_name, [o for o in overrides if not _sets(o, key) and not o.startswith("~")])))
        head = key.split(".")[0]
        if head in MANY_OF and "." in key:
            entry = key.split(".")[1]
            if entry in names(head) and f"{head}.{entry}" not in known:
                return f"{key} is set, but {head} {entry!r} is not chosen; choose it with '{head}=[...,{entry}]'"
        return f"no setting named {key!r}; the nearest are {nearest(key, known)}"
    parse = re.search(
        r"(mismatched input|no viable alternative|token recognition|extraneous input|missing EQUAL)", str(error)
    )
    if parse:
        bad = next((o for o in overrides if "=" not in o), None)
        shown = bad if bad is not None else re.sub(r"\s+", " ", text)
        return f"cannot read {shown!r}: settings are written key=value (quote values with spaces or commas: 'key=\"a, b\"')"
    return re.sub(r"\s+", " ", str(error)).strip()


def _sets(override: str, key: str) -> bool:
    return override.lstrip("+~").split("=")[0].split("@")[0].replace("/", ".") == key


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain, resolved Python containers.

    Raises:
        UserError: for a value that is still missing (`???`) or refers to nothing.
    """
    try:
        container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except RecursionError as error:
        raise UserError("a setting refers to itself (${...} that leads back to it); write the value there") from error
    except OmegaConfBaseException as error:
        raise UserError(
            str(error).splitlines()[0].replace("Missing mandatory value: ", "this setting has no value yet: ")
        ) from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
