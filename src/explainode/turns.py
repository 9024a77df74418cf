"""Threads that explain: whose turn a network is, and switches of torch that are one for the whole process.

Explaining puts a network into eval mode, freezes its parameters and hooks its layers, so one thread at a time may explain it; networks that
share no part are explained side by side.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from explainode.errors import UserError

_turn = threading.Condition()
_owner: dict[int, int] = {}  # thread by the identity of a module or parameter that it explains
_waiting: dict[int, set[int]] = {}  # of each waiting thread, those that it waits for


@contextmanager
def exclusive(network: nn.Module) -> Iterator[None]:
    """Context in which no other thread explains this network or one that shares a part with it. It nests.

    A training loop beside explanations takes its steps inside: `with exclusive(network): loss.backward(); optimizer.step()`, the forward pass
    included. A forward pass of another thread outside of it waits until the explanation is over.

    Raises:
        UserError: if two threads would wait for each other.
    """
    me = threading.get_ident()
    if _owner.get(id(network)) == me:
        yield
        return
    parts = {id(part): part for part in (*network.modules(), *network.parameters())}  # alive, so that identities stay
    with _turn:
        _wait(parts, me)
        mine = [
            part for part in parts if part not in _owner
        ]  # of a part that is explained inside the whole, the whole keeps it
        _owner.update(dict.fromkeys(mine, me))
    handle = None if hasattr(network, "_c") else network.register_forward_pre_hook(_wait_for_turn, prepend=True)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
        with _turn:
            for part in mine:
                del _owner[part]
            _turn.notify_all()


def _wait(parts: Any, me: int) -> None:
    """Wait, with `_turn` held, until no other thread owns any of the parts."""
    while others := {_owner[part] for part in parts if _owner.get(part, me) != me}:
        if me in _behind(others):
            raise UserError(
                "two threads explain networks inside of each other and would wait forever; explain them in one order, or in one thread"
            )
        _waiting[me] = others
        try:
            _turn.wait()
        finally:
            del _waiting[me]


def _behind(threads: set[int]) -> set[int]:
    """All that some threads wait for, directly or not."""
    found: set[int] = set()
    while new := {other for thread in threads for other in _waiting.get(thread, ())} - found:
        found |= new
        threads = new
    return found


def _wait_for_turn(network: nn.Module, _: Any) -> None:
    """The hook of a network that is explained: a forward pass of another thread would run in eval mode, without gradients, under our hooks."""
    me = threading.get_ident()
    if _owner.get(id(network), me) != me:
        with _turn:
            _wait([id(network)], me)


class Switch:
    """A setting of the whole process as a context: the first thread to enter sets it, the last to leave puts it back.

    Args:
        setting: makes the context that sets it, and puts back what was there.
    """

    def __init__(self, setting: Callable[[], AbstractContextManager[Any]]) -> None:
        self._setting = setting
        self._lock = threading.Lock()
        self._inside: list[int] = []  # threads, as often as each has entered
        self._open: AbstractContextManager[Any] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._open = self._setting()
                self._open.__enter__()
            self._inside.append(threading.get_ident())

    def __exit__(self, *error: Any) -> None:
        with self._lock:
            self._inside.remove(threading.get_ident())
            if not self._inside:
                assert self._open is not None
                self._open.__exit__(None, None, None)
                self._open = None

    @property
    def alone(self) -> bool:
        """Whether no other thread is inside."""
        return set(self._inside) <= {threading.get_ident()}


EAGER = Switch(lambda: torch.compiler.set_stance("force_eager"))  # hooks do not fire in compiled code
ATTENTION_BY_MATH = Switch(
    lambda: sdpa_kernel(SDPBackend.MATH)
)  # operations that can be recorded and differentiated twice
