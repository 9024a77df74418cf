"""What an evaluation yields: plain rows, curves and maps that tables, reports and comparisons read."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from explainode.drawing import table_html
from explainode.errors import UserError

ROLES = {
    "faithfulness": "whether the map shows what the network goes by",
    "localization": "whether the map lies on the object",
    "agreement": "whether the map lies where people look",
    "sensitivity": "how much the map changes when the picture hardly does",
    "robustness": "what becomes of the map under attack",
    "sanity": "whether the map depends on the network and the class",
    "complexity": "how much there is to see in the map",
    "completeness": "whether the map adds up to what it explains",
    "cost": "what the map costs",
    "diagnostic": "what the method says of itself; judges nobody",
    "performance": "what the network can do, without any map",
}
CONTROLS = {
    "random": "noise that knows neither network nor picture",
    "center": "a bump in the middle, which knows neither network nor picture",
    "edges": "the edges of the picture, which knows nothing of the network",
    "inverted": "another map turned upside down",
    "contrast": "another map with more contrast and nothing else",
    "smooth": "another map with less detail and nothing else",
}


@dataclass(frozen=True)
class Row:
    """One line of metrics.csv: a metric of one explainer on one model, with its 95 % interval (NaN where the images are too few).

    `explainer` is empty for metrics of the model itself (accuracy). `n` images count, `excluded` were NaN or did not apply.
    `higher_is_better` is None for neutral facts. `protocol` is the metric's short protocol and its hash. `role` is the metric's, one of `ROLES`;
    `control` is one of `CONTROLS` where the explainer is one, else empty.
    """

    epoch: int
    split: str
    model: str
    explainer: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    excluded: int
    seconds: float
    higher_is_better: bool | None
    protocol: str
    role: str = "diagnostic"
    control: str = ""

    @property
    def is_headline(self) -> bool:
        """Whether this is the first of its metric's results, whose name is the metric's alone."""
        return "." not in self.metric


@dataclass(frozen=True)
class Curve:
    """A mean curve with its 95 % band: all arrays (P,) float64."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    x_label: str
    y_label: str


@dataclass(frozen=True)
class Maps:
    """The raw maps of one model and explainer on the panel images.

    Attributes:
        image: (N, H, W, 3) uint8; attribution: (N, C or 1, h, w) float32 (stored as float16 with a scale); mask: (N, H, W) int8 or None.
        sample_id, label, target: (N,) int64; probability: (N,) of the target.
        control: the row's of this explainer.
        added: so many of the images, the last ones, were not chosen beforehand, but because they turned out to be explained worst.
    """

    model: str
    explainer: str
    epoch: int
    image: np.ndarray
    attribution: np.ndarray
    sample_id: np.ndarray
    label: np.ndarray
    target: np.ndarray
    probability: np.ndarray
    mask: np.ndarray | None = None
    added: int = 0
    control: str = ""


Key = tuple[str, str, str]  # model, explainer, metric (as in Row)


@dataclass
class Results:
    """Everything that one or several evaluations found.

    Attributes:
        per_image: value of each image, {(model, explainer, metric): {sample id: value}}; only metrics that are means over images.
        curves: {(model, explainer, metric): Curve}.
        recipes: {model: how it was trained, but for the seed}, where that is known; networks with the same are compared as one.
    """

    rows: list[Row] = field(default_factory=list)
    per_image: dict[Key, dict[int, float]] = field(default_factory=dict)
    curves: dict[Key, Curve] = field(default_factory=dict)
    maps: list[Maps] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    recipes: dict[str, str] = field(default_factory=dict)

    @property
    def controls(self) -> dict[str, str]:
        """{explainer: which of `CONTROLS` it is} of those that are one."""
        found = {row.explainer: row.control for row in self.rows if row.control}
        return found | {maps.explainer: maps.control for maps in self.maps if maps.control}

    @property
    def roles(self) -> dict[str, str]:
        """{metric: which of `ROLES` it has}, of all results of a metric alike."""
        return {row.metric: row.role for row in self.rows}

    def to_frame(self) -> Any:
        """The rows as a pandas DataFrame, a column per field of `Row`.

        Raises:
            UserError: without pandas.
        """
        try:
            import pandas
        except ImportError as error:
            raise UserError("a data frame needs pandas; pip install pandas, or read `results.rows`") from error
        return pandas.DataFrame([vars(row) for row in self.rows], columns=[known.name for known in fields(Row)])

    def _repr_html_(self) -> str:
        """What a notebook shows: the first rows, with their intervals."""
        head = ("model", "explainer", "metric", "value", "95 % interval", "n")
        shown = [
            (row.model, row.explainer, row.metric, f"{row.value:.4g}", f"{row.low:.4g} to {row.high:.4g}", row.n)
            for row in self.rows[:60]
        ]
        left = len(self.rows) - len(shown)
        return table_html(head, shown, f"and {left} rows more" if left else "")

    def extend(self, other: Results) -> None:
        """Add all that `other` holds; the same key later wins."""
        self.rows += other.rows
        self.per_image |= other.per_image
        self.curves |= other.curves
        self.maps += other.maps
        self.warnings += other.warnings
        self.recipes |= other.recipes
