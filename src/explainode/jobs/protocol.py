"""What decides the numbers of a benchmark: every setting, network and image, so that numbers of different ones are never mixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

NAMED = ("models", "explainer", "metric")  # of a protocol: facts by name; others are common to all cells
CONTENT = "content"  # of the data: a hash of the images and all that is known about them
SHOWN = 3  # differences that a refusal names
PARTIAL = (
    "root",
    "verify",
    "download",
    "batch_size",
    "num_workers",
    "seed",
    "augment",
)  # of data: they do not decide which pictures are in it


@dataclass(frozen=True)
class Protocol:
    """All that decides the numbers of a benchmark, as plain values under the names that the command line has for them.

    `facts["models"]`, `facts["explainer"]` and `facts["metric"]` hold one mapping for each name; everything else is common to all cells.
    """

    facts: Mapping[str, Any]

    def of(self, model: str, explainer: str, metrics: Iterable[str]) -> Protocol:
        """What decides the numbers of one cell."""
        names = {"models": [model], "explainer": [explainer], "metric": list(metrics)}
        chosen = {group: {name: self.facts[group][name] for name in names[group]} for group in NAMED}
        return Protocol({**self.facts, **chosen})

    def shared_with(self, other: Protocol) -> tuple[dict[str, Any], dict[str, Any]]:
        """The facts of both that are about the same things: networks, explainers and metrics that only one of them has are left out."""
        both = {group: self.facts[group].keys() & other.facts[group].keys() for group in NAMED}
        return _only(self.facts, both), _only(other.facts, both)


def _only(facts: Mapping[str, Any], names: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    return {**facts, **{group: {name: facts[group][name] for name in sorted(names[group])} for group in names}}


def hash_facts(facts: Mapping[str, Any]) -> str:
    """8 hex digits over plain facts, in whatever order they stand: what a refusal shows of two protocols."""
    return hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=4).hexdigest()


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, json.dumps(value, default=str)


def differences_between(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """`key is value there, value here` of all facts that differ; that the images are others is said only where no setting says why."""
    before, now = dict(_flat(there)), dict(_flat(here))
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if any(
        key.startswith(("data.", "evaluation.images", "evaluation.split")) and key != f"data.{CONTENT}" for key in keys
    ):
        keys = [key for key in keys if key != f"data.{CONTENT}"]
    return [f"{key} is {before.get(key, 'not set')} there, {now.get(key, 'not set')} here" for key in keys]
