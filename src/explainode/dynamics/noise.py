"""How much noise a block injects: the diffusion term of a network read as a stochastic differential equation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from explainode.errors import UserError, nearest
from explainode.randomness import current_scope, normal_like, uniform_like

KINDS = ("additive", "multiplicative", "dropout", "jump")
PLACES = ("before", "after")


class Noise(nn.Module):
    """The noise n that a block adds to its state x; f is the block's change, eps standard normal, everything independent in every element:

        additive, normalized    n = magnitude * std(x) * eps     std over each sample's own elements; the gradient flows through it
        additive                n = magnitude * eps
        multiplicative          n = magnitude * x * eps
        dropout                 n = f * (kept / (1 - magnitude) - 1)     kept 1 with probability 1 - magnitude, else 0
        jump                    n = magnitude * x * jump                 jump +1 and -1 with probability rate / 2 each, else 0

    Inside a noise scope it speaks when the scope is active, in train and eval mode alike, and draws from the scope's keys and `block`.
    Outside of any it speaks in train mode only and draws from torch's generator. With magnitude 0 it never speaks.

    Args:
        magnitude: strength, 0 or more; 0.1, 0.25, 0.5 and 0.75 in Jha et al. 2021. For dropout the probability of dropping, below 1.
        kind: "additive", "multiplicative", "dropout" or "jump".
        normalize: measure additive noise in standard deviations of the sample instead of in absolute units. With "batch" in those of the
            whole batch, as EnResNet does: a sample's noise then depends on its batch mates and, under data parallelism, on the rank's share.
        where: "before" or "after" the block's activation (read by the block).
        rate: probability that an element jumps in one block.

    Attributes:
        block: the number of this block in its network, part of the noise key; `number_noise_blocks` sets it.

    Raises:
        UserError: for an unknown `kind`, `normalize` or `where`, a magnitude that is negative or not finite (of dropout: 1 or more), or a
            rate outside [0, 1].

    Source: Jha et al. 2021, Eq. 5 and Sec. 4 ("normalized noise"); Wang et al. 2019 (EnResNet) for noise scaled by std;
    Liu et al. 2019 (Neural SDE) for multiplicative, dropout and jump noise. We normalize by each sample's own standard deviation unless
    asked otherwise, and divide by n where EnResNet's code divides by n - 1. Liu et al. approximate dropout by Gaussian noise of the same
    variance (`DropoutDiffusion`); here it is dropout itself. Their jumps (in code only) have the probability rate * dt; a block is dt = 1.
    """

    constant_in_relevance = True  # relevance passes the noise by, as it passes a bias

    def __init__(
        self,
        magnitude: float = 0.1,
        kind: str = "additive",
        normalize: bool | str = True,
        where: str = "before",
        rate: float = 0.1,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise UserError(
                f"noise kind must be one of {', '.join(KINDS)}, got {kind!r}; the nearest is {nearest(kind, KINDS, 1)}"
            )
        if where not in PLACES:
            raise UserError(f"noise goes before or after the activation, got where={where!r}")
        if normalize not in (True, False, "batch"):
            raise UserError(
                f"noise is normalized by each sample (true), by the whole batch (batch) or not (false), got normalize={normalize!r}"
            )
        if not (math.isfinite(magnitude) and magnitude >= 0):
            raise UserError(f"noise magnitude must be a finite number of at least 0, got {magnitude}")
        if kind == "dropout" and magnitude >= 1:
            raise UserError(
                f"the magnitude of dropout noise is the probability of dropping and must be below 1, got {magnitude}"
            )
        if not 0 <= rate <= 1:
            raise UserError(f"the rate of jumps is a probability and must lie in [0, 1], got {rate}")
        self.magnitude, self.kind, self.normalize, self.where, self.rate = (
            float(magnitude),
            kind,
            normalize,
            where,
            float(rate),
        )
        self.block: int | None = None

    def speaks(self) -> bool:
        """Whether a call now would return noise."""
        scope = current_scope()
        return self.magnitude > 0 and (self.training if scope is None else scope.active)

    def forward(self, x: Tensor, change: Tensor | None = None) -> Tensor | None:
        """(B, *S) state, and for dropout the (B, *S) change f that has led to it -> (B, *S) noise to add to it, or None when silent.

        Raises:
            RuntimeError: for dropout without `change`; inside a scope, if the block has no number yet or the batch has another number of
                rows than the scope.
        """
        if not self.speaks():
            return None
        if self.kind == "dropout":
            if change is None:
                raise RuntimeError(
                    "dropout noise drops elements of the block's change, which the block has not given: call noise(x, change)"
                )
            kept = self.uniform(change) >= self.magnitude
            return change * (kept.to(change.dtype) / (1 - self.magnitude) - 1)
        if self.kind == "jump":
            u = self.uniform(x)
            return self.magnitude * x * (2 * (u < self.rate / 2).to(x.dtype) - (u < self.rate).to(x.dtype))
        if self.kind == "multiplicative":
            return self.magnitude * x * self.standard_normal(x)
        if self.normalize:
            return _Normalized.apply(x, self.standard_normal(x), self.magnitude, self.normalize == "batch")
        return self.magnitude * self.standard_normal(x)

    def standard_normal(self, x: Tensor) -> Tensor:
        """eps: (B, *S), in x's dtype and memory order."""
        keys = self._keys(x)
        return _in_memory_order(torch.randn_like, x) if keys is None else normal_like(x, keys)

    def uniform(self, x: Tensor) -> Tensor:
        """u in [0, 1): (B, *S), in float32 and x's memory order."""
        x, keys = x.detach().float(), self._keys(x)
        return _in_memory_order(torch.rand_like, x) if keys is None else uniform_like(x, keys)

    def _keys(self, x: Tensor) -> Tensor | None:
        """(B,) keys of this block in the scope; None outside of any."""
        scope = current_scope()
        if scope is None:
            return None
        if self.block is None:
            raise RuntimeError(
                "this noise block has no number, so it would share its noise with others; call number_noise_blocks(network)"
            )
        return scope.keys(len(x), x.device, self.block)

    def extra_repr(self) -> str:
        rate = f"rate={self.rate}, " if self.kind == "jump" else ""
        return f"magnitude={self.magnitude}, kind={self.kind!r}, normalize={self.normalize}, {rate}where={self.where!r}, block={self.block}"


