"""torchdiffeq behind the call of our solvers: as an option, for its continuous adjoint, and as an oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from explainode.dynamics.failure import NonFiniteState, SolverError, StepUnderflow, TooManySteps
from explainode.dynamics.field import Field
from explainode.dynamics.problem import Solution, VectorField, check_grid, check_state, check_times, outside_compiler
from explainode.dynamics.step import Interval
from explainode.dynamics.trajectory import is_finite
from explainode.errors import UserError, nearest

FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")  # its rk4 is the 3/8 rule
ADAPTIVE = ("adaptive_heun", "fehlberg2", "bosh3", "dopri5", "dopri8")
_FAILURES = {"underflow in dt": StepUnderflow, "max_num_steps": TooManySteps, "non-finite": NonFiniteState}


@dataclass(frozen=True)
class TorchDiffEq:
    """torchdiffeq's solvers.

    Args:
        method: one of torchdiffeq's names. Its "rk4" is the 3/8 rule, our rk4_38.
        steps: how many equal steps, for fixed methods; None for adaptive ones.
        rtol, atol: the tolerance of adaptive methods, and of the adjoint equation.
        adjoint: the gradient from the adjoint equation, solved backward in time: approximate, with an error of the size of the
            discretization's. Otherwise backpropagation through the steps, and through the choice of the first one.
        max_steps: that adaptive methods may take.

    Raises:
        UserError: for an unknown method, steps for an adaptive method, or none for a fixed one.

    Source: Chen et al. 2018; torchdiffeq 0.2.5.
    """

    method: str = "dopri5"
    steps: int | None = None
    rtol: float = 1e-4
    atol: float = 1e-6
    adjoint: bool = False
    max_steps: int = 1000

    def __post_init__(self) -> None:
        if self.method not in (*FIXED, *ADAPTIVE):
            raise UserError(
                f"torchdiffeq has no method {self.method!r} here; the nearest are {nearest(self.method, (*FIXED, *ADAPTIVE))}"
            )
        if self.method in FIXED and (self.steps is None or self.steps < 1):
            raise UserError(
                f"torchdiffeq's {self.method} takes fixed steps; set steps to a number of at least 1, got {self.steps}"
            )
        if self.method in ADAPTIVE and self.steps is not None:
            raise UserError(
                f"torchdiffeq's {self.method} chooses its steps by rtol and atol; leave steps open, or take a fixed method: {FIXED}"
            )
        if not (self.rtol > 0 and self.atol > 0):
            raise UserError(f"rtol and atol must be positive, got {self.rtol} and {self.atol}")

    def __call__(self, field: VectorField, x0: Tensor, t0: float | Tensor = 0.0, t1: float | Tensor = 1.0) -> Tensor:
        """x(t1) from x(t0) = x0: (B, *S) -> (B, *S)."""
        return self.solve(field, x0, t0, t1).state

    @outside_compiler
    def solve(
        self,
        field: VectorField,
        x0: Tensor,
        t0: float | Tensor = 0.0,
        t1: float | Tensor = 1.0,
        *,
        grid: Tensor | Sequence[float] | None = None,
        parameters: Sequence[Tensor] | None = None,
        owner: Any = None,
    ) -> Solution:
        """x(t1) from x(t0) = x0, as `RungeKutta.solve`; a grid can be given to fixed methods only.

        The grid of an adaptive method ends at t1, but its last step went beyond: torchdiffeq interpolates.

        Raises:
            UserError: as `RungeKutta.solve`; for adaptive steps in float16.
            SolverError: where torchdiffeq fails.
        """
        from torchdiffeq import odeint, odeint_adjoint  # brings scipy along, which takes its time: only when asked for

        x0, interval = check_state(x0), check_times(t0, t1)
        if self.method in ADAPTIVE and x0.dtype == torch.float16:
            raise UserError(
                f"torchdiffeq's {self.method} chooses its steps in the precision of the state, and float16 has too little for it (steps underflow, "
                "gradients become NaN); pass the state in float32, or take a fixed method or RungeKutta"
            )
        f = Field(field, x0, parameters, owner=owner, inspect=self.adjoint and torch.is_grad_enabled())
        watched = (_Watched if self.method in FIXED else _WatchedAdaptive)(f, interval)
        options: dict[str, Any] = {"max_num_steps": self.max_steps}
        if self.method in FIXED:
            times = interval.equal_steps(self.steps or 1) if grid is None else check_grid(grid, interval)
            options = {"grid_constructor": _constructor(times)}
        elif grid is not None:
            raise UserError(
                f"torchdiffeq's {self.method} cannot replay a grid; use RungeKutta, or a fixed method: {', '.join(FIXED)}"
            )
        ends = torch.stack([torch.as_tensor(t, dtype=torch.float64, device=x0.device) for t in (t0, t1)])
        arguments: dict[str, Any] = {"rtol": self.rtol, "atol": self.atol, "method": self.method, "options": options}
        try:
            if self.adjoint:
                state = odeint_adjoint(watched, x0, ends, **arguments, adjoint_params=f.parameters)[-1]
            else:
                state = odeint(watched, x0, ends, **arguments)[-1]
        except AssertionError as error:  # its way to say that it failed
            raise _failure(str(error), watched) from error
        if not is_finite(state):
            raise NonFiniteState(watched.times[-1], watched.dt, f.evaluations)
        inside = [t for t in watched.times if (interval.end - t) * interval.direction > 0]
        accepted = times if self.method in FIXED else [*inside, interval.end]
        return Solution(state, torch.tensor(accepted, dtype=torch.float64), f.evaluations, watched.rejected)


class _Watched(nn.Module):
    """The field as torchdiffeq wants it, noting what the solver does; not the field's module, so that nothing is registered twice."""

    def __init__(self, f: Field, interval: Interval) -> None:
        super().__init__()
        self.f, self.times, self.dt, self.rejected = f, [interval.start], 0.0, 0
        self.direction = interval.direction  # torchdiffeq goes backward by negating time, and calls back with its own

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        if torch._C._current_autograd_node() is not None:  # inside backward
            return self.f.replay(t, x)
        return self.f(t, x)


class _WatchedAdaptive(_Watched):
    """With torchdiffeq's callbacks, which it warns about where steps are fixed."""

    def callback_accept_step(self, t: Tensor, x: Tensor, dt: Tensor) -> None:
        self.dt = self.direction * float(dt.detach())
        self.times.append(self.direction * float(t.detach()) + self.dt)

    def callback_reject_step(self, t: Tensor, x: Tensor, dt: Tensor) -> None:
        self.dt = self.direction * float(dt.detach())
        self.rejected += 1


def _constructor(times: Sequence[float]) -> Callable[[Any, Tensor, Tensor], Tensor]:
    """torchdiffeq's `grid_constructor` for a given grid, in the direction that is asked for; the ends may be differentiated."""

    def construct(func: Any, x: Tensor, ends: Tensor) -> Tensor:
        fractions = torch.tensor(
            [(t - times[0]) / (times[-1] - times[0]) for t in times], dtype=ends.dtype, device=ends.device
        )
        if ends[0] > ends[-1]:
            fractions = 1 - fractions.flip(0)
        inner = ends[0] + fractions[1:-1] * (ends[-1] - ends[0])
        return torch.cat([ends[:1], inner, ends[-1:]])

    return construct


def _failure(message: str, watched: _Watched) -> SolverError:
    kind = next((kind for words, kind in _FAILURES.items() if words in message), SolverError)
    return kind(watched.times[-1], watched.dt, watched.f.evaluations)
