"""Sending rows through a network: counted, split to fit into memory, with each row's own noise; and what is learned of each row on the way.

Letters: B images, g copies of each, R = g * B rows ordered (copy, image).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import islice
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from explainode.attribution import graph_is_kept
from explainode.errors import UserError
from explainode.explainers.targets import check_logits
from explainode.randomness import noise_rows

ROWS_WITHOUT_LIMIT = (
    32  # rows of an expanded batch where nobody set a limit: fills a GPU with a single image's copies, fits anywhere
)


@dataclass
class Passes:
    """Rows (images) sent forwards and backwards through a network."""

    forwards: int = 0
    backwards: int = 0


@dataclass
class Reports:
    """What was said about each of some rows: per name the numbers (rows,) of every report."""

    rows: int
    said: dict[str, list[Tensor]] = field(default_factory=dict)

    def means(self) -> dict[str, Tensor]:
        """(rows,) by name; a name that was reported more than once is averaged."""
        return {name: torch.stack(values).mean(0) for name, values in self.said.items()}


_counters: ContextVar[tuple[Passes, ...]] = ContextVar("explainode_passes", default=())
_reports: ContextVar[Reports | None] = ContextVar("explainode_reports", default=None)
_limit: ContextVar[int | None] = ContextVar("explainode_rows_per_pass", default=None)


@contextmanager
def count_passes() -> Iterator[Passes]:
    """Context that counts the rows sent inside; contexts nest, and each counts all that happens inside it."""
    passes = Passes()
    token = _counters.set((*_counters.get(), passes))
    try:
        yield passes
    finally:
        _counters.reset(token)


@contextmanager
def uncounted() -> Iterator[None]:
    """Context whose passes no counter sees and whose reports nobody hears: they belong to the network, not to the images."""
    token = _counters.set(())
    try:
        with _listen(None):
            yield
    finally:
        _counters.reset(token)


def record_pass(forwards: int = 0, backwards: int = 0) -> None:
    """Adds rows to every open counter; whoever calls a network by other means than `predict` and `gradient` says so here."""
    for passes in _counters.get():
        passes.forwards += forwards
        passes.backwards += backwards


@contextmanager
def _listen(reports: Reports | None) -> Iterator[None]:
    token = _reports.set(reports)
    try:
        yield
    finally:
        _reports.reset(token)


@contextmanager
def collect_reports(rows: int) -> Iterator[Reports]:
    """Context that collects what methods `report` about these rows; only the innermost one hears a report."""
    reports = Reports(rows)
    with _listen(reports):
        yield reports


def report(name: str, values: Tensor) -> None:
    """Says a number about each row that is being explained; nothing happens where nobody collects.

    Numbers about other rows than those of the explanation (copies of the images, see `each_copy`) are left out.

    Args:
        values: (rows,) in the rows' order.

    Raises:
        UserError: if `values` has another number of dimensions.
    """
    if values.dim() != 1:
        raise UserError(
            f"report takes one number per row, got {name!r} of shape {tuple(values.shape)}; reduce it to (rows,)"
        )
    reports = _reports.get()
    if reports is not None and len(values) == reports.rows:
        values = values.detach() if values.is_floating_point() else values.double()  # of counts the mean is no count
        reports.said.setdefault(name, []).append(values)


def join_reports(parts: Sequence[Reports]) -> dict[str, Tensor]:
    """The numbers of consecutive rows by name; NaN for rows of which a name was not said."""
    found = [part.means() for part in parts]
    names = dict.fromkeys(name for means in found for name in means)
    like = {name: next(means[name] for means in found if name in means) for name in names}
    return {
        name: torch.cat(
            [
                means.get(name, like[name].new_full((part.rows,), torch.nan))
                for part, means in zip(parts, found, strict=True)
            ]
        )
        for name in names
    }


@contextmanager
def pass_limit(rows: int | None) -> Iterator[None]:
    """Context in which no pass holds more than `rows` rows (None: no limit).

    Raises:
        UserError: if `rows` is less than 1.
    """
    if rows is not None and rows < 1:
        raise UserError(f"a pass must hold at least 1 row, got {rows}; give a positive chunk size")
    token = _limit.set(rows)
    try:
        yield
    finally:
        _limit.reset(token)


def rows_per_pass() -> int | None:
    """The most rows that one pass may hold; None where there is no limit."""
    return _limit.get()


def in_passes(compute: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """`compute(*tensors)`, the rows split into passes that respect the limit; each row keeps its own noise, and what is reported of it."""
    rows = len(tensors[0])
    limit = rows_per_pass() or rows
    if rows <= limit:
        return compute(*tensors)
    parts, said = [], []
    for start in range(0, rows, limit):
        chunk = slice(start, min(start + limit, rows))
        with noise_rows(torch.arange(chunk.start, chunk.stop)), collect_reports(chunk.stop - chunk.start) as reports:
            parts.append(compute(*(tensor[chunk] for tensor in tensors)))
        said.append(reports)
    for name, values in join_reports(said).items():
        report(name, values)
    return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))


def forward(model: nn.Module, x: Tensor) -> Tensor:
    """(R, K): one counted forward, in whatever gradient mode holds."""
    record_pass(forwards=len(x))
    return check_logits(model(x), len(x))


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """(R, K) logits without a graph."""
    with one_by_one_if_mixed(model, x) if len(x) > 1 else nullcontext():
        return in_passes(lambda rows: (forward(model, rows),), x)[0]


# Per network: the image shape -> whether what it says of an image depends on the other images of the batch.
_mixes: WeakKeyDictionary[nn.Module, dict[torch.Size, bool]] = WeakKeyDictionary()


@torch.no_grad()
def mixes_images(model: nn.Module, x: Tensor) -> bool:
    """Whether an image's logits depend on the images beside it: BatchNorm without running statistics, a maximum over the batch.

    Found once for each network and image shape by three rows, which are not counted: they belong to the network, not to the images.
    """
    known = _mixes.setdefault(model, {})
    if x.shape[1:] not in known:
        image, state = x[:1].detach(), torch.get_rng_state()
        with noise_rows(torch.zeros(1, dtype=torch.int64)):
            alone = check_logits(model(image.clone()), 1)  # a network may write into its input
        torch.set_rng_state(state)  # what the network draws by itself is the same for both
        with noise_rows(torch.zeros(2, dtype=torch.int64)):
            beside = check_logits(model(torch.cat([image, image.flip(-1) / 2])), 2)[:1]
        rounding = torch.finfo(alone.dtype).eps ** 0.5 * alone.abs().max()
        known[x.shape[1:]] = bool((beside - alone).abs().max() > rounding)
    return known[x.shape[1:]]


@contextmanager
def one_by_one_if_mixed(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Context in which every image goes through the network alone, if it mixes the images of a batch; the user is told so."""
    if rows_per_pass() == 1 or isinstance(model, torch.fx.GraphModule) or not mixes_images(model, x):
        yield
        return
    warnings.warn(
        f"{type(model).__name__} mixes the images of a batch (batch statistics, a maximum over the batch); each image is explained alone",
        stacklevel=2,
    )
    with pass_limit(1):
        yield


