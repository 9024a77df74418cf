"""Which classes and functions a configuration may name, and how a name becomes one.

A name is looked up: in conf/, by the kind of its slot; for users also among the public classes of that kind in a few libraries, and in what they
allowed themselves. Nothing is imported before its name was found there. A run that somebody sent has conf/ and what the user allowed.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from explainode.errors import UserError, nearest
from explainode.plain_yaml import load_yaml
from explainode.registry.aliases import current_name
from explainode.registry.entries import GROUPS, conf_folder, extra_config_folders
from explainode.registry.kinds import ANY_PART, ANYWHERE, NOWHERE, Kind, Slot, inside, slot_named

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable  # from Python 3.11 on

CONSENT = "EXPLAINODE_ALLOW_TARGETS"  # the environment variable beside `allow_targets=` on the command line
_NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+")
_extra_targets: list[str] = []


def allow_targets(prefixes: Sequence[str]) -> None:
    """Also allow names in these packages, or these very names: the user's own, told by the user and by nobody else."""
    _extra_targets.extend(word for prefix in prefixes if (word := prefix.rstrip(".") + ".") not in _extra_targets)


def consent() -> list[str]:
    """What the user allowed, on the command line or in the environment: packages and single names."""
    told = [word.strip() for word in os.environ.get(CONSENT, "").split(",") if word.strip()]
    return [prefix.rstrip(".") for prefix in (*_extra_targets, *told)]


def _consented(name: str) -> str | None:
    """The word of the user that covers a name."""
    return next((word for word in consent() if f"{name}.".startswith(f"{word}.")), None)


@lru_cache(maxsize=8)
def _names_in(folder: Traversable | Path) -> dict[str, frozenset[str]]:
    """The targets of a configuration tree by the name of their kind."""
    found: dict[str, set[str]] = {}
    for group in GROUPS:
        place = folder / group
        for file in place.iterdir() if place.is_dir() else ():
            if file.name.endswith(".yaml"):
                root = slot_named(group) if group != "experiment" else NOWHERE
                for kind, target in _targets(load_yaml(file.read_text(encoding="utf-8")), Slot(root.kinds)):
                    found.setdefault(kind, set()).add(target)
    return {kind: frozenset(names) for kind, names in found.items()}


def _targets(node: Any, slot: Slot) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping) and isinstance(node.get("_target_"), str):
        yield from ((kind.name, node["_target_"]) for kind in slot.kinds)
    for _, value, inner in inside(node, slot):
        yield from _targets(value, inner)


def registered(kind: Kind) -> frozenset[str]:
    """The names of a kind: those in conf/, and those in the user's own folders that the user allowed."""
    ours = _names_in(conf_folder()).get(kind.name, frozenset()) | frozenset(kind.also)
    if kind.partial and not kind.bases:  # a model's builder, to be completed: any that builds models
        ours |= _names_in(conf_folder()).get("model", frozenset())
    mine = (name for folder in extra_config_folders() for name in _names_in(folder).get(kind.name, ()))
    return ours | {name for name in mine if _consented(name)}


def check_targets(config: Any, where: str = "", slot: Slot = ANYWHERE, foreign: bool = False) -> None:
    """Refuse every `_target_` that may not stand where it does.

    Args:
        where: the way to `config`, for the sentence; slot: what may stand at its root.
        foreign: the configuration is a run's, which somebody may have sent: a name is registered, or covered by the user's own consent.

    Raises:
        UserError: naming the key and the target.
    """
    own = False
    if isinstance(config, Mapping) and "_target_" in config:
        name = config["_target_"]
        _check_name(name, where, slot, foreign)
        own = _consented(name) is not None
        if "_args_" in config:
            raise UserError(f"{_at(where)}_args_ is not read: a setting has its name")
        if config.get("_partial_") and slot.kinds and not any(kind.partial for kind in slot.kinds):
            raise UserError(f"{_at(where)}_partial_ is not allowed here: a {_kinds(slot)} is wanted whole")
    for step, value, inner in inside(config, slot):
        # the parameters of a user's own class are the user's: any part may stand there
        check_targets(value, f"{where}{step}".lstrip("."), ANY_PART if own and not inner.kinds else inner, foreign)


