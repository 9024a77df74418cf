"""The maps that pictures are made of: cut out of explanations, batch by batch, and put together again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from explainode.attribution import Explanation
from explainode.metrics.results import Maps


def _to_uint8(image: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [0, 1] -> (B, H, W, 3) uint8."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def to_maps(
    explanation: Explanation, rows: list[int], model: str, explainer: str, epoch: int, control: str = ""
) -> Maps:
    """The panel's images of one batch, as a picture needs them."""
    probability = explanation.logits.softmax(1).gather(1, explanation.target[:, None])[:, 0]
    label = explanation.label if explanation.label is not None else torch.full_like(explanation.target, -1)
    return Maps(
        model=model,
        explainer=explainer,
        epoch=epoch,
        control=control,
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
    return Maps(
        model=parts[0].model, explainer=parts[0].explainer, epoch=parts[0].epoch, control=parts[0].control, **merged
    )
