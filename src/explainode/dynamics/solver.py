"""Runge-Kutta solvers with exact gradients: `RungeKutta(...)(field, x0)` is x(t1)."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from explainode.dynamics.controller import Controller
from explainode.dynamics.failure import SolverError
from explainode.dynamics.field import Field, check_transforms
from explainode.dynamics.step import Interval
from explainode.dynamics.tableau import Tableau, tableau
from explainode.dynamics.walk import CheckpointedWalk, TracedWalk, Walk
from explainode.errors import UserError, nearest

if TYPE_CHECKING:
    from explainode.dynamics.torch_diff_eq import TorchDiffEq

GRADIENTS = ("symplectic", "backprop", "adjoint")
MEMORIES = ("step", "stage", "sqrt")
# our names -> torchdiffeq's, whose rk4 is the 3/8 rule
CONTINUOUS_FIXED = {"euler": "euler", "midpoint": "midpoint", "heun2": "heun2", "heun3": "heun3", "rk4_38": "rk4"}
CONTINUOUS_ADAPTIVE = {"heun2": "adaptive_heun", "fehlberg2": "fehlberg2", "bosh3": "bosh3", "dopri5": "dopri5"}

Solve = TypeVar("Solve", bound=Callable[..., Any])
VectorField = Callable[[Tensor, Tensor], Tensor]


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


@dataclass(frozen=True)
class Solution:
    """A solved initial value problem.

    Attributes:
        state: (B, *S), x(t1).
        grid: (N + 1,) float64 on the CPU, the times of the accepted steps; `solve(..., grid=grid)` replays them bit for bit.
        evaluations: of the field in the forward pass.
        rejected: steps that the controller tried and gave up.
        failure: why fixed steps were taken instead of adaptive ones (`fallback_steps`); None if they were not.
    """

    state: Tensor
    grid: Tensor
    evaluations: int
    rejected: int
    failure: SolverError | None = None


@dataclass(frozen=True)
class RungeKutta:
    """An explicit Runge-Kutta method with fixed or adaptive steps, for dx/dt = f(t, x).

    Args:
        tableau: the method, by name or as data.
        steps: how many equal steps; None chooses them by rtol and atol, which needs a method with an error estimate.
        rtol, atol: the tolerance of adaptive steps, relative to the state and absolute.
        gradient: "symplectic", exact, from checkpoints; "backprop", exact, through the stored graph (the only one with second derivatives);
            "adjoint", torchdiffeq's continuous adjoint: approximate, its error is that of the discretization.
        memory: of the symplectic adjoint. "step" keeps one state per step; "stage" one per stage and saves a recomputation; "sqrt" about
            2 sqrt(steps) states for one more forward pass.
        max_steps: that adaptive steps may take, rejected ones included.
        fallback_steps: fixed steps to take where adaptive ones fail; None raises.

    Raises:
        UserError: for unknown words, fewer than one step, tolerances that are not positive, adaptive steps without an error estimate.

    Source: Hairer, Noersett and Wanner 1993, II; the gradient: `adjoint.py`.
    The exact gradient of adaptive steps is that of the accepted steps, frozen: how they were chosen is not differentiated, and with t0
    and t1 the whole grid stretches.

    The backward pass of "symplectic" and "adjoint" evaluates the field again: forward hooks on layers inside it run again then, and see the states of that
    pass. Who collects activations collects them in the forward pass only, or takes "backprop", under which each evaluation happens once.
    torch.compile leaves the solver as it is (compile the field itself), and of the gradients torch.func's transforms go through "backprop" alone.
    """

    tableau: str | Tableau = "rk4"
    steps: int | None = None
    rtol: float = 1e-4
    atol: float = 1e-6
    gradient: str = "symplectic"
    memory: str = "step"
    max_steps: int = 1000
    fallback_steps: int | None = None

    def __post_init__(self) -> None:
        method = self.method
        for what, word, words in (("gradient", self.gradient, GRADIENTS), ("memory", self.memory, MEMORIES)):
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
    ) -> Solution:
        """x(t1) from x(t0) = x0, with the steps taken.

        Args:
            field: f(t, x), (), (B, *S) -> (B, *S); the same answer whenever it is asked (draws from torch's generator are replayed).
            x0: (B, *S), floating point.
            t0, t1: numbers or 0-dim tensors.
            grid: the grid of another solution, to take the same steps; `steps` and the tolerances are then not used.
            parameters: tensors to differentiate by; None takes those of the field where it is a module, or of the module it is a method of.

        Raises:
            UserError: if t1 <= t0, the grid does not fit, the field changes its shape, dtype or input, holds batch normalization or
                dropout in train mode, or would lose a gradient.
            SolverError: if the state is not finite, the step underflows, or max_steps is reached.
        """
        x0 = check_state(x0)
        interval = check_times(t0, t1)
        if self.gradient == "adjoint":
            return self.continuous_adjoint.solve(field, x0, t0, t1, grid=grid, parameters=parameters)
        times = None if self.steps is None else interval.equal_steps(self.steps)
        if grid is not None:
            times = check_grid(grid, interval)
        f = Field(field, x0, parameters, inspect=torch.is_grad_enabled() and self.gradient == "symplectic")
        walk = self._walk(f, x0, interval)
        failure = None
        if times is not None:
            walk.fixed(times)
        else:
            try:
                walk.adaptive(Controller(self.method, self.rtol, self.atol), self.max_steps)
            except SolverError as error:
                if self.fallback_steps is None:
                    raise
                failure, rejected = error.with_traceback(None), walk.rejected
                walk = self._walk(f, x0, interval)
                walk.rejected = rejected
                walk.fixed(interval.equal_steps(self.fallback_steps))
        return Solution(
            walk.result(), torch.tensor(walk.grid, dtype=torch.float64), f.evaluations, walk.rejected, failure
        )

    def _walk(self, f: Field, x0: Tensor, interval: Interval) -> Walk:
        """The kind of walk that leaves behind what the gradient needs."""
        if torch.is_grad_enabled() and self.gradient == "backprop":
            return TracedWalk(self.method, f, x0, interval)
        if torch.is_grad_enabled() and (x0.requires_grad or interval.differentiated or f.parameters):
            check_transforms(self.gradient)
            return CheckpointedWalk(self.method, f, x0, interval, self.memory)
        return Walk(self.method, f, x0, interval)

    @property
    def continuous_adjoint(self) -> TorchDiffEq:
        """torchdiffeq's solver for the same method and steps, with the approximate gradient.

        Raises:
            UserError: where torchdiffeq has no such method.
        """
        from explainode.dynamics.torch_diff_eq import TorchDiffEq

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
        UserError: if they are not scalars, not finite, or not in order.
    """
    for name, t in (("t0", t0), ("t1", t1)):
        if isinstance(t, Tensor) and t.dim() != 0:
            raise UserError(f"{name} must be a number or a 0-dim tensor, got shape {tuple(t.shape)}")
    interval = Interval(t0, t1)
    start, end = interval.start, interval.end
    if not (math.isfinite(start) and math.isfinite(end) and start < end):
        raise UserError(
            f"t1 must come after t0, got t0={start:g} and t1={end:g}; to go backward in time, negate the field and swap the times"
        )
    return interval


def check_grid(grid: Tensor | Sequence[float], interval: Interval) -> list[float]:
    """A saved grid as numbers.

    Raises:
        UserError: if it does not run upward from t0 to t1.
    """
    times = [float(t) for t in (grid.tolist() if isinstance(grid, Tensor) else grid)]
    rises = len(times) > 1 and all(a < b for a, b in pairwise(times))
    if not rises or times[0] != interval.start or times[-1] != interval.end:
        ends = f" from {times[0]:g} to {times[-1]:g}" if times else ""
        raise UserError(
            f"grid must rise from t0={interval.start:g} to t1={interval.end:g}, got {len(times)} times{ends}"
        )
    return times
