"""One Brownian path per sample, made of keys: any increment, on any refinement of the grid, whenever somebody asks."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

import torch
from torch import Tensor

from explainode.errors import UserError
from explainode.randomness import fold_in, normal_like


@dataclass(frozen=True, eq=False)
class BrownianPath:
    """W over [t0, t1], independent in every element of a state, without memory: the same question always has the same answer.

    On the base grid, with H = (t1 - t0) / steps, the increments are sqrt(H) Z_n. Halving an interval of length h and increment W gives

        W_left = W/2 + sqrt(h)/2 Z,    W_right = W/2 - sqrt(h)/2 Z        (the Brownian bridge at its middle)

    so the grid of steps * 2^level refines the same path: two neighbors add up to the increment that they came from, to rounding.
    Every Z has a key of its own, chained from the sample's key and its place in this tree. Nothing is stored: an increment on level L
    costs L + 1 draws. Another interval or another number of base steps is another, independent path, whatever the key.

    Args:
        key: (B,) int64, one key per sample, from `NoiseScope.keys` or `sample_keys`.
        steps: intervals of the base grid.
        t0, t1: ends of the path, t0 < t1.

    Raises:
        UserError: for keys of another shape or type, fewer than one step, or an interval that is empty, reversed or not finite.

    Source: Lévy's construction, as in Karatzas and Shreve 1991; Gaines and Lyons 1997 for refining a path that a solver has used.
    We draw Z from a table of 65,536 quantiles (`randomness`), so |Z| stays below 4.4; mean, variance and symmetry are those of the normal.
    """

    key: Tensor = field(repr=False)
    steps: int
    t0: float = 0.0
    t1: float = 1.0
    _root: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_key(self.key)
        check_interval(self.t0, self.t1)
        if self.steps < 1:
            raise UserError(f"a Brownian path needs at least 1 base step, got {self.steps}")
        root = fold_in(self.key, "brownian", _bits(self.t0), _bits(self.t1), self.steps)
        object.__setattr__(self, "_root", root)

    def increment(self, index: int, like: Tensor, level: int = 0) -> Tensor:
        """W over interval `index` of the grid of steps * 2^level, for a state like `like` (B, *S): its shape, dtype and memory order.

        Bfloat16 and float16 are rounded from float32 at the end. In a channels_last state the same numbers lie in another order.
        """
        state = like.to(torch.promote_types(like.dtype, torch.float32))
        h = (self.t1 - self.t0) / self.steps
        w = self._normal(0, index >> level, state).mul_(math.sqrt(h))
        for depth in range(1, level + 1):
            child = index >> (level - depth)
            half = self._normal(depth, child >> 1, state).mul_((-1 if child & 1 else 1) * math.sqrt(h) / 2)
            w.mul_(0.5).add_(half)  # not add_(..., alpha): a fused multiply-add rounds differently from place to place
            h /= 2
        return w.to(like.dtype)

    def _normal(self, depth: int, index: int, state: Tensor) -> Tensor:
        return normal_like(state, fold_in(self._root, depth, index))


def check_key(key: Tensor | None) -> None:
    """Raises UserError unless `key` is (B,) int64."""
    if key is None:
        raise UserError(
            "noise without key: a stochastic solver needs one int64 key per sample; "
            "take it from current_scope().keys(...) inside a noise_scope, or from sample_keys(sample_ids, seed)"
        )
    if not isinstance(key, Tensor) or key.dtype != torch.int64 or key.dim() != 1:
        got = f"{key.dtype} of shape {tuple(key.shape)}" if isinstance(key, Tensor) else type(key).__name__
        raise UserError(f"key must be an int64 tensor of shape (B,), one key per sample, got {got}")


def check_interval(t0: float, t1: float) -> None:
    """Raises UserError unless t0 < t1, both finite."""
    if not (math.isfinite(t0) and math.isfinite(t1) and t0 < t1):
        raise UserError(f"time must run forward from t0 to t1, both finite, got t0={t0:g} and t1={t1:g}")


def _bits(time: float) -> int:
    """A time as a key part: the bits of its float64 (0.0 and -0.0 are one time)."""
    return int.from_bytes(struct.pack("<d", time + 0.0), "little")
