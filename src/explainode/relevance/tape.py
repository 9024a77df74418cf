"""The tape: every operation between the input and the logits, recorded while an unmodified network runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from explainode.errors import UserError
from explainode.relevance.joining import join_biases
from explainode.relevance.operations import (
    FIRST_RESULT_ONLY,
    ROUTED_BY_CONDITIONS,
    SHAPE_ONLY,
    UNINITIALIZED,
    BatchNorm,
    ConvolutionOperation,
    Folded,
    Linear,
    Operation,
    ProductWithConstant,
    Slot,
    Sum,
    Unknown,
    Value,
    kind_of,
)
from explainode.relevance.rectifiers import Sign, as_rectifier, carried_sign, sign_of
from explainode.turns import ATTENTION_BY_MATH

aten = torch.ops.aten


@dataclass(eq=False)
class Tape:
    """What a network did with a batch.

    Attributes:
        input, output: the images (B, C, H, W) and the logits (B, K).
        operations: in the order of computing, batch normalization folded where it follows a linear operation alone.
        calls: per module, what each of its calls returned, where that is one explained tensor.
    """

    input: Value
    output: Value
    operations: list[Operation]
    calls: dict[str, list[Value]] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        return len(self.input.data)

    def returned(self, module: str) -> Value:
        """What the last call of a module returned.

        Raises:
            UserError: if it took no part, or returned no single tensor that depends on the input.
        """
        if module not in self.calls:
            raise UserError(f"layer {module!r} returned nothing that depends on the image; choose another layer")
        return self.calls[module][-1]

    def of_kind(self, kind: str) -> list[Operation]:
        return [operation for operation in self.operations if operation.kind == kind]


def record(network: nn.Module, x: Tensor, keep: Sequence[str] = (), noise: bool = False) -> Tape:
    """Run `network` on `x` (B, C, H, W) without a graph, and keep what it did.

    Modules with a true attribute `constant_in_relevance` (noise) compute constants. Numbers that the network reads as Python numbers, such as the
    step sizes of an adaptive solver, and the conditions of its branches are constants too.

    Args:
        network: under the guard.
        keep: names of modules whose outputs will be asked for: no batch normalization is folded over them.
        noise: record what noise makes of the image too, instead of taking it for a constant; what it draws stays one.

    Raises:
        UserError: if the logits do not depend on x, or an explained tensor is changed in place through a view.
    """
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(
                f"{name or type(network).__name__!r} is compiled by TorchScript, whose operations belong to no layer that can be watched; load the "
                "network as a module of Python, or use a method without layers and rules (saliency, ig, occlusion)"
            )
    recorder = _Recorder(network, x, keep, noise)
    try:
        with torch.no_grad(), ATTENTION_BY_MATH, recorder.modules(), recorder:
            logits = network(recorder.input.data)
    except NotImplementedError as error:
        if "HigherOrderOperator" not in str(error):
            raise
        raise UserError(
            f"{type(network).__name__} branches by an operator of torch.compile (torch.cond, while_loop, scan), which cannot be followed; write the "
            "branch in Python, or use a gradient method (saliency, ig)"
        ) from None
    output = recorder.find(logits) if isinstance(logits, Tensor) else None
    if output is None:
        raise UserError(
            "the logits do not depend on the image through torch operations; relevance needs a network of torch operations"
        )
    if output.data.dtype in _HALF or recorder.input.data.dtype in _HALF:
        _widen(recorder)
    kept = recorder.kept() | {id(output)}
    return Tape(recorder.input, output, _fold(join_biases(recorder.operations, kept), kept), recorder.calls)


_HALF = (torch.float16, torch.bfloat16)


@torch.no_grad()
def _widen(recorder: _Recorder) -> None:
    """The tape in single precision, computed again from the same image and weights: quotients of relevance need more digits than half precision has."""

    def wide(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.float() if leaf.dtype in _HALF else leaf
        return torch.float32 if leaf in _HALF else leaf

    recorder.input.data = wide(recorder.input.data)
    for operation in recorder.operations:
        operation.args, operation.kwargs = tree_map(wide, (operation.args, operation.kwargs))
        count = len(operation.outputs)
        found = tuple(wide(value.data) for value in operation.outputs)
        if operation.inputs:
            found = operation.results(*(value.data for value in operation.inputs))
            operation.extra = found[count:] if operation.extra else ()  # the winner of a maximum may be another
        for value, new in zip(operation.outputs, found[:count], strict=True):
            value.data = new


class _Recorder(TorchDispatchMode):
    """Sees every operation as it reaches its kernel."""

    def __init__(self, network: nn.Module, x: Tensor, keep: Sequence[str], noise: bool) -> None:
        super().__init__()
        self.network = network
        self.keep = keep
        self.noise = noise
        self.input = Value(x.detach().clone(memory_format=torch.preserve_format))
        self.operations: list[Operation] = []
        self.calls: dict[str, list[Value]] = {}
        self.path: list[str] = []
        self.constant = 0  # how many open modules compute constants
        self.values: dict[int, Value] = {id(self.input.data): self.input}
        self.conditions: dict[int, Tensor] = {}  # booleans and integers computed from the input
        self.signs: dict[
            int, Sign
        ] = {}  # of these, and of masks made of them, those that say where a value is positive
        self.sharing: dict[int, list[Value]] = {self._storage(self.input.data): [self.input]}
        # tensors that a batch normalization has read: alive only if the network still holds them
        self.released: dict[int, ref[Tensor]] = {}
        self.buffers: dict[int, Value] = {}  # per memory that is written in parts: all of it, flat

    @staticmethod
    def _storage(x: Tensor) -> int:
        return x.untyped_storage()._cdata

    def find(self, x: Tensor) -> Value | None:
        value = self.values.get(id(x))
        if value is None and self._storage(x) in self.buffers:
            place = (Slot(0), x.shape, x.stride(), x.storage_offset())
            self._record(aten.as_strided.default, "as_strided", place, {}, [self.buffers[self._storage(x)]], x)
            return self.values[id(x)]
        if value is None or value.data is x:
            return value
        if self.released.pop(id(x))() is not x:  # a new tensor in the place of one that is gone
            del self.values[id(x)]
            return None
        value.data = x
        self.sharing.setdefault(self._storage(x), []).append(value)
        return value

    def kept(self) -> set[int]:
        """The outputs that will be asked for."""
        return {id(value) for name in self.keep for value in self.calls.get(name, ())}

    def _release(self, value: Value) -> None:
        """Hold a tensor no longer: batch normalization has read it, and will be folded into the operation that made it unless somebody else reads it."""
        self.released[id(value.data)] = ref(value.data)
        self.sharing[self._storage(value.data)].remove(value)
        value.data = value.data.new_empty(0)

    @contextmanager
    def modules(self) -> Iterator[None]:
        """Context in which the recorder knows which module is running."""

        def enter(name: str) -> Any:
            def hook(module: nn.Module, args: Any) -> None:
                self.path.append(name)
                self.constant += not self.noise and bool(getattr(module, "constant_in_relevance", False))

            return hook

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            name = self.path.pop()
            self.constant -= not self.noise and bool(getattr(module, "constant_in_relevance", False))
            if isinstance(output, Tensor) and (value := self.find(output)) is not None:
                self.calls.setdefault(name, []).append(value)

        with ExitStack() as stack:
            for name, module in self.network.named_modules():
                stack.callback(module.register_forward_pre_hook(enter(name)).remove)
                stack.callback(module.register_forward_hook(leave, always_call=True).remove)
            yield

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves, spec = tree_flatten((args, kwargs))
        if (
            self.constant
            or _base_name(function)[0] in SHAPE_ONLY
            or not any(isinstance(leaf, Tensor) and self.find(leaf) is not None for leaf in leaves)
        ):
            reads_condition = any(isinstance(leaf, Tensor) and id(leaf) in self.conditions for leaf in leaves)
            result = function(*args, **kwargs)
            if _base_name(function)[0] in UNINITIALIZED:
                result.zero_()  # what lies there by chance would be a constant that differs from one recording to the next
            if reads_condition and not self.constant:
                self._watch_condition(function, args, result)
            return result
        inputs: list[Value] = []
        marked = list(leaves)
        for place, leaf in enumerate(leaves):
            if not isinstance(leaf, Tensor) or (value := self.find(leaf)) is None:
                continue
            marked[place] = Slot(len(inputs))
            inputs.append(value)
        marked_args, marked_kwargs = tree_unflatten(marked, spec)
        name, in_place = _base_name(function)
        if in_place:
            return self._change(function, name, args, kwargs, marked_args, marked_kwargs, inputs)
        if isinstance(kwargs.get("out"), Tensor):
            return self._write_out(function, args, kwargs)
        result = function(*args, **kwargs)
        return self._record(function, name, marked_args, marked_kwargs, inputs, result)

    def _module(self) -> str:
        return self.path[-1] if self.path else ""

    def _watch_condition(self, function: Any, args: Any, result: Any) -> None:
        """Conditions made of conditions are conditions; a number made of them is not recorded, so it must not reach the logits unseen."""
        for leaf in tree_flatten(result)[0]:
            if not isinstance(leaf, Tensor):
                continue
            if (sign := carried_sign(_base_name(function)[0], args, self.signs)) is not None:
                self.signs[id(leaf)] = sign
            if leaf.is_floating_point():
                value = self.values[id(leaf)] = Value(leaf)
                operation = Unknown(function, (), {}, (), (value,), self._module(), len(self.operations))
                value.producer = operation
                self.operations.append(operation)
            else:
                self.conditions[id(leaf)] = leaf

    def _record(self, function: Any, name: str, args: Any, kwargs: Any, inputs: list[Value], result: Any) -> Any:
        leaves = [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in leaves if leaf.is_floating_point()]
        if name in FIRST_RESULT_ONLY:
            outputs = outputs[:1]
        for leaf in leaves:
            if not leaf.is_floating_point():
                self.conditions[id(leaf)] = leaf
        if not outputs:
            if (sign := sign_of(name, args, inputs)) is not None:
                self.signs[id(leaves[0])] = sign
            return result
        rectifier = as_rectifier(name, args, kwargs, inputs, self.signs)
        if rectifier is not None:
            function, args, kwargs, inputs = rectifier
            name = _base_name(function)[0]
        values = tuple(Value(output) for output in outputs)
        extra = tuple(leaf for leaf in leaves if all(leaf is not output for output in outputs))
        conditional = any(
            isinstance(leaf, Tensor) and id(leaf) in self.conditions for leaf in tree_flatten((args, kwargs))[0]
        )
        kind = Unknown if conditional and name not in ROUTED_BY_CONDITIONS else kind_of(name, args, len(inputs))
        operation = kind(function, args, kwargs, tuple(inputs), values, self._module(), len(self.operations), extra)
        for value in inputs:
            value.consumers += 1
        nonnegative = operation.keeps_sign()
        for value in values:
            value.producer, value.nonnegative = operation, nonnegative
            self.values[id(value.data)] = value
            self.sharing.setdefault(self._storage(value.data), []).append(value)
        self.operations.append(operation)
        if isinstance(operation, BatchNorm) and _foldable(operation, self.kept()):
            self._release(operation.inputs[0])
        return result

    def _change(
        self,
        function: Any,
        name: str,
        args: Any,
        kwargs: Any,
        marked_args: Any,
        marked_kwargs: Any,
        inputs: list[Value],
    ) -> Tensor:
        """An operation in place: computed out of place, so that what the tensor was stays known; then the tensor holds the result."""
        target: Tensor = args[0]
        if name == "as_strided" and tuple(args[1]) == tuple(target.shape):  # another description of the same numbers
            return function(*args, **kwargs)
        if name == "copy":
            return self._write(target, args[1])
        if name in ("fill", "zero"):
            return self._write(target, torch.full_like(target, 0 if name == "zero" else args[1]))
        operator = self._out_of_place(function, name)
        before = self.find(target)
        siblings = self.sharing.get(self._storage(target), [])
        whole = target.numel() == target.untyped_storage().nbytes() // target.element_size()
        if self._storage(target) in self.buffers or not whole or siblings != ([] if before is None else [before]):
            if name in _METADATA:
                raise UserError(
                    f"operation '{name}_' in {self._module()!r} turns one of several views of a tensor in place; write it out of place"
                )
            return self._write(target, self.__torch_dispatch__(operator, (), args, kwargs))
        result = operator(*args, **kwargs)
        if before is None:  # a constant that now becomes explained; what it was stays an argument
            marked_args = (target.detach(), *marked_args[1:])
        else:
            before.data = old = target.detach()
            self.sharing[self._storage(old)] = [before]
            del self.values[id(target)]
        self._record(operator, name, marked_args, marked_kwargs, inputs, result)
        value = self.values.pop(id(result))
        target.set_(result)
        value.data = target
        self.values[id(target)] = value
        return target

    def _out_of_place(self, function: Any, name: str) -> Any:
        """The form of an operation that makes a new tensor.

        Raises:
            UserError: if it has none.
        """
        packet, wanted = getattr(aten, name, None), _arguments(function)
        for overload in () if packet is None else packet.overloads():
            operator = getattr(packet, overload)
            if not operator._schema.is_mutable and _arguments(operator) == wanted:
                return operator
        raise UserError(
            f"operation {str(function).split('.')[1]!r} in {self._module()!r} has no form out of place, so relevance cannot follow it; "
            "build the tensor with cat, stack or where"
        )

    def _write_out(self, function: Any, args: Any, kwargs: Any) -> Any:
        """An operation that writes into `out`: what that held is nobody's business, what it shared with views is."""
        out = kwargs["out"]
        operator = self._out_of_place(function, _base_name(function)[0])
        others = {key: value for key, value in kwargs.items() if key != "out"}
        result = self.__torch_dispatch__(operator, (), args, others)
        if out.shape != result.shape:
            raise UserError(
                f"{function} in {self._module()!r} writes {tuple(result.shape)} into out={tuple(out.shape)}; give a workspace of the result's shape"
            )
        return self._write(out, result)

    def _write(self, target: Tensor, source: Any) -> Tensor:
        """`source` copied into a tensor, perhaps a part of another, as solvers collect their states: its memory is one value from now on."""
        source = torch.as_tensor(source)
        if source.dtype != target.dtype or source.device != target.device:
            source = self.__torch_dispatch__(
                aten._to_copy.default, (), (source,), {"dtype": target.dtype, "device": target.device}
            )
        if source.shape != target.shape:
            source = self.__torch_dispatch__(aten.expand.default, (), (source, list(target.shape)))
        storage = self._storage(target)
        written, before = self.find(source), self._flat(target)
        source = source.clone()  # it may lie in the memory that it is written into
        memory = target.new_empty(0).set_(target.untyped_storage())
        for value in self.sharing.pop(storage, []):  # what was read before stays what it was
            self.values.pop(id(value.data), None)
            value.data = value.data.clone()
        inputs = [value for value in (before, written) if value is not None]
        places = torch.arange(len(memory), device=memory.device).as_strided(
            target.shape, target.stride(), target.storage_offset()
        )
        parts = (
            memory.clone() if before is None else Slot(0),
            [places],
            source if written is None else Slot(len(inputs) - 1),
        )
        aten.copy_.default(target, source)
        if inputs:
            self._record(aten.index_put.default, "index_put", parts, {}, inputs, memory)
            self.buffers[storage] = self.values[id(memory)]
        return target

    def _flat(self, target: Tensor) -> Value | None:
        """All of the memory that a tensor lies in, as one explained value; None if nothing in it is explained.

        Raises:
            UserError: if only parts of it are known.
        """
        storage = self._storage(target)
        sharing = self.sharing.get(storage, [])
        if storage in self.buffers:
            return self.buffers[storage]
        if not sharing:
            return None
        size = target.untyped_storage().nbytes() // target.element_size()
        for value in sharing:
            x = value.data
            if self.find(x) is value and x.numel() == size and not torch._debug_has_internal_overlap(x):
                order = sorted(range(x.dim()), key=lambda axis: (-x.stride()[axis], -x.shape[axis]))
                flat = self.__torch_dispatch__(aten.permute.default, (), (x, order))
                flat = self.__torch_dispatch__(aten.view.default, (), (flat, [size]))
                return self.values[id(flat)]
        raise UserError(
            f"a part of a tensor is changed in place in {self._module()!r} whose whole is not known; relevance cannot follow it, so build the "
            "tensor with cat, stack or where"
        )


