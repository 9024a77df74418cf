"""What a rule is: how the relevance of one operation's outputs is shared out among its inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from explainode.relevance.operations import Operation

if TYPE_CHECKING:
    from explainode.relevance.walk import Walk

Relevance = tuple[Tensor | None, ...]

KINDS = (
    "linear", "average", "affine", "activation", "sum", "product", "bilinear", "softmax", "norm", "max", "rearrangement",
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
    return z + torch.where(z < 0, -epsilon, epsilon) if isinstance(epsilon, Tensor) or epsilon else z


def vanishing(z: Tensor) -> Tensor:
    """Where z is too small to divide by: below the square root of the smallest number of its type."""
    return z.abs() <= torch.finfo(z.dtype).tiny ** 0.5


def ratio(R: Tensor, z: Tensor) -> Tensor:
    """R / z, and 0 where z vanishes."""
    zero = vanishing(z)
    return torch.where(zero, 0.0, R / torch.where(zero, 1.0, z))


def fit(share: Tensor, shape: torch.Size) -> Tensor:
    """`share` summed over the axes along which an input of `shape` was broadcast."""
    return share if share.shape == shape else share.sum_to_size(shape)
