"""The record that flows from explainers to metrics and reports, and what can be done to an attribution map.

Shape letters: B batch, C channels, H, W pixels, K classes, R rows of an expanded batch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainode.annotations import Annotations
from explainode.drawing import SHOWN, figure_html, maps_figure
from explainode.errors import UserError, nearest

T = TypeVar("T")

REDUCTIONS = ("sum", "abs_sum", "abs_max", "positive_sum", "l2")


@dataclass
class Explanation(Annotations):
    """Everything known about the explanations of one batch, and about its pictures (see `Annotations`): what metrics and reports read.

    Attributes:
        x: (B, C, H, W) pixels in [0, 1].
        target: (B,) int64, the explained class (the predicted one where the user gave none).
        attribution: (B, C, H, W) or (B, 1, h, w), signed, unreduced, unnormalized.
        logits: (B, K) of x under the record's own noise.
        score: (B,) the explained score of x.
        completeness_error: (B,) sum of the attribution minus what it should add up to; None where the method defines no sum.
        forwards, backwards: rows sent through the network to make the attribution, over all B images; passes that several explanations were read
            off are counted on the first of them.
        noise: "off", "path" or "mean:k"; seed: of every keyed draw.
        stochastic: another `draw` would give another attribution (noise blocks speak, or the explainer samples).
        sample_ids: (B,) int64.
        seconds: wall time of the explanation of the batch; that of shared passes is shared out equally.
        forward: `forward(x (R,C,H,W), rows=None)` -> (R, K) logits under the guard with the record's noise; `rows` (R,) says whose copy each row is.
        explain: `explain(x (R,C,H,W), rows=None, draw=None, *, model=None, target=None)` -> attribution of the same targets; `draw` asks for
            another noise path, `model` for another network, `target` (B,) for other classes.
        model: the explained network, for metrics that randomize a copy.
        diagnostics: further numbers (B,) of the method about each attribution, by name.
        shared: store common to all explanations of this model and batch (clean and baseline outputs).
    """

    x: Tensor
    target: Tensor
    attribution: Tensor
    logits: Tensor
    score: Tensor
    completeness_error: Tensor | None
    forwards: int
    backwards: int
    noise: str
    seed: int
    stochastic: bool
    sample_ids: Tensor
    seconds: float
    forward: Callable[..., Tensor]
    explain: Callable[..., Tensor]
    model: nn.Module
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    shared: dict[Hashable, Any] = field(default_factory=dict)
    _own: dict[Hashable, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    def memo(self, key: Hashable, compute: Callable[[], T], shared: bool = False) -> T:
        """`compute()` once per key: of this record, or with `shared` of all records of the same model and batch."""
        store = self.shared if shared else self._own
        if key not in store:
            store[key] = compute()
        return store[key]

    def show(self, rows: Sequence[int] | None = None, overlay: bool = False, names: Sequence[str] | None = None) -> Any:
        """The pictures and their maps as a matplotlib figure, which is returned: red speaks for the class, blue against it.

        Args:
            rows: which pictures of the batch; None: the first eight.
            overlay: draw the maps over the pictures.
            names: of the classes.

        Raises:
            UserError: without matplotlib, or for a row that the batch does not have.
        """
        chosen = list(range(min(len(self), SHOWN))) if rows is None else list(rows)
        if not chosen or not all(0 <= row < len(self) for row in chosen):
            raise UserError(f"rows are some of 0..{len(self) - 1}, got {chosen}")
        probability = self.logits.softmax(1).gather(1, self.target[:, None])[:, 0]
        classes = [int(k) for k in self.target]
        titles = [
            f"{names[classes[row]] if names else f'class {classes[row]}'}, probability {float(probability[row]):.2f}"
            for row in chosen
        ]
        images = self.x[chosen].detach().float().cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
        return maps_figure(images, self.heatmap()[chosen].detach().float().cpu().numpy(), titles, overlay)

    def _repr_html_(self) -> str:
        """What a notebook shows: pictures, maps, and what they cost."""
        cost = (
            f"{len(self)} pictures, {self.forwards} forward and {self.backwards} backward passes, {self.seconds:.2f} s"
        )
        return (
            figure_html(self.show(), "pictures and their maps") + f"<p>{cost}; noise {self.noise}, seed {self.seed}</p>"
        )

    def heatmap(self, reduction: str = "sum") -> Tensor:
        """(B, H, W): the attribution reduced over channels and upsampled to the pixels of x."""
        return self.memo(
            ("heatmap", reduction), lambda: upsample(reduce_channels(self.attribution, reduction), self.x.shape[-2:])
        )


def check_reduction(name: str) -> str:
    """`name` if channels can be reduced that way, see `reduce_channels`.

    Raises:
        UserError: with the nearest names.
    """
    if name not in REDUCTIONS:
        raise UserError(f"no channel reduction named {name!r}; the nearest are {nearest(name, REDUCTIONS)}")
    return name


def reduce_channels(attribution: Tensor, reduction: str = "sum") -> Tensor:
    """(B, C, H, W) -> (B, H, W).

    `sum` keeps the sign and conservation; `abs_sum`, `abs_max` (Ayyar et al. 2021 Eq. 6), `positive_sum` and `l2` are what other papers draw.

    Raises:
        UserError: for any other name.
    """
    check_reduction(reduction)
    if reduction == "sum":
        return attribution.sum(1)
    if reduction == "abs_sum":
        return attribution.abs().sum(1)
    if reduction == "abs_max":
        return attribution.abs().amax(1)
    if reduction == "positive_sum":
        return attribution.clamp(min=0).sum(1)
    return attribution.square().sum(1).sqrt()  # l2


def upsample(heatmap: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """(B, h, w) -> (B, H, W), bilinear without aligned corners; unchanged where the size fits."""
    if tuple(heatmap.shape[-2:]) == tuple(size):
        return heatmap
    return F.interpolate(heatmap[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def normalize(heatmap: Tensor) -> Tensor:
    """(B, H, W) -> [0, 1] per image by its own minimum and maximum; a constant map becomes 0 everywhere, NaN stays NaN."""
    low = heatmap.amin((-2, -1), keepdim=True)
    span = heatmap.amax((-2, -1), keepdim=True) - low
    return torch.where(span == 0, torch.zeros_like(heatmap), (heatmap - low) / span)


def mean_crop(heatmap: Tensor) -> Tensor:
    """(B, H, W): values below the map's own mean set to 0 (the root inference paper, for pictures and masks)."""
    return torch.where(heatmap < heatmap.mean((-2, -1), keepdim=True), torch.zeros_like(heatmap), heatmap)


