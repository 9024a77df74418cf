"""A trajectory along the steps of a solution, fixed or adaptive; the kinds differ in what they leave behind for the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from explainode.dynamics.adjoint import ForwardPass, Span, SymplecticAdjoint
from explainode.dynamics.controller import Controller
from explainode.dynamics.draws import RandomState
from explainode.dynamics.failure import NonFiniteState, StepUnderflow, TooManySteps
from explainode.dynamics.field import Field
from explainode.dynamics.step import Interval, Step, Time, combine, step
from explainode.dynamics.tableau import Tableau


class Trajectory:
    """From x0 to x(t1), without a gradient.

    Attributes:
        x: the state where we are.
        grid: the times of the accepted steps so far.
        rejected: steps that the controller gave up.
        states: x at the times of `stops` that were met, part of autograd's graph as the result is.
    """

    def __init__(self, method: Tableau, f: Field, x0: Tensor, interval: Interval, stops: Sequence[float] = ()) -> None:
        self.method, self.f, self.x0, self.interval = method, f, x0, interval
        self.x = x0
        self.grid: list[float] = [interval.start]
        self.rejected = 0
        self.stops = tuple(stops)  # times at which a step has to end
        self.states = {interval.start: x0} if interval.start in stops else {}

    def fixed(self, times: Sequence[float]) -> None:
        """Take the steps of a given grid.

        Raises:
            NonFiniteState: if the state is not finite at the end, with the first step that made it so.
        """
        for t, t_next in pairwise(times):
            self.accept(t_next, self.attempt(t, t_next, self.method.working_stages, None))
        if not is_finite(self.x):
            raise self._first_failure(times)

    def adaptive(self, controller: Controller, max_steps: int) -> None:
        """Choose the steps by the error estimate.

        Raises:
            SolverError: if the state or the field is not finite, the step underflows, or max_steps is reached.
        """
        t, end, direction = self.interval.start, self.interval.end, self.interval.direction
        smallest = 10 * torch.finfo(self.f.time_dtype).eps * max(abs(t), abs(end))
        k_1: Tensor | None = self.slope(t)
        assert k_1 is not None
        if not is_finite(k_1):
            raise NonFiniteState(t, 0.0, self.f.evaluations)
        with torch.no_grad():
            size = controller.first_step(self.f, t, self.x, k_1, end - t)
        ahead = [stop for stop in self.stops if stop not in (t, end)] + [end]
        for _ in range(max_steps):
            lands = abs(ahead[0] - t) <= 1.01 * size  # no sliver at the end
            t_next = ahead[0] if lands else t + direction * size
            dt = t_next - t
            if not dt:
                raise StepUnderflow(t, direction * size, self.f.evaluations)
            trial = self.attempt(t, t_next, range(self.method.stages), k_1)
            with torch.no_grad():
                error = combine(torch.zeros_like(self.x), dt, self.method.error_weights, trial.slopes)
                accepted, factor = controller.judge(controller.norm(error, self.x, trial.state))
            # a step that was cut short at a stop says little about the next one
            size = max(size, abs(dt) * factor) if lands and accepted else abs(dt) * factor
            if accepted:
                t = t_next
                if lands:
                    ahead.pop(0)
                self.accept(t, trial)
                if t == end:
                    return
                k_1 = trial.slopes[-1] if self.method.fsal else self.slope(t)
            else:
                self.rejected += 1
                if size < smallest:
                    failure = StepUnderflow if is_finite(trial.state) else NonFiniteState
                    raise failure(t, direction * size, self.f.evaluations)
        raise TooManySteps(t, direction * size, self.f.evaluations)

    def slope(self, t: float) -> Tensor:
        """k_1, where we are."""
        with torch.no_grad():
            return self.f(t, self.x)

    def attempt(self, t: float, t_next: float, stages: Sequence[int], k_1: Tensor | None) -> Step:
        """A step from where we are."""
        with torch.no_grad():
            return step(self.method, self.f, t, t_next, self.x, stages, k_1)

    def accept(self, t: float, taken: Step) -> None:
        """Go on from the end of the step, at time t."""
        self.x = taken.state
        self.grid.append(t)
        if t in self.stops:
            self.states[t] = self.x

    def result(self) -> Tensor:
        """x(t1), part of autograd's graph where this trajectory leaves one."""
        return self.x

    def _first_failure(self, times: Sequence[float]) -> NonFiniteState:
        """The first step that leaves the finite numbers, found by walking again: failing may take its time."""
        x, t, t_next, evaluations = self.x0.detach(), times[0], times[0], self.f.evaluations
        with torch.no_grad():
            for t, t_next in pairwise(times):
                x = step(self.method, self.f, t, t_next, x, self.method.working_stages).state
                if not is_finite(x):
                    break
        return NonFiniteState(t, t_next - t, evaluations)


