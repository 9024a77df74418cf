"""The points of a sweep: which there are, what distinguishes them, and which failed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from explainode.errors import UserError
from explainode.metrics.results import Results
from explainode.runs.directory import RunDirectory, final
from explainode.runs.merge import Source

OVERRIDES = Path("hydra/overrides.yaml")
FAILURE = "failure.txt"  # in the directory of a point that went wrong: why


@dataclass(frozen=True)
class Sweep:
    """The points that have results, each named by the settings that distinguish it, and a sentence for each that has none."""

    points: list[Source]
    failed: list[str]


def is_sweep(folder: Path) -> bool:
    """Whether a folder is no run itself, but holds the points of a multirun."""
    return not (folder / "metrics.csv").is_file() and bool(_points(folder))


def read_sweep(folder: Path) -> Sweep:
    """The points of `multirun/<name>/<time>`, in their order.

    Raises:
        UserError: if none of them has results, or a file of overrides is damaged.
    """
    names = _names({point: _overrides(point) for point in _points(folder)})
    points, failed = [], []
    splits = {point: _split(point) for point in names}
    for point, name in names.items():
        if (point / FAILURE).is_file():
            reason = (point / FAILURE).read_text(encoding="utf-8").strip()
        elif splits[point] is None:
            reason = "it has no results"
        elif splits[point] != "test" and "test" in splits.values():  # killed while it trained
            reason = f"it was not measured at its end, only on the {splits[point]} split"
        else:
            points.append(Source(point, name, short=True))
            continue
        failed.append(f"{name} (point {point.name}) failed and is left out: {reason.rstrip('.')}.")
    if not points:
        raise UserError(f"none of the {len(names)} points of {folder} has results: {failed[0]}")
    return Sweep(points, failed)


def _split(point: Path) -> str | None:
    """The split of a point's last measurement; None where there is none."""
    return next((row.split for row in final(Results(rows=RunDirectory(point).read_rows())).rows), None)


def _points(folder: Path) -> list[Path]:
    """The directories of the points: by number, as Hydra counts them."""
    found = [path.parent.parent for path in folder.glob(f"*/{OVERRIDES}")] if folder.is_dir() else []
    return sorted(
        found, key=lambda path: (not path.name.isdigit(), int(path.name) if path.name.isdigit() else 0, path.name)
    )


def read_overrides(run: Path) -> list[str]:
    """The words `key=value` that a run was started with, as Hydra notes them; none where it has noted nothing yet.

    Raises:
        UserError: if the file is damaged.
    """
    path = run / OVERRIDES
    if not path.is_file():
        return []
    try:
        return [str(word) for word in yaml.safe_load(path.read_text(encoding="utf-8")) or []]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is damaged ({str(error).splitlines()[0]}); restore it or leave the point out"
        ) from error


def _overrides(point: Path) -> dict[str, str]:
    pairs = (word.partition("=") for word in read_overrides(point))
    return {key.lstrip("+"): value for key, _, value in pairs}


def _names(overrides: dict[Path, dict[str, str]]) -> dict[Path, str]:
    """Each point by the settings that are not the same for all, `model.` left out where it is clear without; by its number where nothing differs."""
    keys = list(dict.fromkeys(key for of_point in overrides.values() for key in of_point))
    telling = [key for key in keys if len({of_point.get(key) for of_point in overrides.values()}) > 1]
    short = {key: key.removeprefix("model.") for key in telling}
    clear = {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}
    named = {
        point: ", ".join(f"{clear[key]}={of_point[key]}" for key in telling if key in of_point) or point.name
        for point, of_point in overrides.items()
    }
    taken = list(named.values())
    return {point: name if taken.count(name) == 1 else f"{name} ({point.name})" for point, name in named.items()}
