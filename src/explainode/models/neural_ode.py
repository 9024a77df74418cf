"""Neural ODEs and SDEs made of ResNets: continuous blocks between the discrete maps of the network that they stand for."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from explainode.dynamics.block import ODEBlock, SDEBlock, number_stochastic_blocks, ode_blocks
from explainode.dynamics.diffusion import Diffusion
from explainode.dynamics.noise import Noise
from explainode.dynamics.sde import StochasticSolver
from explainode.dynamics.solver import RungeKutta
from explainode.dynamics.torch_sde import TorchSDE
from explainode.errors import UserError
from explainode.models.residual import Residual, inject_noise
from explainode.models.weights import initialize

DEFAULT_SOLVER = RungeKutta("heun2", steps=2)


class BlockField(nn.Module):
    """The field of one residual block, constant in time: x + field(t, x) is the block, bit for bit."""

    def __init__(self, block: Residual) -> None:
        super().__init__()
        self.block = block

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.block.field(x)


class TimeConv(nn.Conv2d):
    """A 3x3 convolution that sees the time as one more input channel, the first."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels + 1, channels, 3, padding=1)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(torch.cat([t.to(x.dtype).expand_as(x[:, :1]), x], 1))


class TimeConditionedField(nn.Module):
    """One field for all depths: GroupNorm - ReLU - conv(t, .) - GroupNorm - ReLU - conv(t, .) - GroupNorm; 75,392 parameters for 64 channels.

    Shapes:
        t: (), x: (B, channels, h, w) -> (B, channels, h, w).

    Source: `ODEfunc` of torchdiffeq's odenet_mnist.py (Chen et al. 2018), the field of Lei et al. 2023's Table 2 by its parameter count.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = math.gcd(32, channels)
        self.norm1, self.conv1 = nn.GroupNorm(groups, channels), TimeConv(channels)
        self.norm2, self.conv2 = nn.GroupNorm(groups, channels), TimeConv(channels)
        self.norm3 = nn.GroupNorm(groups, channels)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        x = self.conv1(t, self.norm1(x).relu())
        x = self.conv2(t, self.norm2(x).relu())
        return self.norm3(x)


class NeuralODE(nn.Module):
    """A network with `ODEBlock`s in it, which share one solver.

    BatchNorm layers stay in evaluation mode whatever mode is set: with statistics of the batch a field would be another function at every call.

    Args:
        network: pixels (B, C, H, W) in [0, 1] -> logits (B, K).

    Raises:
        UserError: if the network has no block that solves an equation.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not ode_blocks(network):
            raise UserError(
                f"{type(network).__name__} has no ODEBlock; make a neural ODE of a ResNet with NeuralODE.from_resnet"
            )
        self.network = network
        self.image_size = getattr(network, "image_size", None)
        self.train(network.training)

    @classmethod
    def from_resnet(cls, resnet: nn.Module, solver: Any, tied: bool = False) -> NeuralODE:
        """The neural ODE that stands for a ResNet; the ResNet stays as it is, and its noise is left out.

        Stem, blocks that change the state's shape, and head are copied. Every other block becomes an `ODEBlock` over [0, 1] whose field is the block's
        own branch: theta(t) is piecewise constant in depth, and Euler with one step is the ResNet again, bit for bit.

        Args:
            resnet: a network whose blocks are `Residual`.
            solver: takes the steps of every block.
            tied: one new, untrained, time-conditioned field instead of each run of such blocks, as in Lei et al. 2023 (209,418 parameters for the six-block
                net); its weights come from torch's generator.

        Raises:
            UserError: if no block of the network can be a step of a flow.

        Source: Lei et al. 2023 Eq. 5 and Table 2; Sander et al. 2022. We keep the weights of each block by default: a tied field has another function to
        learn, and its maps have little in common with the ResNet's (docs/dynamics.md).
        """
        if not hasattr(solver, "solve"):
            raise UserError(
                f"a neural ODE needs a solver, got {solver!r}; choose one with solver=rk4, or RungeKutta('rk4', steps=4)"
            )
        return cls(make_continuous(resnet, lambda field, names: ODEBlock(field, solver, names), tied))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def train(self, mode: bool = True) -> NeuralODE:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def with_solver(self, solver: Any) -> NeuralODE:
        """The same network, parameters and buffers shared, with other steps."""
        shared = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
        other = copy.deepcopy(self, shared)
        for block in ode_blocks(other).values():
            block.solver = solver
        return other


