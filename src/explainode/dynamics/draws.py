"""Random numbers that a field draws from torch's default generators, and how a replay draws them again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

RandomState = tuple[Tensor, ...]


def random_state(device: torch.device) -> RandomState:
    """The state of torch's default generators that a field on `device` may draw from."""
    if device.type == "cuda":
        return torch.get_rng_state(), torch.cuda.get_rng_state(device)
    return (torch.get_rng_state(),)


def set_random_state(state: RandomState, device: torch.device) -> None:
    """Put the generators where `random_state` found them."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


def moved(before: RandomState, after: RandomState) -> bool:
    """Whether somebody drew in between: the field, or another thread."""
    return not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


class DrawAgain(TorchDispatchMode):
    """Calls `rewind` when the first random number is drawn from a default generator, before it is drawn.

    A generator that moved in the forward pass may have been moved by another thread, whose numbers must not be turned back.

    Attributes:
        drew: whether a number was drawn.
    """

    def __init__(self, rewind: Callable[[], None]) -> None:
        super().__init__()
        self.drew = False
        self._rewind = rewind

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.drew and torch.Tag.nondeterministic_seeded in function.tags and kwargs.get("generator") is None:
            self.drew = True
            self._rewind()
        return function(*args, **kwargs)