# in place these change how a tensor describes its memory, not the numbers in it
_METADATA = ("as_strided", "transpose", "t", "squeeze", "unsqueeze", "swapaxes", "swapdims")


def _arguments(function: Any) -> list[tuple[str, str]]:
    """Names and types of what an operation reads, without what it writes into."""
    return [(a.name, str(a.type)) for a in function._schema.arguments if not a.is_out]


def _base_name(function: Any) -> tuple[str, bool]:
    """The name of torch's operation without the trailing underscore, and whether it works in place."""
    name = str(function).split(".")[1]
    return (name[:-1], True) if name.endswith("_") and not name.endswith("__") else (name, False)


def _foldable(norm: BatchNorm, kept: set[int]) -> bool:
    """Whether batch normalization alone reads what a linear operation has made."""
    source = norm.inputs[0]
    return (
        isinstance(source.producer, (ConvolutionOperation, ProductWithConstant))
        and source.consumers == 1
        and id(source) not in kept
    )


def _fold(operations: list[Operation], kept: set[int]) -> list[Operation]:
    """Batch normalization joined to the linear operation that it alone reads; linear operations and sums told which activation reads them."""
    folded: dict[int, Operation] = {}
    gone: set[int] = set()
    for operation in operations:
        if isinstance(operation, BatchNorm) and _foldable(operation, kept):
            producer = operation.inputs[0].producer
            assert isinstance(producer, Linear)
            new = Folded(producer, operation)
            operation.output.producer = new
            folded[id(operation)] = new
            gone.add(id(producer))
    result = [folded.get(id(operation), operation) for operation in operations if id(operation) not in gone]
    for operation in result:
        if operation.kind == "activation" and operation.inputs[0].consumers == 1:
            producer = operation.inputs[0].producer
            if isinstance(producer, Linear | Sum):
                producer.rectified = operation.name
    return result
