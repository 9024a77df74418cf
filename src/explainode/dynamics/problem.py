"""What every solver of an initial value problem is asked and answers: the vector field, the solution, and the checks at the door."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from explainode.dynamics.failure import SolverError
from explainode.dynamics.step import Interval
from explainode.errors import UserError

Solve = TypeVar("Solve", bound=Callable[..., Any])
VectorField = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Solution:
    """A solved initial value problem.

    Attributes:
        state: (B, *S), x(t1).
        grid: (N + 1,) float64 on the CPU, the times of the accepted steps; `solve(..., grid=grid)` replays them bit for bit.
        evaluations: of the field in the forward pass.
        rejected: steps that the controller tried and gave up.
        failure: why fixed steps were taken instead of adaptive ones (`fallback_steps`); None if they were not.
        states: (T, B, *S), x at the T times that were asked for (`solve(..., at=...)`); None if none were.
    """

    state: Tensor
    grid: Tensor
    evaluations: int
    rejected: int
    failure: SolverError | None = None
    states: Tensor | None = None


def check_state(x0: Tensor) -> Tensor:
    """x0, if it is a batch of states in floating point.

    Raises:
        UserError: otherwise.
    """
    if not isinstance(x0, Tensor) or not x0.is_floating_point() or x0.dim() < 1:
        got = f"{x0.dtype} of shape {tuple(x0.shape)}" if isinstance(x0, Tensor) else type(x0).__name__
        raise UserError(f"x0 must be a floating-point tensor (B, *S), got {got}")
    return x0


def check_times(t0: float | Tensor, t1: float | Tensor) -> Interval:
    """The interval from t0 to t1.

    Raises:
        UserError: if they are not scalars, not finite, or equal.
    """
    for name, t in (("t0", t0), ("t1", t1)):
        if isinstance(t, Tensor) and t.dim() != 0:
            raise UserError(f"{name} must be a number or a 0-dim tensor, got shape {tuple(t.shape)}")
    interval = Interval(t0, t1)
    start, end = interval.start, interval.end
    if not (math.isfinite(start) and math.isfinite(end)) or start == end:
        raise UserError(f"t0 and t1 must be finite and differ, got t0={start:g} and t1={end:g}")
    return interval


def check_grid(grid: Tensor | Sequence[float], interval: Interval) -> list[float]:
    """A saved grid as numbers.

    Raises:
        UserError: if it does not run from t0 to t1 in one direction.
    """
    times = [float(t) for t in (grid.tolist() if isinstance(grid, Tensor) else grid)]
    direction = interval.direction
    runs = len(times) > 1 and all((b - a) * direction > 0 for a, b in pairwise(times))
    if not runs or times[0] != interval.start or times[-1] != interval.end:
        ends = f" from {times[0]:g} to {times[-1]:g}" if times else ""
        raise UserError(
            f"grid must {'rise' if direction > 0 else 'fall'} from t0={interval.start:g} to t1={interval.end:g}, got {len(times)} times{ends}"
        )
    return times


def check_at(at: Tensor | Sequence[float] | None, interval: Interval) -> list[float]:
    """The times between t0 and t1 at which the state is asked for, as numbers.

    Raises:
        UserError: if they do not run from t0 to t1 in one direction, or if t0 or t1 are differentiated, with which the steps would move.
    """
    if at is None:
        return []
    times = [float(t) for t in (at.tolist() if isinstance(at, Tensor) else at)]
    inside = all(0 <= interval.fraction(t) <= 1 for t in times)
    if not times or not inside or not all((b - a) * interval.direction > 0 for a, b in pairwise(times)):
        raise UserError(
            f"at must name times that run from t0={interval.start:g} to t1={interval.end:g}, each once, got {[round(t, 6) for t in times]}"
        )
    if interval.differentiated or (isinstance(at, Tensor) and at.requires_grad):
        raise UserError(
            "states at times between have no gradient with respect to t0, t1 and these times; pass them as numbers, or "
            "solve from one to the next"
        )
    return times


def through(grid: Sequence[float], at: Sequence[float]) -> list[float]:
    """A grid that meets the times `at`: where it misses one by a rounding it is moved there, otherwise the step is cut in two."""
    near = 1e-9 * abs(grid[-1] - grid[0])
    kept = [t for t in grid if not any(abs(t - stop) <= near for stop in at)]
    return sorted({*kept, *at}, reverse=grid[-1] < grid[0])


def outside_compiler(solve: Solve) -> Solve:
    """`solve`, which torch.compile is to leave alone with all that it calls: its steps are plain Python, and only the field is worth
    compiling, which may be compiled by itself.

    torch.compiler.disable at once would import the compiler, a second and a half, for everybody.
    """

    @wraps(solve)
    def call(*arguments: Any, **settings: Any) -> Any:
        function = torch.compiler.disable(solve) if "torch._dynamo" in sys.modules else solve
        return function(*arguments, **settings)

    return cast(Solve, call)
