"""What explanations of one network and the same batches have in common, kept within a bound of memory."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from explainode.data.batch import Batch


class SharedResults:
    """What all explanations of one network and the same batches have in common, kept from one `evaluate` to the next.

    Of each batch the small results stay (the clean and the baselines' outputs, the outputs after random steps), and large ones, smallest first,
    as far as its share of the memory allows. What does not stay is computed again: the numbers do not depend on it.

    Args:
        batches: how many batches there are.
        limit: bytes for all of them.
    """

    def __init__(self, batches: int, limit: int = 256 << 20) -> None:
        self._share = limit // max(1, batches)
        self._stores: dict[tuple[int, ...], dict[Hashable, Any]] = {}

    def open(self, batch: Batch) -> dict[Hashable, Any]:
        """The store of a batch, empty where it was never closed."""
        return self._stores.get(tuple(batch.sample_id.tolist()), {}).copy()

    def close(self, batch: Batch, store: Mapping[Hashable, Any]) -> None:
        """Keep what fits."""
        kept: dict[Hashable, Any] = {}
        left: float = self._share
        for size, key in sorted(((_bytes(value), key) for key, value in store.items()), key=lambda item: item[0]):
            if size > left:
                break
            kept[key] = store[key]
            left -= size
        self._stores[tuple(batch.sample_id.tolist())] = kept

    @property
    def size(self) -> int:
        """Bytes held."""
        return int(sum(_bytes(value) for store in self._stores.values() for value in store.values()))


def _bytes(value: Any) -> float:
    """The memory that a result keeps; infinite where nobody can tell."""
    if isinstance(value, Tensor):
        return value.untyped_storage().nbytes()  # a slice keeps all that it was cut from
    if value is None or isinstance(value, (bool, int, float, str)):
        return 0
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    if isinstance(value, (tuple, list)):
        return sum(map(_bytes, value))
    if is_dataclass(value) and not isinstance(value, type):
        return sum(_bytes(getattr(value, part.name)) for part in fields(value))
    return float("inf")
