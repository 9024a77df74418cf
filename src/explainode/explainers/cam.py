"""Class activation maps: weighted sums of a layer's feature maps, by the score's gradient there or by the weights of the head.

Letters: A feature maps (B, C, h, w), g the gradient of the score there, w the weight of each map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from explainode.errors import UserError
from explainode.explainers.augmented import fused
from explainode.explainers.base import Explainer
from explainode.explainers.layers import activation, find_layer, get_layer, hooked, last_call, layout_of
from explainode.explainers.one_pass import OnePass
from explainode.explainers.passes import forward, in_passes


@dataclass(frozen=True)
class GradientCAM(OnePass):
    """What class activation maps made of gradients have in common.

    Args:
        layer: its name; None finds the last spatial feature map of the network. If a layer is called several times, the last call counts. A
            layer of patch tokens serves too: its tokens lie on their grid.
        relu: keep only what speaks for the class.

    Returns (B, 1, h, w) at the layer's resolution, in [0, inf) with `relu`. We neither upsample nor scale to [0, 1]: so maps of several
    images can be compared.

    Raises:
        UserError: if there is no such layer, or it returns no feature map.
    """

    layer: str | None = None
    relu: bool = True

    def place(self, model: nn.Module, x: Tensor) -> str:
        return find_layer(model, x, self.layer)


@dataclass(frozen=True)
class GradCAM(GradientCAM):
    """Feature maps of one layer, weighted by the mean gradient of the score over each map.

    Source: Selvaraju et al. 2017; Ayyar et al. 2021 Eq. 9-10.
    """

    def read(self, A: Tensor, gradient: Tensor) -> Tensor:
        return cam(A, gradient, self.relu)


@dataclass(frozen=True)
class GradCAMPlusPlus(GradientCAM):
    """Grad-CAM whose weight of a map counts each position that speaks for the class, and so does not drown small objects among large ones.

    The second and third derivatives of the paper are those of Y = exp(S), which for a network of linear pieces are powers of g = dS/dA:
    alpha = g^2 / (2 g^2 + g^3 sum(A)) = 1 / (2 + g sum(A)), where the sum is over the map.

    Source: Chattopadhay et al. 2018, Eq. 19 for alpha, Eq. 7 for the weights. We leave out the factor exp(S) of each image, which overflows
    and changes no ranking. Where the denominator is 0, which needs a layer of negative values, the position does not count.
    """

    def read(self, A: Tensor, gradient: Tensor) -> Tensor:
        denominator = 2 + gradient * A.sum((-2, -1), keepdim=True)
        alpha = torch.where(denominator == 0, 0, 1 / denominator)  # Eq. (19)
        w = (alpha * gradient.relu()).sum((-2, -1), keepdim=True)  # Eq. (7)
        return weighted(w, A, self.relu)


@dataclass(frozen=True)
class XGradCAM(GradientCAM):
    """Grad-CAM whose mean gradient of a map is weighted by the activation: the maps' shares in the score add up to it as well as they can.

    Source: Fu et al. 2020 (axiom-based Grad-CAM). A map that sums to 0, up to rounding, has no such mean and does not count: behind an instance
    normalization none does.
    """

    def read(self, A: Tensor, gradient: Tensor) -> Tensor:
        total, size = (part.sum((-2, -1), keepdim=True) for part in (A, A.abs()))
        rounding = 100 * torch.finfo(A.dtype).eps * size
        w = (gradient * A).sum((-2, -1), keepdim=True) / torch.where(total.abs() <= rounding, torch.inf, total)
        return weighted(w, A, self.relu)


@dataclass(frozen=True)
class LayerCAM(GradientCAM):
    """Feature maps weighted position by position by the positive gradient there: sharp also at early layers, where means say little.

    Source: Jiang et al. 2021. One layer at a time: we leave its fusion of layers to whoever compares maps.
    """

    def read(self, A: Tensor, gradient: Tensor) -> Tensor:
        return weighted(gradient.relu(), A, self.relu)


@dataclass(frozen=True)
class HiResCAM(GradientCAM):
    """Feature maps weighted position by position by the gradient there: where the head is linear in the maps, exactly what each position adds.

    Source: Draelos and Carin 2020. Behind global average pooling it is Grad-CAM (and CAM, up to a factor).
    """

    def read(self, A: Tensor, gradient: Tensor) -> Tensor:
        return weighted(gradient, A, self.relu)


def cam(A: Tensor, gradient: Tensor, relu: bool = True) -> Tensor:
    """Feature maps (B, C, h, w) and the score's gradient there -> (B, 1, h, w)."""
    alpha = gradient.mean((-2, -1), keepdim=True)  # Eq. (9)
    return weighted(alpha, A, relu)


