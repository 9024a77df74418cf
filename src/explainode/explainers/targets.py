"""Which class is explained: the accepted forms of a target, and the score it stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from explainode.errors import UserError

Target = int | Sequence[int] | Tensor | Callable[[Tensor], Tensor] | None


def check_logits(output: Any, rows: int) -> Tensor:
    """`output` if it is a (rows, K) tensor of logits.

    Raises:
        UserError: if it is anything else.
    """
    if isinstance(output, Tensor) and output.dim() == 2 and output.shape[0] == rows:
        return output
    got = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
    raise UserError(f"the model returned {got} for {rows} images, expected logits (B, K); wrap it so that it returns logits alone")


def as_indices(target: int | Sequence[int] | Tensor, batch: int, device: torch.device) -> Tensor:
    """(B,) int64 from an int, a list or a tensor.

    Raises:
        UserError: if there are neither one nor B whole numbers.
    """
    indices = torch.as_tensor(target, device=device)
    if indices.dtype.is_floating_point or indices.dtype.is_complex or indices.dtype == torch.bool:
        raise UserError(f"target has type {str(indices.dtype).removeprefix('torch.')}, expected class indices; give whole numbers")
    if indices.dim() == 0:
        indices = indices.expand(batch)
    if indices.shape != (batch,):
        raise UserError(f"target must have shape ({batch},), got {tuple(indices.shape)}; give one class, or one per image")
    return indices.to(torch.int64)


def check_range(target: Tensor, classes: int) -> None:
    """Raises a UserError naming the first class outside 0..classes-1."""
    wrong = (target < 0) | (target >= classes)
    if bool(wrong.any()):
        raise UserError(f"target {int(target[wrong][0])} is not a class of this model; choose one of 0..{classes - 1}")


def resolve_target(target: Target, logits: Tensor) -> Tensor:
    """(B,) int64: the class to explain for each row of `logits` (B, K).

    None is the predicted class; a callable maps logits (B, K) to class indices (B,).

    Raises:
        UserError: if the target has another shape or type, or a class is outside 0..K-1.
    """
    if target is None:
        return logits.argmax(1)
    chosen = target(logits) if callable(target) else target
    indices = as_indices(chosen, len(logits), logits.device)
    check_range(indices, logits.shape[1])
    return indices


def select_score(logits: Tensor, target: Tensor) -> Tensor:
    """(B,): the logit of each row's target, before any softmax."""
    check_range(target, logits.shape[1])
    return logits.gather(1, target[:, None])[:, 0]
