"""One explicit Runge-Kutta step: Lei et al. 2023, Eq. 15-16."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from explainode.dynamics.tableau import Tableau

Time = float | Tensor  # a tensor (0-dim, float64) only where it is differentiated
Evaluate = Callable[[Time, Tensor], Tensor]


@dataclass(frozen=True)
class Interval:
    """From t0 to t1, as numbers and, where they are differentiated, as tensors."""

    t0: float | Tensor
    t1: float | Tensor

    @property
    def start(self) -> float:
        return float(self.t0.detach()) if isinstance(self.t0, Tensor) else float(self.t0)

    @property
    def end(self) -> float:
        return float(self.t1.detach()) if isinstance(self.t1, Tensor) else float(self.t1)

    @property
    def direction(self) -> int:
        """1 forward in time, -1 backward."""
        return 1 if self.end > self.start else -1

    @property
    def differentiated(self) -> bool:
        return any(isinstance(t, Tensor) and t.requires_grad for t in (self.t0, self.t1))

    def equal_steps(self, steps: int) -> list[float]:
        """The grid of so many equal steps."""
        return [self.start + (self.end - self.start) * (n / steps) for n in range(steps)] + [self.end]

    def fraction(self, t: float) -> float:
        """Where t lies, from 0 to 1: what stays when the ends move and the grid stretches with them."""
        return (t - self.start) / (self.end - self.start)

    def at(self, t: float, device: torch.device) -> Time:
        """A time of the grid, as a function of the ends where these are differentiated."""
        if not self.differentiated:
            return t
        t0, t1 = (torch.as_tensor(end, dtype=torch.float64, device=device) for end in (self.t0, self.t1))
        return t0 + self.fraction(t) * (t1 - t0)


@dataclass
class Step:
    """What a step computed: the state after it, and per stage its input X_i and slope k_i (None where the stage was left out)."""

    state: Tensor
    inputs: list[Tensor | None]
    slopes: list[Tensor | None]


def combine(x: Tensor, dt: Time, weights: Sequence[float], slopes: Sequence[Tensor | None]) -> Tensor:
    """x + dt sum_i weights_i slopes_i, zero weights skipped; x itself if all are zero."""
    result = x
    for weight, slope in zip(weights, slopes, strict=False):
        if not weight:
            continue
        assert slope is not None
        if isinstance(dt, Tensor):
            result = result + (dt * weight) * slope
        elif result is x:
            result = torch.add(x, slope, alpha=dt * weight)
        else:
            result.add_(slope, alpha=dt * weight)
    return result


def stage_time(t: Time, t_next: Time, c: float) -> Time:
    """t + c dt, exact at both ends: the last stage of a step and the first of the next see the same time."""
    if c == 0 or c == 1:
        return t_next if c else t
    return t + c * (t_next - t)


def step(
    tableau: Tableau, f: Evaluate, t: Time, t_next: Time, x: Tensor, stages: Sequence[int], first: Tensor | None = None
) -> Step:
    """The step from t to t_next, evaluating `stages` only; `first` is k_1 where it is known."""
    dt = t_next - t
    inputs: list[Tensor | None] = [None] * tableau.stages
    slopes: list[Tensor | None] = [None] * tableau.stages
    for i in stages:
        x_i = inputs[i] = combine(x, dt, tableau.a[i], slopes)  # Eq. (16)
        slopes[i] = first if i == 0 and first is not None else f(stage_time(t, t_next, tableau.c[i]), x_i)
    if tableau.fsal and stages[-1] == tableau.stages - 1:
        return Step(x_i, inputs, slopes)  # the last stage stood at the result
    return Step(combine(x, dt, tableau.b, slopes), inputs, slopes)  # Eq. (15)
