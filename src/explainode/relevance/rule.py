"""What a rule is: how the relevance of one operation's outputs is shared out among its inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from explainode.relevance.operations import Operation
from explainode.relevance.walk import Relevance, Walk

aten = torch.ops.aten

KINDS = (
    "linear", "average", "affine", "activation", "sum", "product", "bilinear", "softmax", "norm", "length", "max", "rearrangement",
)  # fmt: skip


class Rule(ABC):
    """A rule and its parameters.

    Attributes:
        kinds: the operations that it knows.
    """

    kinds: ClassVar[tuple[str, ...]]

    @abstractmethod
    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        """The relevance of each input, in its shape (None: nothing), from that of each output (None: nothing arrived)."""


def stabilized(z: Tensor, epsilon: float | Tensor = 0.0) -> Tensor:
    """z + epsilon sign(z), with sign(0) = 1."""
    if not isinstance(epsilon, Tensor):
        if epsilon == 0:
            return z
        epsilon = torch.full((), epsilon, dtype=z.dtype, device=z.device)
    return z + epsilon.copysign(z + 0.0)  # -0 + 0 = 0


def vanishing(z: Tensor) -> Tensor:
    """Where z is too small to divide by: below the square root of the smallest number of its type."""
    return z.abs() <= torch.finfo(z.dtype).tiny ** 0.5


def divide(R: Tensor, z: Tensor) -> tuple[Tensor, Tensor | None]:
    """s = R / z, and 0 where z vanishes beside R; and the R that was not divided there, 0 elsewhere (None: there is none).

    z vanishes where |s| would be above the square root of the largest number of its type. Comparing elements costs many times what arithmetic
    does, so that they are looked at one by one only where there are such.
    """
    s = R / z
    limit = torch.finfo(s.dtype).max ** 0.5
    low, high = s.aminmax()
    if bool((low > -limit) & (high < limit)):  # nan is neither
        return s, None
    zero = ~(s.abs() < limit)
    s.masked_fill_(zero, 0.0)
    lost = R * zero
    return s, lost if bool(lost.any()) else None


def split_signs(s: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """s where z >= 0, and s where z < 0; each 0 elsewhere."""
    at_positive = aten.threshold_backward(s, z, -torch.finfo(z.dtype).tiny)  # what it does is a comparison, in one pass
    return at_positive, s - at_positive


def ratio(R: Tensor, z: Tensor) -> Tensor:
    """R / z, and 0 where z vanishes."""
    return divide(R, z)[0]


def fit(share: Tensor, shape: torch.Size) -> Tensor:
    """`share` summed over the axes along which an input of `shape` was broadcast."""
    return share if share.shape == shape else share.sum_to_size(shape)
