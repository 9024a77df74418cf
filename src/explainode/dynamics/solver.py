"""Runge-Kutta solvers with exact gradients: `RungeKutta(...)(field, x0)` is x(t1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from explainode.dynamics.controller import CONTROLLERS, NORMS, Controller
from explainode.dynamics.failure import SolverError
from explainode.dynamics.field import Field, check_transforms
from explainode.dynamics.problem import (
    Solution,
    VectorField,
    check_at,
    check_grid,
    check_state,
    check_times,
    outside_compiler,
    through,
)
from explainode.dynamics.step import Interval
from explainode.dynamics.structure import Structure
from explainode.dynamics.tableau import Tableau, tableau
from explainode.dynamics.torch_diff_eq import TorchDiffEq
from explainode.dynamics.trajectory import CheckpointedTrajectory, TracedTrajectory, Trajectory
from explainode.errors import UserError, nearest

GRADIENTS = ("symplectic", "backprop", "adjoint")
MEMORIES = ("step", "stage", "sqrt")
# our names -> torchdiffeq's, whose rk4 is the 3/8 rule
CONTINUOUS_FIXED = {"euler": "euler", "midpoint": "midpoint", "heun2": "heun2", "heun3": "heun3", "rk4_38": "rk4"}
CONTINUOUS_ADAPTIVE = {"heun2": "adaptive_heun", "fehlberg2": "fehlberg2", "bosh3": "bosh3", "dopri5": "dopri5"}


@dataclass(frozen=True)
class RungeKutta:
    """An explicit Runge-Kutta method with fixed or adaptive steps, for dx/dt = f(t, x).

    Args:
        tableau: the method, by name or as data.
        steps: how many equal steps; None chooses them by rtol and atol, which needs a method with an error estimate.
        rtol, atol: the tolerance of adaptive steps, relative to the state and absolute.
        gradient: "symplectic", exact, from checkpoints; "backprop", exact, through the stored graph (the only one with second derivatives);
            "adjoint", torchdiffeq's continuous adjoint: approximate, its error is that of the discretization.
        memory: of the symplectic adjoint. "step" keeps one state per step; "stage" one per stage and saves a recomputation, which pays for
            some fields; "sqrt" about 2 sqrt(steps) states for one more forward pass. `Reversible` keeps three.
        norm: of the error estimate. "batch" is the root mean square over all elements; "sample" the largest of those of single samples, so
            that easy images cannot hide a hard one; "max" the largest element.
        controller: of adaptive steps: "I", "PI" or "PID"; see `Controller`.
        max_steps: that adaptive steps may take, rejected ones included.
        fallback_steps: fixed steps to take where adaptive ones fail; None raises.

    Raises:
        UserError: for unknown words, fewer than one step, tolerances that are not positive, adaptive steps without an error estimate.

    Source: Hairer, Noersett and Wanner 1993, II; the gradient: `adjoint.py`.
    The exact gradient of adaptive steps is that of the accepted steps, frozen: how they were chosen is not differentiated, and with t0
    and t1 the whole grid stretches.

    The backward pass of "symplectic" and "adjoint" evaluates the field again: forward hooks on layers inside it run again then, and see the
    states of that pass. Who collects activations collects them in the forward pass only, or takes "backprop", under which each evaluation
    happens once. "symplectic" finds the field as it was, or raises `FieldChanged` (docs/dynamics.md has the list). torch.compile leaves
    the solver as it is (compile the field itself), and of the gradients torch.func's transforms go through "backprop" alone.
    """

    tableau: str | Tableau = "rk4"
    steps: int | None = None
    rtol: float = 1e-4
    atol: float = 1e-6
    gradient: str = "symplectic"
    memory: str = "step"
    max_steps: int = 1000
    fallback_steps: int | None = None
    norm: str = "batch"
    controller: str = "I"

    def __post_init__(self) -> None:
        method = self.method
        for what, word, words in (
            ("gradient", self.gradient, GRADIENTS),
            ("memory", self.memory, MEMORIES),
            ("norm", self.norm, NORMS),
            ("controller", self.controller, tuple(CONTROLLERS)),
        ):
            if word not in words:
                raise UserError(
                    f"{what} must be one of {', '.join(words)}, got {word!r}; the nearest is {nearest(word, words, 1).split(',')[0]}"
                )
        for name, count in (
            ("steps", self.steps),
            ("max_steps", self.max_steps),
            ("fallback_steps", self.fallback_steps),
        ):
            if count is not None and count < 1:
                raise UserError(f"{name} must be at least 1, got {count}")
        if not (self.rtol > 0 and self.atol > 0):
            raise UserError(f"rtol and atol must be positive, got {self.rtol} and {self.atol}")
        if self.steps is None and not method.adaptive:
            raise UserError(
                f"{method.name} has no error estimate to choose steps by; set steps to a number, or take an adaptive method such as dopri5"
            )
        if self.gradient == "adjoint":
            _ = self.continuous_adjoint

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
        at: Tensor | Sequence[float] | None = None,
        owner: Any = None,
    ) -> Solution:
        """x(t1) from x(t0) = x0, with the steps taken.

        Args:
            field: f(t, x), (), (B, *S) -> (B, *S); the same answer whenever it is asked (draws from torch's generator are replayed).
            x0: (B, *S), floating point; or a tuple or dictionary of such tensors of one dtype and batch size, as which the field then gets its
                state and returns its slope, and `Solution.state` comes.
            t0, t1: numbers or 0-dim tensors; backward in time where t1 < t0.
            grid: the grid of another solution, to take the same steps; `steps` and the tolerances are then not used.
            parameters: tensors to differentiate by; None takes those of the field where it is a module, or of the module it is a method of.
            at: times from t0 to t1 at which the state is wanted as well, as `Solution.states`: a step ends at each, and losses along the way have
                their exact gradient. Fixed steps that do not meet a time are cut in two there.
            owner: the module behind `field`, where it does not show it.

        Raises:
            UserError: if t0 and t1 are equal, the grid does not fit, the field changes its shape, dtype or input, holds batch normalization or
                dropout in train mode, or would lose a gradient; for times `at` outside of the interval or out of order.
            SolverError: if the state is not finite, the step underflows, or max_steps is reached.
        """
        if isinstance(x0, (tuple, list, dict)):
            return self._solve_several(field, x0, t0, t1, grid, parameters, at)
        x0 = check_state(x0)
        interval = check_times(t0, t1)
        if self.gradient == "adjoint":
            if at is not None:
                raise UserError('gradient="adjoint" has no states at times between; choose "symplectic" or "backprop"')
            return self.continuous_adjoint.solve(field, x0, t0, t1, grid=grid, parameters=parameters, owner=owner)
        stops = check_at(at, interval)
        times = None if self.steps is None else through(interval.equal_steps(self.steps), stops)
        if grid is not None:
            times = check_grid(grid, interval)
            if not set(stops) <= set(times):
                raise UserError(
                    f"a replayed grid must hold the times at={stops}; solve with them once, and replay that grid"
                )
        f = Field(field, x0, parameters, owner=owner, inspect=torch.is_grad_enabled() and self.gradient == "symplectic")
        trajectory = self._walk(f, x0, interval, stops)
        failure = None
        if times is not None:
            trajectory.fixed(times)
        else:
            try:
                controller = Controller(self.method, self.rtol, self.atol, self.controller, self.norm)
                trajectory.adaptive(controller, self.max_steps)
            except SolverError as error:
                if self.fallback_steps is None:
                    raise
                failure, rejected = error.with_traceback(None), trajectory.rejected
                trajectory = self._walk(f, x0, interval, stops)
                trajectory.rejected = rejected
                trajectory.fixed(through(interval.equal_steps(self.fallback_steps), stops))
        state = trajectory.result()
        return Solution(
            state,
            torch.tensor(trajectory.grid, dtype=torch.float64),
            f.evaluations,
            trajectory.rejected,
            failure,
            torch.stack([trajectory.states[t] for t in stops]) if stops else None,
        )

    def _solve_several(
        self, field: VectorField, x0: Any, t0: Any, t1: Any, grid: Any, parameters: Any, at: Any
    ) -> Solution:
        """`solve` for a state of several tensors."""
        structure = Structure.of(x0)
        joined = self.solve(
            structure.field(field), structure.join(x0), t0, t1, grid=grid, parameters=parameters, at=at, owner=field
        )
        states = None if joined.states is None else structure.split(joined.states)
        return replace(joined, state=structure.split(joined.state), states=states)

    def _walk(self, f: Field, x0: Tensor, interval: Interval, stops: Sequence[float]) -> Trajectory:
        """The kind of trajectory that leaves behind what the gradient needs."""
        if torch.is_grad_enabled() and self.gradient == "backprop":
            return TracedTrajectory(self.method, f, x0, interval, stops)
        if torch.is_grad_enabled() and (x0.requires_grad or interval.differentiated or f.parameters):
            check_transforms(self.gradient)
            return CheckpointedTrajectory(self.method, f, x0, interval, stops, self.memory)
        # Where nothing that we know of needs a gradient, autograd looks on: a tensor that enters late keeps its own.
        return (TracedTrajectory if torch.is_grad_enabled() else Trajectory)(self.method, f, x0, interval, stops)

    @property
    def continuous_adjoint(self) -> TorchDiffEq:
        """torchdiffeq's solver for the same method and steps, with the approximate gradient.

        Raises:
            UserError: where torchdiffeq has no such method.
        """
        methods = CONTINUOUS_FIXED if self.steps is not None else CONTINUOUS_ADAPTIVE
        if self.method.name not in methods:
            steps = "fixed" if self.steps is not None else "adaptive"
            other = (
                "; the rk4 of torchdiffeq is the 3/8 rule, of the same order and cost: take rk4_38"
                if self.method.name == "rk4"
                else ""
            )
            raise UserError(
                f'torchdiffeq has no {self.method.name} with {steps} steps for gradient="adjoint"; it has {", ".join(methods)}{other}'
            )
        return TorchDiffEq(
            methods[self.method.name], self.steps, self.rtol, self.atol, adjoint=True, max_steps=self.max_steps
        )
