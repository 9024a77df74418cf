"""The one loop that the callback, the command line and Python share: `explain()` makes a record, `evaluate()` measures records.

Everything goes through the guard, in chunks, with noise that belongs to the images: the same result for any chunk, batch, order or rank.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from explainode.attribution import Explanation
from explainode.data.batch import Batch
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
from explainode.explainers.one_pass import OnePass, read_together
from explainode.explainers.passes import Passes, Reports, collect_reports, join_reports
from explainode.explainers.targets import Target, Unit
from explainode.metrics.base import WHAT_IS_NEEDED, ExplanationMetric, full_name
from explainode.metrics.results import Maps, Results, Row
from explainode.metrics.statistics import bootstrap_interval
from explainode.randomness import noise_scope

Progress = Callable[[str, int, int], None]

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


def _rows_at_once(chunk_size: int | str, x: Tensor) -> int:
    """The rows of a pass that `chunk_size` asks for.

    Raises:
        UserError: if it is neither "auto" nor a positive number.
    """
    if (isinstance(chunk_size, str) and chunk_size != "auto") or (isinstance(chunk_size, int) and chunk_size < 1):
        raise UserError(f"chunk_size must be 'auto' or a positive number of rows, got {chunk_size!r}")
    return automatic_chunk_size(x) if isinstance(chunk_size, str) else chunk_size


@dataclass
class _Network:
    """Runs one network for rows of one batch: in chunks, under the guard, with the batch's own noise."""

    model: nn.Module
    noise: str
    seed: int
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
        paths = noise_draws(self.noise)
        base = (draw or 0) * max(1, paths)
        total: tuple[Tensor, ...] | None = None
        for path in range(max(1, paths)):
            parts = []
            first = 0
            while first < len(x):
                chunk = slice(first, first + self.limit)
                ids = self.sample_ids[rows[chunk].to(self.sample_ids.device)]
                try:
                    with pass_limit(self.limit), noise_scope(ids, self.seed, base + path, active=paths > 0):
                        parts.append(compute(x[chunk], rows[chunk]))
                except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
                    if not _is_out_of_memory(error):
                        raise
                    if len(x[chunk]) == 1:
                        raise UserError(
                            f"one picture of {x.shape[-2]}x{x.shape[-1]} pixels needs more memory than there is "
                            f"({str(error).splitlines()[0]}); take smaller pictures, or a network or method that needs less"
                        ) from error
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
class _Session(_Network):
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
    noise: str = "off",
    seed: int = 0,
    sample_ids: Tensor | None = None,
    chunk_size: int | str = "auto",
    label: Tensor | None = None,
    mask: Tensor | None = None,
    boxes: list[Tensor] | None = None,
    fixation_map: Tensor | None = None,
    fixation_points: Tensor | None = None,
    shared: dict[Hashable, Any] | None = None,
) -> Explanation:
    """Explain a batch and record all that was computed on the way.

    Args:
        x: (B, C, H, W) pixels in [0, 1].
        target: (B,) classes, one class, a callable `logits -> (B,)`, None for the predicted class, or a `Unit` of a layer. Of a unit the record
            holds the network that ends at its layer: the channels' activations are its logits, the unit's channel its target.
        noise: "off", "path" (one noise path, shared by all path points, perturbed copies and chunks of an image) or "mean:k".
        sample_ids: (B,) keys of the images' noise; 0..B-1 by default.
        chunk_size: rows sent through the network at once, or "auto"; halved when memory runs out. The result does not depend on it.
        shared: store for what all explainers of this model and batch have in common.

    Raises:
        UserError: for a batch of another shape, a target out of range, an unknown noise mode.
    """
    return next(
        _explanations(
            [explainer],
            model,
            x,
            target,
            noise=noise,
            seed=seed,
            sample_ids=sample_ids,
            chunk_size=chunk_size,
            label=label,
            mask=mask,
            boxes=boxes,
            fixation_map=fixation_map,
            fixation_points=fixation_points,
            shared=shared,
        )
    )


def explain_many(
    explainers: Sequence[Explainer], model: nn.Module, x: Tensor, target: Target = None, **options: Any
) -> list[Explanation]:
    """What `explain` gives for each explainer, in their order, where those that read one forward and backward share it.

    Saliency, InputXGradient and the class activation maps made of gradients, of whatever layers, cost one pass together. Their maps are
    those of separate calls, bit for bit; the passes are counted on the first of them, the seconds shared out equally.

    Args:
        options: the keywords of `explain`.
    """
    return list(_explanations(explainers, model, x, target, **options))


