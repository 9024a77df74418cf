"""What is explained, a class or a unit of a layer: the accepted forms of a target, and the score it stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from explainode.errors import UserError

POSITIONS = ("max", "sum")


@dataclass(frozen=True)
class Unit:
    """One channel of a layer as the target: the score is its activation, and no class is involved.

    Args:
        layer: the layer's name; if it is called several times, the last call counts.
        channel: of the layer's output.
        position: "max" for the strongest position, "sum" for all of them, or one position (row, column) of the layer's map.

    Raises:
        UserError: if the channel is negative or the position is none of these.

    Source: Zeiler and Fergus 2014, who show the strongest activation of a feature map.
    """

    layer: str
    channel: int
    position: str | tuple[int, int] = "max"

    def __post_init__(self) -> None:
        if self.channel < 0:
            raise UserError(f"a unit's channel counts from 0, got {self.channel}")
        pair = (
            isinstance(self.position, tuple)
            and len(self.position) == 2
            and all(isinstance(at, int) and at >= 0 for at in self.position)
        )
        if not pair and self.position not in POSITIONS:
            raise UserError(
                f"a unit's position is 'max', 'sum' or a pair (row, column) of the layer's map, got {self.position!r}"
            )

    def read(self, output: Tensor) -> Tensor:
        """(R, C): of every channel of the layer, a map (R, C, h, w) or single values (R, C), what this unit is of its own.

        Raises:
            UserError: if the layer has no such channel or no such position.
        """
        if self.channel >= output.shape[1]:
            raise UserError(
                f"layer {self.layer!r} has no channel {self.channel}; choose one of 0..{output.shape[1] - 1}"
            )
        if isinstance(self.position, tuple):
            size = tuple(output.shape[2:])
            if len(size) != 2 or not all(at < side for at, side in zip(self.position, size, strict=True)):
                raise UserError(
                    f"layer {self.layer!r} returns maps of size {size}, which have no position {self.position}"
                )
            return output[:, :, self.position[0], self.position[1]]
        if output.dim() == 2:
            return output
        return output.sum((2, 3)) if self.position == "sum" else F.adaptive_max_pool2d(output, 1).flatten(1)


Target = int | Sequence[int] | Tensor | Callable[[Tensor], Tensor] | Unit | None


def check_logits(output: Any, rows: int) -> Tensor:
    """`output` if it is a (rows, K) tensor of logits.

    Raises:
        UserError: if it is anything else.
    """
    if isinstance(output, Tensor) and output.dim() == 2 and output.shape[0] == rows:
        return output
    got = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
    raise UserError(
        f"the model returned {got} for {rows} images, expected logits (B, K); wrap it so that it returns logits alone"
    )


def as_indices(target: int | Sequence[int] | Tensor, batch: int, device: torch.device) -> Tensor:
    """(B,) int64 from an int, a list or a tensor.

    Raises:
        UserError: if there are neither one nor B whole numbers.
    """
    indices = torch.as_tensor(target, device=device)
    if indices.dtype.is_floating_point or indices.dtype.is_complex or indices.dtype == torch.bool:
        raise UserError(
            f"target has type {str(indices.dtype).removeprefix('torch.')}, expected class indices; give whole numbers"
        )
    if indices.dim() == 0:
        indices = indices.expand(batch)
    if indices.shape != (batch,):
        raise UserError(
            f"target must have shape ({batch},), got {tuple(indices.shape)}; give one class, or one per image"
        )
    return indices.to(torch.int64)


def check_range(target: Tensor, classes: int) -> None:
    """Raises a UserError naming the first class outside 0..classes-1."""
    wrong = (target < 0) | (target >= classes)
    if bool(wrong.any()):
        raise UserError(f"target {int(target[wrong][0])} is not a class of this model; choose one of 0..{classes - 1}")


def resolve_target(target: Target, logits: Tensor) -> Tensor:
    """(B,) int64: the class to explain for each row of `logits` (B, K).

    None is the predicted class; a callable maps logits (B, K) to class indices (B,). A unit has no logits: `cut_at` its layer first.

    Raises:
        UserError: if the target has another shape or type, or a class is outside 0..K-1.
    """
    if target is None:
        return logits.argmax(1)
    assert not isinstance(target, Unit)
    chosen = target(logits) if callable(target) else target
    indices = as_indices(chosen, len(logits), logits.device)
    check_range(indices, logits.shape[1])
    return indices


def select_score(logits: Tensor, target: Tensor) -> Tensor:
    """(B,): the logit of each row's target, before any softmax."""
    check_range(target, logits.shape[1])
    return logits.gather(1, target[:, None])[:, 0]