def rank_pixels(heatmap: Tensor) -> Tensor:
    """(B, H, W) -> (B, H*W) int64 pixel positions, most relevant first; ties keep raster order.

    Raises:
        ValueError: if a value is NaN, which has no rank.
    """
    if torch.isnan(heatmap).any():
        raise ValueError("a heatmap with NaN has no ranking; exclude the image first")
    return torch.argsort(heatmap.flatten(1), dim=1, descending=True, stable=True)


# ---- maps as functions of the image, for attacks on the map itself


@dataclass
class Graph:
    """What happened inside `keep_graph`.

    Attributes:
        kept: some method differentiated at `begin_graph(x)`, so its map is a function of x as far as autograd can tell.
    """

    kept: bool = False


_graph: ContextVar[Graph | None] = ContextVar("explainode_graph", default=None)


@contextmanager
def keep_graph() -> Iterator[Graph]:
    """Context in which methods made of gradients return maps with a graph to x; what they return by other means carries none."""
    graph = Graph()
    token = _graph.set(graph)
    try:
        yield graph
    finally:
        _graph.reset(token)


def graph_is_kept() -> bool:
    """Whether `keep_graph` is open."""
    return _graph.get() is not None


def begin_graph(x: Tensor) -> Tensor:
    """`x` as the place to differentiate at: a leaf of its own; within `keep_graph` x itself, with all that leads to it."""
    graph = _graph.get()
    if graph is None:
        return x.detach().requires_grad_()
    graph.kept = True
    return x if x.requires_grad else x.detach().requires_grad_()
