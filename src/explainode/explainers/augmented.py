"""Any method, averaged over views of the picture in which its class is the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from explainode.attribution import upsample
from explainode.errors import UserError
from explainode.explainers.base import Explainer
from explainode.explainers.passes import each_copy


@dataclass(frozen=True)
class Augmented(Explainer):
    """Mean of a method's maps over the picture and its mirror image, in several brightnesses, each map put back into place.

    Args:
        explainer: the method.
        factors: by which the pixels are multiplied.
        mirror: also the mirror image.

    Shapes: those of the inner method.

    Raises:
        UserError: if there is no factor, or one is not positive.

    Source: the test-time augmentation of Gildenblat's pytorch-grad-cam (mirror, 0.9, 1, 1.1).
    """

    explainer: Explainer
    factors: tuple[float, ...] = (0.9, 1.0, 1.1)
    mirror: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(self.factors))
        if not self.factors or min(self.factors) <= 0:
            raise UserError(f"factors must be one or several positive numbers, got {list(self.factors)}")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.explainer.stochastic

    @property
    def class_specific(self) -> bool:  # type: ignore[override]
        return self.explainer.class_specific

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        views = [(factor, turned) for factor in self.factors for turned in ((False, True) if self.mirror else (False,))]
        copies = (factor * (x.flip(-1) if turned else x) for factor, turned in views)
        maps = each_copy(lambda rows, classes: (self.explainer.attribute(model, rows, classes),), copies, target)
        total: Tensor | float = 0.0
        for (_, turned), (heat,) in zip(views, maps, strict=True):
            total = total + (heat.flip(-1) if turned else heat)
        assert isinstance(total, Tensor)
        return total / len(views)


def fused(maps: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Maps of several layers, each (B, 1, h, w) scaled to a maximum of 1, as one (B, 1, H, W): the largest value at each place.

    Source: Jiang et al. 2021 (Layer-CAM), Sec. III-C, with the maximum of maps that are scaled by themselves; their tanh only changes the contrast.
    """
    large = torch.stack([upsample(heat[:, 0], size) for heat in maps])
    top = large.amax((-2, -1), keepdim=True)
    return torch.where(top > 0, large / torch.where(top > 0, top, 1), 0).amax(0)[:, None]
