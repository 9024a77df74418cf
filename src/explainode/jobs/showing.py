"""One picture, several networks and methods, map by map: what a page shows while the rest is still being computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from explainode.attribution import Explanation
from explainode.errors import UserError
from explainode.explainers.base import Explainer
from explainode.explaining import explain
from explainode.jobs.pictures import Subject, class_index
from explainode.metrics.faithfulness import Deletion, Insertion, PerturbationCurve
from explainode.metrics.sensitivity import MaxSensitivity
from explainode.registry.build import get
from explainode.report.colors import fault

Event = dict[str, Any]
RANDOM_MAPS = 19  # a map ahead of all of them is so by chance once in twenty
CLEARLY = 0.01  # of the area between the curves: the least that counts as ahead
FIRST = ("gradcam", "saliency")  # maps that cost one pass come first, whatever was measured of them
QUICK_PIXELS = 64 * 64  # of networks whose pictures are as small, random maps are measured for each picture


@dataclass
class Showing:
    """What is to be shown of one picture.

    Attributes:
        pictures: {side of a network's input: (3, side, side) float32 pixels in [0, 1]}.
        methods, networks: their names; the order of `methods` is that of the page, not of the work.
        target: a class by name or index; None: what each network predicts.
        noise, seed: the conditions, see `explain`.
        scores: whether curves and sensitivity follow the maps.
    """

    pictures: dict[int, np.ndarray]
    methods: Sequence[str]
    networks: Sequence[str]
    target: str | None = None
    noise: str = "off"
    seed: int = 0
    scores: bool = True


@dataclass
class Costs:
    """Seconds of a map by method, learned as maps are made: the cheap ones come first."""

    seconds: dict[tuple[str, str], float] = field(default_factory=dict)

    def order(self, network: str, methods: Sequence[str]) -> list[str]:
        """The methods, cheapest first; what was not measured stands where it was, behind the first two."""
        known = [self.seconds.get((network, method), 0.5) for method in methods]
        places = sorted(range(len(methods)), key=lambda i: (methods[i] not in FIRST, known[i], i))
        return [methods[place] for place in places]


def show(
    subjects: Mapping[str, Subject],
    wish: Showing,
    costs: Costs,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Events, as they are found: `network`, `map` or `refused` for each cell, then `scores` for each map.

    Asked between maps, `stopped` ends it. A method that does not fit a network is an event with its sentence, not an exception.
    """
    records: list[tuple[str, str, Explanation]] = []
    targets: dict[str, int] = {}
    for name in wish.networks:
        said = _predict(subjects[name], wish)
        targets[name] = said["explained"]
        yield said
    cells = [(name, method) for name in wish.networks for method in costs.order(name, wish.methods)]
    cells.sort(
        key=lambda cell: costs.order(cell[0], wish.methods).index(cell[1])
    )  # row by row of the grid, cheap rows first
    shared: dict[str, dict[Any, Any]] = {name: {} for name in wish.networks}
    for name, method in cells:
        if stopped():
            return
        try:
            record = explain_shown(subjects[name], get(f"explainer/{method}"), wish, targets[name], shared[name])
        except UserError as error:
            yield {"kind": "refused", "network": name, "method": method, "sentence": str(error)}
            continue
        costs.seconds[name, method] = record.seconds
        records.append((name, method, record))
        yield _map_event(name, method, record)
    if wish.scores:
        yield from _score_events(records, stopped)


def explain_shown(
    subject: Subject, explainer: Explainer, wish: Showing, target: int, shared: dict[Any, Any] | None = None
) -> Explanation:
    """The record of one cell: what `explain` gives for the picture as a batch of one."""
    return explain(
        explainer, subject.network, _pixels(subject, wish), target, noise=wish.noise, seed=wish.seed, shared=shared
    )


def _pixels(subject: Subject, wish: Showing) -> Tensor:
    """(1, 3, side, side): the picture where the network is."""
    return torch.from_numpy(wish.pictures[subject.size])[None].to(next(subject.network.parameters()).device)


def _predict(subject: Subject, wish: Showing) -> Event:
    record = explain(
        get("explainer/centre_prior"), subject.network, _pixels(subject, wish), noise=wish.noise, seed=wish.seed
    )
    if not torch.isfinite(record.logits).all():
        raise UserError(
            f"{subject.name} answers this picture with NaN or infinite logits, so there is nothing to explain"
        )
    names = subject.class_names or []
    probabilities = record.logits.softmax(1)[0]
    top = probabilities.topk(min(5, len(probabilities)))
    chosen = class_index(wish.target, len(probabilities), subject.class_names)
    explained = int(record.target[0]) if chosen is None else chosen

    def named(k: int) -> str:
        return names[k] if k < len(names) else f"class {k}"

    return {
        "kind": "network",
        "network": subject.name,
        "predicted": [
            {"class": int(k), "name": named(int(k)), "probability": float(p)}
            for p, k in zip(top.values, top.indices, strict=True)
        ],
        "explained": explained,
        "explained_name": named(explained),
        "explained_probability": float(probabilities[explained]),
    }


def _map_event(network: str, method: str, record: Explanation) -> Event:
    heat = record.heatmap()[0].detach().cpu().numpy().astype(np.float32)
    reason = fault(heat)
    return {
        "kind": "map",
        "network": network,
        "method": method,
        "heat": heat,
        "blank": BLANK.get(reason or ""),
        "seconds": record.seconds,
        "passes": [record.forwards, record.backwards],
        "completeness_error": None if record.completeness_error is None else float(record.completeness_error[0]),
    }


BLANK = {
    "zero": "This map is zero everywhere: by this method nothing in the picture moves the score, as where a rectifier lets nothing through.",
    "NaN": "This map holds values that are no numbers: the network or the method divided by zero on this picture.",
    "infinite": "This map holds infinite values: a number grew beyond what the network's precision can hold.",
}


def _score_events(records: Sequence[tuple[str, str, Explanation]], stopped: Callable[[], bool]) -> Iterator[Event]:
    """Curves of each map, whether it is ahead of every one of nineteen random maps, and how far it moves when the picture hardly does."""
    curves: tuple[PerturbationCurve, PerturbationCurve] = (Deletion(points="adaptive"), Insertion(points="adaptive"))
    steady = MaxSensitivity(draws=4)
    chance: dict[str, list[float]] = {}
    for network, method, record in records:
        if stopped():
            return
        if network not in chance:
            chance[network] = _random_gains(record, curves)
        deletion, insertion = (float(metric.measure(record)[0, 0]) for metric in curves)
        event: Event = {"kind": "scores", "network": network, "method": method}
        if np.isfinite([deletion, insertion]).all():
            gain = insertion - deletion
            event |= {
                "deletion": deletion,
                "insertion": insertion,
                "curve_x": [float(value) for value in curves[0].walk.fractions],
                "deletion_curve": curves[0].curves(record)[0].tolist(),
                "insertion_curve": curves[1].curves(record)[0].tolist(),
                "ahead_of": sum(gain > other + CLEARLY for other in chance[network]),
                "random_maps": len(chance[network]),
            }
        else:
            event["sentence"] = "This map orders no pixels, so nothing can be removed in its order."
        if record.seconds < 0.5:
            common, _, floor = (float(value) for value in steady.measure(record)[0])
            event |= {"sensitivity": common, "floor": floor}
        yield event


def _random_gains(record: Explanation, curves: Sequence[PerturbationCurve]) -> list[float]:
    """Insertion less deletion of random maps on the same picture and network; of a few where a forward pass is dear."""
    count = RANDOM_MAPS if record.x.shape[-1] * record.x.shape[-2] <= QUICK_PIXELS else 0
    if not count:
        return []
    many = explain(
        get("explainer/random_map"),
        record.model,
        record.x.expand(count, -1, -1, -1),
        int(record.target[0]),
        noise=record.noise,
        seed=record.seed,
    )
    deletion, insertion = (metric.measure(many)[:, 0] for metric in curves)
    return [float(value) for value in insertion - deletion]
