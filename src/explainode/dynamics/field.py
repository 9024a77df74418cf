"""The vector field as the solvers see it: a checked callable that can be evaluated again, later and elsewhere, with the same result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from explainode.dynamics.draws import RandomState, moved, random_state
from explainode.dynamics.graph import Known, check_graph, clock, edge_of
from explainode.dynamics.step import Time
from explainode.dynamics.surroundings import Surroundings, check_modes, module_of
from explainode.errors import UserError

IN_PLACE = "the field changes its input in place, and the step needs it unchanged; use out-of-place operations, such as ReLU(inplace=False)"
_NO_HOOKS = "don't yet support saved tensor hooks"  # what torch.func says inside them


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


class Field:
    """A vector field f(t, x) on one state's shape, dtype and device, with what it is differentiated by.

    It remembers where it was made and of what (`Surroundings`), so that `replay` sees there what a call saw here.

    Args:
        function: f(t, x): (), (B, *S) -> (B, *S).
        x: (B, *S), the state that the field is going to be called with.
        parameters: the tensors to differentiate by, besides x and t; None takes those of the module behind `function`.
        inspect: look at the graph of the first evaluation, and refuse to lose a gradient.
        owner: the module behind `function`, or a method of it, where `function` does not show it.

    Attributes:
        parameters: those that require grad, each once.
        frozen: the modules' tensors that required no grad when the field was made.
        surroundings: what it sees besides t and x.
        evaluations: calls so far, replays not counted.
        graph_states: how many states' worth of memory the graph of one evaluation takes; infinite until it has been inspected.
        saved: the module's tensors that the first graph holds on to; an in-place change of one of them changes the gradient.
        draws: whether the first evaluation moved a generator, so that it is worth asking where they stand around the others.
        before: where the generators stood before the last evaluation; None if it did not move them.

    Raises:
        UserError: for train-mode layers (`check_modes`); at a call, if the field changes shape, dtype, its input or its own statistics, or if a
            gradient would be lost (`check_graph`).
    """

    def __init__(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        parameters: Sequence[Tensor] | None = None,
        inspect: bool = False,
        owner: Any = None,
    ) -> None:
        owner = function if owner is None else owner
        module = module_of(owner)
        if module is not None:
            check_modes(module)
        if parameters is None:
            parameters = () if module is None else tuple(module.parameters())
        self.function = function
        self.surroundings = Surroundings([owner], x.device)
        self.frozen = [tensor for tensor in self.surroundings.tensors() if not tensor.requires_grad]
        self.parameters = tuple({id(p): p for p in parameters if p.requires_grad}.values())
        self.evaluations = 0
        self.graph_states = math.inf
        self.saved: list[Tensor] = []
        self.draws = False
        self.before: RandomState | None = None
        self._inspect = inspect
        self.shape, self.dtype, self.device = x.shape, x.dtype, x.device
        self.time_dtype = torch.promote_types(x.dtype, torch.float32)
        self._casts = self.surroundings.casts

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """f(t, x), where the field was made."""
        self.evaluations += 1
        if self._inspect:
            self._inspect = False
            return self._evaluate_and_inspect(t, x)
        if not self.draws:
            return self._evaluate(t, x, self._casts)
        before = random_state(self.device)
        slope = self._evaluate(t, x, self._casts)
        self.before = before if moved(before, random_state(self.device)) else None
        return slope

    def replay(self, t: Time, x: Tensor) -> Tensor:
        """f(t, x) as it was there, wherever we are now, with the same look at its graph.

        Raises:
            UserError: if a gradient would be lost.
        """
        started = clock()
        slope = self.surroundings.again(lambda: self.evaluate_again(t, x))
        sources = (x, *((t,) if isinstance(t, Tensor) else ()), *self.parameters, *self.frozen)
        check_graph(edge_of(slope), Known.of(sources), (), started)
        return slope

    def evaluate_again(self, t: Time, x: Tensor) -> Tensor:
        """f(t, x) inside of `surroundings.again`."""
        return self._evaluate(t, x, self.surroundings.recast())

    def time(self, t: Time) -> Tensor:
        """t as the field gets it: 0-dim, in x's dtype (float32 at least), on its device."""
        if isinstance(t, Tensor):
            return t.to(self.device, self.time_dtype)
        return torch.full((), t, dtype=self.time_dtype, device=self.device)

    def _evaluate(self, t: Time, x: Tensor, recast: bool) -> Tensor:
        version = None if x.is_inference() else x._version
        try:
            if recast:
                with self.surroundings.precision():
                    slope = self.function(self.time(t), x)
            else:
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
            if not self._casts:
                raise UserError(
                    f"the field returns {_name(slope.dtype)} for a state in {_name(self.dtype)}; cast the state or the field's parameters"
                )
            slope = slope.to(self.dtype)
        if version is not None and x._version != version:
            raise UserError(IN_PLACE)
        return slope

    def _evaluate_and_inspect(self, t: Time, x: Tensor) -> Tensor:
        """f(t, x), with a look at what it leaves behind: whose gradient its graph carries, how large that is, and what it moved."""
        statistics, started = self.surroundings.statistics(), clock()
        leaf = x.detach().requires_grad_()
        before = random_state(self.device)
        try:
            slope, saved = self._graph(t, leaf)
        except RuntimeError as error:
            if _NO_HOOKS not in str(error):
                raise
            before = random_state(self.device)  # torch.func inside the field: a Hamiltonian's gradient, a divergence
            slope, saved = self._traced(t, leaf), None
        self.draws = moved(before, random_state(self.device))
        self.before = before if self.draws else None
        if changed := self.surroundings.moved_since(statistics):
            raise UserError(
                f"evaluating the field changes its buffer {changed!r}, so that every evaluation would be of another field; "
                'put the layer that owns it into eval mode while the equation is solved, or choose gradient="backprop"'
            )
        check_graph(edge_of(slope), Known.of(self.parameters), (leaf,), started)
        there_anyway = (x, *self.parameters, *self.surroundings.tensors())
        if saved is not None:
            self.saved = [tensor for tensor in there_anyway[1:] if _storage(tensor) in saved]
            for tensor in there_anyway:
                saved.pop(_storage(tensor), None)
            self.graph_states = max(1.0, sum(storage.nbytes() for storage in saved.values()) / max(1, x.nbytes))
        return slope.detach()

    def _graph(self, t: Time, leaf: Tensor) -> tuple[Tensor, dict[int, torch.UntypedStorage]]:
        """f(t, leaf) with its graph, and the memory that it holds."""
        saved: dict[int, torch.UntypedStorage] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor._is_zerotensor():
                return tensor  # a zero of forward differentiation, which has no memory
            if tensor.layout is torch.strided:
                saved[_storage(tensor)] = tensor.untyped_storage()
            return tensor.detach()  # a result that its own node holds with its history is a cycle, and outlives us

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            return self._traced(t, leaf), saved

    def _traced(self, t: Time, leaf: Tensor) -> Tensor:
        with torch.enable_grad():
            return self._evaluate(t, leaf, self._casts)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
