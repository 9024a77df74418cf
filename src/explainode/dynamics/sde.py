"""Solvers of dX = f(t, X) dt + g(t, X) dW (Ito, diagonal, keyed noise), and their exact gradient at the memory of one state per step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from explainode.dynamics.brownian import BrownianPath, check_interval, check_key
from explainode.dynamics.draws import RandomState
from explainode.dynamics.failure import NonFiniteState
from explainode.dynamics.field import Field, check_transforms
from explainode.dynamics.problem import outside_compiler
from explainode.dynamics.replay import Replay, Session
from explainode.dynamics.step import Time
from explainode.dynamics.surroundings import check_modes, module_of
from explainode.errors import UserError, nearest

VectorField = Callable[
    [Tensor, Tensor], Any
]  # (t, x) -> (B, *S); a diffusion may also give what broadcasts to it, or a number
Evaluate = Callable[[Time, Tensor], Tensor]  # a field as the methods see it: checked, and of the state's shape
GRADIENTS = ("discrete", "backprop")


# --- the solvers ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StochasticSolver(ABC):
    """What the solvers share: a grid of equal steps, X_{n+1} = X_n + change(t_n, X_n, h, dW_n), keyed increments, the gradient.

    A solver is a value: pure configuration, used for any field, state and key. dW has its own increment for every element of the state
    (diagonal noise) and depends on the sample's key alone: neither on batch, order or recompute, nor on the solver. So two solvers on the same
    base grid of steps / 2^refinement follow the same path; `EulerMaruyama(16)` and `EulerMaruyama(64, refinement=2)` differ by their error.

    `gradient="discrete"` differentiates the steps that were taken, exactly, to all orders of h:

        lambda_n = lambda_{n+1} + (d change_n / d X_n)^T lambda_{n+1},        d theta += (d change_n / d theta)^T lambda_{n+1}

    It stores X_0 .. X_{N-1}, evaluates every step once more and draws its noise again from the keys. Noise scope, autocast and torch's
    generator are in the second evaluation as they were in the first, and forward hooks on layers inside a field run again. `gradient="backprop"` stores
    everything and can be differentiated twice, and by torch.func.

    Args:
        steps: of equal length from t0 to t1.
        gradient: "discrete" or "backprop".
        refinement: how often the path's base grid is halved; `steps` is a multiple of 2^refinement.

    Raises:
        UserError: for an unknown gradient, fewer than one step, or steps that the refinement does not divide.
    """

    steps: int = 16
    gradient: str = "discrete"
    refinement: int = 0

    strong_order: ClassVar[float]
    weak_order: ClassVar[float]
    evaluations_per_step: ClassVar[tuple[int, int]]  # of drift and diffusion

    def __post_init__(self) -> None:
        if self.gradient not in GRADIENTS:
            raise UserError(
                f"no gradient called {self.gradient!r}; the nearest are {nearest(self.gradient, GRADIENTS)}"
            )
        if self.steps < 1:
            raise UserError(f"a stochastic solver needs at least 1 step, got steps={self.steps}")
        if self.refinement < 0 or self.steps % 2**self.refinement:
            raise UserError(
                f"refinement={self.refinement} halves a base grid of steps / 2^refinement intervals, which must be a whole number of at least 1, "
                f"got steps={self.steps}"
            )

    @abstractmethod
    def change(self, f: Evaluate, g: Evaluate, t: float, x: Tensor, h: float, dW: Tensor) -> Tensor:
        """X_{n+1} - X_n: (B, *S), from X_n and the increment of the path."""

    @outside_compiler
    def __call__(
        self,
        drift: VectorField,
        diffusion: VectorField,
        x0: Tensor,
        key: Tensor,
        t0: float = 0.0,
        t1: float = 1.0,
        *,
        parameters: Iterable[Tensor] = (),
    ) -> Tensor:
        """X(t1).

        Args:
            drift, diffusion: `f(t, x)`, `g(t, x)`; t is a 0-dim tensor of x's dtype, float32 at least.
            key: one key per sample; see `BrownianPath`.
            parameters: what plain callables depend on and gradients are wanted for; those of modules are found.

        Shapes:
            x0: (B, *S), floating; key: (B,) int64; drift: (B, *S); diffusion: (B, *S) or what broadcasts to it. Returns (B, *S).

        Raises:
            UserError: for a missing or ill-shaped key, times that do not run forward or ask for a gradient, a field that changes the state's
                shape or dtype, layers in train mode that change it (`check_modes`), or parameters that were not named.
            NonFiniteState: if the state leaves the finite numbers; the message says when.
        """
        t0, t1 = check_problem(x0, key, t0, t1)
        learned = learned_parameters(drift, diffusion, parameters)
        # Where nothing that we know of needs a gradient, the plain loop runs under autograd as it is: hidden parameters keep theirs.
        discrete = self.gradient == "discrete" and torch.is_grad_enabled() and (x0.requires_grad or bool(learned))
        if discrete:
            check_transforms(self.gradient)
        march = _March(
            self,
            Field(drift, x0, learned, inspect=discrete),
            Field(like_state(diffusion), x0, learned, inspect=discrete, owner=diffusion),
            BrownianPath(key.to(x0.device), self.steps >> self.refinement, t0, t1),
            x0.detach(),
        )
        x1 = _DiscreteAdjoint.apply(march, x0, *learned) if discrete else march.solve(x0)
        if not torch.isfinite(x1).all():
            raise march.failure(x0)
        return x1


@dataclass(frozen=True)
class EulerMaruyama(StochasticSolver):
    """X + f h + g dW.

    Strong order 1/2 (1 where g does not depend on x), weak order 1. With the identity as shortcut it is a stochastic residual block.

    Source: Maruyama 1955; Kloeden and Platen 1992; as a network, Jha et al. 2021 Eq. 5-6 and Liu et al. 2019.
    """

    strong_order: ClassVar[float] = 0.5
    weak_order: ClassVar[float] = 1.0
    evaluations_per_step: ClassVar[tuple[int, int]] = (1, 1)

    def change(self, f: Evaluate, g: Evaluate, t: float, x: Tensor, h: float, dW: Tensor) -> Tensor:
        return f(t, x) * h + g(t, x) * dW


@dataclass(frozen=True)
class Milstein(StochasticSolver):
    """X + f h + g dW + (g(Y) - g) (dW^2 - h) / (2 sqrt(h)) with the support value Y = X + f h + g sqrt(h).

    Strong and weak order 1 where element i of g depends on element i of the state alone. A diffusion that mixes elements, such as a
    convolution, would need iterated integrals of different Wiener processes; here it falls back to strong order 1/2.

    Source: Milstein 1974; Kloeden and Platen 1992, also for the form without derivatives.
    We take the derivative-free form: the term g g' would make the adjoint differentiate g twice, which costs more than a second evaluation
    of g and is zero almost everywhere for kinks like ReLU's.
    """

    strong_order: ClassVar[float] = 1.0
    weak_order: ClassVar[float] = 1.0
    evaluations_per_step: ClassVar[tuple[int, int]] = (1, 2)

    def change(self, f: Evaluate, g: Evaluate, t: float, x: Tensor, h: float, dW: Tensor) -> Tensor:
        f_n, g_n = f(t, x), g(t, x)
        support = x + f_n * h + g_n * math.sqrt(h)
        slope = (g(t, support) - g_n) / math.sqrt(h)  # g g' + O(sqrt(h))
        return f_n * h + g_n * dW + slope * ((dW.square() - h) / 2)


# --- one solution --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _March:
    """A solver, its fields and a path: everything of one solution but the state."""

    solver: StochasticSolver
    drift: Field
    diffusion: Field
    path: BrownianPath
    like: Tensor  # x0, whose memory order the increments keep, whatever the fields do to the state's

    @property
    def h(self) -> float:
        return (self.path.t1 - self.path.t0) / self.solver.steps

    def time(self, n: int) -> float:
        return self.path.t0 + (self.path.t1 - self.path.t0) * (n / self.solver.steps)

    def change(self, n: int, x: Tensor) -> Tensor:
        """X_{n+1} - X_n."""
        return self.change_by(self.drift, self.diffusion, n, x)

    def change_by(self, f: Evaluate, g: Evaluate, n: int, x: Tensor) -> Tensor:
        """The same, by what stands for drift and diffusion."""
        dW = self.path.increment(n, self.like, self.solver.refinement)
        return self.solver.change(f, g, self.time(n), x, self.h, dW)

    def solve(self, x: Tensor) -> Tensor:
        for n in range(self.solver.steps):
            x = x + self.change(n, x)
        return x

    def failure(self, x: Tensor) -> NonFiniteState:
        """Walks again to the first state that is not finite. None recovers (NaN + anything is NaN), so solvers look at the last one only."""
        n = 0
        with torch.no_grad():
            for n in range(self.solver.steps):
                x = x + self.change(n, x)
                if not torch.isfinite(x).all():
                    break
        return NonFiniteState(self.time(n), self.h, (n + 1) * sum(self.solver.evaluations_per_step))


def check_problem(x0: Tensor, key: Tensor, t0: float, t1: float) -> tuple[float, float]:
    """The times as numbers.

    Raises:
        UserError: see `StochasticSolver.__call__`.
    """
    check_key(key)
    if any(isinstance(t, Tensor) and t.requires_grad for t in (t0, t1)):
        raise UserError("a stochastic solver has no gradient with respect to t0 and t1; pass them as numbers")
    check_interval(float(t0), float(t1))
    if not x0.is_floating_point() or x0.dim() < 1 or len(x0) != len(key):
        raise UserError(
            f"x0 must be a floating tensor (B, *S) with one row per key, got {x0.dtype} of shape {tuple(x0.shape)} for {len(key)} keys"
        )
    return float(t0), float(t1)


def learned_parameters(drift: VectorField, diffusion: VectorField, named: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Every parameter that needs a gradient, once: those of the modules behind the fields, and those named.

    Raises:
        UserError: for layers in train mode that change the field (`check_modes`).
    """
    found: list[Tensor] = []
    for module in (module_of(drift), module_of(diffusion)):
        if module is not None:
            check_modes(module)
            found += module.parameters()
    return tuple({id(parameter): parameter for parameter in (*found, *named) if parameter.requires_grad}.values())


