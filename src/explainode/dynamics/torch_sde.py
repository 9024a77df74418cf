"""torchsde's solvers behind our call: an option where its methods are wanted, and an oracle for ours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torchsde
from torch import Tensor, nn

from explainode.dynamics.field import Field
from explainode.dynamics.problem import outside_compiler
from explainode.dynamics.sde import VectorField, check_problem, learned_parameters, like_state
from explainode.errors import UserError, nearest

METHODS = {
    "euler": "none",
    "milstein": "none",
    "srk": "space-time",
}  # Ito methods for diagonal noise; the Lévy area that each asks for
GRADIENTS = ("backprop", "adjoint")


@dataclass(frozen=True)
class TorchSDE:
    """torchsde's `sdeint` (Ito, diagonal noise, equal steps) for states of any shape and one key per sample.

    torchsde's states are (batch, d): we flatten, and unflatten for the fields. Its noise comes from one number for a whole batch, by default
    from NumPy's global generator, the same on every rank. Here every sample has a `BrownianInterval` of its own with its key as entropy, so
    that its path does not depend on its batch mates. It is not the path that our solvers draw for this key.

    Args:
        method: "euler" (strong order 1/2), "milstein" (1) or "srk" (1.5).
        steps: of equal length from t0 to t1.
        gradient: "backprop", or "adjoint": the continuous adjoint, approximate: some 10 % off at 16 Euler steps, where ours is exact.

    Raises:
        UserError: for an unknown method or gradient, or fewer than one step.

    Source: torchsde 0.2.6 (Li et al. 2020; Kidger et al. 2021).
    """

    method: str = "euler"
    steps: int = 16
    gradient: str = "backprop"

    sde_type: ClassVar[str] = "ito"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(
                f"no method of torchsde for Ito equations with diagonal noise is called {self.method!r}; the nearest are {nearest(self.method, METHODS)}"
            )
        if self.gradient not in GRADIENTS:
            raise UserError(
                f"no gradient called {self.gradient!r}; the nearest are {nearest(self.gradient, GRADIENTS)}"
            )
        if self.steps < 1:
            raise UserError(f"a stochastic solver needs at least 1 step, got steps={self.steps}")

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
        """X(t1); see `StochasticSolver.__call__`. `parameters` are read by the adjoint, which knows those of modules itself.

        Shapes:
            x0: (B, *S), key: (B,) int64 -> (B, *S).
        """
        t0, t1 = check_problem(x0, key, t0, t1)
        learned = learned_parameters(drift, diffusion, parameters)
        adjoint = self.gradient == "adjoint" and torch.is_grad_enabled()
        # the adjoint differentiates by what it is told to, so that its fields are inspected for what it would lose
        equation = _Flattened(
            Field(drift, x0, learned, adjoint), Field(like_state(diffusion), x0, learned, adjoint, diffusion)
        )
        y0 = x0.reshape(len(x0), -1)
        times = torch.tensor([t0, t1], dtype=torch.float64)
        # torchsde adds up dt until it passes t1; a dt too short by rounding would cost it one more, tiny step
        dt = (t1 - t0) / self.steps * (1 + 1e-12)
        settings: dict[str, Any] = {
            "bm": _Intervals(key, y0, t0, t1, dt, METHODS[self.method]),
            "dt": dt,
            "method": self.method,
        }
        if adjoint:
            states = torchsde.sdeint_adjoint(equation, y0, times, adjoint_params=learned, **settings)
        else:
            states = torchsde.sdeint(equation, y0, times, **settings)
        return states[-1].reshape(x0.shape)


class _Flattened(nn.Module):
    """Drift and diffusion as torchsde wants them: methods f and g of (t, (B, d))."""

    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(self, drift: Field, diffusion: Field) -> None:
        super().__init__()
        self.drift, self.diffusion = drift, diffusion

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return _evaluate(self.drift, t, y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return _evaluate(self.diffusion, t, y)


def _evaluate(field: Field, t: Tensor, y: Tensor) -> Tensor:
    """The field at a flattened state; inside a backward pass as it was in the forward pass."""
    replayed = torch._C._current_autograd_node() is not None
    return (field.replay if replayed else field)(t, y.reshape(field.shape)).reshape(y.shape)


class _Intervals(torchsde.BaseBrownian):
    """One `BrownianInterval` per sample, its entropy the sample's key, stacked to (B, d)."""

    def __init__(self, key: Tensor, y0: Tensor, t0: float, t1: float, dt: float, levy_area: str) -> None:
        size, dtype, device = (1, y0.shape[1]), y0.dtype, y0.device
        self.samples = [
            torchsde.BrownianInterval(
                t0, t1, size, dtype, device, word & (1 << 64) - 1, dt, levy_area_approximation=levy_area
            )
            for word in key.tolist()
        ]

    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
        parts = [sample(ta, tb, return_U=return_U, return_A=return_A) for sample in self.samples]
        return tuple(map(torch.cat, zip(*parts, strict=True))) if isinstance(parts[0], tuple) else torch.cat(parts)

    def __repr__(self) -> str:
        return f"{len(self.samples)} x {self.samples[0]}"

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.samples), self.samples[0].shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.samples[0].dtype

    @property
    def device(self) -> torch.device:
        return self.samples[0].device

    @property
    def levy_area_approximation(self) -> str:
        return self.samples[0].levy_area_approximation
