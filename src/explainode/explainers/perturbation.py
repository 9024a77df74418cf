"""Methods that look at the score while parts of the image are hidden."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from explainode.errors import UserError
from explainode.explainers.base import Explainer
from explainode.explainers.baselines import Baseline, make_baseline
from explainode.explainers.passes import copies_per_pass, predict
from explainode.explainers.targets import select_score
from explainode.randomness import noise_rows


@dataclass(frozen=True)
class Occlusion(Explainer):
    """How much of the score is lost when a square window is covered; pixels under several windows get the mean of their losses.

    Args:
        window: side of the window, as a fraction of the shorter side of the image, in (0, 1].
        stride: step of the window, likewise, at most `window` so that no pixel is left out.
        baseline: what covers the window (see `make_baseline`).

    Shapes: (B, C, H, W); all channels of a pixel are covered together and carry the same value.

    Raises:
        UserError: if `window` or `stride` is out of range.

    Source: Zeiler and Fergus 2014, computed by Captum's `Occlusion`.
    """

    window: float = 0.25
    stride: float = 0.125
    baseline: Baseline = "black"

    def __post_init__(self) -> None:
        if not 0 < self.window <= 1:
            raise UserError(f"window must be a fraction of the image's shorter side in (0, 1], got {self.window}")
        if not 0 < self.stride <= self.window:
            raise UserError(f"stride must be in (0, window], got {self.stride} for a window of {self.window}")

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        from captum.attr import Occlusion as CaptumOcclusion  # here, since importing Captum takes a second

        batch, channels, height, width = x.shape
        window, stride = (max(1, round(fraction * min(height, width))) for fraction in (self.window, self.stride))

        def score(rows: Tensor) -> Tensor:
            copies = len(rows) // batch
            with noise_rows(torch.arange(batch).repeat(copies)):
                return select_score(predict(model, rows), target.repeat(copies))

        attribution = CaptumOcclusion(score).attribute(
            x,
            sliding_window_shapes=(channels, window, window),
            strides=(channels, stride, stride),
            baselines=make_baseline(self.baseline, x),
            perturbations_per_eval=copies_per_pass(batch),
        )
        return attribution.to(x.dtype)  # Captum divides in float32
