"""Rectifiers by what they do: max(x, 0) and max(x, 0) + a min(x, 0), however the network spells them, are one operation on the tape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from explainode.relevance.operations import Affine, Slot, Sum, Value

aten = torch.ops.aten

Call = tuple[Any, tuple[Any, ...], dict[str, Any], list[Value]]  # an operation, its arguments, and what it reads


@dataclass(frozen=True)
class Sign:
    """A condition on a value: true (or 1) where it is positive, or where it is negative; at 0 either."""

    value: Value
    positive: bool


def sign_of(name: str, args: Sequence[Any], inputs: Sequence[Value]) -> Sign | None:
    """The condition that a comparison makes, if it is one with 0."""
    if name not in ("gt", "ge", "lt", "le") or len(args) < 2 or len(inputs) != 1:
        return None
    first = isinstance(args[0], Slot)
    if not is_number(args[1 if first else 0], 0):
        return None
    return Sign(inputs[0], (name in ("gt", "ge")) == first)


def carried_sign(name: str, args: Sequence[Any], signs: Mapping[int, Sign]) -> Sign | None:
    """The condition that stays one when it is turned round or made a mask of numbers."""
    sign = signs.get(id(args[0])) if args else None
    if sign is not None and name in ("logical_not", "bitwise_not"):
        return Sign(sign.value, not sign.positive)
    return sign if name in ("_to_copy", "clone", "alias", "detach") else None


def is_number(argument: Any, number: float) -> bool:
    """Whether an argument is this constant: a number, or a tensor that holds nothing else."""
    if isinstance(argument, Tensor):
        return argument.is_floating_point() and argument.numel() > 0 and bool((argument == number).all())
    return isinstance(argument, int | float) and not isinstance(argument, bool) and argument == number


def as_rectifier(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], inputs: Sequence[Value], signs: Mapping[int, Sign]
) -> Call | None:
    """The rectifier that an operation is, as relu, leaky_relu or hardtanh; None if it is none."""
    args = list(args)
    if name in ("clamp", "clamp_min", "clamp_max", "threshold", "hardtanh", "maximum") and len(inputs) == 1:
        return _clamped(name, args, kwargs, inputs)
    if name == "where" and len(args) == 3:
        return _chosen(signs.get(id(args[0])), _read(args[1], inputs), _read(args[2], inputs))
    if name == "masked_fill":
        return _chosen(signs.get(id(args[1])), args[2], inputs[0])
    if name == "mul":
        return _masked([_read(argument, inputs) for argument in args[:2]], signs) or _halved(args, 0.5, inputs)
    return _halved(args, 2, inputs) if name == "div" and isinstance(args[0], Slot) else None


def _read(argument: Any, inputs: Sequence[Value]) -> Any:
    """An argument, or the value that stands in its place."""
    return inputs[argument.index] if isinstance(argument, Slot) else argument


def _relu(x: Value) -> Call:
    return aten.relu.default, (Slot(0),), {}, [x]


def _clamped(name: str, args: list[Any], kwargs: Mapping[str, Any], inputs: Sequence[Value]) -> Call | None:
    """Bounds of which the lower is 0; max(x, 0)."""
    if name == "maximum":
        return _relu(inputs[0]) if any(is_number(argument, 0) for argument in args) else None
    if name == "threshold":
        return _relu(inputs[0]) if is_number(args[1], 0) and is_number(args[2], 0) else None
    bounds = [*args[1:], None, None]
    low, high = kwargs.get("min", bounds[0]), kwargs.get("max", bounds[1])
    if not is_number(low, 0) or name == "clamp_max":
        return None
    if high is None:
        return _relu(inputs[0])
    return None if isinstance(high, Tensor) else (aten.hardtanh.default, (Slot(0), 0.0, high), {}, list(inputs))


def _chosen(sign: Sign | None, if_true: Any, if_false: Any) -> Call | None:
    """x where it is positive, and 0 or a x elsewhere."""
    if sign is None:
        return None
    kept, other = (if_true, if_false) if sign.positive else (if_false, if_true)
    if kept is not sign.value:
        return None
    if is_number(other, 0):
        return _relu(sign.value)
    scale = other.producer if isinstance(other, Value) else None
    if isinstance(scale, Affine) and scale.name == "mul" and scale.inputs[0] is sign.value:
        slope = next(argument for argument in scale.args if not isinstance(argument, Slot))
        if isinstance(slope, int | float) and 0 <= slope < 1:
            return aten.leaky_relu.default, (Slot(0), slope), {}, [sign.value]
    return None


def _masked(factors: list[Any], signs: Mapping[int, Sign]) -> Call | None:
    """x times 1 where it is positive, 0 elsewhere."""
    for x, mask in (factors, factors[::-1]):
        sign = signs.get(id(mask.data if isinstance(mask, Value) else mask))
        if isinstance(x, Value) and sign is not None and sign.positive and sign.value is x:
            return _relu(x)
    return None


def _halved(args: Sequence[Any], number: float, inputs: Sequence[Value]) -> Call | None:
    """(x + |x|) / 2."""
    total = inputs[0].producer
    if len(inputs) != 1 or not any(is_number(argument, number) for argument in args) or not isinstance(total, Sum):
        return None
    if total.name != "add" or total.signs != (1.0, 1):
        return None
    for x, size in (total.inputs, total.inputs[::-1]):
        if size.producer is not None and size.producer.name == "abs" and size.producer.inputs[0] is x:
            return _relu(x)
    return None
