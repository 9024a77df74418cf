"""FullGrad: the image's part in the score and that of every bias, from one walk back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainode.explainers.base import Explainer
from explainode.explainers.passes import in_passes, predict, record_pass
from explainode.explainers.relevance import record_logits
from explainode.explainers.targets import select_score
from explainode.relevance.composites import backpropagation
from explainode.relevance.operations import Linear, Operation
from explainode.relevance.places import Places
from explainode.relevance.rules.gradient import Gradient
from explainode.relevance.walk import Walk, one_hot

# y = J x for these, whatever the input, so they have no bias; of rearrangements and maxima those without constants
_HOMOGENEOUS = ("average", "sum")


@dataclass(frozen=True)
class FullGrad(Explainer):
    """Input * gradient, and gradient * bias of every layer brought to the size of the image, (B, 1, H, W).

    A network of linear pieces is f(x) = J x + sum of bias * gradient; BatchNorm is folded into the biases. Where an operation is no linear
    piece (GELU, softmax, a product), its bias is what its linearization at the image leaves, y - J x. So the values of an image add up to its logit
    for every network. What has no place in the image (biases of dense layers) is handed out evenly.

    Args:
        absolute: add absolute values, so that nothing cancels; then the sum is no logit.

    Source: Srinivas and Fleuret 2019, Eq. 2-5 and Sec. 4 for implicit biases. Their pictures add abs values, each layer scaled to [0, 1], and leave dense
    layers out; we add signed terms unscaled unless `absolute`, and upsample so that each value keeps its sum.
    """

    absolute: bool = False

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        def compute(x: Tensor, target: Tensor) -> tuple[Tensor]:
            tape = record_logits(model, x, target)
            record_pass(backwards=len(x))
            walk, places = Walk(tape), Places(tape)
            maps: dict[tuple[int, int], Tensor] = {}
            placeless = torch.zeros(len(x), dtype=torch.float64, device=x.device)

            def add(operation: Operation, R: tuple[Tensor | None, ...], shares: tuple[Tensor | None, ...]) -> None:
                nonlocal placeless
                term = bias_term(operation, R, shares)
                if term is None:
                    if not is_homogeneous(operation):
                        placeless = placeless + left_over(walk, operation, R, shares, self.absolute)
                    return
                if self.absolute and operation.kind != "norm":
                    term = term.abs()
                layout, whole = places.layout(operation.output), walk.samples.sum(operation.output, term)
                if layout is not None and layout.size != (1, 1):
                    found = layout.to_maps(term, len(x)).sum(1, keepdim=True)
                    whole = whole - found.flatten(1).sum(1, dtype=torch.float64)  # class tokens are at no place
                    found = found.abs() if self.absolute else found
                    maps[layout.size] = maps[layout.size] + found if layout.size in maps else found
                    if layout.plain:
                        return
                placeless = placeless + (whole.abs() if self.absolute else whole)

            gradient = walk.back(
                {tape.output: one_hot(tape, target)}, backpropagation(Gradient()), last=True, observe=add
            )
            total = gradient * x
            total = (total.abs() if self.absolute else total).sum(1, keepdim=True)
            for found in maps.values():
                total = total + keeping_sum(found, x.shape[-2:])
            return (total + (placeless / total[0].numel()).to(total.dtype)[:, None, None, None],)

        return in_passes(compute, x, target)[0]

    def expected_sum(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor | None:
        return None if self.absolute else select_score(predict(model, x), target)


def is_homogeneous(operation: Operation) -> bool:
    """Whether y = J x for certain."""
    if isinstance(operation, Linear):
        return operation.kind in _HOMOGENEOUS or operation.bias is None
    return operation.kind in _HOMOGENEOUS or operation.name == "relu"


def bias_term(operation: Operation, R: tuple[Tensor | None, ...], shares: tuple[Tensor | None, ...]) -> Tensor | None:
    """R * (y - J x), in the shape of the output; None if there is no bias, or the operation is not element by element.

    Of a layer normalization R * y - (J^T R) * x: its sum over the elements that are normalized together is what is meant.
    """
    if is_homogeneous(operation) or R[0] is None:
        return None
    if isinstance(operation, Linear):
        assert operation.bias is not None
        return R[0] * operation.bias
    y = operation.output.data
    by_element = operation.kind in ("affine", "activation", "product") or operation.name == "native_layer_norm"
    if not by_element or any(value.data.shape != y.shape for value in operation.inputs):
        return None
    return R[0] * y - sum(products(operation, shares))


def products(operation: Operation, shares: tuple[Tensor | None, ...]) -> list[Tensor]:
    """share * x of each input; an entry without a share counts nothing, whatever it is (masked attention is -inf)."""
    pairs = [(share, value.data) for share, value in zip(shares, operation.inputs, strict=True) if share is not None]
    return [torch.where(share == 0, 0, share * x) for share, x in pairs]


def left_over(
    walk: Walk,
    operation: Operation,
    R: tuple[Tensor | None, ...],
    shares: tuple[Tensor | None, ...],
    absolute: bool = False,
) -> Tensor:
    """(B,): R * (y - J x) summed over each image, which is sum(R * y) - sum((J^T R) * x); its absolute value where asked for."""
    total = torch.zeros(walk.tape.batch, dtype=torch.float64, device=walk.tape.input.data.device)
    for value, r in zip(operation.outputs, R, strict=True):
        if r is not None:
            total = total + walk.samples.sum(value, torch.where(r == 0, 0, r * value.data))
    given = [value for value, share in zip(operation.inputs, shares, strict=True) if share is not None]
    for value, product in zip(given, products(operation, shares), strict=True):
        total = total - walk.samples.sum(value, product)
    return total.abs() if absolute else total


def keeping_sum(maps: Tensor, size: torch.Size) -> Tensor:
    """`maps` (B, 1, h, w) at `size`, along each axis for itself: upsampled bilinearly, each value handed out among the pixels that read it; of an axis
    longer than the image's the mean of what falls on a pixel times its number, so that each value keeps its sum either way."""
    for axis in (2, 3):
        wanted = list(maps.shape)
        wanted[axis] = size[axis - 2]
        if maps.shape[axis] > wanted[axis]:
            maps = _averaged(maps / _readers(maps, wanted, _averaged), wanted[2:])
        elif maps.shape[axis] < wanted[axis]:
            maps = _bilinear(maps / _readers(maps, wanted, _bilinear), wanted[2:])
    return maps


def _bilinear(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, size=list(size), mode="bilinear", align_corners=False)


def _averaged(maps: Tensor, size: Sequence[int]) -> Tensor:
    height, width = size
    return F.adaptive_avg_pool2d(maps, (height, width))


def _readers(maps: Tensor, size: Sequence[int], resize: Callable[[Tensor, Sequence[int]], Tensor]) -> Tensor:
    """How much all pixels together read of each value."""
    with torch.enable_grad():
        ones = torch.ones_like(maps[:1]).requires_grad_()
        return torch.autograd.grad(resize(ones, size[2:]).sum(), ones)[0]
