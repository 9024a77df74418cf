"""Which classes and functions a configuration may name, and how a name becomes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from explainode.errors import UserError

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
