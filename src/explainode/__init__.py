"""Train networks whose explanations can be trusted, and prove it.

The names below are imported when first used, so that `import explainode` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from explainode.attribution import Explanation as Explanation
    from explainode.errors import UserError as UserError
    from explainode.evaluation import evaluate as evaluate
    from explainode.explainers.targets import Unit as Unit
    from explainode.explaining import explain as explain
    from explainode.explaining import explain_many as explain_many
    from explainode.registry.build import get as get

__version__ = "0.1.0"
__all__ = ["Explanation", "Unit", "UserError", "evaluate", "explain", "explain_many", "get"]

_HOMES = {
    "Explanation": "explainode.attribution",
    "UserError": "explainode.errors",
    "evaluate": "explainode.evaluation",
    "Unit": "explainode.explainers.targets",
    "explain": "explainode.evaluation",
    "explain_many": "explainode.evaluation",
    "get": "explainode.registry.build",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'explainode' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
