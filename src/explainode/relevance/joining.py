"""One linear layer that torch computes in several operations, as one operation again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from torch import Tensor

from explainode.relevance.linear import LinearMap
from explainode.relevance.operations import Affine, Linear, Operation, ProductWithConstant, Rearrangement, Slot, Value


class Biased(Linear):
    """A product with a constant matrix and the bias that alone is added to it: what torch calls addmm where its input is contiguous."""

    def __init__(self, product: ProductWithConstant, bias: Tensor, output: Value) -> None:
        super().__init__(
            product.function, product.args, product.kwargs, product.inputs, (output,), product.module, product.index
        )
        self.product, self.bias_ = product, bias

    @property
    def map(self) -> LinearMap:
        return self.product.map

    @property
    def bias(self) -> Tensor:
        return self.bias_

    def call(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(output + self.bias_ for output in super().call(*inputs))


def join_biases(operations: Sequence[Operation], kept: Collection[int]) -> list[Operation]:
    """The operations with each `x W`, perhaps seen through a view, and the vector added to it joined to `x W + b`.

    So a rule treats a bias in the same way however the input lies in memory, which depends on the size of the batch.

    Args:
        kept: ids of values that must stay as they were computed.
    """
    joined: dict[int, Operation | None] = {}  # by the id of what was: what stands in its place
    for add in operations:
        found = _bias_of(add)
        if found is None:
            continue
        product, view, bias = found
        if any(
            value.consumers != 1 or id(value) in kept
            for value in ([product.output, view.output] if view else [product.output])
        ):
            continue
        output = add.output
        if view is None:
            new: Operation = Biased(product, bias, output)
            output.producer = new
        else:
            inner = Value(output.data.reshape(product.output.data.shape), consumers=1)
            new = inner.producer = Biased(product, bias, inner)
            output.producer = joined[id(view)] = replace(view, inputs=(inner,), outputs=(output,))
        joined[id(product)] = new
        joined[id(add)] = None
    result = [joined.get(id(operation), operation) for operation in operations]
    return [operation for operation in result if operation is not None]


def _bias_of(add: Operation) -> tuple[ProductWithConstant, Rearrangement | None, Tensor] | None:
    """The product, the view between and the vector, if `add` adds a vector to the rows of a product without a bias."""
    if not (
        isinstance(add, Affine)
        and add.name == "add"
        and isinstance(add.args[0], Slot)
        and add.kwargs.get("alpha", 1) == 1
    ):
        return None
    bias, value = add.args[1], add.inputs[0]
    if not (
        isinstance(bias, Tensor)
        and bias.dim() == 1
        and value.data.shape[-1] == len(bias)
        and add.output.data.shape == value.data.shape
    ):
        return None
    producer = value.producer
    view = producer if isinstance(producer, Rearrangement) and producer.name in ("view", "_unsafe_view") else None
    product = producer if view is None else view.inputs[0].producer
    if not (isinstance(product, ProductWithConstant) and len(product.args) == 2 and isinstance(product.args[0], Slot)):
        return None
    return (product, view, bias) if product.output.data.shape[-1] == len(bias) else None