def _explanations(
    explainers: Sequence[Explainer],
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    noise: str = "off",
    seed: int = 0,
    sample_ids: Tensor | None = None,
    chunk_size: int | str = "auto",
    label: Tensor | None = None,
    mask: Tensor | None = None,
    boxes: list[Tensor] | None = None,
    fixation_map: Tensor | None = None,
    fixation_points: Tensor | None = None,
    shared: dict[Hashable, Any] | None = None,
    share_passes: bool = True,
) -> Iterator[Explanation]:
    """The explanations of `explain_many`, each made when it is asked for; a shared pass when the first of its group is."""
    if x.dim() != 4 or not x.is_floating_point():
        raise UserError(f"images must be a float tensor of shape (B, C, H, W), got {x.dtype} of shape {tuple(x.shape)}")
    limit = _rows_at_once(chunk_size, x)
    noise_draws(noise)
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
        session = _Session(model, noise, seed, ids, limit, explainer)
        key = ("logits", noise, seed)
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
            noise=noise,
            seed=seed,
            stochastic=noise != "off" or explainer.stochastic,
            sample_ids=ids,
            label=label,
            mask=mask,
            boxes=boxes,
            seconds=seconds,
            forward=session.forward,
            explain=session.explain,
            model=model,
            diagnostics=said | session.diagnose(x),
            fixation_map=fixation_map,
            fixation_points=fixation_points,
            shared=shared,
        )


