"""A look at the graph that autograd makes of one evaluation: whose gradient it carries, and whether all of it is ours to use up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from explainode.errors import UserError

Edge = tuple[Node, int]
_REENTRANT = "CheckpointFunctionBackward"  # torch.utils.checkpoint(use_reentrant=True)


def edges_of(tensors: Iterable[Tensor]) -> set[Edge]:
    """Where the gradients of tensors arrive; those that require none have no edge."""
    return {tuple(get_gradient_edge(tensor)[:2]) for tensor in tensors if tensor.requires_grad}  # type: ignore[misc]


def clock() -> int:
    """A number that every operation recorded from now on will exceed or equal."""
    return int(torch._C._autograd._get_sequence_nr())  # there is no public way to ask


def check_graph(result: Tensor, known: set[Edge], started: int) -> bool:
    """Walk the graph of an evaluation, and refuse what would lose a gradient without a word.

    Args:
        result: of the evaluation.
        known: where the gradients of those tensors arrive that are differentiated by, or that need none.
        started: `clock()` before the evaluation.

    Returns:
        Whether the graph reaches back to operations before the evaluation, so that it must not be used up.

    Raises:
        UserError: if a tensor that requires grad feeds the result other than through `known`, or its graph cannot be differentiated piece by piece.
    """
    older = False
    seen = set(known)
    stack: list[Any] = [tuple(get_gradient_edge(result)[:2])] if result.requires_grad else []
    while stack:
        edge = stack.pop()
        if edge in seen:
            continue
        seen.add(edge)
        node = edge[0]
        earlier = node.next_functions
        if earlier:
            older = older or node._sequence_nr() < started
            stack += [edge for edge in earlier if edge[0] is not None]
        elif (leaf := getattr(node, "variable", None)) is not None:
            raise UserError(
                f"the field uses a tensor of shape {tuple(leaf.shape)} that requires grad and is not among its parameters, so that its "
                "gradient would be lost; name it in parameters=(...), make the field an nn.Module that owns it, or detach it"
            )
        if type(node).__name__ == _REENTRANT:
            raise UserError(
                "the field uses torch.utils.checkpoint with use_reentrant=True, whose graph hides what it depends on; "
                'pass use_reentrant=False, or choose gradient="backprop"'
            )
    return older
