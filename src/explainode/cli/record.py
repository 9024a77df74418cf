"""Handing a finished evaluation to W&B, where the configuration chooses it; imports W&B only then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from explainode.runs.directory import RunDirectory


def record_evaluation(settings: Mapping[str, Mapping[str, Any]], folder: RunDirectory) -> None:
    """Log each network's results with every W&B logger of the configuration that it was measured with.

    Args:
        settings: network -> configuration.
        folder: where the results and the report lie.
    """
    for network, config in settings.items():
        for entry in wandb_entries(config):
            from explainode.callbacks.evaluation_wandb import log_evaluation

            log_evaluation(entry, config, network, folder)


def wandb_entries(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parameters of the W&B loggers among a configuration's loggers."""
    chosen = (
        entry
        for entry in (settings.get("logger") or {}).values()
        if str(entry.get("_target_", "")).endswith(".wandb_logger")
    )
    return [{key: value for key, value in entry.items() if not key.startswith("_")} for entry in chosen]
