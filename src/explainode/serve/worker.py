"""The process that computes: it knows the networks, takes one job after the other, and sends what it finds as it finds it.

It is a process of its own, so that it can be killed when it hangs, and so that a page answers while it computes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from explainode.errors import UserError


@dataclass(frozen=True)
class Place:
    """What the server shows, said on its command line.

    Attributes:
        runs: run directories; none, and no model: the pair in the package.
        settings: of `explainode explain` where a model of conf/ is named, else None.
        gallery: a folder of pictures; None: drawn shapes.
        device: as in configurations.
    """

    runs: tuple[str, ...] = ()
    settings: Mapping[str, Any] | None = None
    gallery: str | None = None
    device: str = "auto"
    count: int = 24


def subjects_of(place: Place) -> list[Any]:
    """The networks, ready to be asked.

    Raises:
        UserError: if a run has no network, or two have one name.
    """
    from explainode.data.shapes import CLASS_NAMES
    from explainode.jobs.demo_pair import SIZE, demo_networks
    from explainode.jobs.measure import choose_device
    from explainode.jobs.pictures import Subject, choose_subjects

    base = {"device": place.device, "checkpoint": None, "size": None, "model": None, "run": None}
    if place.settings is not None:
        return choose_subjects(base | dict(place.settings))
    if not place.runs:
        device = choose_device(place.device)
        return [Subject(name, network.to(device), SIZE, list(CLASS_NAMES)) for name, network in demo_networks().items()]
    found = [subject for run in place.runs for subject in choose_subjects(base | {"run": run})]
    names = [subject.name for subject in found]
    if len(set(names)) < len(names):
        raise UserError(f"two networks have one name ({', '.join(names)}); rename one of the run directories")
    return found


def gallery_of(place: Place, sizes: set[int]) -> list[tuple[str, dict[int, Any]]]:
    """(name, {side: pixels}) of each picture of the gallery; what cannot be read is left out."""
    from explainode.data.pictures import load_picture
    from explainode.jobs.demo_pair import SIZE, demo_pictures
    from explainode.jobs.pictures import PICTURES

    if place.gallery is None and sizes == {SIZE}:
        return [(name, {SIZE: image}) for name, image in demo_pictures(place.count)]
    if place.gallery is None:
        return []
    found = []
    for path in sorted(file for file in Path(place.gallery).rglob("*") if file.suffix.lower() in PICTURES)[
        : place.count
    ]:
        try:
            found.append((path.stem, {side: load_picture(path, side).image for side in sizes}))
        except UserError:
            continue
    if not found:
        raise UserError(f"{place.gallery} holds no picture that can be read; name a folder of pictures with --gallery")
    return found


def work(connection: Connection) -> None:
    """The program of the process: learn what to show, load, say what is there, then serve jobs until the other end is closed."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this one
    import torch

    from explainode.jobs.showing import Costs

    try:
        place = connection.recv()
        subjects = {subject.name: subject for subject in subjects_of(place)}
        gallery = gallery_of(place, {subject.size for subject in subjects.values()})
        connection.send(("ready", _about(subjects, gallery, torch)))
    except UserError as error:
        connection.send(("failed", str(error)))
        return
    costs = Costs()
    while True:
        try:
            kind, number, wish = connection.recv()
        except (EOFError, OSError):
            return
        if kind == "stop":  # of a job that had ended when it was said
            continue
        try:
            for event in _events(subjects, number, wish, costs, connection):
                connection.send(("event", number, event))
            connection.send(("done", number, None))
        except UserError as error:
            connection.send(("done", number, str(error)))
        except (BrokenPipeError, EOFError, OSError):
            return
        except Exception as error:  # a fault of ours costs its job, not the server
            connection.send(
                ("done", number, f"this job ended with a fault of ours ({type(error).__name__}); the others go on")
            )


def _events(
    subjects: Mapping[str, Any], number: str, wish: Any, costs: Any, connection: Connection
) -> Iterator[dict[str, Any]]:
    from explainode.jobs.showing import show

    def stopped() -> bool:
        """Whether the other end has stopped this job; while one runs, nothing else is said."""
        while connection.poll():
            if connection.recv()[1] == number:
                return True
        return False

    yield from show(subjects, wish, costs, stopped)


def _about(subjects: Mapping[str, Any], gallery: list[tuple[str, dict[int, Any]]], torch: Any) -> dict[str, Any]:
    """Names, classes and sizes, and what each network says of each picture of the gallery: where they disagree comes first."""
    items = []
    said: dict[str, list[tuple[int, float]]] = {}
    for name, subject in subjects.items():
        device = next(subject.network.parameters()).device
        rows = []
        for first in range(0, len(gallery), 8):
            images = torch.stack([pictures[subject.size] for _, pictures in gallery[first : first + 8]]).to(device)
            with torch.no_grad():
                top = subject.network(images).softmax(1).max(1)
            rows += list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        said[name] = rows
    for number, (title, pictures) in enumerate(gallery):
        predictions = {
            name: {"name": _class(subjects[name], rows[number][0]), "probability": rows[number][1]}
            for name, rows in said.items()
        }
        items.append(
            {
                "title": title,
                "predictions": predictions,
                "disagree": len({entry["name"] for entry in predictions.values()}) > 1,
                "pictures": {side: pixels.numpy() for side, pixels in pictures.items()},
            }
        )
    items.sort(key=lambda item: not item["disagree"])
    return {
        "networks": [
            {
                "name": name,
                "size": subject.size,
                "classes": list(subject.class_names or []),
                "stochastic": _draws_noise(subject.network),
            }
            for name, subject in subjects.items()
        ],
        "gallery": items,
    }


def _class(subject: Any, k: int) -> str:
    names = subject.class_names or []
    return names[k] if k < len(names) else f"class {k}"


def _draws_noise(network: Any) -> bool:
    return any(getattr(module, "noise", None) is not None for module in network.modules())


if __name__ == "__main__":
    import sys

    from explainode.serve.worker import work as program  # under its own name, so that what is sent is known by it

    program(Connection(int(sys.argv[1])))