def like_state(diffusion: VectorField) -> VectorField:
    """The diffusion, what it gives spread to the state's shape where it is a number or broadcasts to it."""

    def spread(t: Tensor, x: Tensor) -> Tensor:
        g = diffusion(t, x)
        if not isinstance(g, Tensor) or g.dim() == 0:
            g = torch.as_tensor(g, dtype=x.dtype, device=x.device)
        return g.expand_as(x) if _broadcasts(g.shape, x.shape) else g

    return spread


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False))


# --- the gradient --------------------------------------------------------------------------------------------------------------------


class _DiscreteAdjoint(torch.autograd.Function):
    """The gradient of the steps that were taken: states are kept, everything between them is computed again, noise included."""

    @staticmethod
    def forward(ctx: Any, march: _March, x0: Tensor, *learned: Tensor) -> Tensor:
        x, states, draws = x0, [], []
        for n in range(march.solver.steps):
            states.append(x)
            drawn: list[RandomState | None] = []
            x = x + march.change_by(
                partial(_noting, march.drift, drawn), partial(_noting, march.diffusion, drawn), n, x
            )
            draws.append(drawn)
        ctx.save_for_backward(*states)
        ctx.march, ctx.draws, ctx.replay, ctx.end = march, draws, Replay((march.drift, march.diffusion)), x.clone()
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise UserError(
                'the discrete adjoint cannot be differentiated twice (create_graph=True); use gradient="backprop"'
            )
        march, states = ctx.march, ctx.saved_tensors
        _, needs_x0, *needs_learned = ctx.needs_input_grad
        wanted = [i for i, needed in enumerate(needs_learned) if needed]
        totals: list[Tensor | None] = [None] * len(needs_learned)

        def through(session: Session) -> Tensor:
            at, x_next = gradient, ctx.end
            for n in reversed(range(march.solver.steps)):
                x = states[n].detach().requires_grad_(n > 0 or needs_x0)
                again = partial(_again, session, iter(ctx.draws[n]))
                f, g = partial(again, march.drift), partial(again, march.diffusion)
                change = session.linearize(partial(march.change_by, f, g, n, x), [x] if x.requires_grad else [])
                assert change.value is not None
                session.check(states[n] + change.value, x_next)
                x_next = states[n]
                slopes = change.products(at, wanted)
                if x.requires_grad:
                    at = _sum(at, slopes.pop(0))  # lambda_n
                for i, slope in zip(wanted, slopes, strict=True):
                    totals[i] = _sum(totals[i], slope)  # d theta
            return at

        gradient = ctx.replay.run(through)
        return None, gradient if needs_x0 else None, *totals


def _noting(field: Field, drawn: list[RandomState | None], t: Time, x: Tensor) -> Tensor:
    """field(t, x), and where the generators were before."""
    value = field(t, x)
    drawn.append(field.before)
    return value


def _again(session: Session, drawn: Iterator[RandomState | None], field: Field, t: Time, x: Tensor) -> Tensor:
    """field(t, x) as it was, with the next of what was noted."""
    return session.slope(field, t, x, next(drawn))


def _sum(a: Any, b: Any) -> Any:
    """a + b, None counting as zero."""
    return b if a is None else a if b is None else a + b
