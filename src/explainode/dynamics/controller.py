"""How large the next step may be: controllers and the first step, without gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from explainode.dynamics.step import Evaluate
from explainode.dynamics.tableau import Tableau

NORMS = ("batch", "sample", "max")
# (k_1, k_2, k_3), what the last three errors weigh
CONTROLLERS = {"I": (1.0, 0.0, 0.0), "PI": (0.7, -0.4, 0.0), "PID": (0.49, -0.34, 0.10)}


@dataclass
class Controller:
    """A controller of the step size by the errors of the last steps.

    The error e of a step is measured in units of the tolerance atol + rtol max(|x_n|, |x_{n+1}|); 1 is just accepted. It is steered to
    e* = safety^q, where q = min(order, embedded order) + 1: after accepted steps with errors e_n, e_{n-1}, e_{n-2}

        dt <- dt * clip((e*/e_n)^(k_1/q) (e*/e_{n-1})^(k_2/q) (e*/e_{n-2})^(k_3/q), shrink, grow)

    and after a rejected one dt <- dt (e*/e_n)^(1/q).

    Args:
        tableau: the method, whose orders make q.
        rtol, atol: the tolerance, relative to the state and absolute.
        kind: "I", whose step follows the last error at once; "PI" and "PID" follow it smoothly, with fewer rejected steps on rough fields.
        norm_of: how the errors of all elements become one. "batch" takes the root mean square over all, as other libraries do; "sample" that of each
            sample's elements, then the largest over samples, so that easy images cannot hide a hard one; "max" the largest of all.

    Source: Hairer, Noersett and Wanner 1993, II.4; PI: Gustafsson 1991, exponents as in Hairer and Wanner 1996; PID: Kennedy and Carpenter 2003.
    We weigh e*/e in the place of 1/e, so that the error in the steady state is e* whatever the exponents are: with a factor `safety` beside 1/e
    that of the PI controller would be safety^(q/0.3), .17 of the tolerance for a method of order 5.
    """

    tableau: Tableau
    rtol: float
    atol: float
    kind: str = "I"
    norm_of: str = "batch"
    safety: float = 0.9
    shrink: float = 0.2
    grow: float = 10.0

    def __post_init__(self) -> None:
        self._ratios = (1.0, 1.0)  # e*/e of the two steps before the last

    @property
    def q(self) -> int:
        assert self.tableau.embedded_order is not None
        return min(self.tableau.order, self.tableau.embedded_order) + 1

    def norm(self, value: Tensor, *states: Tensor) -> float:
        """The size of `value` (B, *S) in units of the tolerance at `states`; NaN or infinite where value is."""
        scale = torch.stack([state.abs() for state in states]).amax(0).mul_(self.rtol).add_(self.atol)
        if not value.numel():
            return 0.0
        ratios = (value / scale).to(torch.promote_types(value.dtype, torch.float32))
        if self.norm_of == "max":
            return float(ratios.abs().amax())
        squares = ratios.square()
        return float((squares.mean() if self.norm_of == "batch" else squares.flatten(1).mean(1).amax()).sqrt())

    def first_step(self, f: Evaluate, t: float, x: Tensor, slope: Tensor, span: float) -> float:
        """The size of a first step within `span` (negative backward in time), by x, x' and x''; costs one evaluation.

        Source: Hairer, Noersett and Wanner 1993, II.4.
        """
        direction, span = math.copysign(1, span), abs(span)
        size, speed = self.norm(x, x), self.norm(slope, x)
        guess = min(0.01 * size / speed if size > 1e-5 and speed > 1e-5 else 1e-6, span)
        bend = self.norm(f(t + direction * guess, torch.add(x, slope, alpha=direction * guess)) - slope, x) / guess
        steepest = max(speed, bend)
        if not math.isfinite(steepest):
            return guess
        refined = max(1e-6, 1e-3 * guess) if steepest <= 1e-15 else (0.01 / steepest) ** (1 / self.q)
        return min(100 * guess, refined, span)

    def judge(self, error: float) -> tuple[bool, float]:
        """Whether a step with this error is accepted, and the factor for the next step."""
        if not math.isfinite(error):
            return False, self.shrink
        ratio = self.safety**self.q / max(error, 1e-10)
        if error > 1:
            return False, max(self.shrink, ratio ** (1 / self.q))
        last, before = self._ratios
        k_1, k_2, k_3 = CONTROLLERS[self.kind]
        factor = (ratio**k_1 * last**k_2 * before**k_3) ** (1 / self.q)
        self._ratios = ratio, last
        return True, min(self.grow, max(self.shrink, factor))
