"""The feature-based explanation method: rare, strong features of the last layer, whatever the class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from explainode.explainers.base import Explainer
from explainode.explainers.layers import activation, find_layer


@dataclass(frozen=True)
class FEM(Explainer):
    """Where each feature map is at least `k` standard deviations above its mean, counted with that mean: what the network sees, for any class.

    Args:
        layer: a layer after its ReLU; None finds the last spatial feature map of the network. If a layer is called several times, the last
            call counts.
        k: how rare is strong, in standard deviations of the map (of its population: divided by h w).

    Returns (B, 1, h, w) at the layer's resolution, in [0, inf) for a layer after its ReLU.

    Raises:
        UserError: if there is no such layer, or it returns no feature map.

    Source: Ayyar et al. 2021 Eq. 26, after Fuad et al. 2020. We leave out constant maps, which would be strong everywhere, and do not divide by the
    maximum.
    """

    class_specific: ClassVar[bool] = False

    layer: str | None = None
    k: float = 1.0

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return rare_features(activation(model, x, find_layer(model, x, self.layer)), self.k)


def rare_features(A: Tensor, k: float) -> Tensor:
    """Feature maps (B, C, h, w) -> (B, 1, h, w)."""
    deviation, mean = torch.std_mean(A, (-2, -1), correction=0, keepdim=True)
    varies = A.amax((-2, -1), keepdim=True) > A.amin((-2, -1), keepdim=True)
    strong = varies & (A - mean >= k * deviation)  # Eq. (26)
    return (mean * strong).sum(1, keepdim=True)
