"""Names that configurations of earlier versions wrote, and what they are called now: a saved run outlives a file that moved."""

from __future__ import annotations

ALIASES = {
    "explainode.callbacks.profile.StepProfiler": "explainode.training.profile.StepProfiler",
    "explainode.explainers.adjoint.Surrogate": "explainode.explainers.adjoint.ThroughSurrogate",
}


def current_name(name: str) -> str:
    """The name by which a target goes today."""
    return ALIASES.get(name, name)
