"""A look at the graph that autograd makes of one evaluation: whose gradient it carries, and whether all of it is ours to use up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from explainode.errors import UserError

_REENTRANT = "CheckpointFunctionBackward"  # torch.utils.checkpoint(use_reentrant=True)


class Known(NamedTuple):
    """Tensors whose gradients may arrive: leaves by identity, and where those of computed tensors do."""

    leaves: frozenset[int]
    edges: frozenset[tuple[Node, int]]

    @staticmethod
    def of(tensors: Iterable[Tensor]) -> Known:
        tensors = list(tensors)
        computed = [get_gradient_edge(tensor) for tensor in tensors if not tensor.is_leaf]
        return Known(frozenset(map(id, tensors)), frozenset((edge.node, edge.output_nr) for edge in computed))


def clock() -> int:
    """A number that every operation recorded from now on will exceed or equal."""
    return int(torch._C._autograd._get_sequence_nr())  # there is no public way to ask


def check_graph(edge: GradientEdge | None, known: Known, leaves: Sequence[Tensor], started: int) -> bool:
    """Trajectory the graph of an evaluation, and refuse what would lose a gradient without a word.

    Args:
        edge: where the gradient of the evaluation's result arrives; None if it has no graph.
        known: what is differentiated by, or needs no gradient.
        leaves: the same, of this evaluation: state and time.
        started: `clock()` before the evaluation.

    Returns:
        Whether the graph reaches back to operations before the evaluation, so that it must not be used up.

    Raises:
        UserError: if a tensor that requires grad feeds the result and is none of these, or its graph cannot be differentiated piece by piece.
    """
    older = False
    seen: set[Any] = set(known.edges)
    stack: list[Any] = [] if edge is None else [(edge.node, edge.output_nr)]
    while stack:
        here = stack.pop()
        if here in seen:
            continue
        seen.add(here)
        node = here[0]
        earlier = node.next_functions
        if earlier:
            older = older or node._sequence_nr() < started
            stack += [edge for edge in earlier if edge[0] is not None]
            if type(node).__name__ == _REENTRANT:
                raise UserError(
                    "the field uses torch.utils.checkpoint with use_reentrant=True, whose graph hides what it depends on; "
                    'pass use_reentrant=False, or choose gradient="backprop"'
                )
            continue
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known.leaves and all(leaf is not ours for ours in leaves):
            raise UserError(
                f"the field uses a tensor of shape {tuple(leaf.shape)} that requires grad and is not among its parameters, so that its "
                "gradient would be lost; name it in parameters=(...), make the field an nn.Module that owns it, or detach it"
            )
    return older


def edge_of(result: Tensor) -> GradientEdge | None:
    """Where the gradient of a result arrives; None if it depends on nothing that requires grad."""
    return get_gradient_edge(result) if result.requires_grad else None
