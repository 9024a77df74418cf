"""Class activation maps: weighted sums of a layer's feature maps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from explainode.explainers.base import Explainer
from explainode.explainers.layers import activation_and_gradient, find_layer


@dataclass(frozen=True)
class GradCAM(Explainer):
    """Feature maps of one layer, weighted by the mean gradient of the score over each map.

    Args:
        layer: its name; None finds the last spatial feature map of the network. If a layer is called several times, the last call counts.
        relu: keep only what speaks for the class.

    Returns (B, 1, h, w) at the layer's resolution, in [0, inf) with `relu`.

    Raises:
        UserError: if there is no such layer, or it returns no feature map.

    Source: Selvaraju et al. 2017; paper 004 Eq. 9-10. We neither upsample nor scale to [0, 1]: so maps of several images can be compared.
    """

    layer: str | None = None
    relu: bool = True

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        A, gradient, _ = activation_and_gradient(model, x, target, find_layer(model, x, self.layer))
        return cam(A, gradient, self.relu)


def cam(A: Tensor, gradient: Tensor, relu: bool = True) -> Tensor:
    """Feature maps (B, C, h, w) and the score's gradient there -> (B, 1, h, w)."""
    alpha = gradient.mean((-2, -1), keepdim=True)  # Eq. (9)
    relevance = (alpha * A).sum(1, keepdim=True)  # Eq. (10)
    return relevance.relu() if relu else relevance
