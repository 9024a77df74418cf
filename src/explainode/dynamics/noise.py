"""How much noise a block injects: the diffusion term of a network read as a stochastic differential equation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from explainode.errors import UserError, nearest
from explainode.randomness import current_scope, normal_like

KINDS = ("additive", "multiplicative")
PLACES = ("before", "after")


class Noise(nn.Module):
    """The noise n that a block adds to its state x, eps being standard normal and independent in every element:

        additive, normalized    n = magnitude * std(x) * eps     std over each sample's own elements; the gradient flows through it
        additive                n = magnitude * eps
        multiplicative          n = magnitude * x * eps

    Inside a noise scope it speaks when the scope is active, in train and eval mode alike, and draws from the scope's keys and `block`.
    Outside of any it speaks in train mode only and draws from torch's generator. With magnitude 0 it never speaks.

    Args:
        magnitude: strength, 0 or more; 0.1, 0.25, 0.5 and 0.75 in the source.
        kind: "additive" or "multiplicative".
        normalize: measure additive noise in standard deviations of the sample instead of in absolute units.
        where: "before" or "after" the block's activation (read by the block).

    Attributes:
        block: the number of this block in its network, part of the noise key; `number_noise_blocks` sets it.

    Raises:
        UserError: for an unknown `kind` or `where`, or a magnitude that is negative or not finite.

    Source: paper 001 (Jha et al. 2021), Eq. 5 and Sec. 4 ("normalized noise"); Wang et al. 2019 (EnResNet) for noise scaled by std.
    We normalize by each sample's own standard deviation: one over the whole batch, as in EnResNet's code, would make
    a sample's noise depend on its batch mates and, under data parallelism, on the rank's share.
    """

    def __init__(self, magnitude: float = 0.1, kind: str = "additive", normalize: bool = True, where: str = "before") -> None:
        super().__init__()
        if kind not in KINDS:
            raise UserError(f"noise kind must be one of {', '.join(KINDS)}, got {kind!r}; the nearest is {nearest(kind, KINDS, 1)}")
        if where not in PLACES:
            raise UserError(f"noise goes before or after the activation, got where={where!r}")
        if not (math.isfinite(magnitude) and magnitude >= 0):
            raise UserError(f"noise magnitude must be a finite number of at least 0, got {magnitude}")
        self.magnitude, self.kind, self.normalize, self.where = float(magnitude), kind, normalize, where
        self.block: int | None = None

    def speaks(self) -> bool:
        """Whether a call now would return noise."""
        scope = current_scope()
        return self.magnitude > 0 and (self.training if scope is None else scope.active)

    def forward(self, x: Tensor) -> Tensor | None:
        """(B, *S) state -> (B, *S) noise to add to it, or None when silent.

        Raises:
            RuntimeError: inside a scope, if the block has no number yet or the batch has another number of rows than the scope.
        """
        if not self.speaks():
            return None
        if self.kind == "multiplicative":
            return self.magnitude * x * self.standard_normal(x)
        if self.normalize:
            return _Normalized.apply(x, self.standard_normal(x), self.magnitude)
        return self.magnitude * self.standard_normal(x)

    def standard_normal(self, x: Tensor) -> Tensor:
        """eps: (B, *S), in x's dtype and memory order."""
        scope = current_scope()
        if scope is None:
            return _randn_like(x)
        if self.block is None:
            raise RuntimeError("this noise block has no number, so it would share its noise with others; call number_noise_blocks(network)")
        return normal_like(x, scope.keys(len(x), x.device, self.block))

    def extra_repr(self) -> str:
        return f"magnitude={self.magnitude}, kind={self.kind!r}, normalize={self.normalize}, where={self.where!r}, block={self.block}"


def mean_and_std(x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, *S) -> twice (B, 1, ..., 1), in at least float32: mean and standard deviation (divisor n) of each sample's elements.

    By the norm of the centered sample: `torch.var` takes thirteen times as long on a CPU.
    """
    elements, dtype = tuple(range(1, x.dim())), torch.promote_types(x.dtype, torch.float32)
    mean = x.mean(elements, keepdim=True, dtype=dtype)
    return mean, torch.linalg.vector_norm(x - mean, dim=elements, keepdim=True) / math.sqrt(x[0].numel())


class _Normalized(torch.autograd.Function):
    """n = magnitude * std(x) * eps, with d std / dx = (x - mean) / (N std) written out; 0 where std is 0.

    Autograd's own backward gives the same, at twice the passes over memory (14 and 22 % of a training step instead of 10 and 15 %).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: Tensor, magnitude: float) -> Tensor:
        mean, std = mean_and_std(x)
        noise = (eps * (magnitude * std)).to(x.dtype)
        ctx.save_for_backward(x, noise, mean, std)
        return noise

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, noise, mean, std = ctx.saved_tensors
        if torch.is_grad_enabled():  # double backward: the saved moments do not know that they came from x
            mean, std = mean_and_std(x)
        elements = tuple(range(1, x.dim()))
        variance = std.square().clamp_min(torch.finfo(std.dtype).tiny)
        slope = (gradient * noise).sum(elements, keepdim=True, dtype=std.dtype) / (x[0].numel() * variance)
        return torch.addcmul(-slope * mean, x, slope).to(x.dtype), None, None


def _randn_like(x: Tensor) -> Tensor:
    """`torch.randn_like` in x's own memory order; torch's takes nine times as long on a channels_last tensor."""
    if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.randn_like(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return torch.randn_like(x)


def number_noise_blocks(network: nn.Module) -> int:
    """Number the noise blocks of a network in the order of its modules, which is the forward order of ours; returns how many there are."""
    blocks = [module for module in network.modules() if isinstance(module, Noise)]
    for number, block in enumerate(blocks):
        block.block = number
    return len(blocks)
