"""How large the next step may be: a PI controller and the first step, both without gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from explainode.dynamics.step import Evaluate
from explainode.dynamics.tableau import Tableau


@dataclass
class Controller:
    """A proportional-integral controller of the step size.

    The error of a step is measured in units of the tolerance atol + rtol max(|x_n|, |x_{n+1}|): the root mean square over each sample's
    elements, then the largest over samples. 1 is just accepted. After an accepted step with error e after e',

        dt <- dt * clip(safety * e^(-0.7/q) * e'^(0.4/q), shrink, grow),    q = min(order, embedded order) + 1

    and after a rejected one dt never grows.

    Source: Hairer, Noersett and Wanner 1993, II.4; Gustafsson 1991; exponents as in Hairer and Wanner 1996.
    We take the maximum over samples: in a mean over the batch easy images would hide a hard one.
    """

    tableau: Tableau
    rtol: float
    atol: float
    safety: float = 0.9
    shrink: float = 0.2
    grow: float = 5.0
    previous: float = 1.0

    @property
    def q(self) -> int:
        assert self.tableau.embedded_order is not None
        return min(self.tableau.order, self.tableau.embedded_order) + 1

    def norm(self, value: Tensor, *states: Tensor) -> float:
        """The size of `value` (B, *S) in units of the tolerance at `states`; NaN or infinite where value is."""
        scale = torch.stack([state.abs() for state in states]).amax(0).mul_(self.rtol).add_(self.atol)
        dtype = torch.promote_types(value.dtype, torch.float32)
        return (
            float((value / scale).reshape(len(value), -1).to(dtype).square().mean(1).amax().sqrt())
            if value.numel()
            else 0.0
        )

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
        error = max(error, 1e-10)
        if error > 1:
            return False, max(self.shrink, self.safety * error ** (-1 / self.q))
        factor = self.safety * error ** (-0.7 / self.q) * self.previous ** (0.4 / self.q)
        self.previous = error
        return True, min(self.grow, max(self.shrink, factor))