def differentiate_at(score: Tensor, places: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradient of the summed score at every place, by one counted backward; no `.grad` is touched.

    Raises:
        UserError: if the score has no graph to one of them.
    """
    gradients = (
        torch.autograd.grad(score.sum(), places, allow_unused=True, create_graph=graph_is_kept())
        if score.requires_grad
        else ()
    )
    found = tuple(gradient for gradient in gradients if gradient is not None)
    if len(found) < len(places):
        raise UserError(
            "the score carries no gradient to the input; the model detaches it or runs under no_grad, so use a method without gradients"
        )
    record_pass(backwards=len(score))
    return found


def differentiate(score: Tensor, wrt: Tensor) -> Tensor:
    """The gradient of the summed score at one place, see `differentiate_at`."""
    return differentiate_at(score, [wrt])[0]


def copies_per_pass(batch: int) -> int:
    """How many copies of a batch of `batch` images go through the network at once."""
    return max(1, (rows_per_pass() or ROWS_WITHOUT_LIMIT) // max(batch, 1))


def each_copy(
    compute: Callable[[Tensor, Tensor], tuple[Tensor, ...]], copies: Iterable[Tensor], target: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """`compute` on every copy (B, C, H, W) of one batch, several copies at a time; yields the results copy by copy.

    Every copy of an image carries that image's noise. What is reported of copies is not heard: they are other images. Who adds up what is
    yielded gets a sum that does not depend on the chunk.

    Args:
        compute: (x (R, C, H, W), target (R,)) -> tensors with R rows.
        copies: made when they are needed, so that only one chunk of them is in memory.
        target: (B,).
    """
    batch = len(target)
    copies = iter(copies)
    while group := list(islice(copies, copies_per_pass(batch))):
        with noise_rows(torch.arange(batch).repeat(len(group))), _listen(None):
            outputs = compute(torch.cat(group), target.repeat(len(group)))
        yield from zip(*(output.chunk(len(group)) for output in outputs), strict=True)
