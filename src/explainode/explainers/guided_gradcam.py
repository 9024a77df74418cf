"""Guided Grad-CAM: the detail of guided backpropagation where Grad-CAM sees the class."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from explainode.attribution import upsample
from explainode.explainers.base import Explainer
from explainode.explainers.cam import GradCAM
from explainode.explainers.relevance import Relevance
from explainode.relevance.composite import Composite


@dataclass(frozen=True)
class GuidedGradCAM(Explainer):
    """Guided backpropagation times the Grad-CAM map brought to the size of the image, (B, C, H, W).

    Args:
        composite: of the walk back: the guided rule.
        layer: of Grad-CAM; None finds the last spatial feature map.

    Raises:
        UserError: if there is no such layer, or it returns no feature map.

    Source: Selvaraju et al. 2017, Sec. 3.2; Ayyar et al. 2021.
    """

    composite: Composite
    layer: str | None = None

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        guided = Relevance(self.composite).attribute(model, x, target)
        where = GradCAM(self.layer).attribute(model, x, target)[:, 0]
        return guided * upsample(where, x.shape[-2:])[:, None]
