"""Hashes of tensors and networks: what was measured, learned or compared is named by its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_Version = tuple[tuple[int, int], ...]
_known: WeakKeyDictionary[nn.Module, tuple[_Version, str]] = WeakKeyDictionary()


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """16 hex digits of the sha256 of named tensors: their names, types, shapes and bytes.

    Example:
        >>> digest([("weight", torch.zeros(2))]) == digest([("weight", torch.zeros(2))])
        True
        >>> digest([("weight", torch.zeros(2))]) == digest([("weight", torch.zeros(2, dtype=torch.float64))])
        False
    """
    found = hashlib.sha256()
    for name, tensor in tensors:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def network_digest(network: nn.Module) -> str:
    """The digest of a network's parameters and buffers; computed again only if one of them was written to or replaced."""
    named = [*network.named_parameters(), *network.named_buffers()]
    version = tuple((tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version) for _, tensor in named)
    if network not in _known or _known[network][0] != version:
        _known[network] = version, digest(named)
    return _known[network][1]