class TracedTrajectory(Trajectory):
    """A trajectory whose accepted steps autograd has seen: exact, with second derivatives, at the memory of every evaluation."""

    def slope(self, t: float) -> Tensor:
        return self.f(self._at(t), self.x)

    def attempt(self, t: float, t_next: float, stages: Sequence[int], k_1: Tensor | None) -> Step:
        return step(self.method, self.f, self._at(t), self._at(t_next), self.x, stages, k_1)

    def _at(self, t: float) -> Time:
        return self.interval.at(t, self.x.device)


class CheckpointedTrajectory(Trajectory):
    """A trajectory that keeps states, and hands them to the symplectic adjoint.

    Args:
        memory: "step", "stage" or "sqrt", as in `RungeKutta`.
    """

    def __init__(
        self, method: Tableau, f: Field, x0: Tensor, interval: Interval, stops: Sequence[float], memory: str
    ) -> None:
        super().__init__(method, f, x0, interval, stops)
        self.memory = memory
        self.kept = {0: x0}  # x_n by n
        self.inputs: dict[int, list[Tensor]] = {}  # X_i of the working stages after the first, by n
        self.draws: list[list[RandomState | None] | None] = []
        self._every = 1
        self._k_1_draw: RandomState | None = None
        self._tried: dict[int, RandomState | None] = {}

    def slope(self, t: float) -> Tensor:
        k_1 = super().slope(t)
        self._k_1_draw = self.f.before
        return k_1

    def attempt(self, t: float, t_next: float, stages: Sequence[int], k_1: Tensor | None) -> Step:
        order = iter(stages if k_1 is None else stages[1:])
        self._tried = {} if k_1 is None else {0: self._k_1_draw}

        def slope(t_i: Time, x_i: Tensor) -> Tensor:
            slope = self.f(t_i, x_i)
            self._tried[next(order)] = self.f.before
            return slope

        with torch.no_grad():
            return step(self.method, slope, t, t_next, self.x, stages, k_1)

    def accept(self, t: float, taken: Step) -> None:
        n, working = len(self.grid) - 1, self.method.working_stages
        self.draws.append([self._tried[i] for i in working] if self.f.draws else None)
        if self.method.fsal:
            self._k_1_draw = self._tried.get(self.method.stages - 1)
        if self.memory == "stage":
            self.inputs[n] = [x_i for i in working[1:] if (x_i := taken.inputs[i]) is not None]
        super().accept(t, taken)
        if t in self.stops or (n + 1) % self._every == 0:
            self.kept[n + 1] = self.x
        if self.memory == "sqrt" and len(self.kept) - len(self.states) > 2 * self._every:
            self._every *= 2  # keep every second: about as many states as steps between two
            self.kept = {n: x for n, x in self.kept.items() if n % self._every == 0 or self.grid[n] in self.stops}

    def result(self) -> Tensor:
        end = len(self.grid) - 1
        self.kept[end] = self.x
        results = {n: x for n, x in self.kept.items() if self.grid[n] in self.stops} | {end: self.x.clone()}
        record = ForwardPass(self.method, self.f, self.interval, self.grid, self.draws, results)
        times = self.interval.t0, self.interval.t1
        x = self.kept.pop(0)
        for first, last in pairwise([0, *self.kept]):
            result, kept = [self.kept.pop(last)], self.inputs.pop(first, [])
            span = Span(record, first, last, result, kept, released=len(self.kept))
            x = SymplecticAdjoint.apply(span, x, *times, *self.f.parameters)  # type: ignore[no-untyped-call]
            if self.grid[last] in self.stops:
                self.states[self.grid[last]] = x
        return x


def is_finite(x: Tensor) -> bool:
    """Whether every element is finite; the sum is fast, and where it alone overflows we look again."""
    x = x.detach()
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())
