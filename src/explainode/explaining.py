"""`explain()` and `explain_many()`: one batch through one network and one or several methods, everything recorded on the way.

All goes through the guard, in chunks, with noise that belongs to the images: the same result for any chunk, batch, order or rank.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from explainode.annotations import KINDS, Annotations
from explainode.attribution import Explanation
from explainode.errors import UserError
from explainode.explainers.base import (
    Explainer,
    count_passes,
    finished,
    guard,
    pass_limit,
    predict,
    prepared,
    resolve_target,
)
from explainode.explainers.guard import unwrap
from explainode.explainers.layers import cut_at
from explainode.explainers.learning import LearningExplainer
from explainode.explainers.one_pass import OnePass, read_together
from explainode.explainers.passes import Passes, Reports, collect_reports, join_reports
from explainode.explainers.targets import Target, Unit
from explainode.randomness import noise_scope

_PIXELS_PER_PASS = (
    16 * 224 * 224
)  # of a chunk chosen by us: 16 pictures of 224x224, about 2 GiB of ResNet-18's activations


def noise_draws(noise: str) -> int:
    """How many noise paths a mode averages over: 0 for "off", 1 for "path", k for "mean:k".

    Raises:
        UserError: for any other word.
    """
    if noise == "off":
        return 0
    if noise == "path":
        return 1
    match = re.fullmatch(r"mean:([1-9]\d*)", noise)
    if match is None:
        raise UserError(f"noise must be 'off', 'path' or 'mean:k' with k >= 1, got {noise!r}")
    return int(match[1])


def automatic_chunk_size(x: Tensor) -> int:
    """Rows per pass for pictures of x's size: about the memory of sixteen 224x224 pictures, between 1 and 256."""
    return max(1, min(256, _PIXELS_PER_PASS // (x.shape[-1] * x.shape[-2])))


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the machine, which torch tells as any RuntimeError."""
    told = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "out of memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in str(error) for words in told)


@dataclass(frozen=True)
class Conditions:
    """Under what conditions a network is run and explained; the numbers depend on the first two alone.

    Attributes:
        noise: "off", "path" (one noise path, shared by all path points, perturbed copies and chunks of an image) or "mean:k".
        seed: of every keyed draw.
        chunk_size: rows sent through the network at once, or "auto"; halved when memory runs out.

    Raises:
        UserError: for an unknown noise mode, or a chunk size that is neither "auto" nor a positive number.

    Example:
        >>> Conditions(noise="mean:4").noise
        'mean:4'
        >>> Conditions(noise="loud")
        Traceback (most recent call last):
        explainode.errors.UserError: noise must be 'off', 'path' or 'mean:k' with k >= 1, got 'loud'
    """

    noise: str = "off"
    seed: int = 0
    chunk_size: int | str = "auto"

    def __post_init__(self) -> None:
        noise_draws(self.noise)
        size = self.chunk_size
        if (isinstance(size, str) and size != "auto") or (isinstance(size, int) and size < 1):
            raise UserError(f"chunk_size must be 'auto' or a positive number of rows, got {size!r}")

    def rows_at_once(self, x: Tensor) -> int:
        """The rows of a pass of pictures like x."""
        return automatic_chunk_size(x) if isinstance(self.chunk_size, str) else self.chunk_size

    @property
    def logits(self) -> Hashable:
        """The key of the clean outputs in what is shared."""
        return "logits", self.noise, self.seed


@dataclass
class NetworkSession:
    """Runs one network for rows of one batch: in chunks, under the guard, with the batch's own noise."""

    model: nn.Module
    conditions: Conditions
    sample_ids: Tensor
    limit: int

    def _over_rows(
        self, compute: Callable[[Tensor, Tensor], Tensor], x: Tensor, rows: Tensor | None, draw: int | None
    ) -> Tensor:
        """`compute(x chunk, rows chunk)` over all rows, averaged over the noise draws; the chunk halves when memory runs out."""
        return self._all_over_rows(lambda part, row: (compute(part, row),), x, rows, draw)[0]

    def _all_over_rows(
        self, compute: Callable[[Tensor, Tensor], tuple[Tensor, ...]], x: Tensor, rows: Tensor | None, draw: int | None
    ) -> tuple[Tensor, ...]:
        """The same where several tensors are computed at once."""
        rows = torch.arange(len(x), device=x.device) if rows is None else rows.to(x.device)
        paths = noise_draws(self.conditions.noise)
        base = (draw or 0) * max(1, paths)
        total: tuple[Tensor, ...] | None = None
        for path in range(max(1, paths)):
            parts = []
            first = 0
            while first < len(x):
                chunk = slice(first, first + self.limit)
                ids = self.sample_ids[rows[chunk].to(self.sample_ids.device)]
                failed = False
                try:
                    with pass_limit(self.limit), noise_scope(ids, self.conditions.seed, base + path, active=paths > 0):
                        parts.append(compute(x[chunk], rows[chunk]))
                except (RuntimeError, MemoryError) as error:
                    if not _is_out_of_memory(error):
                        raise
                    if len(x[chunk]) == 1:
                        raise UserError(
                            f"one picture of {x.shape[-2]}x{x.shape[-1]} pixels needs more memory than there is "
                            f"({str(error).splitlines()[0]}); take smaller pictures, or a network or method that needs less"
                        ) from error
                    failed = True
                if failed:  # out of the handler: there the exception keeps all that the failed pass had made
                    self.limit = max(1, min(self.limit, len(x[chunk])) // 2)
                    torch.cuda.empty_cache()
                    continue
                first += len(x[chunk])
            values = tuple(torch.cat(chunks) for chunks in zip(*parts, strict=True))
            total = values if total is None else tuple(a + b for a, b in zip(total, values, strict=True))
        assert total is not None
        return tuple(value / paths for value in total) if paths > 1 else total

    def forward(self, x: Tensor, rows: Tensor | None = None, draw: int | None = None) -> Tensor:
        """(R, K) logits of x (R, C, H, W); row i is a copy of the batch's image `rows[i]`."""
        with guard(self.model) as network:
            return self._over_rows(lambda part, _: predict(network, part), x, rows, draw)


@dataclass
class ExplainingSession(NetworkSession):
    """Runs an explainer on the network too."""

    explainer: Explainer
    target: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def explain(
        self,
        x: Tensor,
        rows: Tensor | None = None,
        draw: int | None = None,
        *,
        model: nn.Module | None = None,
        target: Tensor | None = None,
    ) -> Tensor:
        """Attributions of x (R, C, H, W) for the batch's targets; `draw` asks for another noise path, `model` for another network (a
        randomized copy), `target` (B,) for other classes."""
        network, classes = self.model if model is None else model, self.target if target is None else target
        return self._over_rows(lambda part, row: self.explainer(network, part, classes[row]), x, rows, draw)

    def explain_and_report(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What `explain` returns, and the numbers (B,) that the method reported on the way, by name, averaged over the noise draws."""
        parts: list[Reports] = []

        def compute(part: Tensor, rows: Tensor) -> Tensor:
            with collect_reports(len(part)) as reports:
                attribution = self.explainer(self.model, part, self.target[rows])
            parts.append(reports)  # of a chunk that went through; one that runs out of memory comes again
            return attribution

        attribution = self._over_rows(compute, x, None, None)
        return attribution, {name: values.view(-1, len(x)).mean(0) for name, values in join_reports(parts).items()}

    def explain_together(self, group: Sequence[OnePass], x: Tensor) -> tuple[Tensor, ...]:
        """What `explain` of each member of the group returns, from one forward and one backward."""

        def compute(part: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
            with prepared(self.model, part, self.target[rows]) as (network, part, classes):
                return tuple(finished(attribution) for attribution in read_together(group, network, part, classes))

        return self._all_over_rows(compute, x, None, None)

    def expected_sum(self, x: Tensor) -> Tensor | None:
        """(B,) what the attributions of x must add up to, or None where the method defines no sum."""
        if type(self.explainer).expected_sum is Explainer.expected_sum:
            return None
        defined = True

        def compute(part: Tensor, rows: Tensor) -> Tensor:
            nonlocal defined
            total = self.explainer.expected_sum(network, part, self.target[rows])
            defined = total is not None
            return part.new_zeros(len(part)) if total is None else total

        with guard(self.model) as network:
            sums = self._over_rows(compute, x, None, None)
        return sums if defined else None

    def diagnose(self, x: Tensor) -> dict[str, Tensor]:
        """(B,) numbers of the method about the attributions of x, by name, that it does not report while it explains."""
        if type(self.explainer).diagnose is Explainer.diagnose:
            return {}
        names: list[str] = []

        def compute(part: Tensor, rows: Tensor) -> Tensor:
            found = self.explainer.diagnose(network, part, self.target[rows])
            names[:] = found
            return torch.stack([found[name] for name in names], 1)

        with guard(self.model) as network:
            values = self._over_rows(compute, x, None, None)
        return dict(zip(names, values.unbind(1), strict=True))


T = TypeVar("T")


def _timed(work: Callable[[], T], device: torch.device) -> tuple[T, Passes, float]:
    """What `work` returns, the rows it sent through networks, and its seconds."""
    start = time.perf_counter()
    with count_passes() as passes:
        result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, passes, time.perf_counter() - start


def explain(
    explainer: Explainer,
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    sample_ids: Tensor | None = None,
    annotations: Annotations | None = None,
    shared: dict[Hashable, Any] | None = None,
    **more: Any,
) -> Explanation:
    """Explain a batch and record all that was computed on the way.

    Args:
        x: (B, C, H, W) pixels in [0, 1].
        target: (B,) classes, one class, a callable `logits -> (B,)`, None for the predicted class, or a `Unit` of a layer. Of a unit the record
            holds the network that ends at its layer: the channels' activations are its logits, the unit's channel its target.
        sample_ids: (B,) keys of the images' noise; 0..B-1 by default.
        annotations: what else is known about the images, for metrics; single ones also go by name (`mask=...`).
        shared: store for what all explainers of this model and batch have in common.
        more: the `Conditions` by name: noise="off", seed=0, chunk_size="auto".

    Raises:
        UserError: for a batch of another shape, a target out of range, an unknown noise mode.

    Example:
        >>> import explainode, torch
        >>> network = explainode.get("model/small_vgg", num_classes=4)
        >>> record = explainode.explain(explainode.get("explainer/saliency"), network, torch.rand(2, 3, 32, 32))
        >>> record.attribution.shape, record.backwards
        (torch.Size([2, 3, 32, 32]), 2)
    """
    return explain_many(
        [explainer], model, x, target, sample_ids=sample_ids, annotations=annotations, shared=shared, **more
    )[0]


def explain_many(
    explainers: Sequence[Explainer], model: nn.Module, x: Tensor, target: Target = None, **options: Any
) -> list[Explanation]:
    """What `explain` gives for each explainer, in their order, where those that read one forward and backward share it.

    Saliency, InputXGradient and the class activation maps made of gradients, of whatever layers, cost one pass together. Their maps are
    those of separate calls, bit for bit; the passes are counted on the first of them, the seconds shared out equally.

    Args:
        options: the keywords of `explain`.
    """
    return list(explanations(explainers, model, x, target, **options))


def explanations(
    explainers: Sequence[Explainer],
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    sample_ids: Tensor | None = None,
    annotations: Annotations | None = None,
    shared: dict[Hashable, Any] | None = None,
    share_passes: bool = True,
    **more: Any,
) -> Iterator[Explanation]:
    """The explanations of `explain_many`, each made when it is asked for; a shared pass when the first of its group is."""
    if x.dim() != 4 or not x.is_floating_point():
        raise UserError(f"images must be a float tensor of shape (B, C, H, W), got {x.dtype} of shape {tuple(x.shape)}")
    known = {} if annotations is None else annotations.known()
    known |= {kind: more.pop(kind) for kind in KINDS if kind in more}
    how = Conditions(**more)
    x = x.detach()
    ids = torch.arange(len(x)) if sample_ids is None else sample_ids
    if len(ids) != len(x):
        raise UserError(f"sample_ids must have shape ({len(x)},), got {tuple(ids.shape)}")
    shared = {} if shared is None else shared
    if isinstance(target, Unit):
        shared = shared.setdefault(("unit", target), {})  # another network, with other outputs
        model, target = cut_at(unwrap(model), target), target.channel

    group = [explainer for explainer in explainers if share_passes and isinstance(explainer, OnePass)]
    waiting: list[tuple[Tensor, Passes, float]] = []  # of the group: what was made and not yet asked for
    for explainer in explainers:
        if isinstance(explainer, LearningExplainer):
            explainer.check_network(model)
        session = ExplainingSession(model, how, ids, how.rows_at_once(x), explainer)
        key = how.logits
        if key not in shared:
            shared[key] = session.forward(x)
        session.target = resolve_target(target, shared[key]).to(x.device)

        if isinstance(explainer, OnePass) and len(group) > 1:
            if not waiting:
                maps, passes, seconds = _timed(partial(session.explain_together, group, x), x.device)
                counts = [passes, *(Passes() for _ in group[1:])]
                waiting = [
                    (attribution, count, seconds / len(group)) for attribution, count in zip(maps, counts, strict=True)
                ]
            attribution, passes, seconds = waiting.pop(0)
            said: dict[str, Tensor] = {}
        else:
            (attribution, said), passes, seconds = _timed(partial(session.explain_and_report, x), x.device)
        expected = session.expected_sum(x)
        yield Explanation(
            x=x,
            target=session.target,
            attribution=attribution,
            logits=shared[key],
            score=shared[key].gather(1, session.target[:, None])[:, 0],
            completeness_error=None if expected is None else attribution.flatten(1).sum(1) - expected,
            forwards=passes.forwards,
            backwards=passes.backwards,
            noise=how.noise,
            seed=how.seed,
            stochastic=how.noise != "off" or explainer.stochastic,
            sample_ids=ids,
            seconds=seconds,
            forward=session.forward,
            explain=session.explain,
            model=model,
            diagnostics=said | session.diagnose(x),
            shared=shared,
            **known,
        )
