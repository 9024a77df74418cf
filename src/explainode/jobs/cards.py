"""Measure metrics on planted networks: every map of `metrics.planted.MAPS` on every network, with several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from explainode.errors import UserError, nearest
from explainode.explainers.base import Explainer
from explainode.explaining import explain_many
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.cards import Finding, findings
from explainode.metrics.planted import MAPS, NETWORKS
from explainode.randomness import input_keys, normal_like

SEEDS = 2  # networks of a kind
IMAGES = 24  # of each


@dataclass(frozen=True)
class PlantedMap(Explainer):
    """One of `metrics.planted.MAPS` of a planted network, (B, 1, S, S).

    Args:
        name: of the map.
    """

    name: str

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        truth = model.contributions(x, target)  # type: ignore[operator]
        with torch.no_grad():
            second = model(x).scatter(1, target[:, None], -torch.inf).argmax(1)
        noise = [normal_like(truth, input_keys(x, "planted map", k)) for k in range(2)]
        return MAPS[self.name](truth, model.contributions(x, second), *noise)  # type: ignore[operator]


ROLES = ("faithfulness", "localization", "sanity", "sensitivity")  # that a planted network has an answer for
OWN_DATA = ("exact_deletion",)  # kinds of metrics that pictures of one kind of data have alone


def has_a_card(metric: ExplanationMetric) -> bool:
    """Whether planted networks can say how good a metric is: it judges maps, and needs no more than labels and masks."""
    return (
        metric.role in ROLES and metric.needs <= {"mask", "label"} and metric.direction(metric.results[0]) is not None
    )


def check_networks(names: Sequence[str]) -> list[str]:
    """The names, if they are planted networks.

    Raises:
        UserError: with the nearest names.
    """
    for name in names:
        if name not in NETWORKS:
            raise UserError(f"no planted network named {name!r}; the nearest are {nearest(name, NETWORKS)}")
    return list(names)


def measure_network(
    metrics: Mapping[str, ExplanationMetric], network: str, seeds: int = SEEDS, images: int = IMAGES, size: int = 32
) -> dict[str, dict[str, np.ndarray]]:
    """{metric: {map: (seeds * images,)}} values of each metric's first result, NaN where a map was excluded."""
    maps = [PlantedMap(name) for name in MAPS]
    found: dict[str, dict[str, list[float]]] = {metric: {name: [] for name in MAPS} for metric in metrics}
    for seed in range(seeds):
        model = NETWORKS[network](seed, size).eval()
        scene = model.scene(images, 1000 + seed)
        ids = torch.arange(images) + seed * images
        given: dict[str, Any] = {"sample_ids": ids, "mask": scene.mask, "label": scene.label}
        for one, record in zip(maps, explain_many(maps, model, scene.x, scene.label, **given), strict=True):
            for name, metric in metrics.items():
                metric.setup(ids.tolist()).update(record)
                column = metric.columns.index(metric.results[0]) if metric.results[0] in metric.columns else 0
                values = metric.table()
                found[name][one.name] += [float(values[i][column]) for i in ids.tolist()]
    return {metric: {name: np.array(v) for name, v in of.items()} for metric, of in found.items()}


def measure_cards(
    metrics: Mapping[str, ExplanationMetric], networks: Sequence[str] = tuple(NETWORKS), **how: int
) -> list[Finding]:
    """All findings of the metrics; metrics for which `has_a_card` is false are left out."""
    judging = {name: metric for name, metric in metrics.items() if has_a_card(metric)}
    found = []
    for network in check_networks(networks):
        for name, values in measure_network(judging, network, **how).items():
            metric = judging[name]
            found += findings(name, network, values, bool(metric.direction(metric.results[0])))
    return sorted(found, key=lambda f: list(judging).index(f.metric))
