"""The skeleton of every metric: one dense row per image, the same for any number of processes, with intervals from the images themselves.

Engines compute, metrics store: a metric reads an `Explanation`, writes one row of numbers per image and never keeps a model.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import Metric

from explainode.annotations import KINDS
from explainode.attribution import Explanation
from explainode.errors import UserError
from explainode.metrics.distributions import student_quantile
from explainode.metrics.means import mean_intervals
from explainode.metrics.results import ROLES, Curve


@dataclass(frozen=True)
class Result:
    """One number of a metric: `name` is "" for the headline; `low` and `high` bound its interval (NaN where the images are too few)."""

    name: str
    value: float
    low: float
    high: float
    n: int
    excluded: int


def full_name(metric: str, result: str) -> str:
    """How a result is called in tables: `<metric>` for the headline, `<metric>.<result>` for the others."""
    return f"{metric}.{result}" if result else metric


class ExplanationMetric(Metric):
    """Base of all metrics of explanations.

    A subclass names its `columns`, implements `measure`, and stores each constructor parameter under its own name. States are sums over
    processes of a table with one row per image (value, count, excluded): an image that two processes saw is averaged with itself, a process
    that saw none adds zeros, so the numbers do not depend on how the images were dealt out or batched.

    `compute`, `summary`, `table`, `per_image`, `curve` and `plot` are collective: in a distributed run every process calls them (the tables
    are summed by one all-reduce, kept until the next update).

    Class attributes:
        columns: numbers stored per image; "" is the headline.
        results: numbers reported; by default the means of the columns.
        higher_is_better: of all results, or a mapping from result to it; None is a neutral fact.
        conditional: results that are about some of the images only, so that leaving out the others is no warning.
        needs: kinds of `Annotations`, what the record must carry besides the map; an instance may have needs of its own.
        role: what the metric judges, one of `ROLES`; tables, verdicts and dashboards go by it, never by a name.
        kind: first word of the protocol.
        version: raised when the definition changes, so that numbers of different definitions have different hashes.
    """

    is_differentiable = False
    full_state_update = False
    columns: ClassVar[tuple[str, ...]] = ("",)
    results: ClassVar[tuple[str, ...]] = ()
    higher_is_better: bool | Mapping[str, bool | None] | None = None  # type: ignore[assignment]
    conditional: ClassVar[frozenset[str]] = frozenset()
    needs: frozenset[str] = frozenset()
    role: ClassVar[str] = "diagnostic"
    kind: ClassVar[str] = ""
    version: ClassVar[int] = 1
    value: Tensor
    count: Tensor
    excluded: Tensor
    curve_sums: Tensor

    def __init__(self) -> None:
        super().__init__(
            sync_on_compute=False
        )  # we sum the tables ourselves: one all-reduce instead of a gather for each state
        self._sums: dict[str, np.ndarray] | None = None
        self.setup(0)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.role not in ROLES:
            raise UserError(f"{cls.__name__}.role is {cls.role!r}, expected one of {', '.join(ROLES)}")
        if not cls.__dict__.get("results"):
            inherited = cls.results if "columns" not in cls.__dict__ else ()
            cls.results = inherited or cls.columns

    # ---- what a metric implements

    def measure(self, explanation: Explanation) -> Tensor:
        """(B, len(columns)) floats; NaN excludes the image from that column."""
        raise NotImplementedError

    def combine(self, means: np.ndarray) -> np.ndarray:
        """(..., len(columns)) column means -> (..., len(results)); the identity unless results are functions of means (dataset mIoU)."""
        return means

    def curve_axis(self) -> tuple[np.ndarray, str, str] | None:
        """The common x values (P,) of this metric's curves and the names of both axes; None for metrics without curves."""
        return None

    def curves(self, explanation: Explanation) -> Tensor:
        """(B, P) curves behind `measure`, NaN rows excluded; only asked for if there is a `curve_axis`."""
        raise NotImplementedError

    def settings(self) -> tuple[str, ...]:
        """The short words of the protocol; the hash covers all parameters whether they are named here or not."""
        return ()

    # ---- states

    def setup(self, n: int | Sequence[int]) -> ExplanationMetric:
        """Allocate the table: for sample ids 0..n-1, or for exactly the given ids (the same on every process). Forgets earlier updates."""
        self._ids = torch.arange(n) if isinstance(n, int) else torch.tensor(sorted(set(n)), dtype=torch.int64)
        rows, width = len(self._ids), len(self.columns)
        axis = self.curve_axis()
        with torch.inference_mode(
            False
        ):  # validation loops run in inference mode; its tensors could not be updated outside
            self.add_state("value", torch.zeros(rows, width, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state("count", torch.zeros(rows, width, dtype=torch.int32), dist_reduce_fx="sum")
            self.add_state("excluded", torch.zeros(rows, width, dtype=torch.int32), dist_reduce_fx="sum")
            # curves as sums only: one row per image would be 40 MB per process for 50,000 images and 101 points
            self.add_state(
                "curve_sums",
                torch.zeros(3, 0 if axis is None else len(axis[0]), dtype=torch.float64),
                dist_reduce_fx="sum",
            )
        self.reset()
        return self

    def reset(self) -> None:
        """Empty the table, keep its rows."""
        with torch.inference_mode(False):
            super().reset()
        self._sums = None

    def update(self, explanation: Explanation) -> None:
        """Write one row for each image of the record.

        Raises:
            UserError: if the record lacks what the metric `needs`, or holds a sample id that the table has no row for.
        """
        for need in sorted(self.needs):
            if getattr(explanation, need) is None:
                kind = KINDS[need]
                raise UserError(f"{type(self).__name__} needs {kind.noun}, but this data has none; {kind.advice}")
        rows = self._rows(explanation.sample_ids)
        seen = (self.count[rows] + self.excluded[rows]).sum(1) > 0
        values = self.measure(explanation).detach().to(self.value.device).double()
        valid = ~torch.isnan(values)
        self.value.index_add_(0, rows, values.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf))
        self.count.index_add_(0, rows, valid.int())
        self.excluded.index_add_(0, rows, (~valid).int())
        if self.curve_sums.shape[1]:
            curves = (
                self.curves(explanation).detach().to(self.value.device).double()[~seen]
            )  # an image counts once in the curve
            curves = curves[~torch.isnan(curves).any(1)]
            self.curve_sums += torch.stack((curves.sum(0), curves.square().sum(0), torch.ones_like(curves).sum(0)))
        self._sums = None

    def _rows(self, sample_ids: Tensor) -> Tensor:
        """(B,) table rows of the sample ids."""
        ids = sample_ids.to(self._ids.device)
        rows = torch.searchsorted(self._ids, ids)
        known = rows < len(self._ids)
        known[known.clone()] = self._ids[rows[known]] == ids[known]
        if not known.all():
            raise UserError(
                f"sample id {int(ids[~known][0])} has no row in the table of {type(self).__name__} ({len(self._ids)} rows); "
                "call setup(n) with the size of the split or with the list of sample ids first"
            )
        return rows.to(self.value.device)

    def _summed(self) -> dict[str, np.ndarray]:
        """The states summed over all processes."""
        if self._sums is None:
            names = ("value", "count", "excluded", "curve_sums")
            states = [getattr(self, name).double() for name in names]
            if not self._is_synced and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                packed = torch.cat([state.flatten() for state in states])
                if dist.get_backend() == "nccl":
                    packed = packed.cuda()
                dist.all_reduce(packed)
                parts = packed.cpu().split([state.numel() for state in states])
                states = [part.reshape(state.shape) for part, state in zip(parts, states, strict=True)]
            self._sums = {name: state.cpu().numpy() for name, state in zip(names, states, strict=True)}
        return self._sums

    # ---- what is read

    def _values(self) -> np.ndarray:
        """(n, columns) float64, NaN where there is no number."""
        sums = self._summed()
        return np.divide(sums["value"], sums["count"], out=np.full_like(sums["value"], np.nan), where=sums["count"] > 0)

    def table(self) -> dict[int, np.ndarray]:
        """{sample id: (columns,) float64} of all images seen; NaN where excluded."""
        sums, values = self._summed(), self._values()
        seen = (sums["count"] + sums["excluded"]).sum(1) > 0
        return {int(i): row for i, row in zip(self._ids[torch.from_numpy(seen)], values[seen], strict=True)}

    def per_image(self) -> dict[str, dict[int, float]]:
        """{result: {sample id: value}} of the results that are plain means over images; excluded images are left out."""
        table = self.table()
        return {
            name: {i: float(row[k]) for i, row in table.items() if not np.isnan(row[k])}
            for k, name in enumerate(self.columns)
            if name in self.results
        }

    def compute(self) -> Tensor | dict[str, Tensor]:
        """The value over all images seen: (), or {result: ()} if there are several; NaN if no image counts."""
        values = self.combine(_means(self._values()))
        tensors = {
            name: torch.tensor(float(v), dtype=torch.float32) for name, v in zip(self.results, values, strict=True)
        }
        return tensors[self.results[0]] if len(tensors) == 1 else tensors

    def summary(self, level: float = 0.95) -> list[Result]:
        """Each result with its interval over images, the number of images that count and of those excluded.

        Means and shares: `means.mean_intervals`. A function of means, such as the mean IoU of all pixels together, is the mean of its pseudo-values
        (Quenouille 1956; Tukey 1958), which leave out one image each.
        """
        values, excluded = self._values(), (self._summed()["excluded"] > 0) & (self._summed()["count"] == 0)
        values = values[~np.isnan(values).all(1)]
        point = self.combine(_means(values))
        low, high = mean_intervals(self._contributions(values), level)
        found = []
        for k, name in enumerate(self.results):
            column = self.columns.index(name) if name in self.columns else 0
            n = int((~np.isnan(values[:, column])).sum())
            found.append(
                Result(name, float(point[k]), float(low[k]), float(high[k]), n, int(excluded[:, column].sum()))
            )
        return found

    def _contributions(self, values: np.ndarray) -> np.ndarray:
        """(n, len(results)) numbers whose means are the results: the images' values, or pseudo-values; NaN where an image has none."""
        if type(self).combine is ExplanationMetric.combine:
            return values
        inner = [k for k, name in enumerate(self.columns) if name not in self.results]  # what the others are made of
        rows = ~np.isnan(values[:, inner]).all(1)
        counted = values[rows]
        n, there = len(counted), ~np.isnan(counted)
        filled = np.where(there, counted, 0.0)
        found = np.full((len(values), len(self.results)), np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            without = self.combine((filled.sum(0) - filled) / (there.sum(0) - there))
            found[rows] = np.where(np.isfinite(without), n * self.combine(_means(counted)) - (n - 1) * without, np.nan)
        for k, name in enumerate(self.results):
            if name in self.columns:
                found[:, k] = values[:, self.columns.index(name)]
        return found

    def curve(self, level: float = 0.95) -> Curve | None:
        """The mean curve with its band, Student's t at each point (curves are kept as sums only); None without curves or images."""
        axis = self.curve_axis()
        total, squares, count = self._summed()["curve_sums"]
        if axis is None or not len(count) or count[0] == 0:
            return None
        n = count[0]
        mean = total / n
        variance = np.maximum(squares / n - mean**2, 0.0) * n / max(n - 1, 1)
        t = student_quantile(0.5 + level / 2, int(n) - 1) if n > 1 else np.nan
        half = t * np.sqrt(variance / n)
        return Curve(axis[0], mean, mean - half, mean + half, axis[1], axis[2])

    def direction(self, result: str = "") -> bool | None:
        """Whether more of this result is better; None for neutral facts."""
        better = type(self).higher_is_better
        return better.get(result) if isinstance(better, Mapping) else better

    # ---- who it is

    @property
    def parameters_used(self) -> dict[str, Any]:
        """The constructor's parameters as they were given."""
        return {
            name: getattr(self, name) for name in inspect.signature(type(self).__init__).parameters if name != "self"
        }

    @property
    def protocol(self) -> str:
        """The short protocol, such as `deletion[blur,k101,p(y),stable]`."""
        return f"{self.kind or type(self).__name__}[{','.join(self.settings())}]"

    @property
    def protocol_hash(self) -> str:
        """8 hex digits over the definition's name and version and every parameter: numbers with different hashes must not be compared."""
        facts = json.dumps([type(self).__name__, self.version, self.parameters_used], sort_keys=True, default=str)
        return blake2b(facts.encode(), digest_size=4).hexdigest()

    def plot(self, *_: Any, **__: Any) -> Figure:  # type: ignore[override]
        """The mean curve with its band, or the distribution over images with value and interval for each result that is a mean."""
        figure = Figure(layout="constrained")
        curve = self.curve()
        if curve is not None:
            axes = figure.subplots()
            axes.fill_between(curve.x, curve.low, curve.high, alpha=0.25, linewidth=0)
            axes.plot(curve.x, curve.mean)
            axes.set(xlabel=curve.x_label, ylabel=curve.y_label, title=self.protocol)
            return figure
        found = {result.name: result for result in self.summary()}
        per_image = self.per_image()
        grid = figure.subplots(1, len(found), squeeze=False)[0]
        for axes, (name, result) in zip(grid, found.items(), strict=True):
            if per_image.get(name):
                axes.hist(list(per_image[name].values()), bins=min(20, max(1, len(per_image[name]))), alpha=0.5)
            axes.axvline(result.value)
            if not np.isnan(result.low):
                axes.axvspan(result.low, result.high, alpha=0.25)
            axes.set(
                xlabel=full_name(self.kind or type(self).__name__, name), title=f"{result.value:.4g}, n={result.n}"
            )
        return figure


def _means(values: np.ndarray) -> np.ndarray:
    """(n, k) -> (k,) means over the numbers that are there; NaN for a column without any."""
    there = ~np.isnan(values)
    count = there.sum(0)
    return np.divide(np.where(there, values, 0.0).sum(0), count, out=np.full(values.shape[1], np.nan), where=count > 0)
