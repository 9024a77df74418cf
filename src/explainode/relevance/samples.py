"""Which image each element of a recorded tensor belongs to: sums and scalars per image, wherever the batch axis has gone."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from explainode.relevance.operations import Operation, Slot, Value

# where dimension 0 stays the batch, as long as it is not among these arguments
_DIM = {
    "select": 1,
    "slice": 1,
    "split": 2,
    "split_with_sizes": 2,
    "unbind": 1,
    "cat": 1,
    "stack": 1,
    "unsqueeze": 1,
    "index_select": 1,
    "gather": 1,
}
_SAME_ORDER = {"view", "_unsafe_view", "reshape", "_reshape_alias", "clone", "alias", "detach", "_to_copy", "lift_fresh", "masked_fill",
               "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
               "native_channel_shuffle", "im2col", "squeeze"}  # fmt: skip


class Samples:
    """Per-image reductions over the tensors of one tape.

    Nearly always the batch is the leading axis of memory order; attention layers that put the sequence first are followed element by element.

    Args:
        batch: number of images B.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self._leading: dict[int, bool] = {}
        self._ids: dict[int, Tensor] = {}

    def sum(self, value: Value, x: Tensor) -> Tensor:
        """(B,): the sum of `x`, which has the shape of `value`, over the elements of each image, in double precision on a CPU."""
        dtype = torch.promote_types(x.dtype, torch.float64)
        if self.leading(value):
            return x.reshape(self.batch, -1).sum(1, dtype=dtype)
        return torch.zeros(self.batch, dtype=dtype, device=x.device).index_add_(
            0, self._flat_ids(value), x.reshape(-1).to(dtype)
        )

    def spread(self, value: Value, scalars: Tensor) -> Tensor:
        """`scalars` (B,), each at the elements of its image; broadcastable to the shape of `value`, in its type."""
        scalars = scalars.to(value.data.dtype)
        shape = value.data.shape
        if self.leading(value):
            return scalars.repeat_interleave(shape[0] // self.batch).view(-1, *[1] * (len(shape) - 1))
        return scalars[self._flat_ids(value)].view(shape)

    def leading(self, value: Value) -> bool:
        """Whether the batch is the slowest axis of the value's row-major order."""
        for source in self._unknown(value):
            self._leading[id(source)] = self._find_leading(source)
        return self._leading[id(value)]

    def _unknown(self, value: Value) -> list[Value]:
        """The values behind `value` that are not known yet, those that others need first; networks are deeper than Python's stack."""
        order: dict[int, Value] = {}
        stack = [value]
        while stack:
            last = stack[-1]
            sources = () if last.producer is None else last.producer.inputs
            missing = [v for v in sources if id(v) not in self._leading and id(v) not in order]
            if missing:
                stack += missing
            else:
                stack.pop()
                if id(last) not in self._leading:
                    order[id(last)] = last
        return list(order.values())

    def _find_leading(self, value: Value) -> bool:
        """Sources are known. Where the batch is not in front, the image of each element is kept; a view may bring it back."""
        operation, shape = value.producer, value.data.shape
        if operation is None:
            return True
        divides = len(shape) > 0 and shape[0] % self.batch == 0
        moved = operation.kind == "rearrangement" and not _keeps_batch_first(operation)
        if divides and not moved and all(self._leading[id(source)] for source in operation.inputs):
            return True
        ids = self._ids[id(value)] = self._find_ids(value)
        if divides and operation.kind == "rearrangement" and bool((ids == self._in_front(value)).all()):
            del self._ids[id(value)]
            return True
        return False

    def _flat_ids(self, value: Value) -> Tensor:
        return self.ids(value).reshape(-1).to(torch.int64)

    def ids(self, value: Value) -> Tensor:
        """The image of every element, in the shape of `value` (a view of little memory where it can be)."""
        return self._in_front(value) if self.leading(value) else self._ids[id(value)]

    def _in_front(self, value: Value) -> Tensor:
        """The image of every element if the batch is in front."""
        shape = value.data.shape
        ids = torch.arange(self.batch, device=value.data.device, dtype=value.data.dtype)
        return ids.repeat_interleave(shape[0] // self.batch).view(-1, *[1] * (len(shape) - 1)).expand(shape)

    def _find_ids(self, value: Value) -> Tensor:
        """From the ids of the operation's inputs, which are known."""
        operation, shape = value.producer, value.data.shape
        assert operation is not None
        given = [self.ids(source) for source in operation.inputs]
        if operation.kind in ("rearrangement", "max"):
            outputs = _without_numbers(operation).call(*given)
            return outputs[next(i for i, output in enumerate(operation.outputs) if output is value)]
        if operation.kind == "average":  # of equal numbers, whatever the weights
            return (operation.call(*given)[0] / operation.call(*map(torch.ones_like, given))[0]).round()
        if operation.name == "convolution":
            one_per_row = (slice(None),) + (slice(1),) * (given[0].dim() - 1)
            return given[0][one_per_row].expand(shape)
        if operation.kind in ("linear", "bilinear"):
            on_the_right = operation.name in ("mm", "bmm", "addmm", "baddbmm") and not isinstance(
                operation.args[-2], Slot
            )
            return (given[0][..., :1, :] if on_the_right else given[0][..., :1]).expand(shape)
        return max(given, key=torch.Tensor.numel).expand(shape)


def _without_numbers(operation: Operation) -> Operation:
    """The operation with its constants at zero: they belong to no image, so they may count as any."""
    args, kwargs = tree_map(
        lambda leaf: torch.zeros_like(leaf) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf,
        (operation.args, operation.kwargs),
    )
    return replace(operation, args=args, kwargs=kwargs)


def _keeps_batch_first(operation: Operation) -> bool:
    name, args = operation.name, operation.args
    if name in _SAME_ORDER:
        return True
    dims = operation.inputs[0].data.dim()
    if name == "permute":
        return args[1][0] % dims == 0
    if name == "transpose":
        return 0 not in (args[1] % dims, args[2] % dims)
    if name == "expand":
        return len(args[1]) == dims
    if name in ("roll", "flip"):
        return all(dim % dims for dim in args[-1])
    if name == "index":
        return args[1][0] is None
    if name in _DIM:
        at = args[_DIM[name]] if len(args) > _DIM[name] else 0
        return at % (dims + (name in ("stack", "unsqueeze"))) != 0
    return False
