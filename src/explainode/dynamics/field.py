"""The vector field as the solvers see it: a checked callable that can be evaluated again, later and elsewhere, with the same result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from explainode.dynamics.step import Time
from explainode.errors import UserError

RandomState = tuple[Tensor, ...]
IN_PLACE = "the field changes its input in place, and the step needs it unchanged; use out-of-place operations, such as ReLU(inplace=False)"
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
_DROPOUTS = (nn.modules.dropout._DropoutNd,)


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


def module_of(field: Any) -> nn.Module | None:
    """The module whose parameters a field uses: itself, or the one that it is a method of."""
    owner = field if isinstance(field, nn.Module) else getattr(field, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def check_transforms(gradient: str) -> None:
    """Refuse a gradient of our own inside torch.func's transforms, which know autograd's operations only.

    Raises:
        UserError: inside grad, vjp, jvp, jacrev or vmap.
    """
    if torch._C._are_functorch_transforms_active():  # there is no public way to ask
        raise UserError(
            f'torch.func\'s transforms (grad, vjp, jvp, vmap) do not go through gradient="{gradient}"; choose gradient="backprop", through which all go but '
            "vmap (a state is a batch already), or torch.autograd.grad"
        )


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


class Field:
    """A vector field f(t, x) on one state's shape, dtype and device, with what it is differentiated by.

    It remembers where it was made (context variables with the noise scope, autocast) and of what (the module's own parameters and buffers, which
    torch.func.functional_call exchanges for a while), so that `replay` sees there what a call saw here.

    Args:
        function: f(t, x): (), (B, *S) -> (B, *S).
        x: (B, *S), the state that the field is going to be called with.
        parameters: the tensors to differentiate by, besides x and t; None takes those of the module behind `function`.
        inspect: look at the graph of the first evaluation, and refuse to lose a gradient.
        owner: the module behind `function`, or a method of it, where `function` does not show it.

    Attributes:
        parameters: those that require grad.
        evaluations: calls so far, replays not counted.
        graph_states: how many states' worth of memory the graph of one evaluation takes; infinite until it has been inspected.

    Raises:
        UserError: for train-mode layers (`check_modes`); at a call, if the field changes shape, dtype or its input, or if a gradient would
            be lost (`check_gradients`).
    """

    def __init__(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        parameters: Sequence[Tensor] | None = None,
        inspect: bool = False,
        owner: Any = None,
    ) -> None:
        self._module = module = module_of(function if owner is None else owner)
        if module is not None:
            check_modes(module)
        if parameters is None:
            parameters = () if module is None else tuple(module.parameters())
        self.function = function
        self._tensors: list[tuple[dict[str, Any], str, Tensor | None]] = [
            (store, name, tensor)
            for part in (() if module is None else module.modules())
            for store in (part._parameters, part._buffers)
            for name, tensor in store.items()
        ]
        self.parameters = tuple(p for p in parameters if p.requires_grad)
        self.evaluations = 0
        self.graph_states = math.inf
        self._inspect = inspect
        self.shape, self.dtype, self.device = x.shape, x.dtype, x.device
        self.time_dtype = torch.promote_types(x.dtype, torch.float32)
        self._context = copy_context()
        self._autocast = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in sorted({"cpu", x.device.type})
            if torch.amp.is_autocast_available(kind)
        ]

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """f(t, x), where the field was made."""
        self.evaluations += 1
        if not self._inspect:
            return self._evaluate(t, x)
        self._inspect = False
        return self._evaluate_and_inspect(t, x)

    def replay(self, t: Time, x: Tensor) -> Tensor:
        """f(t, x) as it was there, wherever we are now."""
        with self._as_made():
            return self._context.copy().run(self._evaluate, t, x)

    def time(self, t: Time) -> Tensor:
        """t as the field gets it: 0-dim, in x's dtype (float32 at least), on its device."""
        if isinstance(t, Tensor):
            return t.to(self.device, self.time_dtype)
        return torch.full((), t, dtype=self.time_dtype, device=self.device)

    def _evaluate(self, t: Time, x: Tensor) -> Tensor:
        version = None if x.is_inference() else x._version
        try:
            with self._precision() as autocast:
                slope = self.function(self.time(t), x)
        except RuntimeError as error:
            if "a leaf Variable that requires grad" in str(error) and x.is_leaf and x.requires_grad:
                raise UserError(IN_PLACE) from error
            raise
        if not isinstance(slope, Tensor) or slope.shape != self.shape:
            got = f"shape {tuple(slope.shape)}" if isinstance(slope, Tensor) else type(slope).__name__
            raise UserError(
                f"the field returns {got} for a state of shape {tuple(self.shape)}; a vector field returns the state's own shape"
            )
        if slope.dtype != self.dtype:
            if not autocast:
                raise UserError(
                    f"the field returns {_name(slope.dtype)} for a state in {_name(self.dtype)}; cast the state or the field's parameters"
                )
            slope = slope.to(self.dtype)
        if version is not None and x._version != version:
            raise UserError(IN_PLACE)
        return slope

    def _evaluate_and_inspect(self, t: Time, x: Tensor) -> Tensor:
        """f(t, x), with a look at the graph that it would leave: whose gradient it carries, and how large it is."""
        saved: dict[int, torch.UntypedStorage] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.layout is torch.strided:
                saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor.detach()  # a result that its own node holds with its history is a cycle, and outlives us

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            leaf = x.detach().requires_grad_()
            slope = self._evaluate(t, leaf)
        check_gradients(slope, (leaf, *self.parameters))
        there_anyway = (
            x,
            *self.parameters,
            *(() if self._module is None else (*self._module.parameters(), *self._module.buffers())),
        )
        for tensor in there_anyway:
            saved.pop(tensor.untyped_storage().data_ptr(), None)
        self.graph_states = max(1.0, sum(storage.nbytes() for storage in saved.values()) / max(1, x.nbytes))
        return slope.detach()

    @contextmanager
    def _as_made(self) -> Iterator[None]:
        """The module with the tensors that it had when the field was made."""
        exchanged = [
            (store, name, store[name], tensor)
            for store, name, tensor in self._tensors
            if store.get(name, tensor) is not tensor
        ]
        for store, name, _, tensor in exchanged:
            store[name] = tensor
        try:
            yield
        finally:
            for store, name, now, _ in exchanged:
                store[name] = now

    @contextmanager
    def _precision(self) -> Iterator[bool]:
        """Autocast as it was where the field was made; yields whether it is on.

        Without its cache: weights cast under no_grad would stay in it, and whoever uses them next would lose their gradient.
        """
        with ExitStack() as stack:
            for kind, enabled, dtype in self._autocast:
                if enabled or torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
            yield any(enabled for _, enabled, _ in self._autocast)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_gradients(slope: Tensor, named: Sequence[Tensor]) -> None:
    """Walk the graph of one evaluation, and refuse what would lose or repeat a gradient without a word.

    Args:
        slope: the result of the evaluation.
        named: the tensors that are differentiated by: the state and the parameters.

    Raises:
        UserError: if a tensor that requires grad feeds `slope` other than through `named`, or one of these has a hook on its gradient.
    """
    for tensor in named:
        if tensor._backward_hooks:
            raise UserError(
                f"a parameter of shape {tuple(tensor.shape)} has a hook on its gradient, which would run at every evaluation; "
                'remove it, or choose gradient="backprop"'
            )
    seen = {get_gradient_edge(tensor)[:2] for tensor in named}
    stack = [get_gradient_edge(slope)[:2]] if slope.requires_grad else []
    while stack:
        node, output = stack.pop()
        if (node, output) in seen:
            continue
        seen.add((node, output))
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            raise UserError(
                f"the field uses a tensor of shape {tuple(leaf.shape)} that requires grad and is not among its parameters, so that its "
                "gradient would be lost; name it in parameters=(...), make the field an nn.Module that owns it, or detach it"
            )
        stack += [(earlier, output) for earlier, output in node.next_functions if earlier is not None]
