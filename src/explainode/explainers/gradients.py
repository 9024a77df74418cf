"""The gradient of a score, by autograd where it can be believed: it is held once against the tape of the network, which has no kernels of its own.

Torch's kernel for the backward of batch normalization on a CPU, for one, is wrong for single images whose maps are read as tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from explainode.attribution import begin_graph, graph_is_kept
from explainode.errors import UserError
from explainode.explainers.passes import differentiate, forward, in_passes, record_pass, report, uncounted
from explainode.explainers.targets import check_logits, check_range, select_score
from explainode.randomness import noise_rows
from explainode.relevance.composites import backpropagation
from explainode.relevance.rules.gradient import Gradient
from explainode.relevance.tape import record
from explainode.relevance.walk import Walk, one_hot

TOLERANCE = 0.02  # of the largest gradient: rounding and ties are far below, a wrong kernel far above
_checking: ContextVar[bool] = ContextVar("explainode_gradient_check", default=True)


@dataclass(frozen=True)
class Verdict:
    """Whether the tape's gradient stands in for autograd's, and how far that is off: the largest difference by the largest gradient."""

    by_tape: bool
    difference: float


# Per network: image shape and whether images come alone -> the verdict.
_verdicts: WeakKeyDictionary[nn.Module, dict[tuple[torch.Size, bool], Verdict]] = WeakKeyDictionary()


@contextmanager
def unchecked_gradients() -> Iterator[None]:
    """Context in which autograd is believed."""
    token = _checking.set(False)
    try:
        yield
    finally:
        _checking.reset(token)


def input_gradient(model: nn.Module, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient (R, C, H, W) of each row's target logit, and that logit (R,)."""

    def compute(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if (verdict := check_gradient(model, x, target)).by_tape:
            ((_, found),), score = gradients_by_tape(model, x, target, [None])
            tell(verdict, len(x))
            return found, score
        return by_autograd(model, x, target)

    grad, score = in_passes(compute, x, target)
    return grad, score


def by_autograd(model: nn.Module, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """See `gradient`."""
    with torch.enable_grad():
        x = begin_graph(x)
        score = select_score(forward(model, x), target)
        return differentiate(score, x), score.detach()


def tell(verdict: Verdict, rows: int) -> None:
    """Report how far autograd is off, of each of the rows that the tape has differentiated."""
    report("autograd_error", torch.full((rows,), verdict.difference, dtype=torch.float64))


def gradients_by_tape(
    model: nn.Module, x: Tensor, target: Tensor, places: Sequence[str | None]
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """(value, gradient) of the images (None) or of what a layer returned last, for each place, and the score (R,), by one recorded forward and walk.

    Raises:
        UserError: if the gradient passes an operation outside of the table.
    """
    record_pass(forwards=len(x), backwards=len(x))
    tape = record(model, x, [place for place in places if place is not None], noise=True)
    logits = check_logits(tape.output.data, len(x))
    check_range(target, logits.shape[1])
    values = [tape.input if place is None else tape.returned(place) for place in places]
    walk = Walk(tape)
    walk.back({tape.output: one_hot(tape, target)}, backpropagation(Gradient()), values)
    found = [(value.data, walk.kept.get(id(value), torch.zeros_like(value.data))) for value in values]
    return found, select_score(logits, target)


def check_gradient(model: nn.Module, x: Tensor, target: Tensor) -> Verdict:
    """Whether autograd can be believed for images of x's shape, alone or in a batch; found once for each network.

    The gradient of the first image is held against that of the tape. Where they differ, a difference along the tape's gradient decides: only if that is
    what the tape says and not what autograd says, the tape is believed. These passes are not counted: they belong to the network.
    """
    if graph_is_kept() or not _checking.get():
        return Verdict(False, 0.0)
    key, known = (x.shape[1:], len(x) == 1), _verdicts.setdefault(model, {})
    if key not in known:
        rows, state = slice(0, 1 if len(x) == 1 else 2), torch.get_rng_state()
        with _disable_current_modes(), noise_rows(torch.arange(min(len(x), 2))), uncounted():
            known[key] = _judge(model, x[rows].detach(), target[rows], lambda: torch.set_rng_state(state))
    return known[key]


def _judge(model: nn.Module, x: Tensor, target: Tensor, rewind: Callable[[], None]) -> Verdict:
    try:
        ((_, by_tape),) = gradients_by_tape(model, x, target, [None])[0]
    except UserError:  # operations outside of the table: nothing to hold it against
        return Verdict(False, 0.0)
    rewind()
    found, _ = by_autograd(model, x, target)
    scale = by_tape[0].abs().max()
    difference = float((found[0] - by_tape[0]).abs().max() / scale) if bool(scale > 0) else 0.0
    if not difference > TOLERANCE:
        return Verdict(False, difference)
    direction = by_tape[:1] / by_tape[0].norm()
    step = torch.finfo(x.dtype).eps ** (1 / 3) * max(1.0, float(x[0].norm()))
    scores = []
    for sign in (1, -1):
        rewind()
        moved = torch.cat([x[:1] + sign * step * direction, x[1:]])
        with torch.no_grad():
            scores.append(select_score(forward(model, moved), target)[0])
    slope = (scores[0] - scores[1]) / (2 * step)
    of_tape, of_autograd = ((part[0] * direction[0]).sum() for part in (by_tape, found))
    right = [bool((part - slope).abs() <= 0.1 * slope.abs()) for part in (of_tape, of_autograd)]
    return Verdict(right == [True, False], difference)
