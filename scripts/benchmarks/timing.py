"""Ratios of times on a busy machine: contenders take turns, CPU time counts, and each turn is compared with its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median


def ratios(calls: Mapping[str, Callable[[], object]], rounds: int, repeat: int = 1) -> tuple[dict[str, float], float]:
    """For each call the median over rounds of its time / the first call's time in that round; and the first's median milliseconds.

    Short calls take their turn `repeat` times in a row, or they would pay for the memory that the previous contender left.
    """
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        order = list(calls)
        for name in order[turn % len(order) :] + order[: turn % len(order)]:  # nobody always follows the same neighbor
            start = time.process_time()
            for _ in range(repeat):
                calls[name]()
            seconds[name].append((time.process_time() - start) / repeat)
    first = next(iter(seconds.values()))
    return {
        name: median(a / b for a, b in zip(own, first, strict=True)) for name, own in seconds.items()
    }, 1000 * median(first)


def row(what: str, ratio: float, target: float | None, note: str = "") -> None:
    """One line of a table: what was measured, its ratio, its target."""
    verdict = "" if target is None else f"<= {target:<6g}{'met' if ratio <= target else 'MISSED':8}"
    print(f"{what:64}{ratio:8.3f}  {verdict:16}{note}")
