"""Which images a report shows: the fixed ones, those explained worst, and those on which the maps disagree most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from explainode.metrics.results import Results
from explainode.report.board import Board, disagreement
from explainode.report.comparisons import JUDGES, final_rows, first_by_role

EACH = 8  # images of a group at most


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


def choose_images(results: Results, board: Board, each: int = EACH) -> list[Group]:
    """At most `each` images for each of three groups; an image is drawn once, in the first group that wants it."""
    shown: set[int] = set()
    groups = [
        _group(
            "Fixed images",
            "The same in every epoch and every report of this data.",
            [Pick(r, "") for r in range(min(each, board.fixed))],
            shown,
        )
    ]
    metric, badness = unfaithfulness(results)
    kept = f"the {len(board)} images whose maps were kept" + (
        f" (of {len(badness)} measured)" if len(badness) > len(board) else ""
    )
    if metric is not None:
        among, picks = kept, _largest(np.array([badness.get(int(s), np.nan) for s in board.sample_id]), each, metric)
        row = {int(sample): r for r, sample in enumerate(board.sample_id)}
        if set(worst := worst_images(results, each)) <= set(row):
            among, picks = (
                f"all {len(badness)} measured images",
                [_pick(row[sample], metric, badness[sample]) for sample in worst],
            )
        note = f"The least faithful explanations among {among}, by {metric} averaged over explainers and models."
        groups.append(_group("Worst explained", note, picks, shown))
    between = (
        "the two models" if len(board.models) == 2 else "the models" if len(board.models) > 2 else "the explainers"
    )
    note = f"Where {between} point to different places, among {kept}: 1 − rank correlation of their maps, averaged."
    groups.append(_group("Most disagreement", note, _largest(disagreement(board), each, "disagreement"), shown))
    return [group for group in groups if group.picks or group.elsewhere]


def unfaithfulness(results: Results) -> tuple[str | None, dict[int, float]]:
    """The metric that ranks images, and how bad each measured image's explanations are: averaged over explainers (controls aside) and models."""
    rows = {key: row for key, row in final_rows(results).items() if key in results.per_image}
    metric = first_by_role(JUDGES, list(rows.values()))
    if metric is None:
        return None, {}
    values: dict[int, list[float]] = {}
    for key, row in rows.items():
        if key[2] == metric and not row.control and row.higher_is_better is not None:
            for sample, value in results.per_image[key].items():
                if not np.isnan(value):
                    values.setdefault(sample, []).append(-value if row.higher_is_better else value)
    return metric, {sample: float(np.mean(values[sample])) for sample in sorted(values)}


def worst_images(results: Results, each: int = EACH) -> list[int]:
    """Sample ids of the least faithfully explained of all measured images, worst first; no more than half: the better half is not "worst"."""
    badness = unfaithfulness(results)[1]
    return sorted(badness, key=lambda sample: -badness[sample])[: min(each, len(badness) // 2)]


def _largest(score: np.ndarray, each: int, name: str) -> list[Pick]:
    """The images with the largest score, and no more than half of all."""
    order = [int(r) for r in np.argsort(-score, kind="stable") if not np.isnan(score[r])]
    return [_pick(r, name, score[r]) for r in order[: min(each, len(score) // 2)]]


def _pick(row: int, name: str, score: float) -> Pick:
    return Pick(row, f"{name} {abs(score):.2f}")


def _group(title: str, note: str, picks: list[Pick], shown: set[int]) -> Group:
    fresh = [pick for pick in picks if pick.row not in shown]
    elsewhere = [pick for pick in picks if pick.row in shown]
    shown.update(pick.row for pick in fresh)
    return Group(title, note, fresh, elsewhere)
