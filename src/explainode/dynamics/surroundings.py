"""What a field sees besides its arguments, to be had again in the backward pass, wherever and whenever that is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from types import FunctionType, MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from explainode.errors import UserError

Result = TypeVar("Result")
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
_DROPOUTS = (nn.modules.dropout._DropoutNd,)
_DEPTH, _LENGTH = 4, 64  # how far we look through wrappers around wrappers, and through collections


class FieldChanged(UserError, RuntimeError):
    """The field is another one in the backward pass than it was in the forward pass."""


def module_of(field: Any) -> nn.Module | None:
    """The module whose parameters a field uses: itself, or the one that it is a method of."""
    owner = field if isinstance(field, nn.Module) else getattr(field, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def modules_behind(field: Any, depth: int = _DEPTH) -> list[nn.Module]:
    """The modules that a callable can reach without being called: itself, what it is a method of, closes over or names, and an object's own."""
    if isinstance(field, nn.Module):
        return [field]
    if depth == 0:
        return []
    reached: list[Any] = []
    if isinstance(field, functools.partial):
        reached = [field.func, *field.args, *field.keywords.values()]
    elif isinstance(field, MethodType):
        reached = [field.__self__, field.__func__]
    elif isinstance(field, FunctionType):
        reached = [cell.cell_contents for cell in field.__closure__ or () if _filled(cell)]
        named = [field.__globals__.get(name) for name in field.__code__.co_names]
        reached += [value for value in named if getattr(value, "__globals__", field.__globals__) is field.__globals__]
        reached += [*(field.__defaults__ or ()), *(field.__kwdefaults__ or {}).values()]
    elif isinstance(field, (list, tuple, dict)) and len(field) <= _LENGTH:
        reached = list(field.values() if isinstance(field, dict) else field)
    elif callable(field) and not isinstance(field, type):
        reached = list(getattr(field, "__dict__", {}).values())
    found = [module for value in reached for module in modules_behind(value, depth - 1)]
    return list(dict.fromkeys(found))


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # a name that is not bound yet
        return False
    return True


def check_modes(module: nn.Module) -> None:
    """Refuse layers whose output changes from one evaluation to the next.

    Raises:
        UserError: for batch normalization or dropout in train mode, by the module's name.
    """
    for name, part in module.named_modules():
        if not part.training:
            continue
        if isinstance(part, _BATCH_NORMS):
            raise UserError(
                f"the field's {type(part).__name__} {name!r} is in train mode, so every evaluation would change its statistics and with them "
                "the field; put it into eval mode (its running statistics are then constants), or use GroupNorm"
            )
        if isinstance(part, _DROPOUTS) and part.p > 0:
            raise UserError(
                f"the field's {type(part).__name__} {name!r} is in train mode, so every evaluation would be of another field; "
                "put it into eval mode, or model the noise as an SDE"
            )


class Aliases(TorchFunctionMode):
    """Puts stand-ins in the place of tensors wherever torch's functions meet them, in this thread only."""

    def __init__(self, stand_ins: dict[int, Tensor]) -> None:
        super().__init__()
        self._stand_ins = stand_ins  # by the identity of the tensor that they stand for

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*self._swap(args), **self._swap(kwargs or {}))

    def _swap(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._stand_ins.get(id(value), value)
        if type(value) in (tuple, list):
            return type(value)(self._swap(part) for part in value)
        if type(value) is dict:
            return {key: self._swap(part) for key, part in value.items()}
        return value


class Surroundings:
    """Context variables with the noise scope, autocast, and of the modules behind fields: parameters, buffers and modes.

    Args:
        fields: what is going to be evaluated: callables or their owners.
        device: of the state.
    """

    def __init__(self, fields: Sequence[Any], device: torch.device) -> None:
        self.modules = list(dict.fromkeys(module for field in fields for module in modules_behind(field)))
        self._parts = [
            (f"{prefix}." if prefix else "", part) for module in self.modules for prefix, part in module.named_modules()
        ]
        # torch.func.functional_call exchanges tensors for a while, and eval() and train() turn modes
        self._tensors: list[tuple[str, dict[str, Any], str, Tensor | None]] = [
            (prefix + name, store, name, tensor)
            for prefix, part in self._parts
            for store in (part._parameters, part._buffers)
            for name, tensor in store.items()
        ]
        self._modes = [(part, part.training) for _, part in self._parts]
        self._context = copy_context()
        self._autocast = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in sorted({"cpu", device.type})
            if torch.amp.is_autocast_available(kind)
        ]
        self.casts = any(enabled for _, enabled, _ in self._autocast)

    def tensors(self) -> list[Tensor]:
        """The parameters and buffers of the modules, as they were."""
        return [tensor for *_, tensor in self._tensors if tensor is not None]

    def names(self) -> dict[int, str]:
        """What the modules call their tensors, by identity."""
        return {id(tensor): f"{name!r}" for name, _, _, tensor in self._tensors if tensor is not None}

    def statistics(self) -> list[tuple[str, Tensor, Tensor]]:
        """The floating-point buffers: name, tensor and what it holds now (batch normalization changes its own without a new version)."""
        return [
            (prefix + name, buffer, buffer.clone())
            for prefix, part in self._parts
            for name, buffer in part._buffers.items()
            if buffer is not None and buffer.is_floating_point()
        ]

    def moved_since(self, statistics: Sequence[tuple[str, Tensor, Tensor]]) -> str | None:
        """The first buffer that was replaced or holds something else, by name."""
        for (name, buffer, now), (_, before, then) in zip(self.statistics(), statistics, strict=False):
            if buffer is not before or not torch.equal(now, then):
                return name
        return None

    def again(self, work: Callable[[], Result]) -> Result:
        """What `work` returns where all is as it was."""

        def restored() -> Result:
            with self._as_made():
                return work()

        return self._context.copy().run(restored)

    @contextmanager
    def _as_made(self) -> Iterator[None]:
        exchanged = [
            (store, name, store[name], tensor)
            for _, store, name, tensor in self._tensors
            if store.get(name, tensor) is not tensor
        ]
        turned = [(part, part.training, mode) for part, mode in self._modes if part.training is not mode]
        for store, name, _, tensor in exchanged:
            store[name] = tensor
        for part, _, mode in turned:
            part.training = mode
        try:
            yield
        finally:
            for store, name, now, _ in exchanged:
                store[name] = now
            for part, now, _ in turned:
                part.training = now

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Autocast as it was.

        Without its cache: weights cast under no_grad would stay in it, and whoever uses them next would lose their gradient.
        """
        with ExitStack() as stack:
            for kind, enabled, dtype in self._autocast:
                if enabled or torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
            yield

    def cast_types(self) -> list[torch.dtype]:
        """What autocast computed in."""
        return [dtype for _, enabled, dtype in self._autocast if enabled]

    def recast(self) -> bool:
        """Whether autocast was on, or is on now."""
        return self.casts or any(torch.is_autocast_enabled(kind) for kind, *_ in self._autocast)
