"""Runge-Kutta steps that can be undone: an exact gradient from the end state alone, whatever the number of steps.

With the increment Psi_h(t, x) of any explicit method from (t, x), and y_0 = z_0 = x_0, a step is

    y_{n+1} = l y_n + (1 - l) z_n + Psi_h(t_n, z_n)
    z_{n+1} = z_n - Psi_{-h}(t_{n+1}, y_{n+1})

whose inverse evaluates the same increments, which are then there to be differentiated.

Source: McCallum and Foster 2024 (Efficient, accurate and stable gradients for neural ODEs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from explainode.dynamics.adjoint import ForwardPass, Pullback, first_derivatives_only
from explainode.dynamics.draws import RandomState
from explainode.dynamics.failure import NonFiniteState
from explainode.dynamics.field import Field, check_transforms
from explainode.dynamics.problem import Solution, VectorField, check_grid, check_state, check_times, outside_compiler
from explainode.dynamics.replay import Session
from explainode.dynamics.step import Time, step
from explainode.dynamics.tableau import Tableau, tableau
from explainode.dynamics.trajectory import is_finite
from explainode.errors import UserError, nearest

GRADIENTS = ("reversible", "backprop")
SPARE = -8.0  # states' worth of graphs less than the symplectic adjoint keeps: nothing is released on the way


@dataclass(frozen=True)
class Reversible:
    """A reversible method made of an explicit Runge-Kutta method, with fixed steps, for dx/dt = f(t, x).

    It has the order of the method that it is made of, and evaluates the field twice as often. Its gradient keeps three states for any number of
    steps. It is not the method's own solution: the two differ by their errors.

    Args:
        tableau: the method, by name or as data.
        steps: how many equal steps.
        coupling: l, in (0, 1]: how far y is its own past, and how little of z it takes. Going back multiplies roundings by l^-steps.
        gradient: "reversible", exact; or "backprop", through the stored graph, with second derivatives.

    Raises:
        UserError: for unknown words, fewer than one step, or a coupling outside (0, 1].

    Source: McCallum and Foster 2024; the coupling of .99 is theirs.
    """

    tableau: str | Tableau = "rk4"
    steps: int = 16
    coupling: float = 0.99
    gradient: str = "reversible"

    def __post_init__(self) -> None:
        _ = self.method
        if self.gradient not in GRADIENTS:
            raise UserError(
                f"gradient must be one of {', '.join(GRADIENTS)}, got {self.gradient!r}; the nearest is {nearest(self.gradient, GRADIENTS, 1)}"
            )
        if self.steps < 1:
            raise UserError(f"steps must be at least 1, got {self.steps}")
        if not 0 < self.coupling <= 1:
            raise UserError(f"coupling must lie in (0, 1], got {self.coupling}; 1 couples least, and .99 is usual")

    @property
    def method(self) -> Tableau:
        """The tableau itself."""
        return tableau(self.tableau) if isinstance(self.tableau, str) else self.tableau

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
    ) -> Solution:
        """x(t1) from x(t0) = x0, as `RungeKutta.solve`, without a gradient with respect to the times.

        Raises:
            UserError: as `RungeKutta.solve`, and for times that require grad.
            NonFiniteState: if the state leaves the finite numbers.
            FieldChanged: in the backward pass, if the way back does not lead to x0: the field was changed, or roundings grew too much.
        """
        x0, interval = check_state(x0), check_times(t0, t1)
        if interval.differentiated:
            raise UserError(
                "a reversible solver has no gradient with respect to t0 and t1; pass them as numbers, or take RungeKutta"
            )
        times = interval.equal_steps(self.steps) if grid is None else check_grid(grid, interval)
        ours = self.gradient == "reversible" and torch.is_grad_enabled()
        f = Field(field, x0, parameters, inspect=ours)
        march = _March(self, f, times)
        if ours and (x0.requires_grad or f.parameters):
            check_transforms(self.gradient)
            state = _ReversibleAdjoint.apply(march, x0, *f.parameters)  # type: ignore[no-untyped-call]
        else:
            state, _ = march.solve(x0)
        if not is_finite(state):
            raise march.failure(x0.detach())
        return Solution(state, torch.tensor(times, dtype=torch.float64), f.evaluations, 0)


class _March:
    """A reversible solver, its field and its grid; `draws` per increment, in the order of evaluation."""

    def __init__(self, solver: Reversible, f: Field, grid: list[float]) -> None:
        self.method, self.coupling, self.f, self.grid = solver.method, solver.coupling, f, grid
        self.draws: list[list[RandomState | None] | None] = []

    def increment(self, t: float, t_next: float, x: Tensor) -> Tensor:
        """Psi from t to t_next."""
        drawn: list[RandomState | None] = []

        def slope(time: Time, x_i: Tensor) -> Tensor:
            slope = self.f(time, x_i)
            drawn.append(self.f.before)
            return slope

        increment = step(self.method, slope, t, t_next, x, self.method.working_stages).state - x
        self.draws.append(drawn if self.f.draws else None)
        return increment

    def advance(self, t: float, t_next: float, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """One step of both."""
        y = self.coupling * y + (1 - self.coupling) * z + self.increment(t, t_next, z)
        return y, z - self.increment(t_next, t, y)

    def solve(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        y = z = x0
        for t, t_next in pairwise(self.grid):
            y, z = self.advance(t, t_next, y, z)
        return y, z

    def failure(self, x: Tensor) -> NonFiniteState:
        """Walks again to the first step that leaves the finite numbers."""
        evaluations, y, z = self.f.evaluations, x, x
        t = t_next = self.grid[0]
        with torch.no_grad():
            for t, t_next in pairwise(self.grid):
                y, z = self.advance(t, t_next, y, z)
                if not is_finite(y):
                    break
        return NonFiniteState(t, t_next - t, evaluations)


class _BackAndForth(ForwardPass):
    """The increments of a reversible solution as steps: 2 n goes from t_n to t_{n+1}, 2 n + 1 back again."""

    def ends(self, n: int) -> tuple[float, float]:
        t, t_next = self.grid[n // 2], self.grid[n // 2 + 1]
        return (t_next, t) if n % 2 else (t, t_next)


class _ReversibleAdjoint(torch.autograd.Function):
    """The gradient of all steps from their end: each is undone, and differentiated with the increments that undo it."""

    @staticmethod
    def forward(ctx: Any, march: _March, x0: Tensor, *parameters: Tensor) -> Tensor:
        y, z = march.solve(x0)
        ctx.save_for_backward(x0, y.clone(), z)  # the result's owner may change it
        interval: Any = None
        ctx.record = _BackAndForth(march.method, march.f, interval, march.grid, march.draws, {})
        ctx.coupling = march.coupling
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        x0, y, z = (tensor.detach() for tensor in ctx.saved_tensors)
        _, needs_x0, *wanted = ctx.needs_input_grad
        record, coupling = ctx.record, ctx.coupling
        steps = len(record.grid) - 1

        def back(session: Session) -> tuple[Tensor, Pullback]:
            nonlocal y, z
            pullback = Pullback(record, session, wanted, times=False)
            of_y, of_z = gradient, torch.zeros_like(gradient)
            for n in reversed(range(steps)):
                stages = pullback.again(2 * n + 1, y, SPARE)
                z = stages.state.sub_(y).add_(z)  # in place: this is where memory peaks
                against = -of_z
                of_y = of_y + pullback.through(2 * n + 1, stages, against).sub_(against)
                stages = pullback.again(2 * n, z, SPARE)
                y = stages.state.sub_(z).neg_().add_(y).sub_(z, alpha=1 - coupling).div_(coupling)
                of_z = (of_z + pullback.through(2 * n, stages, of_y)).sub_(of_y, alpha=coupling)
                of_y = coupling * of_y
            growth = steps * coupling**-steps
            session.check(y, x0, growth)
            session.check(z, x0, growth)
            return of_y + of_z, pullback

        with torch.no_grad():
            gradient, pullback = record.replay.run(back)
        gradients = (gradient if needs_x0 else None, *(total.total for total in pullback.parameters))
        return (None, *(first_derivatives_only(gradients) if torch.is_grad_enabled() else gradients))
