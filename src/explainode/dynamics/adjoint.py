"""The symplectic adjoint: the exact gradient of Runge-Kutta steps from checkpoints, a few stages' graphs at a time.

A step (Lei et al. 2023, Eq. 15-16) maps x_n to x_{n+1}. Let lambda_n be the gradient with respect to x_n. From the last stage to the first,

    u_i = dt (b_i lambda_{n+1} + sum_{j>i} a_ji v_j)            the gradient that reaches k_i
    v_i = (df/dx)^T u_i     at (t + c_i dt, X_i)                and the one that reaches X_i
    lambda_n = lambda_{n+1} + sum_i v_i
    dL/dtheta += sum_i (df/dtheta)^T u_i

Source: Matsubara, Miyatake and Yaguchi 2021; Sanz-Serna 2016; Lei et al. 2023, Eq. 19-20.
We use the transposed form. With u_i = dt b_i xi_i it is Eq. 19-20 where no b_i is zero; it never divides by b_i, so that stages without
weight (the set I_0 of Eq. 20) need no case of their own. The tests hold it against Eq. 19-20 as printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from explainode.dynamics.draws import RandomState
from explainode.dynamics.field import Field
from explainode.dynamics.replay import Linearized, Replay, Session
from explainode.dynamics.step import Interval, Time, combine, stage_time, step
from explainode.dynamics.tableau import Tableau
from explainode.errors import UserError

# How many states' worth of graphs a step may keep besides the last stage's: with these, N steps of rk4 on the field of two convolutions
# of scripts/benchmarks/adjoint.py peak at N + 26 states. The products with parameters need memory of their own.
SPARE_STATES = 10.0
SPARE_STATES_INPUT_ONLY = 12.5


@dataclass
class ForwardPass:
    """One solved trajectory: all that its gradient needs besides the states.

    Attributes:
        grid: t_0..t_N, the accepted steps, frozen.
        draws: per step, where the generators were before each working stage, None where it did not move them; a step without draws has None.
        results: the states that were asked for, by step; x_N is a copy, since whoever got it may change it.
        started: the states where a node's backward pass was done last, by thread and step: what the node before must come to.
    """

    tableau: Tableau
    field: Field
    interval: Interval
    grid: list[float]
    draws: list[list[RandomState | None] | None]
    results: dict[int, Tensor]

    def __post_init__(self) -> None:
        self.replay = Replay([self.field])
        self.started: dict[tuple[int, int], Tensor] = {}

    def ends(self, n: int) -> tuple[float, float]:
        """Where step n begins and ends in time."""
        return self.grid[n], self.grid[n + 1]

    def time(self, n: int, i: int) -> Time:
        """t_n + c_i dt_n."""
        return stage_time(*self.ends(n), self.tableau.c[i])

    def slope(self, session: Session, n: int, i: int, time: Time, x_i: Tensor) -> Tensor:
        """k_i of step n as it was in the forward pass: same draws, same surroundings."""
        draws = self.draws[n]
        state = None if draws is None else draws[self.tableau.working_stages.index(i)]
        return session.slope(self.field, time, x_i, state)

    def advance(self, session: Session, n: int, x: Tensor) -> Tensor:
        """x_n -> x_{n+1}, as it was."""
        stages = self.tableau.working_stages
        order = iter(stages)
        return step(
            self.tableau,
            lambda t, x_i: self.slope(session, n, next(order), t, x_i),
            *self.ends(n),
            x,
            stages,
        ).state


class Sum:
    """A sum that takes its first term as it is, and works in place only on what it made itself: terms may share memory with others."""

    def __init__(self, total: Tensor | None = None) -> None:
        self.total, self._ours = total, False

    def add(self, term: Tensor | None) -> None:
        if term is None:
            return
        if self.total is None:
            self.total = term
        elif self._ours:
            self.total.add_(term)
        else:
            self.total, self._ours = self.total + term, True


@dataclass
class Stages:
    """The stages of one step, computed again: the state that they come to, and per stage its input X_i, or all of it ready to be differentiated."""

    state: Tensor
    inputs: dict[int, Tensor]
    linearized: dict[int, Linearized]


class Pullback:
    """lambda_{n+1} -> lambda_n, step by step backward; what parameters and times receive on the way is summed up.

    Args:
        session: in which the stages are evaluated again.
        wanted: for each parameter, whether its gradient is needed.
        times: whether those of t_0 and t_1 are.

    Attributes:
        parameters: the sums, one per parameter.
        t0, t1: the same for the times: the grid stretches with its ends.
    """

    def __init__(self, record: ForwardPass, session: Session, wanted: Sequence[bool], times: bool) -> None:
        self.record, self.session, self.times = record, session, times
        self.parameters = [Sum() for _ in wanted]
        self.t0 = self.t1 = 0.0
        self._wanted = [i for i, want in enumerate(wanted) if want]

    def __call__(
        self, n: int, x: Tensor, x_next: Tensor, gradient: Tensor, kept: Sequence[Tensor] = (), released: int = 0
    ) -> Tensor:
        """Through step n.

        Args:
            x: x_n.
            x_next: x_{n+1}, which the stages must come to again.
            gradient: lambda_{n+1}.
            kept: X_i of the working stages after the first; where there are none, they are computed again.
            released: checkpoints that are not needed any more. Their memory serves to keep the graphs of the last stages, which are then
                evaluated once here instead of twice. (With retain_graph autograd keeps them nevertheless, and the graphs of at most
                one step come on top.)

        Raises:
            FieldChanged: if the stages come to another state.
        """
        stages = Stages(x, dict(zip(self.record.tableau.working_stages, (x, *kept), strict=True)), {}) if kept else None
        if stages is None:
            stages = self.again(n, x, released)
            self.session.check(stages.state, x_next)
        gradient = self.through(n, stages, gradient, bool(kept))
        if kept:
            self.session.check(stages.state, x_next)
        return gradient

    def through(self, n: int, stages: Stages, gradient: Tensor, unsummed: bool = False) -> Tensor:
        """lambda_{n+1} -> lambda_n by the stages of step n, used up on the way; where they are `unsummed`, their slopes are added to their state."""
        tableau, dt = self.record.tableau, self._size(n)
        total, v, rate = Sum(gradient), dict[int, Tensor](), 0.0  # rate: dL/d dt_n
        for i in reversed(tableau.working_stages):
            u = self._reaching(i, dt, gradient, v)
            linear = stages.linearized
            stage = linear.pop(i) if i in linear else self._linearize(n, i, stages.inputs.pop(i))
            if unsummed:
                assert stage.value is not None
                stages.state = combine(stages.state, dt, (tableau.b[i],), (stage.value,))
            if self.times:
                assert stage.value is not None
                rate += float((stage.value * u).sum(dtype=torch.float64)) / dt
            stage.value = None
            v_i, *products = stage.products(u, self._wanted)
            of_time = products.pop(0) if self.times else None
            del stage, u
            if v_i is not None:
                v[i] = v_i
            if of_time is not None:
                self._stretch(n, float(of_time), tableau.c[i] * float(of_time))
            for p, product in zip(self._wanted, products, strict=True):
                self.parameters[p].add(product)
        for v_i in v.values():
            total.add(v_i)
        if self.times:
            self._stretch(n, 0.0, rate)
        assert total.total is not None
        return total.total

    def _size(self, n: int) -> float:
        t, t_next = self.record.ends(n)
        return t_next - t

    def _graphs(self, released: float) -> int:
        """How many stages may have their graphs at the same time."""
        spare = SPARE_STATES if self._wanted else SPARE_STATES_INPUT_ONLY
        return 1 + int(max(0.0, spare + released) / self.record.field.graph_states)

    def _linearize(self, n: int, i: int, x_i: Tensor) -> Linearized:
        """Stage i of step n at X_i, to be differentiated by X_i, its time where that is asked for, and the parameters."""
        time = self.record.time(n, i)
        leaves = [x_i.detach().requires_grad_()]
        if self.times:
            time = torch.full((), float(time), dtype=torch.float64, device=x_i.device, requires_grad=True)
            leaves.append(time)
        return self.session.linearize(lambda: self.record.slope(self.session, n, i, time, leaves[0]), leaves)

    def again(self, n: int, x: Tensor, released: float) -> Stages:
        """The stages of step n from x: X_i, or as many of the last with their graphs as there is memory for; and the state that they come to."""
        tableau, dt = self.record.tableau, self._size(n)
        with_graph = tableau.working_stages[-self._graphs(released) :]
        stages = Stages(x, {}, {})
        slopes: list[Tensor | None] = [None] * tableau.stages
        for i in tableau.working_stages:
            x_i = combine(x, dt, tableau.a[i], slopes)  # Eq. (16)
            if i in with_graph:
                stage = stages.linearized[i] = self._linearize(n, i, x_i)
                slope = stage.value
                if not self.times:
                    stage.value = None
            else:
                stages.inputs[i] = x_i
                slope = self.record.slope(self.session, n, i, self.record.time(n, i), x_i)
            assert slope is not None
            slopes[i] = slope
            if weight := dt * tableau.b[i]:  # as `combine` would add them up, without keeping them
                ours = stages.state is not x
                stages.state = stages.state.add_(slope, alpha=weight) if ours else torch.add(x, slope, alpha=weight)
            for j in range(i + 1):  # what no later stage needs is given back
                if not any(row[j] for row in tableau.a[i + 1 :]):
                    slopes[j] = None
        return stages

    def _reaching(self, i: int, dt: float, gradient: Tensor, v: dict[int, Tensor]) -> Tensor:
        """u_i = dt (b_i lambda + sum_{j>i} a_ji v_j)."""
        tableau = self.record.tableau
        terms = [(tableau.b[i], gradient)] + [(tableau.a[j][i], v_j) for j, v_j in v.items()]
        terms = [(weight, term) for weight, term in terms if weight]
        if not terms:  # nobody downstream depends on its own input
            return torch.zeros_like(gradient)
        weight, term = terms[0]
        u = term * (dt * weight)
        for weight, term in terms[1:]:
            u.add_(term, alpha=dt * weight)
        return u

    def _stretch(self, n: int, of_t: float, of_dt: float) -> None:
        """The gradients of t_n and dt_n, handed on to the ends of the grid."""
        at, after = (self.record.interval.fraction(t) for t in self.record.grid[n : n + 2])
        self.t0 += (1 - at) * of_t - (after - at) * of_dt
        self.t1 += at * of_t + (after - at) * of_dt


class SymplecticAdjoint(torch.autograd.Function):
    """Some consecutive steps as one node of autograd's graph, which keeps the state at their start (and `stage` what it asked for).

    One node per checkpoint, not one for all: autograd then gives each checkpoint's memory back as soon as it has been used, and hooks that
    move saved tensors away bring them back one at a time.
    """

    @staticmethod
    def forward(ctx: Any, span: Span, x: Tensor, t0: Any, t1: Any, *parameters: Tensor) -> Tensor:
        ctx.record, ctx.first, ctx.last, ctx.released = span.record, span.first, span.last, span.released
        ctx.ends = [torch.empty_like(t) if isinstance(t, Tensor) else None for t in (t0, t1)]
        ctx.save_for_backward(x, *span.kept)
        return span.result.pop()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        record: ForwardPass = ctx.record
        x, *kept = ctx.saved_tensors
        _, needs_x, needs_t0, needs_t1, *wanted = ctx.needs_input_grad

        def through(session: Session) -> tuple[Tensor, Pullback]:
            pullback, at = Pullback(record, session, wanted, needs_t0 or needs_t1), gradient
            states = [x.detach()]
            for n in range(ctx.first, ctx.last - 1):
                states.append(record.advance(session, n, states[-1]))
            after = record.started.pop((get_ident(), ctx.last), None)
            after = record.results[ctx.last] if after is None else after
            for done, n in enumerate(reversed(range(ctx.first, ctx.last))):
                before = states.pop()
                at = pullback(n, before, after, at, kept, ctx.released + done)
                after = before
            return at, pullback

        with torch.no_grad():
            gradient, pullback = record.replay.run(through)
        if ctx.first > 0:
            record.started[get_ident(), ctx.first] = x
        ends = [
            torch.full_like(end, value) if need else None
            for end, value, need in zip(ctx.ends, (pullback.t0, pullback.t1), (needs_t0, needs_t1), strict=True)
        ]
        gradients = (gradient if needs_x else None, *ends, *(total.total for total in pullback.parameters))
        return (None, *(first_derivatives_only(gradients) if torch.is_grad_enabled() else gradients))


@dataclass
class Span:
    """What a node of the graph stands for: steps first..last - 1, the state that they lead to, and what it keeps beside their start.

    Attributes:
        result: x_last, taken out by the node.
        kept: stage inputs, as `Pullback` takes them.
        released: how many checkpoints come later, and are done with when backward arrives here.
    """

    record: ForwardPass
    first: int
    last: int
    result: list[Tensor]
    kept: list[Tensor]
    released: int


class _Once(torch.autograd.Function):
    """The identity, with a sentence in the place of a derivative."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        return tuple(value.view_as(value) for value in values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        raise UserError(
            'the symplectic adjoint gives first derivatives only; choose gradient="backprop" for second ones'
        )


def first_derivatives_only(gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The same gradients; differentiating them raises a UserError."""
    anchor = torch.zeros((), requires_grad=True)
    guarded = iter(_Once.apply(anchor, *(gradient for gradient in gradients if gradient is not None)))  # type: ignore[no-untyped-call]
    return tuple(None if gradient is None else next(guarded) for gradient in gradients)