def mean_and_std(x: Tensor, batch: bool = False) -> tuple[Tensor, Tensor]:
    """(B, *S) -> twice (B, 1, ..., 1), in at least float32: mean and standard deviation (divisor n) of each sample's elements.

    With `batch` twice (1, 1, ..., 1), over the elements of all samples. By the norm of what is centered: `torch.var` takes thirteen times
    as long on a CPU.
    """
    (elements, count), dtype = _elements(x, batch), torch.promote_types(x.dtype, torch.float32)
    mean = x.mean(elements, keepdim=True, dtype=dtype)
    return mean, torch.linalg.vector_norm(x - mean, dim=elements, keepdim=True) / math.sqrt(count)


def _elements(x: Tensor, batch: bool) -> tuple[tuple[int, ...], int]:
    """Dimensions that a mean runs over, and how many elements that are."""
    return tuple(range(0 if batch else 1, x.dim())), x.numel() if batch else x[0].numel()


class _Normalized(torch.autograd.Function):
    """n = magnitude * std(x) * eps, with d std / dx = (x - mean) / (N std) written out; 0 where std is 0.

    Autograd's own backward gives the same, at twice the passes over memory (14 and 22 % of a training step instead of 10 and 15 %).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: Tensor, magnitude: float, batch: bool) -> Tensor:
        mean, std = mean_and_std(x, batch)
        ctx.batch = batch
        noise = (eps * (magnitude * std)).to(x.dtype)
        ctx.save_for_backward(x, noise, mean, std)
        return noise

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, noise, mean, std = ctx.saved_tensors
        if torch.is_grad_enabled():  # double backward: the saved moments do not know that they came from x
            mean, std = mean_and_std(x, ctx.batch)
        elements, count = _elements(x, ctx.batch)
        variance = std.square().clamp_min(torch.finfo(std.dtype).tiny)
        slope = (gradient * noise).sum(elements, keepdim=True, dtype=std.dtype) / (count * variance)
        return torch.addcmul(-slope * mean, x, slope).to(x.dtype), None, None, None


def _in_memory_order(draw: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`torch.randn_like` or `rand_like` in x's own memory order; torch's take nine times as long on a channels_last tensor."""
    if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return draw(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return draw(x)


def number_noise_blocks(network: nn.Module) -> int:
    """Number the noise blocks of a network in the order of its modules, which is the forward order of ours; returns how many there are."""
    blocks = [module for module in network.modules() if isinstance(module, Noise)]
    for number, block in enumerate(blocks):
        block.block = number
    return len(blocks)