def weighted(w: Tensor, A: Tensor, relu: bool = True) -> Tensor:
    """Weights (B, C, 1 or h, 1 or w) and feature maps (B, C, h, w) -> their sum (B, 1, h, w)."""
    relevance = (w * A).sum(1, keepdim=True)  # Eq. (10)
    return relevance.relu() if relu else relevance


@dataclass(frozen=True)
class CAM(Explainer):
    """Feature maps weighted by the class's row of the linear head, for networks that end in global average pooling and one linear layer.

    The mean of the signed map over its positions is the class's logit without the bias. Grad-CAM without its ReLU is this map / (h w).

    Args:
        layer: the pooled layer; None finds the last spatial feature map of the network.
        relu: keep only what speaks for the class.

    Returns (B, 1, h, w) at the layer's resolution, signed unless `relu`.

    Raises:
        UserError: if the logits are not one linear layer of the means of that layer's maps (or of their positive parts).

    Source: Zhou et al. 2016, Eq. 2.
    """

    layer: str | None = None
    relu: bool = False

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        A, weight = pooled_maps(model, x, find_layer(model, x, self.layer))
        return weighted(weight[target][:, :, None, None], A, self.relu)


@torch.no_grad()
def pooled_maps(model: nn.Module, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The maps (B, C, h, w) whose means the linear head reads, and the head's weights (K, C), by one forward.

    Raises:
        UserError: if layer `name` is not what the head reads.
    """
    layer, layout = get_layer(model, name), layout_of(model, x, name)
    heads = {head: label for label, head in model.named_modules() if isinstance(head, nn.Linear)}
    weight = x.new_empty(0)

    def compute(x: Tensor) -> tuple[Tensor]:
        nonlocal weight
        seen: list[Tensor] = []
        called: list[tuple[nn.Linear, Tensor, Tensor]] = []  # the last linear layer, what it read and returned

        def remember(module: nn.Module, args: Any, output: Any) -> None:
            seen[:] = [layout.to_maps(output, len(x)).clone()]  # what comes after may work in place

        def remember_head(module: nn.Linear, args: tuple[Tensor], output: Tensor) -> None:
            called[:] = [(module, args[0], output)]

        with hooked([layer], remember), hooked(list(heads), remember_head):
            logits = forward(model, x)
        A = last_call(name, seen)
        for head, features, output in called:
            if features.shape == A.shape[:2] and torch.equal(output, logits):
                rounding = max(1e-4, 4 * torch.finfo(features.dtype).eps)
                for maps in (A, A.relu()):
                    if (maps.mean((2, 3)) - features).abs().max() <= rounding * features.abs().max():
                        weight = head.weight
                        return (maps,)
        head_name = repr(heads[called[0][0]]) if called else "the head"
        raise UserError(
            f"CAM needs global average pooling and one linear layer behind {name!r}, but {head_name} of {type(model).__name__} does not turn "
            "the means of its maps into the logits; use gradcam, which is the same map (up to a factor) where CAM is defined"
        )

    return in_passes(compute, x)[0], weight


@dataclass(frozen=True)
class EigenCAM(Explainer):
    """Feature maps along the direction in which they vary most: where the layer is strong, whatever the class.

    Args:
        layer: its name; None finds the last spatial feature map of the network.

    Returns (B, 1, h, w) at the layer's resolution; the sign is that under which the map's largest value is positive.

    Raises:
        UserError: if there is no such layer, or it returns no feature map.

    Source: Muhammad and Yeasin 2020: the first right singular vector of the maps, which they do not center.
    """

    class_specific: ClassVar[bool] = False

    layer: str | None = None

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        A = activation(model, x, find_layer(model, x, self.layer))  # (B, C, h, w)
        flat = A.flatten(2).double()
        direction = torch.linalg.svd(flat.transpose(1, 2), full_matrices=False).Vh[:, 0]  # over channels
        heat = torch.einsum("bcp,bc->bp", flat, direction)
        peak = heat.gather(1, heat.abs().argmax(1, keepdim=True))
        return (heat * torch.where(peak < 0, -1.0, 1.0)).view(len(x), 1, *A.shape[2:]).to(x.dtype)


@dataclass(frozen=True)
class FusedLayerCAM(Explainer):
    """Layer-CAM of several layers as one map: the places of the deep ones with the edges of the early ones. One forward and backward a layer.

    Args:
        layers: their names, any number.

    Returns (B, 1, H, W) in [0, 1].

    Raises:
        UserError: if no layer is named, or one is not there.

    Source: Jiang et al. 2021, Sec. III-C.
    """

    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        if not self.layers:
            raise UserError(
                "fused Layer-CAM needs the names of its layers: explainer.layercam_fused.layers=[layer1,layer4]"
            )
        return fused([LayerCAM(layer).attribute(model, x, target) for layer in self.layers], tuple(x.shape[-2:]))
