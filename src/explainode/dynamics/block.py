"""Layers whose forward pass is the solution of a differential equation, ordinary or stochastic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from explainode.dynamics.diffusion import Diffusion
from explainode.dynamics.failure import SolverError
from explainode.dynamics.noise import Noise
from explainode.dynamics.problem import Solution
from explainode.dynamics.sde import StochasticSolver
from explainode.dynamics.solver import RungeKutta
from explainode.dynamics.torch_sde import TorchSDE
from explainode.errors import UserError
from explainode.randomness import current_scope


class ODEBlock(nn.Module):
    """X(0) -> X(1) of dX/dt = field(t, X), by the steps of a solver.

    Args:
        field: `field(t, x)`, state (B, *S) -> (B, *S).
        solver: `RungeKutta` or anything with its call; a value, shared by as many blocks as wanted.
        replaces: names of the first and the last block of the network that this one stands for, for those who compare the two.

    Shapes:
        x: (B, *S) -> (B, *S).

    Raises:
        SolverError: if the equation cannot be solved; its message names the block.

    Source: Chen et al. 2018; Lei et al. 2023 Eq. 5.
    """

    def __init__(self, field: nn.Module, solver: Any, replaces: tuple[str, str] | None = None) -> None:
        super().__init__()
        self.field = field
        self.solver = solver
        self.replaces = replaces

    def forward(self, x: Tensor) -> Tensor:
        return self.solve(x).state

    def solve(self, x: Tensor, grid: Tensor | None = None) -> Any:
        """The `Solution` from x; over the times of `grid` (ascending, within [0, 1]) where it is given."""
        return self._take(self.solver, x, grid)

    def grid(self, x: Tensor) -> Tensor:
        """The times (N + 1,) that the solver visits from x: known beforehand for fixed steps, found by solving for adaptive ones."""
        steps = getattr(self.solver, "steps", None)
        return (
            self.solve(x).grid
            if steps is None
            else torch.tensor([n / steps for n in range(steps + 1)], dtype=torch.float64)
        )

    def _take(self, solver: Any, x: Tensor, grid: Tensor | None) -> Any:
        """The `Solution` of the field alone by the steps of `solver`, its own or those of `grid`."""
        over = {} if grid is None else {"t0": float(grid[0]), "t1": float(grid[-1]), "grid": grid}
        return self._located(lambda: solver.solve(self.field, x, **over))

    def _located(self, solve: Callable[[], Any]) -> Any:
        """What `solve` returns; its failure is given this block's name."""
        try:
            return solve()
        except SolverError as error:
            error.block = self.replaces[0] if self.replaces else type(self.field).__name__
            raise

    def extra_repr(self) -> str:
        return f"solver={self.solver}"


class SDEBlock(ODEBlock):
    """X(0) -> X(1) of dX = field dt + diffusion dW, by the steps of a stochastic solver.

    It speaks as noise blocks do (`Noise`): inside a noise scope when the scope is active, drawing from the scope's keys and the block's
    number; outside of any in train mode only, from torch's generator. Silent, it takes the same steps by Euler's method: the network of paper
    001, trained with noise and explained without.

    Args:
        diffusion: `diffusion(t, x)`, magnitude 0 never speaks.
        solver: `EulerMaruyama`, `Milstein` or `TorchSDE`.

    Attributes:
        number: of this block in its network, part of the noise key; `number_stochastic_blocks` sets it.

    Source: Liu et al. 2019; Jha et al. 2021 Eq. 5-6.
    """

    def __init__(
        self,
        field: nn.Module,
        diffusion: Diffusion,
        solver: StochasticSolver | TorchSDE,
        replaces: tuple[str, str] | None = None,
    ) -> None:
        super().__init__(field, solver, replaces)
        self.diffusion = diffusion
        self.number = 0

    def speaks(self) -> bool:
        """Whether a call now would be stochastic."""
        scope = current_scope()
        return self.diffusion.magnitude > 0 and (self.training if scope is None else scope.active)

    def solve(self, x: Tensor, grid: Tensor | None = None) -> Any:
        if not self.speaks():
            quiet = RungeKutta(
                "euler", self.solver.steps, gradient="backprop" if self.solver.gradient == "backprop" else "symplectic"
            )
            return self._take(quiet, x, grid)
        if grid is not None:
            raise UserError(
                "a stochastic block is solved as a whole: choose noise=off, or a depth t at the end of a block"
            )
        scope = current_scope()
        key = (
            scope.keys(len(x), x.device, "sde", self.number)
            if scope is not None
            else torch.randint(-(2**63), 2**63 - 1, (len(x),), device=x.device)
        )
        state = self._located(lambda: self.solver(self.field, self.diffusion, x, key))
        return Solution(state, torch.linspace(0, 1, self.solver.steps + 1, dtype=torch.float64), self.solver.steps, 0)


def ode_blocks(network: nn.Module) -> dict[str, ODEBlock]:
    """The blocks of a network that solve equations, by name, in the order of its modules."""
    return {name: module for name, module in network.named_modules() if isinstance(module, ODEBlock)}


def number_stochastic_blocks(network: nn.Module) -> int:
    """Number the stochastic blocks of a network in the order of its modules, so that no two share their noise; returns how many there are."""
    blocks = [block for block in ode_blocks(network).values() if isinstance(block, SDEBlock)]
    for number, block in enumerate(blocks):
        block.number = number
    return len(blocks)


def is_random(network: nn.Module) -> bool:
    """Whether a network draws when noise is on: it has noise in it, or a stochastic block, of a magnitude above 0."""
    return any(
        (isinstance(module, Noise) and module.magnitude > 0)
        or (isinstance(module, SDEBlock) and module.diffusion.magnitude > 0)
        for module in network.modules()
    )
