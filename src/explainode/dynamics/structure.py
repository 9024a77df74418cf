"""States of several tensors, as one tensor for the solvers: an image with its log-density, or a state with the energy that it has used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from explainode.errors import UserError


@dataclass(frozen=True)
class Structure:
    """How the tensors (B, *S_i) of a tuple or a dictionary lie side by side in one state (B, D).

    Attributes:
        names: keys of a dictionary; None for a tuple.
        shapes: S_i, in order.
    """

    names: tuple[str, ...] | None
    shapes: tuple[torch.Size, ...]

    @staticmethod
    def of(state: Any) -> Structure:
        """The structure of a state.

        Raises:
            UserError: unless it consists of floating-point tensors of one dtype, device and batch size.
        """
        parts = list(state.values() if isinstance(state, dict) else state)
        fits = bool(parts) and all(
            isinstance(part, Tensor) and part.is_floating_point() and part.dim() for part in parts
        )
        if not fits or len({(part.dtype, part.device, len(part)) for part in parts}) != 1:
            got = ", ".join(f"{p.dtype} {tuple(p.shape)}" if isinstance(p, Tensor) else type(p).__name__ for p in parts)
            raise UserError(
                "a state of several tensors consists of floating-point tensors (B, *S) of one dtype, device and batch size, "
                f"got {got or 'none'}"
            )
        names = tuple(state) if isinstance(state, dict) else None
        return Structure(names, tuple(part.shape[1:] for part in parts))

    def join(self, state: Any) -> Tensor:
        """The tensors side by side: (B, D).

        Raises:
            UserError: if `state`, what a field returned, has another structure.
        """
        named = isinstance(state, dict)
        parts: Sequence[Any] = ()
        if named and self.names is not None and set(state) == set(self.names):
            parts = [state[name] for name in self.names]
        elif not named and self.names is None and isinstance(state, (tuple, list)):
            parts = state
        if [getattr(part, "shape", (None,))[1:] for part in parts] != list(self.shapes):
            got = list(state) if named else type(state).__name__
            if parts:
                got = [tuple(getattr(part, "shape", ())) for part in parts]
            expected = "a tuple" if self.names is None else f"a dictionary of {', '.join(self.names)}"
            raise UserError(
                f"the field of a state of several tensors returns {expected}, each (B, *S) with S of {[tuple(shape) for shape in self.shapes]}, "
                f"got {got}"
            )
        return torch.cat([part.flatten(1) if part.dim() > 1 else part[:, None] for part in parts], 1)

    def split(self, joined: Tensor) -> Any:
        """The tensors of (..., B, D), with the axes before D in front of each S."""
        pieces = joined.split([shape.numel() for shape in self.shapes], -1)
        parts = tuple(
            piece.unflatten(-1, shape) if shape else piece[..., 0]
            for piece, shape in zip(pieces, self.shapes, strict=True)
        )
        return parts if self.names is None else dict(zip(self.names, parts, strict=True))

    def field(self, field: Callable[[Tensor, Any], Any]) -> Callable[[Tensor, Tensor], Tensor]:
        """The field of the joined state."""
        return lambda t, joined: self.join(field(t, self.split(joined)))
