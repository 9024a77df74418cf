"""Fields evaluated and differentiated once more, in the backward pass, as they were in the forward pass; or a sentence that they are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from explainode.dynamics.draws import DrawAgain, RandomState, random_state, set_random_state
from explainode.dynamics.field import Field
from explainode.dynamics.graph import Known, check_graph, clock, edge_of
from explainode.dynamics.step import Time
from explainode.dynamics.surroundings import Aliases, FieldChanged

Result = TypeVar("Result")
# How far a state that is computed again may be from the one that was, relative to its largest element: nothing where both run the same
# kernels, some roundings where kernels differ with and without a graph.
ROUNDINGS = {torch.float64: 256.0, torch.float32: 256.0}
ROUNDINGS_HALF = 4.0


class Replay:
    """What the backward pass of one solution does with its fields.

    Parameters are differentiated by as leaves of their own where differentiating by themselves would be wrong: where they have hooks, which are for
    the whole gradient and not for each evaluation's part of it; where they do not require grad any more; and where one may be computed from another.

    Args:
        fields: that share their parameters, after the forward pass.

    Attributes:
        drawing: whether it is the fields that moved the generators; None until a replay shows it.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = fields
        self.parameters = fields[0].parameters
        self.device = fields[0].device
        self.drawing: bool | None = None
        self._tolerance = self._find_tolerance()
        tensors = [tensor for field in fields for tensor in field.surroundings.tensors()]
        fixed = [*self.parameters, *(tensor for field in fields for tensor in field.saved)]
        self._fixed = [(tensor, _version(tensor)) for tensor in fixed]
        self._versions = [(tensor, _version(tensor)) for tensor in tensors]

    def run(self, work: Callable[[Session], Result]) -> Result:
        """What `work` returns, whose evaluations see what those of the forward pass saw.

        Raises:
            FieldChanged: if a parameter or a buffer was changed in place.
        """
        for tensor, version in self._fixed:
            if _version(tensor) != version:
                raise FieldChanged(
                    f"{self._name(tensor)} was changed in place between forward and backward, so that {_BROKEN}"
                )

        def session() -> Result:
            with ExitStack() as stack:
                targets = self.parameters
                if any(_needs_stand_in(p) for p in targets):
                    targets = tuple(p.detach().requires_grad_() for p in targets)
                    stand_ins = {id(p): target for p, target in zip(self.parameters, targets, strict=True)}
                    stack.enter_context(Aliases(stand_ins))
                session = Session(
                    self, targets, Known.of((*targets, *(tensor for field in self.fields for tensor in field.frozen)))
                )
                stack.callback(session.leave)
                return work(session)

        for field in self.fields:
            session = partial(field.surroundings.again, session)
        return session()

    def check(self, again: Tensor, was: Tensor, growth: float = 1.0) -> None:
        """Compare a state that was computed again with the one that was; roundings may have grown by `growth`.

        Raises:
            FieldChanged: if they differ by more than roundings.
        """
        if torch.equal(again, was):
            return
        difference, size = (again - was).abs().amax(), was.abs().amax()
        if not bool(difference <= growth * self._tolerance * size):
            raise FieldChanged(
                f"the steps come out otherwise when they are computed again for the gradient (relative difference {float(difference / size):.1e}), so "
                f"that {_BROKEN}; {self._changes()}"
            )

    def _changes(self) -> str:
        moved = [self._name(tensor) for tensor, version in self._versions if _version(tensor) != version]
        found = f"changed in place since then: {', '.join(dict.fromkeys(moved))}; " if moved else ""
        return (
            f"{found}the field must give the same answer whenever it is asked: look for weights changed through .data, attributes that were set, "
            'counters, and random numbers of numpy or of a generator of its own, or choose gradient="backprop"'
        )

    def _name(self, tensor: Tensor) -> str:
        names = {key: name for field in self.fields for key, name in field.surroundings.names().items()}
        kind = "a parameter" if any(tensor is p for p in self.parameters) else "a tensor"
        return f"{kind} of the field ({names.get(id(tensor), f'shape {tuple(tensor.shape)}')})"

    def _find_tolerance(self) -> float:
        types = {self.fields[0].dtype, *(kind for field in self.fields for kind in field.surroundings.cast_types())}
        return max(torch.finfo(kind).eps * ROUNDINGS.get(kind, ROUNDINGS_HALF) for kind in types)


_BROKEN = "the steps cannot be computed again and their gradient would be another field's"


class Session:
    """One node's backward pass: evaluations as they were, and their derivatives.

    Args:
        replay: what all nodes of a solution have in common.
        targets: the parameters, or who stands for them.
        known: what gradients may arrive at, besides an evaluation's own leaves.
    """

    def __init__(self, replay: Replay, targets: Sequence[Tensor], known: Known) -> None:
        self.check = replay.check
        self._replay, self._targets, self._known = replay, targets, known
        self._outside: RandomState | None = None

    def leave(self) -> None:
        """Put the generators back."""
        if self._outside is not None:
            set_random_state(self._outside, self._replay.device)

    def slope(self, field: Field, t: Time, x: Tensor, state: RandomState | None) -> Tensor:
        """f(t, x), drawing what was drawn from generators at `state`."""
        if state is None or self._replay.drawing is False:
            return field.evaluate_again(t, x)
        rewind = partial(self._rewind, state)
        if self._replay.drawing:
            rewind()
            return field.evaluate_again(t, x)
        with DrawAgain(rewind) as again:
            slope = field.evaluate_again(t, x)
        self._replay.drawing = again.drew
        return slope

    def linearize(self, evaluate: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Linearized:
        """An evaluation that can be differentiated by `leaves` and the parameters.

        Raises:
            UserError: if a gradient would be lost; see `check_graph`.
        """
        started = clock()
        with torch.enable_grad():
            result = evaluate()
        edge = edge_of(result)
        older = check_graph(edge, self._known, leaves, started)
        return Linearized(result.detach(), edge, leaves, self._targets, older)

    def _rewind(self, state: RandomState) -> None:
        if self._outside is None:
            self._outside = random_state(self._replay.device)
        set_random_state(state, self._replay.device)


class Linearized:
    """A result that stands in autograd's graph, and can be differentiated once.

    Attributes:
        value: the result without its graph; whoever needs it no longer sets it to None.
    """

    def __init__(
        self, value: Tensor, edge: GradientEdge | None, leaves: Sequence[Tensor], targets: Sequence[Tensor], older: bool
    ) -> None:
        self.value: Tensor | None = value
        self._edge, self._leaves, self._targets, self._older = edge, leaves, targets, older

    def products(self, u: Tensor, wanted: Sequence[int]) -> list[Tensor | None]:
        """u multiplied by the derivatives with respect to the leaves and the parameters `wanted`, from the left; None where there is no dependence."""
        inputs = [*self._leaves, *(self._targets[i] for i in wanted)]
        if self._edge is None or not inputs:
            return [None] * len(inputs)
        return list(torch.autograd.grad(self._edge, inputs, u, allow_unused=True, retain_graph=self._older))


def _needs_stand_in(p: Tensor) -> bool:
    return bool(p._backward_hooks) or not p.requires_grad or not p.is_leaf


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