def _at(where: str) -> str:
    return f"{where}." if where else ""


def _kinds(slot: Slot) -> str:
    return " or ".join(kind.name for kind in slot.kinds[:1])


def _check_name(name: Any, where: str, slot: Slot, foreign: bool) -> None:
    def refuse(reason: str) -> UserError:
        return UserError(f"{_at(where)}_target_={str(name)[:200]} is not allowed: {reason}")

    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise refuse("a target is the full name of a public class or function, package.module.Name")
    if not slot.kinds:
        raise refuse(f"nothing is built at {where or 'the root'}")
    name = current_name(name)
    if any(name in registered(kind) for kind in slot.kinds):
        return
    if (word := _consented(name)) is not None:
        if foreign and word != name and not inspect.isclass(locate(name, slot)):
            raise refuse(
                f"a run may name classes of {word}; a function needs a yaml of yours (--config-dir) or allow_targets=[{name}]"
            )
        return
    if not foreign and any(_lies_in(name, home) for kind in slot.kinds for home in kind.homes):
        return
    known = sorted({other for kind in slot.kinds for other in registered(kind)})
    what = f"no {_kinds(slot)} of conf/" if len(slot.kinds) == 1 else "no entry of conf/"
    raise refuse(
        f"it is {what}; the nearest are {nearest(name, known)} (names of your own: allow_targets=[your_package] on the command line)"
    )


def _lies_in(name: str, package: str) -> bool:
    return name.startswith(f"{package}.")


def locate(name: str, slot: Slot = ANYWHERE) -> Callable[..., Any]:
    """The class or function of a name, if it may stand in the slot.

    Raises:
        UserError: if there is none, if it is not allowed, is not of the slot's kind, or belongs to another module than the name says.
    """
    name = current_name(name)
    if not any(name in registered(kind) for kind in slot.kinds):
        allowed = [home for kind in slot.kinds for home in kind.homes if _lies_in(name, home)]
        if _consented(name) is None and not (allowed and _NAME.fullmatch(name)):
            _check_name(name, "", slot, foreign=False)
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module exists, something that it needs does not
        found = None
    if found is None or inspect.ismodule(found):
        raise UserError(f"nothing is called {name}")
    if any(name in registered(kind) for kind in slot.kinds):
        return found
    home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    if home.partition(".")[0] != name.partition(".")[0] or "." in getattr(found, "__qualname__", "."):
        raise UserError(f"_target_={name} is not allowed: it is {home}, seen through another module")
    if _consented(name) is not None:
        if inspect.isclass(found) and not any(_is_a(found, kind) for kind in slot.kinds):
            bases = [base for kind in slot.kinds for base in kind.bases]
            raise UserError(f"_target_={name} is not allowed here: a {_kinds(slot)} derives from {' or '.join(bases)}")
        return found
    if not any(_belongs(found, kind) for kind in slot.kinds):
        raise UserError(
            f"_target_={name} is not allowed here: it is no {_kinds(slot)} of {', '.join(slot.kinds[0].homes)}"
        )
    return found


def _is_a(found: type, kind: Kind) -> bool:
    return not kind.bases or bool(
        {f"{base.__module__}.{base.__qualname__}" for base in found.__mro__} & set(kind.bases)
    )


def _belongs(found: Any, kind: Kind) -> bool:
    """Whether a library's object is a class of the kind's own, or a builder that torchvision itself registers as one of a model."""
    if not any(_lies_in(f"{found.__module__}.", home) for home in kind.homes):
        return False
    if inspect.isclass(found):
        return bool(kind.bases) and _is_a(found, kind) and not inspect.isabstract(found)
    models = sys.modules.get("torchvision.models")
    return kind.name == "model" and models is not None and _is_builder(found, models)


def _is_builder(found: Any, models: Any) -> bool:
    return found.__name__ in models.list_models() and models.get_model_builder(found.__name__) is found