def _to_uint8(image: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [0, 1] -> (B, H, W, 3) uint8."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def to_maps(explanation: Explanation, rows: list[int], model: str, explainer: str, epoch: int) -> Maps:
    """The panel's images of one batch, as a picture needs them."""
    probability = explanation.logits.softmax(1).gather(1, explanation.target[:, None])[:, 0]
    label = explanation.label if explanation.label is not None else torch.full_like(explanation.target, -1)
    return Maps(
        model=model,
        explainer=explainer,
        epoch=epoch,
        image=_to_uint8(explanation.x[rows]),
        attribution=explanation.attribution[rows].cpu().numpy(),
        sample_id=explanation.sample_ids[rows].cpu().numpy(),
        label=label[rows].cpu().numpy(),
        target=explanation.target[rows].cpu().numpy(),
        probability=probability[rows].cpu().numpy().astype(np.float64),
        mask=None if explanation.mask is None else explanation.mask[rows].cpu().numpy().astype(np.int8),
    )


def concatenate_maps(parts: list[Maps], order: Sequence[int]) -> Maps:
    """One record from the batches' pieces, in the panel's order."""
    names = ("image", "attribution", "sample_id", "label", "target", "probability")
    merged: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    masks = [part.mask for part in parts if part.mask is not None]
    merged["mask"] = np.concatenate(masks) if len(masks) == len(parts) else None
    position = {int(sample): row for row, sample in enumerate(merged["sample_id"])}
    rows = [position[sample] for sample in order if sample in position]
    merged = {name: None if value is None else value[rows] for name, value in merged.items()}
    return Maps(model=parts[0].model, explainer=parts[0].explainer, epoch=parts[0].epoch, **merged)


def _gather(objects: list[Any], world_size: int) -> list[Any]:
    """All ranks' lists, joined; the list itself in a single process."""
    if world_size == 1 or not dist.is_initialized():
        return objects
    everyone: list[Any] = [None] * world_size
    dist.all_gather_object(everyone, objects)
    return [item for part in everyone for item in part]


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def is_correct(
    model: nn.Module, batches: Iterable[Batch], *, noise: str = "off", seed: int = 0, chunk_size: int | str = "auto"
) -> dict[int, float]:
    """{sample id: 1 where the largest logit is the label's, 0 elsewhere}, under the noise that explanations get; unknown labels are left out."""
    noise_draws(noise)
    device = _device(model)
    found: dict[int, float] = {}
    for batch in batches:
        batch = batch.to(device)
        logits = _Network(model, noise, seed, batch.sample_id, _rows_at_once(chunk_size, batch.image)).forward(
            batch.image
        )
        found |= _hits(batch, logits)
    return found


def _hits(batch: Batch, logits: Tensor) -> dict[int, float]:
    known = batch.label >= 0
    return dict(
        zip(batch.sample_id[known].tolist(), (logits.argmax(1) == batch.label)[known].double().tolist(), strict=True)
    )


class SharedResults:
    """What all explanations of one network and the same batches have in common, kept from one `evaluate` to the next.

    Of each batch the small results stay (the clean and the baselines' outputs, the outputs after random steps), and large ones, smallest first,
    as far as its share of the memory allows. What does not stay is computed again: the numbers do not depend on it.

    Args:
        batches: how many batches there are.
        limit: bytes for all of them.
    """

    def __init__(self, batches: int, limit: int = 256 << 20) -> None:
        self._share = limit // max(1, batches)
        self._stores: dict[tuple[int, ...], dict[Hashable, Any]] = {}

    def open(self, batch: Batch) -> dict[Hashable, Any]:
        """The store of a batch, empty where it was never closed."""
        return self._stores.get(tuple(batch.sample_id.tolist()), {}).copy()

    def close(self, batch: Batch, store: Mapping[Hashable, Any]) -> None:
        """Keep what fits."""
        kept: dict[Hashable, Any] = {}
        left: float = self._share
        for size, key in sorted(((_bytes(value), key) for key, value in store.items()), key=lambda item: item[0]):
            if size > left:
                break
            kept[key] = store[key]
            left -= size
        self._stores[tuple(batch.sample_id.tolist())] = kept

    @property
    def size(self) -> int:
        """Bytes held."""
        return int(sum(_bytes(value) for store in self._stores.values() for value in store.values()))


def _bytes(value: Any) -> float:
    """The memory that a result keeps; infinite where nobody can tell."""
    if isinstance(value, Tensor):
        return value.untyped_storage().nbytes()  # a slice keeps all that it was cut from
    if value is None or isinstance(value, (bool, int, float, str)):
        return 0
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    if isinstance(value, (tuple, list)):
        return sum(map(_bytes, value))
    if is_dataclass(value) and not isinstance(value, type):
        return sum(_bytes(getattr(value, part.name)) for part in fields(value))
    return float("inf")


def evaluate(
    model: nn.Module,
    explainers: Mapping[str, Explainer],
    metrics: Mapping[str, ExplanationMetric],
    batches: Iterable[Batch],
    *,
    n: int,
    name: str = "model",
    split: str = "test",
    epoch: int = 0,
    noise: str = "off",
    seed: int = 0,
    chunk_size: int | str = "auto",
    target: Target = None,
    panel: Sequence[int] = (),
    world_size: int = 1,
    total: int | None = None,
    progress: Progress | None = None,
    correct: Mapping[int, float] | None = None,
    kept: SharedResults | None = None,
    failed: Callable[[str, str, Exception], None] | None = None,
) -> Results:
    """Explain every image with every explainer and measure each explanation with every metric.

    Explainers that read one forward and backward share it (see `explain_many`), unless a metric asks what each of them costs.

    Args:
        batches: this rank's images; an empty iterable is fine.
        n: length of the split: sample ids lie in [0, n).
        panel: sample ids whose maps are kept for pictures, in this order.
        world_size: ranks that evaluate parts of the same split; tables are summed over them.
        total: images that will come, for `progress(explainer, images done, total)`, called after each explanation of a batch.
        correct: {sample id: 1 or 0} of the images that accuracy is measured on, where these here are chosen by it; None counts on these here.
        kept: what other evaluations of this network on the same batches had in common with this one.
        failed: called as `failed(explainer, metric, exception)` for a metric that cannot measure an explainer, whose numbers are left out then;
            None raises.

    Returns:
        Rows with value, 95 % bootstrap interval and n; values per image; curves; the panel's maps. Every rank gets the same rows.

    Raises:
        UserError: if a metric needs masks, boxes, labels or fixations that the data does not have, or the target is a unit of a layer.
    """
    if isinstance(target, Unit):
        raise UserError(
            f"evaluate measures explanations of classes, got {target}; explain a unit of a layer with explain()"
        )
    measure_cost = any(metric.kind == "cost" for metric in metrics.values())  # of each method alone
    device = _device(model)
    cells = {(e, m): copy.deepcopy(metric) for e in explainers for m, metric in metrics.items()}
    for metric in cells.values():
        metric.setup(n)
    seconds = dict.fromkeys(cells, 0.0)
    drawn: dict[str, list[Maps]] = {e: [] for e in explainers}
    hits: dict[int, float] = {}
    wanted = set(panel)
    images = 0
    for batch in batches:
        batch = batch.to(device)
        _check_needs(metrics, batch)
        images += len(batch)
        shared: dict[Hashable, Any] = {} if kept is None else kept.open(batch)
        explanations = _explanations(
            list(explainers.values()),
            model,
            batch.image,
            target,
            noise=noise,
            seed=seed,
            sample_ids=batch.sample_id,
            chunk_size=chunk_size,
            label=batch.label,
            mask=batch.mask,
            boxes=batch.boxes,
            fixation_map=batch.fixation_map,
            fixation_points=batch.fixation_points,
            shared=shared,
            share_passes=not measure_cost,
        )
        for e, explanation in zip(explainers, explanations, strict=True):
            for m in metrics:
                if (e, m) not in cells:
                    continue
                start = time.perf_counter()
                try:
                    cells[e, m].update(explanation)
                except Exception as error:
                    if failed is None:
                        raise
                    failed(e, m, error)
                    del cells[e, m]
                else:
                    seconds[e, m] += time.perf_counter() - start
            rows = [row for row, sample in enumerate(batch.sample_id.tolist()) if sample in wanted]
            if rows:
                drawn[e].append(to_maps(explanation, rows, name, e, epoch))
            if progress is not None:
                progress(e, images, n if total is None else total)
        if ("logits", noise, seed) in shared:
            hits |= _hits(batch, shared["logits", noise, seed])
        if kept is not None:
            kept.close(batch, shared)

    results = Results()
    hits = dict(pair for pair in _gather(sorted((hits if correct is None else correct).items()), world_size))
    if hits:
        values = [hits[sample] for sample in sorted(hits)]
        low, high = bootstrap_interval(values)
        results.rows.append(
            Row(
                epoch,
                split,
                name,
                "",
                "accuracy",
                float(np.mean(values)),
                low,
                high,
                len(values),
                0,
                0.0,
                True,
                "accuracy[top1]",
            )
        )
        results.per_image[name, "", "accuracy"] = hits
    for (e, m), metric in cells.items():
        protocol = f"{metric.protocol}#{metric.protocol_hash} noise={noise} seed={seed}"
        for found in metric.summary():
            full = full_name(m, found.name)
            better = metric.direction(found.name)
            results.rows.append(
                Row(
                    epoch,
                    split,
                    name,
                    e,
                    full,
                    found.value,
                    found.low,
                    found.high,
                    found.n,
                    found.excluded,
                    seconds[e, m],
                    better,
                    protocol,
                )
            )
            # a method without a sum has no completeness error at all, and some results are about some images only: nothing to warn of
            if found.excluded and found.n and found.name not in metric.conditional:
                results.warnings.append(
                    f"{name}, {e}, {full}: {found.excluded} of {found.n + found.excluded} images excluded (NaN or undefined)"
                )
        for result, table in metric.per_image().items():
            results.per_image[name, e, full_name(m, result)] = table
        curve = metric.curve()
        if curve is not None:
            results.curves[name, e, m] = curve
    for e in explainers:
        parts = _gather(drawn[e], world_size)
        if parts:
            results.maps.append(concatenate_maps(parts, panel))
    return results


def missing_for(name: str, metric: ExplanationMetric, batch: Batch) -> str | None:
    """What the metric needs and the batch does not have, as a sentence; None where nothing is missing."""
    missing = [
        need
        for need in sorted(metric.needs)
        if getattr(batch, need) is None or (need == "label" and (batch.label < 0).any())
    ]
    if not missing:
        return None
    nouns, advice = zip(*(WHAT_IS_NEEDED[need] for need in missing), strict=True)
    return f"the metric {name!r} needs {' and '.join(nouns)}, but this data has none; {', '.join(advice)}, or leave the metric out"


def _check_needs(metrics: Mapping[str, ExplanationMetric], batch: Batch) -> None:
    for name, metric in metrics.items():
        if (sentence := missing_for(name, metric, batch)) is not None:
            raise UserError(sentence)


def in_batches(x: Tensor, label: Tensor | None = None, batch_size: int = 32) -> Iterator[Batch]:
    """Images in memory (B, C, H, W) as the batches that `evaluate` reads."""
    label = torch.full((len(x),), -1) if label is None else label
    for first in range(0, len(x), batch_size):
        rows = slice(first, first + batch_size)
        yield Batch(x[rows], label[rows], torch.arange(len(x))[rows])
