"""Maps that know nothing of the network: what an explanation must beat."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainode.attribution import check_reduction, reduce_channels, upsample
from explainode.blur import gaussian_kernel, separable_filter
from explainode.errors import UserError
from explainode.explainers.base import Explainer
from explainode.randomness import input_keys, normal_like


@dataclass(frozen=True)
class RandomMap(Explainer):
    """Standard normal noise (B, 1, H, W), one draw per image; another `draw` of the scope is another map."""

    control: ClassVar[str] = "random"

    stochastic: ClassVar[bool] = True
    class_specific: ClassVar[bool] = False

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return normal_like(x.new_empty(len(x), 1, *x.shape[-2:]), input_keys(x, "random_map", 0))


@dataclass(frozen=True)
class CentrePrior(Explainer):
    """A Gaussian bump (B, 1, H, W) with peak 1 in the middle: photographers center their objects.

    Args:
        sigma: its standard deviation, as a fraction of each side.

    Raises:
        UserError: if `sigma` is not positive.
    """

    control: ClassVar[str] = "center"

    class_specific: ClassVar[bool] = False

    sigma: float = 0.25

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise UserError(f"sigma must be a positive fraction of the image's side, got {self.sigma}")

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        def bell(pixels: int) -> Tensor:
            centers = (torch.arange(pixels, device=x.device, dtype=x.dtype) + 0.5) / pixels - 0.5
            return torch.exp(-centers.square() / (2 * self.sigma**2))

        height, width = x.shape[-2:]
        return (bell(height)[:, None] * bell(width)).expand(len(x), 1, height, width).clone()


@dataclass(frozen=True)
class EdgeMap(Explainer):
    """Magnitude of the Sobel gradient of the gray image, (B, 1, H, W), >= 0: an edge detector looks like an explanation and is none.

    Source: the control of Adebayo et al. 2018, with the Sobel operator. We repeat the border, so that the frame of the image is no edge.
    """

    control: ClassVar[str] = "edges"

    class_specific: ClassVar[bool] = False

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        gray = F.pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        horizontal = x.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])[None, None] / 8
        vertical = horizontal.transpose(2, 3)
        return torch.hypot(F.conv2d(gray, horizontal), F.conv2d(gray, vertical))


@dataclass(frozen=True)
class InvertedMap(Explainer):
    """Minus another explainer's map: the least relevant first, which every faithfulness metric must find worse.

    Args:
        explainer: the method to invert.
    """

    control: ClassVar[str] = "inverted"

    explainer: Explainer

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.explainer.stochastic

    @property
    def class_specific(self) -> bool:  # type: ignore[override]
        return self.explainer.class_specific

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return -self.explainer.attribute(model, x, target)

    def expected_sum(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor | None:
        expected = self.explainer.expected_sum(model, x, target)
        return None if expected is None else -expected


@dataclass(frozen=True)
class SquaredMap(Explainer):
    """Another explainer's map h as sign(h) |h|^power, (B, 1, H, W): the same ranking of the pixels with more contrast.

    What the network is said to look at is the same; a number that grows by this measures contrast, not localization. The channels are
    reduced and the map brought to the pixels of x before, since both would change the ranking after.

    Args:
        explainer: the method whose map is sharpened.
        power: above 1 for more contrast, below 1 for less.
        reduction: of the channels, see `attribution.reduce_channels`.

    Raises:
        UserError: if the power is not positive, or no such reduction exists.

    Source: ours; squaring the z+ map gains more under the root inference paper's protocol than any change of method. We scale each map by a power of two
    near its maximum, which is exact, so that small values do not vanish.
    """

    control: ClassVar[str] = "contrast"

    explainer: Explainer
    power: float = 2.0
    reduction: str = "sum"

    def __post_init__(self) -> None:
        if not 0 < self.power < float("inf"):
            raise UserError(f"power must be a positive number, got {self.power}; 2 squares the map")
        check_reduction(self.reduction)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.explainer.stochastic

    @property
    def class_specific(self) -> bool:  # type: ignore[override]
        return self.explainer.class_specific

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        heat = upsample(reduce_channels(self.explainer.attribute(model, x, target), self.reduction), x.shape[-2:])
        exponent = torch.frexp(heat.abs().amax((1, 2), keepdim=True)).exponent.clamp(min=-126)
        heat = torch.ldexp(heat, -exponent)  # the largest value now lies in [1/2, 1)
        return (heat.sign() * heat.abs().pow(self.power))[:, None]


@dataclass(frozen=True)
class BlurredMap(Explainer):
    """Another explainer's map with less detail, (B, 1, H, W): a Gaussian over the map at the pixels of x, channels reduced before.

    A metric that this map gains by rewards smooth maps, or patches of pixels that are taken away together, and not what the method found.

    Args:
        explainer: the method whose map is blurred.
        sigma: standard deviation, as a fraction of the shorter side.
        reduction: of the channels, see `attribution.reduce_channels`.

    Raises:
        UserError: if sigma is not positive, or no such reduction exists.
    """

    control: ClassVar[str] = "smooth"

    explainer: Explainer
    sigma: float = 0.06
    reduction: str = "sum"

    def __post_init__(self) -> None:
        if not 0 < self.sigma < 1:
            raise UserError(
                f"sigma must be a fraction of the image's side between 0 and 1, got {self.sigma}; 0.06 is usual"
            )
        check_reduction(self.reduction)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.explainer.stochastic

    @property
    def class_specific(self) -> bool:  # type: ignore[override]
        return self.explainer.class_specific

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        heat = upsample(reduce_channels(self.explainer.attribute(model, x, target), self.reduction), x.shape[-2:])
        sigma = self.sigma * min(x.shape[-2:])
        reach = min(math.ceil(2 * sigma), min(x.shape[-2:]) - 1)
        return separable_filter(heat[:, None], gaussian_kernel(2 * reach + 1, sigma), "reflect")
