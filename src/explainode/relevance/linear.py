"""Linear maps y = A x as rules need them: forwards, transposed, and with every entry of A replaced by a function of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

aten = torch.ops.aten


class LinearMap(ABC):
    """A constant matrix A, never written out."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """A x."""

    @abstractmethod
    def transpose(self, r: Tensor, x: Tensor) -> Tensor:
        """A^T r, in the shape of x."""

    @abstractmethod
    def entries(self, function: Callable[[Tensor], Tensor]) -> LinearMap:
        """The map with entries function(A_ij)."""

    @property
    def positive(self) -> LinearMap:
        """max(A, 0)."""
        return self.entries(lambda weight: weight.clamp(min=0))

    @property
    def negative(self) -> LinearMap | None:
        """min(A, 0); None where A has no negative entry by construction."""
        return self.entries(lambda weight: weight.clamp(max=0))

    @property
    def flat(self) -> LinearMap:
        """1 where x and y are connected."""
        return self.entries(torch.ones_like)

    @property
    def squared(self) -> LinearMap:
        """A^2, entry by entry."""
        return self.entries(torch.square)

    def spread(self, r: Tensor, x: Tensor) -> Tensor:
        """r handed out evenly to all inputs that are connected with each output, in the shape of x."""
        flat = self.flat
        return flat.transpose(r / flat(torch.ones_like(x)), x)

    @abstractmethod
    def scaled_outputs(self, scale: Tensor) -> LinearMap:
        """diag(scale) A, with one scale (C, 1, ...) per output channel."""


@dataclass(frozen=True)
class Convolution(LinearMap):
    """A convolution of any dimension, or its transpose, by `weight` (C', C / groups, *kernel)."""

    weight: Tensor
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]
    groups: int

    def __call__(self, x: Tensor) -> Tensor:
        return torch.convolution(
            x,
            self.weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
        )

    def transpose(self, r: Tensor, x: Tensor) -> Tensor:
        return aten.convolution_backward(
            r, x, self.weight, None, self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups,
            [True, False, False],
        )[0]  # fmt: skip

    def entries(self, function: Callable[[Tensor], Tensor]) -> Convolution:
        return replace(self, weight=function(self.weight))

    def spread(self, r: Tensor, x: Tensor) -> Tensor:
        # the channels of a group share alike, so one channel stands for all of them
        one = replace(self, weight=self.weight.new_ones(self.groups, 1, *self.weight.shape[2:]))
        channels = x.shape[1] // self.groups
        connected = channels * one(x.new_ones(1, self.groups, *x.shape[2:]))
        return one.transpose(
            r.unflatten(1, (self.groups, -1)).sum(2) / connected, x[:, : self.groups]
        ).repeat_interleave(channels, 1)

    def scaled_outputs(self, scale: Tensor) -> Convolution:
        if not self.transposed:
            return replace(self, weight=self.weight * scale.reshape(-1, *[1] * (self.weight.dim() - 1)))
        # (C, C' / groups, *kernel): the outputs of group g belong to the g-th part of the inputs
        parts = self.weight.unflatten(0, (self.groups, -1)) * scale.reshape(
            self.groups, 1, -1, *[1] * (self.weight.dim() - 2)
        )
        return replace(self, weight=parts.flatten(0, 1))


@dataclass(frozen=True)
class MatrixProduct(LinearMap):
    """x W (x on the left) or W x, with leading batch dimensions where both have them."""

    weight: Tensor
    on_left: bool = True

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.on_left else self.weight @ x

    def transpose(self, r: Tensor, x: Tensor) -> Tensor:
        return r @ self.weight.mT if self.on_left else self.weight.mT @ r

    def entries(self, function: Callable[[Tensor], Tensor]) -> MatrixProduct:
        return replace(self, weight=function(self.weight))

    def spread(self, r: Tensor, x: Tensor) -> Tensor:
        axis = -1 if self.on_left else -2
        return (r.sum(axis, keepdim=True) / x.shape[axis]).expand_as(x)

    def scaled_outputs(self, scale: Tensor) -> MatrixProduct:
        scale = scale.flatten()
        return replace(self, weight=self.weight * (scale if self.on_left else scale[:, None]))


class _Callable(Protocol):
    def call(self, *inputs: Tensor) -> tuple[Tensor, ...]: ...

    def vjp(self, inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None]) -> tuple[Tensor, ...]: ...


@dataclass(frozen=True)
class Average(LinearMap):
    """A mean, a sum or an interpolation: entries that are never negative and that no rule changes.

    Within a pooling window all entries are equal, so that their squares and ones share relevance out as they do themselves.
    """

    operation: _Callable

    def __call__(self, x: Tensor) -> Tensor:
        return self.operation.call(x)[0]

    def transpose(self, r: Tensor, x: Tensor) -> Tensor:
        return self.operation.vjp([x], [r])[0].contiguous()  # of a sum it would be one number seen many times

    def entries(self, function: Callable[[Tensor], Tensor]) -> Average:
        return self

    @property
    def negative(self) -> None:
        return None

    def scaled_outputs(self, scale: Tensor) -> LinearMap:
        raise NotImplementedError("an average is never folded")
