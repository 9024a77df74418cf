"""Maps of several models and explainers, aligned image by image: what every picture of a report starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from explainode.errors import UserError
from explainode.metrics.agreement import mean_ranks
from explainode.metrics.results import Maps
from explainode.report.colors import Colors, fault, reduce_maps, scales_of


@dataclass(frozen=True)
class Board:
    """N images that all maps share, in the order of the first record.

    Attributes:
        image: (N, H, W, 3) uint8; mask: (N, H, W) or None; sample_id, label: (N,).
        heatmap: {(model, explainer): (N, H, W) float32}; a pair that was not measured is missing.
        target, probability: {model: (N,)} the explained class and its probability; epoch: {model: last epoch}.
        kind: {explainer: "magnitude" | "signed" | "root_inference"}; scale: {(model, explainer): (N,)}.
        controls: {explainer: which control it is} of those that are one.
        fixed: so many of the images, the first ones, were chosen before anything was measured.
    """

    models: list[str]
    explainers: list[str]
    image: np.ndarray
    mask: np.ndarray | None
    sample_id: np.ndarray
    label: np.ndarray
    heatmap: dict[tuple[str, str], np.ndarray]
    target: dict[str, np.ndarray]
    probability: dict[str, np.ndarray]
    epoch: dict[str, int]
    kind: dict[str, str]
    scale: dict[tuple[str, str], np.ndarray]
    colors: Colors
    controls: dict[str, str]
    fixed: int

    def __len__(self) -> int:
        return len(self.sample_id)


def make_board(
    maps: Sequence[Maps], colors: Colors | str = "auto", scale: str = "per-map", reduction: str = "sum"
) -> Board:
    """Align the records of one or several models by sample id.

    Raises:
        UserError: if there are no maps, no image is common to all, or a sample id means different pictures in two records.
    """
    if not maps:
        raise UserError("there are no maps to show; evaluate with evaluation.panel=8 or more")
    colors = Colors(colors) if isinstance(colors, str) else colors
    first = maps[0]
    common = set(first.sample_id.tolist()).intersection(*(m.sample_id.tolist() for m in maps[1:]))
    order = [s for s in first.sample_id.tolist() if s in common]
    if not order:
        raise UserError("the maps have no image in common; evaluate all models on the same images")
    rows = {id(m): _rows(m, order) for m in maps}
    image = first.image[rows[id(first)]]
    mask = next((m.mask[rows[id(m)]] for m in maps if m.mask is not None), None)
    heatmap = {}
    for m in maps:
        if m.image.shape[1:] == image.shape[1:] and not np.array_equal(m.image[rows[id(m)]], image):
            raise UserError(
                f"{first.model} and {m.model} were explained on different pictures of the same number; compare runs on the same data"
            )
        heatmap[m.model, m.explainer] = reduce_maps(m.attribution[rows[id(m)]], image.shape[1:3], reduction)
    models, explainers = list(dict.fromkeys(m.model for m in maps)), list(dict.fromkeys(m.explainer for m in maps))
    controls = {m.explainer: m.control for m in maps if m.control}
    explainers.sort(key=lambda e: e in controls)
    kind: dict[str, str] = {}
    scales: dict[tuple[str, str], np.ndarray] = {}
    for explainer in explainers:
        having = [model for model in models if (model, explainer) in heatmap]
        stack = np.stack([heatmap[model, explainer] for model in having])
        kind[explainer] = colors.kind(stack)
        scales |= {(model, explainer): s for model, s in zip(having, scales_of(stack, scale), strict=True)}
    last = {m.model: m for m in maps}
    beforehand = set(first.sample_id[: len(first.sample_id) - first.added].tolist())
    return Board(
        models=models,
        explainers=explainers,
        image=image,
        mask=mask,
        sample_id=np.array(order),
        label=first.label[rows[id(first)]],
        heatmap=heatmap,
        target={name: m.target[rows[id(m)]] for name, m in last.items()},
        probability={name: m.probability[rows[id(m)]] for name, m in last.items()},
        epoch={name: m.epoch for name, m in last.items()},
        kind=kind,
        scale=scales,
        colors=colors,
        controls=controls,
        fixed=sum(sample in beforehand for sample in order),
    )


def _rows(maps: Maps, order: Sequence[int]) -> np.ndarray:
    position = {sample: row for row, sample in enumerate(maps.sample_id.tolist())}
    return np.array([position[sample] for sample in order])


def disagreement(board: Board) -> np.ndarray:
    """(N,) how differently an image is explained: 1 minus the rank correlation of the maps, averaged over explainers (controls aside).

    Between models where there are several, otherwise between explainers. Constant, NaN and infinite maps have no ranks and are left
    out; NaN where nothing is left to compare.
    """
    explainers = [e for e in board.explainers if e not in board.controls]
    groups = (
        [[(m, e) for m in board.models] for e in explainers]
        if len(board.models) > 1
        else [[(board.models[0], e) for e in explainers]]
    )
    total, count = np.zeros(len(board)), np.zeros(len(board))
    for group in groups:
        ranks = [_ranks(board.heatmap[key]) for key in group if key in board.heatmap]
        for i, a in enumerate(ranks):
            for b in ranks[i + 1 :]:
                value = 1 - (a * b).sum(1)
                known = ~np.isnan(value)
                total[known] += value[known]
                count[known] += 1
    return np.divide(total, count, out=np.full(len(board), np.nan), where=count > 0)


def map_agreement(board: Board, model: str) -> tuple[tuple[str, ...], np.ndarray]:
    """The model's explainers and (E, E), the rank correlation of their maps, averaged over the images where both have ranks.

    Of means over at most 28 x 28 blocks, which is what `disagreement` compares; `metrics.agreement.explainer_agreement` compares pixels.
    """
    names = tuple(e for e in board.explainers if (model, e) in board.heatmap)
    matrix = np.full((len(names), len(names)), np.nan)
    if names:
        ranks = np.stack([_ranks(board.heatmap[model, e]) for e in names])
        alike = np.einsum("anb,cnb->acn", ranks, ranks)
        known = ~np.isnan(alike)
        np.divide(np.where(known, alike, 0).sum(2), known.sum(2), out=matrix, where=known.any(2))
    return names, matrix


def _ranks(heatmap: np.ndarray, cells: int = 28) -> np.ndarray:
    """(N, H, W) -> (N, cells^2) ranks of block means, ties at their mean, centered and of length 1, so that a dot product is Spearman's correlation."""
    n, height, width = heatmap.shape
    edges_y, edges_x = (
        np.unique(np.linspace(0, side, min(cells, side), endpoint=False).astype(int)) for side in (height, width)
    )
    with np.errstate(invalid="ignore"):
        blocks = np.add.reduceat(np.add.reduceat(heatmap.astype(np.float64), edges_y, 1), edges_x, 2).reshape(n, -1)
    bad = [fault(h) is not None for h in heatmap]
    blocks[bad] = 0
    ranks = mean_ranks(torch.from_numpy(blocks)).numpy()
    ranks -= ranks.mean(1, keepdims=True)
    length = np.linalg.norm(ranks, axis=1, keepdims=True)
    ranks = np.divide(ranks, length, out=np.full_like(ranks, np.nan), where=length > 0)
    ranks[bad] = np.nan
    return ranks