class NeuralSDE(NeuralODE):
    """A neural ODE whose blocks are stochastic: `SDEBlock`s, numbered in the order of the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        number_stochastic_blocks(network)

    @classmethod
    def from_resnet(
        cls, resnet: nn.Module, solver: Any, tied: bool = False, diffusion: Diffusion | None = None
    ) -> NeuralSDE:
        """As `NeuralODE.from_resnet`, with a copy of `diffusion` in every block.

        Euler-Maruyama with one step is the ResNet with noise in its blocks, to rounding.

        Raises:
            UserError: without a diffusion, with a solver of ordinary equations, or if no block can be a step of a flow.

        Source: Jha et al. 2021, Eq. 5-6.
        """
        if diffusion is None or not isinstance(solver, (StochasticSolver, TorchSDE)):
            raise UserError(
                "a neural SDE needs a diffusion and a stochastic solver, such as AdditiveDiffusion(0.1) and EulerMaruyama(steps=4); "
                f"got {diffusion!r} and {type(solver).__name__}"
            )
        return cls(
            make_continuous(resnet, lambda field, names: SDEBlock(field, copy.deepcopy(diffusion), solver, names), tied)
        )


def make_continuous(
    resnet: nn.Module, make: Callable[[nn.Module, tuple[str, str]], ODEBlock], tied: bool = False
) -> nn.Module:
    """A copy of a ResNet with `make(field, names of the first and last block)` in the place of every block that a flow can stand for.

    Raises:
        UserError: if there is no such block.
    """
    if ode_blocks(resnet):
        raise UserError(
            f"{type(resnet).__name__} is continuous already: explain it directly (explainer=[adjoint_map]), or solve it by other steps (with_solver)"
        )
    network = inject_noise(copy.deepcopy(resnet), None)
    runs = list(_runs(network))
    if any(
        isinstance(module, Noise) for run in runs for name in run for module in network.get_submodule(name).modules()
    ):
        raise UserError("a branch with noise layers in it is no field; make the neural ODE of the network without them")
    if not runs:
        raise UserError(
            f"{type(resnet).__name__} has no block that a flow can stand for (an identity shortcut, no activation after it or ReLU); "
            "choose one of our ResNets, such as model=resnet20 or model=tv_resnet18"
        )
    for run in runs:
        if tied:
            _replace(network, run, make(TimeConditionedField(_channels(network, run[0])), (run[0], run[-1])))
            continue
        for name in run:
            block = network.get_submodule(name)
            assert isinstance(block, Residual)
            _replace(network, [name], make(BlockField(block), (name, name)))
    return network


def neural_ode(
    teacher: nn.Module, solver: Any = DEFAULT_SOLVER, tied: bool = False, weights: str | None = None
) -> NeuralODE:
    """`NeuralODE.from_resnet`, filled with trained weights where a path is given.

    Raises:
        UserError: see `NeuralODE.from_resnet`; if the weights do not fit.
    """
    network = NeuralODE.from_resnet(teacher, solver, tied)
    initialize(network, weights)
    return network


def neural_sde(
    teacher: nn.Module, diffusion: Diffusion, solver: StochasticSolver, tied: bool = False, weights: str | None = None
) -> NeuralSDE:
    """`NeuralSDE.from_resnet`, filled with trained weights where a path is given.

    Raises:
        UserError: see `NeuralSDE.from_resnet`; if the weights do not fit.
    """
    network = NeuralSDE.from_resnet(teacher, solver, tied, diffusion)
    initialize(network, weights)
    return network


@torch.no_grad()
def teacher_states(
    teacher: nn.Module, blocks: Sequence[tuple[str, str]], x: Tensor
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """For each (first, last) pair of block names the state that enters the first and the one that leaves the last, as the teacher computes x;
    and what it computes, (B, K) logits: one pass gives both."""
    found: dict[tuple[str, str], Tensor] = {}
    handles = []
    for first, last in blocks:
        handles.append(
            teacher.get_submodule(first).register_forward_pre_hook(
                lambda _, args, n=first: found.__setitem__(("in", n), args[0])
            )
        )
        handles.append(
            teacher.get_submodule(last).register_forward_hook(
                lambda _, args, out, n=last: found.__setitem__(("out", n), out)
            )
        )
    try:
        logits = teacher(x)
    finally:
        for handle in handles:
            handle.remove()
    return [(found["in", first], found["out", last]) for first, last in blocks], logits


def _runs(network: nn.Module) -> Iterator[list[str]]:
    """Names of the blocks that a flow can stand for, those that follow each other directly in one list."""
    for prefix, parent in list(network.named_modules()):
        run: list[str] = []
        for key, child in parent.named_children():
            name = f"{prefix}.{key}" if prefix else key
            if isinstance(child, Residual) and child.continuous:
                run.append(name)
                if isinstance(parent, nn.Sequential):
                    continue
            if run:
                yield run
                run = []
        if run:
            yield run


def _replace(network: nn.Module, run: list[str], block: ODEBlock) -> None:
    """Put `block` in the place of the first of `run`; the others go."""
    path, _, key = run[0].rpartition(".")
    parent = network.get_submodule(path)
    parent._modules[key] = block
    for name in run[1:]:
        del parent._modules[name.rpartition(".")[2]]


def _channels(network: nn.Module, name: str) -> int:
    """Channels of the state that a block reads and writes."""
    convolutions = [module for module in network.get_submodule(name).modules() if isinstance(module, nn.Conv2d)]
    if not convolutions:
        raise UserError(
            f"the block {name!r} has no convolution, so the width of a tied field is not known; use tied=False"
        )
    return convolutions[-1].out_channels
