"""The one loop that the callback, the command line and Python share: every image, explainer and metric, and the tables of what was found."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from explainode.annotations import KINDS
from explainode.attribution import Explanation
from explainode.data.batch import Batch
from explainode.errors import UserError
from explainode.explainers.base import Explainer
from explainode.explainers.targets import Target, Unit
from explainode.explaining import Conditions, NetworkSession, explanations
from explainode.metrics.base import ExplanationMetric, full_name
from explainode.metrics.maps import concatenate_maps, to_maps
from explainode.metrics.results import Maps, Results, Row
from explainode.metrics.statistics import bootstrap_interval
from explainode.ranks import gather_ranks
from explainode.sharing import SharedResults

Progress = Callable[[str, int, int], None]
Failed = Callable[[str, str, Exception], None]


@dataclass(frozen=True, kw_only=True)
class Evaluation(Conditions):
    """What is measured, under what conditions, and under which names it stands in tables.

    Attributes:
        n: length of the split: sample ids lie in [0, n).
        name, split, epoch: of the rows.
        target: what is explained, see `explain`; None is the predicted class.
        panel: sample ids whose maps are kept for pictures, in this order.
        total: images that will come, for progress; None: n.
        correct: {sample id: 1 or 0} of the images that accuracy is measured on, where these here are chosen by it; None counts on these here.

    Raises:
        UserError: if the target is a unit of a layer: what is measured are explanations of classes.
    """

    n: int
    name: str = "model"
    split: str = "test"
    epoch: int = 0
    target: Target = None
    panel: Sequence[int] = ()
    total: int | None = None
    correct: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.target, Unit):
            raise UserError(
                f"evaluate measures explanations of classes, got {self.target}; explain a unit of a layer with explain()"
            )

    def row(self, explainer: str, metric: str, **facts: Any) -> Row:
        """A line of the table."""
        return Row(epoch=self.epoch, split=self.split, model=self.name, explainer=explainer, metric=metric, **facts)


def evaluate(
    model: nn.Module,
    explainers: Mapping[str, Explainer],
    metrics: Mapping[str, ExplanationMetric],
    batches: Iterable[Batch],
    *,
    progress: Progress | None = None,
    kept: SharedResults | None = None,
    failed: Failed | None = None,
    **settings: Any,
) -> Results:
    """Explain every image with every explainer and measure each explanation with every metric.

    Explainers that read one forward and backward share it (see `explain_many`), unless a metric asks what each of them costs. Where processes
    work together, each brings its own images, and the tables are summed over all of them.

    Args:
        batches: this rank's images; an empty iterable is fine.
        progress: called as `progress(explainer, images done, images in all)` after each explanation of a batch.
        kept: what other evaluations of this network on the same batches had in common with this one.
        failed: called as `failed(explainer, metric, exception)` for a metric that cannot measure an explainer, whose numbers are left out then;
            None raises.
        settings: of `Evaluation`, by name: n=..., name=..., noise=..., ...

    Returns:
        Rows with value, 95 % bootstrap interval and n; values per image; curves; the panel's maps. Every rank gets the same rows.

    Raises:
        UserError: if a metric needs masks, boxes, labels or fixations that the data does not have, or a setting does not fit.

    Example:
        >>> import explainode, torch
        >>> from explainode.evaluation import in_batches
        >>> network = explainode.get("model/small_vgg", num_classes=4)
        >>> methods = {"saliency": explainode.get("explainer/saliency")}
        >>> batches = in_batches(torch.rand(4, 3, 32, 32))
        >>> results = evaluate(network, methods, {"smoothness": explainode.get("metric/smoothness")}, batches, n=4)
        >>> sorted({row.metric.split(".")[0] for row in results.rows})
        ['smoothness']
    """
    measuring = _Measuring(model, explainers, metrics, Evaluation(**settings), failed)
    for batch in batches:
        batch = batch.to(measuring.device)
        measuring.check_needs(batch)
        shared: dict[Hashable, Any] = {} if kept is None else kept.open(batch)
        for name, explanation in measuring.explain(batch, shared):
            measuring.measure(name, explanation)
            if progress is not None:
                total = measuring.how.n if measuring.how.total is None else measuring.how.total
                progress(name, measuring.images, total)
        measuring.count_hits(batch, shared)
        if kept is not None:
            kept.close(batch, shared)
    return measuring.results()


class _Measuring:
    """One network's tables while they fill."""

    def __init__(
        self,
        model: nn.Module,
        explainers: Mapping[str, Explainer],
        metrics: Mapping[str, ExplanationMetric],
        how: Evaluation,
        failed: Failed | None,
    ) -> None:
        self.model, self.explainers, self.metrics, self.how, self.failed = model, explainers, metrics, how, failed
        self.device = _device(model)
        self.share_passes = not any(metric.role == "cost" for metric in metrics.values())  # of each method alone
        self.cells = {(e, m): copy.deepcopy(metric) for e in explainers for m, metric in metrics.items()}
        for metric in self.cells.values():
            metric.setup(how.n)
        self.seconds = dict.fromkeys(self.cells, 0.0)
        self.drawn: dict[str, list[Maps]] = {e: [] for e in explainers}
        self.hits: dict[int, float] = {}
        self.images = 0  # begun so far

    def check_needs(self, batch: Batch) -> None:
        for name, metric in self.metrics.items():
            if (sentence := missing_for(name, metric, batch)) is not None:
                raise UserError(sentence)

    def explain(self, batch: Batch, shared: dict[Hashable, Any]) -> Iterator[tuple[str, Explanation]]:
        """Each explainer's record of the batch, made when it is asked for."""
        self.images += len(batch)
        found = explanations(
            list(self.explainers.values()),
            self.model,
            batch.image,
            self.how.target,
            sample_ids=batch.sample_id,
            annotations=batch,
            shared=shared,
            share_passes=self.share_passes,
            noise=self.how.noise,
            seed=self.how.seed,
            chunk_size=self.how.chunk_size,
        )
        return zip(self.explainers, found, strict=True)

    def measure(self, explainer: str, explanation: Explanation) -> None:
        """Every metric's row of the record, and its maps where they are for the panel."""
        for metric in [m for e, m in self.cells if e == explainer]:
            start = time.perf_counter()
            try:
                self.cells[explainer, metric].update(explanation)
            except Exception as error:
                if self.failed is None:
                    raise
                self.failed(explainer, metric, error)
                del self.cells[explainer, metric]
            else:
                self.seconds[explainer, metric] += time.perf_counter() - start
        rows = [row for row, sample in enumerate(explanation.sample_ids.tolist()) if sample in self.how.panel]
        if rows:
            control = self.explainers[explainer].control
            self.drawn[explainer].append(to_maps(explanation, rows, self.how.name, explainer, self.how.epoch, control))

    def count_hits(self, batch: Batch, shared: Mapping[Hashable, Any]) -> None:
        """Which images are classified correctly, where anything was explained."""
        if self.how.logits in shared:
            self.hits |= _hits(batch, shared[self.how.logits])

    def results(self) -> Results:
        """The tables, summed over all ranks."""
        results = Results()
        self._add_accuracy(results)
        for (explainer, metric), table in self.cells.items():
            self._add_rows(results, explainer, metric, table)
        for mine in self.drawn.values():
            if parts := _everyones(mine):
                results.maps.append(concatenate_maps(parts, self.how.panel))
        return results

    def _add_accuracy(self, results: Results) -> None:
        mine = self.hits if self.how.correct is None else self.how.correct
        hits = dict(_everyones(sorted(mine.items())))
        if not hits:
            return
        values = [hits[sample] for sample in sorted(hits)]
        low, high = bootstrap_interval(values)
        row = self.how.row(
            "",
            "accuracy",
            value=float(np.mean(values)),
            low=low,
            high=high,
            n=len(values),
            excluded=0,
            seconds=0.0,
            higher_is_better=True,
            protocol="accuracy[top1]",
            role="performance",
        )
        results.rows.append(row)
        results.per_image[row.model, "", row.metric] = hits

    def _add_rows(self, results: Results, explainer: str, metric: str, table: ExplanationMetric) -> None:
        name = self.how.name
        for found in table.summary():
            full = full_name(metric, found.name)
            row = self.how.row(
                explainer,
                full,
                value=found.value,
                low=found.low,
                high=found.high,
                n=found.n,
                excluded=found.excluded,
                seconds=self.seconds[explainer, metric],
                higher_is_better=table.direction(found.name),
                protocol=f"{table.protocol}#{table.protocol_hash} noise={self.how.noise} seed={self.how.seed}",
                role=table.role,
                control=self.explainers[explainer].control,
            )
            results.rows.append(row)
            # a method without a sum has no completeness error at all, and some results are about some images only: nothing to warn of
            if found.excluded and found.n and found.name not in table.conditional:
                results.warnings.append(
                    f"{name}, {explainer}, {full}: {found.excluded} of {found.n + found.excluded} images excluded (NaN or undefined)"
                )
        for result, values in table.per_image().items():
            results.per_image[name, explainer, full_name(metric, result)] = values
        curve = table.curve()
        if curve is not None:
            results.curves[name, explainer, metric] = curve


