"""Which images a report shows: the fixed ones, those explained worst, and those on which the maps disagree most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from explainode.metrics.results import Results
from explainode.report.board import Board, disagreement, is_control
from explainode.report.comparisons import FAITHFUL, final_rows


@dataclass(frozen=True)
class Pick:
    """A row of the board and why it is shown."""

    row: int
    reason: str


@dataclass(frozen=True)
class Group:
    """A heading, what it means, and its images; `elsewhere` are those that an earlier group shows already."""

    title: str
    note: str
    picks: list[Pick]
    elsewhere: list[Pick]


def choose_images(results: Results, board: Board, each: int = 8) -> list[Group]:
    """At most `each` images for each of three groups; an image is drawn once, in the first group that wants it."""
    shown: set[int] = set()
    groups = [
        _group(
            "Fixed images",
            "The same in every epoch and every report of this data.",
            [Pick(r, "") for r in range(min(each, len(board)))],
            shown,
        )
    ]
    metric, badness = worst(results, board)
    if metric is not None:
        note = f"The least faithful explanations among the images whose maps were kept, by {metric} averaged over explainers and models."
        groups.append(_group("Worst explained", note, _largest(badness, each, metric, len(board)), shown))
    between = "the two models" if len(board.models) == 2 else "the models" if len(board.models) > 2 else "the explainers"
    note = f"Where {between} point to different places: 1 − rank correlation of their maps, averaged."
    groups.append(_group("Most disagreement", note, _largest(disagreement(board), each, "disagreement", len(board)), shown))
    return [group for group in groups if group.picks or group.elsewhere]


def worst(results: Results, board: Board) -> tuple[str | None, np.ndarray]:
    """The metric that ranks images, and (N,) how bad each image's explanations are (controls aside); NaN where not measured."""
    rows = final_rows(results)
    names = [
        m
        for name in FAITHFUL
        for _, e, m in rows
        if m.startswith(name) and any((model, e, m) in results.per_image for model in board.models)
    ]
    if not names:
        return None, np.full(len(board), np.nan)
    metric = names[0]
    tables = [
        (results.per_image[key], -1.0 if row.higher_is_better else 1.0)
        for key, row in rows.items()
        if key[2] == metric and not is_control(key[1]) and key in results.per_image and row.higher_is_better is not None
    ]
    values = np.array([[sign * table.get(int(sample), np.nan) for sample in board.sample_id] for table, sign in tables]).reshape(
        -1, len(board)
    )
    known = ~np.isnan(values)
    return metric, np.divide(np.where(known, values, 0).sum(0), known.sum(0), out=np.full(len(board), np.nan), where=known.any(0))


def _largest(score: np.ndarray, each: int, name: str, total: int) -> list[Pick]:
    """The images with the largest score, and no more than half of all: the better half is not "worst"."""
    order = [int(r) for r in np.argsort(-score, kind="stable") if not np.isnan(score[r])]
    return [Pick(r, f"{name} {abs(score[r]):.2f}") for r in order[: min(each, total // 2)]]


def _group(title: str, note: str, picks: list[Pick], shown: set[int]) -> Group:
    fresh = [pick for pick in picks if pick.row not in shown]
    elsewhere = [pick for pick in picks if pick.row in shown]
    shown.update(pick.row for pick in fresh)
    return Group(title, note, fresh, elsewhere)