def is_correct(model: nn.Module, batches: Iterable[Batch], **conditions: Any) -> dict[int, float]:
    """{sample id: 1 where the largest logit is the label's, 0 elsewhere}, under the noise that explanations get; unknown labels are left out.

    Args:
        conditions: of `Conditions`, by name.
    """
    how = Conditions(**conditions)
    device = _device(model)
    found: dict[int, float] = {}
    for batch in batches:
        batch = batch.to(device)
        found |= _hits(
            batch, NetworkSession(model, how, batch.sample_id, how.rows_at_once(batch.image)).forward(batch.image)
        )
    return found


def _hits(batch: Batch, logits: Tensor) -> dict[int, float]:
    known = batch.label >= 0
    return dict(
        zip(batch.sample_id[known].tolist(), (logits.argmax(1) == batch.label)[known].double().tolist(), strict=True)
    )


def _everyones(mine: list[Any]) -> list[Any]:
    """All ranks' lists, joined."""
    return [item for part in gather_ranks(mine) for item in part]


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def missing_for(name: str, metric: ExplanationMetric, batch: Batch) -> str | None:
    """What the metric needs and the batch does not have, as a sentence; None where nothing is missing."""
    missing = [KINDS[need] for need in batch.lacks(metric.needs)]
    if not missing:
        return None
    nouns, advice = " and ".join(kind.noun for kind in missing), ", ".join(kind.advice for kind in missing)
    return f"the metric {name!r} needs {nouns}, but this data has none; {advice}, or leave the metric out"


def in_batches(x: Tensor, label: Tensor | None = None, batch_size: int = 32) -> Iterator[Batch]:
    """Images in memory (B, C, H, W) as the batches that `evaluate` reads."""
    label = torch.full((len(x),), -1) if label is None else label
    for first in range(0, len(x), batch_size):
        rows = slice(first, first + batch_size)
        yield Batch(x[rows], label[rows], torch.arange(len(x))[rows])
