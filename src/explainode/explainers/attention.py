"""Methods that read a transformer's attention: raw attention, rollout, and rollouts weighted by gradients and relevance.

The attention matrices stand on the tape as softmaxes that a product reads, so the network runs unmodified, with fused attention or without. Letters:
A attention (B, heads, n, n) of one layer, n tokens, w (B, n) what the logits read of the last tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from explainode.errors import UserError, nearest
from explainode.explainers.base import Explainer
from explainode.explainers.passes import in_passes, record_pass
from explainode.explainers.relevance import record_logits
from explainode.relevance.composite import Composite
from explainode.relevance.composites import PATHS, backpropagation
from explainode.relevance.operations import Operation, Softmax, Sum, Value
from explainode.relevance.rules.gradient import Gradient
from explainode.relevance.samples import Samples
from explainode.relevance.tape import Tape
from explainode.relevance.walk import Walk, seed

FUSIONS = ("mean", "max", "min")


@dataclass(eq=False)
class Attention:
    """The attention among all tokens of a transformer, as it stands on a tape.

    Attributes:
        layers: the softmax of each block, in the order of computing; `layers[0].output` is (..., n, n).
        first, last: the tokens that the first block reads and that the last one returns, (B, n, C) or (n, B, C).
    """

    tape: Tape
    layers: list[Softmax]
    first: Value
    last: Value

    def __post_init__(self) -> None:
        self.samples = Samples(self.tape.batch)
        self.place = {id(operation): at for at, operation in enumerate(self.tape.operations)}

    @property
    def values(self) -> list[Value]:
        return [layer.output for layer in self.layers]

    def per_image(self, value: Value, x: Tensor) -> Tensor:
        """(B, heads, n, n): `x`, which has the shape of one layer's softmax, with the heads of each image together."""
        matrices = x.reshape(-1, *x.shape[-2:])
        if not self.samples.leading(value):
            ids = self.samples.ids(value).reshape(matrices.shape)[:, 0, 0]
            matrices = matrices[ids.argsort(stable=True)]
        return matrices.unflatten(0, (self.tape.batch, -1))

    def matrices(self) -> list[Tensor]:
        """A of each layer."""
        return [self.per_image(value, value.data) for value in self.values]

    def since(self, operation: Operation | None) -> Tape:
        """The tape from an operation on."""
        return (
            self.tape
            if operation is None
            else replace(self.tape, operations=self.tape.operations[self.place[id(operation)] :])
        )

    def walk_back(self, target: Tensor, composite: Composite) -> list[Tensor]:
        """What reaches A of each layer, by one counted walk back from the logits; zeros where nothing does."""
        record_pass(backwards=self.tape.batch)
        walk = Walk(self.tape)
        walk.back({self.tape.output: seed(self.tape, target, composite.seed)}, composite, self.values)
        return [self.per_image(value, walk.kept.get(id(value), torch.zeros_like(value.data))) for value in self.values]

    def readout(self) -> Tensor:
        """w: how much of each of the last tokens the logits read: 1 at a class token, 1 / n everywhere under mean pooling. Rows sum to 1."""
        walk = Walk(self.since(self.last.producer))
        walk.back({self.tape.output: torch.ones_like(self.tape.output.data)}, PATHS, [self.last])
        w = self._batch_first(self.last, walk.kept[id(self.last)]).sum(-1)
        return w / w.sum(-1, keepdim=True)

    def on_grid(self, tokens: Tensor) -> Tensor:
        """(B, 1, h, w): the weight (B, n) of each of the first tokens, at the place in the image where it came from.

        The grid is that of the last convolution before the tokens; where patches are made without one, it is that of the pixels. What class,
        distillation and register tokens weigh is left out: they come from no place.
        """
        features = (
            tokens.unsqueeze(-1).expand_as(self._batch_first(self.first, self.first.data)) / self.first.data.shape[-1]
        )
        end = self.place[id(self.first.producer)]
        maps = [op for op in self.tape.operations[: end + 1] if op.name == "convolution" and op.output.data.dim() == 4]
        origin = maps[-1] if maps else None
        walk = Walk(self.since(origin))
        keep = self.tape.input if origin is None else origin.output
        walk.back({self.first: self._batch_first(self.first, features)}, PATHS, [keep])
        return walk.kept[id(keep)].sum(1, keepdim=True)

    def _batch_first(self, value: Value, x: Tensor) -> Tensor:
        """(B, n, C) of (n, B, C), or the other way round, where the tokens of `value` lie so."""
        image = self.samples.ids(value)[:, 0, 0]
        leads = len(image) == self.tape.batch and bool((image == torch.arange(len(image), device=image.device)).all())
        return x if leads else x.transpose(0, 1)


def find_attention(model: nn.Module, tape: Tape) -> Attention:
    """The attention on a tape.

    Raises:
        UserError: if there is none, if it is among fewer than all tokens (windows, pooled keys), or if the tokens are in no residual stream.
    """
    name = type(model).__name__
    layers = attention_layers(tape)
    if not layers:
        raise UserError(
            f"{name} has no attention (a softmax that weighs the rows of another matrix), expected a vision transformer; "
            "use gradcam or an lrp_ entry for convolutional networks"
        )
    stream = residual_stream(tape, layers[0])
    tokens = 0
    if stream and stream[0].data.dim() == 3:
        tokens = stream[0].data.numel() // (tape.batch * stream[0].data.shape[-1])
        place = {id(operation): at for at, operation in enumerate(tape.operations)}
        end = place[id(stream[1].producer)]
        layers = [
            layer for layer in layers if place[id(layer)] < end
        ]  # attention behind the last tokens only pools them
    sizes = [tuple(layer.output.data.shape[-2:]) for layer in layers]
    if not stream or any(size != (tokens, tokens) for size in sizes):
        found = ", ".join(dict.fromkeys(f"{rows} x {columns}" for rows, columns in sizes))
        among = f"all {tokens} tokens" if tokens else "all tokens"
        raise UserError(
            f"rollout needs attention among {among} in every layer and a residual connection around it, but that of {name} is {found} (windows, "
            "pooled or pruned tokens); use attn_lrp or cp_lrp, which need nothing of the kind"
        )
    return Attention(tape, layers, *stream)


def attention_layers(tape: Tape) -> list[Softmax]:
    """The softmaxes that a product of matrices reads, whatever views lie between, in the order of computing."""
    found: dict[int, Softmax] = {}
    for operation in tape.of_kind("bilinear"):
        for value in operation.inputs:
            producer = value.producer
            while producer is not None and producer.kind == "rearrangement":
                producer = producer.inputs[0].producer
            if isinstance(producer, Softmax):
                found[id(producer)] = producer
    return list(found.values())


def residual_stream(tape: Tape, layer: Softmax) -> tuple[Value, Value] | None:
    """The tokens before the first attention, which the first sum after it adds to the branch, and the last sum of that shape."""
    place = {id(operation): at for at, operation in enumerate(tape.operations)}
    begin = place[id(layer)]
    sums = [operation for operation in tape.operations[begin:] if isinstance(operation, Sum)]
    for operation in sums:
        for value in operation.inputs:
            if value.producer is not None and place.get(id(value.producer), begin) < begin:
                return value, [other for other in sums if other.output.data.shape == value.data.shape][-1].output
    return None


def roll(w: Tensor, layers: Sequence[Tensor]) -> Tensor:
    """w (B, r, n) times the product of `layers` (B, n, n), the last layer first: from the last tokens back to the first."""
    for layer in reversed(layers):
        w = w @ layer
    return w


def with_residual(A: Tensor) -> Tensor:
    """(A + I) / row sums (B, n, n): the attention and the residual connection beside it, as one step of a random walk."""
    A = A + torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    return A / A.sum(-1, keepdim=True)


def fuse(A: Tensor, heads: str) -> Tensor:
    """(B, n, n): the mean, the maximum or the minimum over the heads of A."""
    if heads == "mean":
        return A.mean(1)
    return A.amax(1) if heads == "max" else A.amin(1)


def discard_lowest(A: Tensor, ratio: float) -> Tensor:
    """A (B, n, n) with the lowest `ratio` of each image's entries set to 0."""
    count = int(ratio * A[0].numel())
    if not count:
        return A
    lowest = A.flatten(1).argsort(dim=1, stable=True)[:, :count]
    return A.flatten(1).scatter(1, lowest, 0.0).view_as(A)


@dataclass(frozen=True)
class AttentionExplainer(Explainer):
    """What methods of attention share: a tape, the matrices on it, and the way from token weights to a map.

    Returns (B, 1, h, w) on the grid of patches, never negative.

    Raises:
        UserError: if the network has no attention among all of its tokens.
    """

    needs_attention: ClassVar[bool] = True

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        def compute(x: Tensor, target: Tensor) -> tuple[Tensor]:
            attention = find_attention(model, record_logits(model, x, target))
            return (attention.on_grid(self.weigh(attention, target)),)

        return in_passes(compute, x, target)[0]

    @abstractmethod
    def weigh(self, attention: Attention, target: Tensor) -> Tensor:
        """(B, n): the weight of each of the first tokens."""


@dataclass(frozen=True)
class RawAttention(AttentionExplainer):
    """The attention of the last block, mean over heads, in the row of the token that the logits read.

    Source: Chefer et al. 2021 as baseline; root inference (anonymous) Table 3. Networks that pool their tokens have no such row: we take the mean over rows.
    """

    class_specific: ClassVar[bool] = False

    def weigh(self, attention: Attention, target: Tensor) -> Tensor:
        last = attention.layers[-1].output
        return roll(attention.readout()[:, None], [attention.per_image(last, last.data).mean(1)])[:, 0]


@dataclass(frozen=True)
class AttentionRollout(AttentionExplainer):
    """Attention of all blocks multiplied: how the logits' token, walking back by (A + I) / 2, ends at the first tokens.

    Args:
        start_layer: blocks before this one are left out; the code of Chefer et al. leaves out one for segmentation.
        heads: their `mean`, `max` or `min` stands for a block.
        discard: the share of each block's entries, the lowest, that is set to 0 before.

    Raises:
        UserError: for another word, a share outside of [0, 1), or a start behind the last block.

    Source: Abnar & Zuidema 2020; Chefer et al. 2021 for images. `heads` and `discard` are Gildenblat's variants (2020), of each image for itself.
    """

    class_specific: ClassVar[bool] = False
    start_layer: int = 0
    heads: str = "mean"
    discard: float = 0.0

    def __post_init__(self) -> None:
        if self.heads not in FUSIONS:
            raise UserError(
                f"heads must be one of {', '.join(FUSIONS)}, got {self.heads!r}; the nearest are {nearest(self.heads, FUSIONS)}"
            )
        if not 0 <= self.discard < 1:
            raise UserError(
                f"discard must be a share in [0, 1), got {self.discard}; 0 keeps every entry, Gildenblat takes 0.9"
            )

    def weigh(self, attention: Attention, target: Tensor) -> Tensor:
        matrices = started(attention.matrices(), self.start_layer)
        steps = [with_residual(discard_lowest(fuse(A, self.heads), self.discard)) for A in matrices]
        return roll(attention.readout()[:, None], steps)[:, 0]


def started(matrices: list[Tensor], start_layer: int) -> list[Tensor]:
    """The matrices from a layer on.

    Raises:
        UserError: if there is no such layer.
    """
    if not 0 <= start_layer < len(matrices):
        raise UserError(
            f"start_layer must be one of 0 to {len(matrices) - 1}, the blocks of this network, got {start_layer}"
        )
    return matrices[start_layer:]


@dataclass(frozen=True)
class WeightedRollout(AttentionExplainer):
    """Rollout of C + I, not normalized, with C the mean over heads of the positive part of the gradient times a weight.

    Args:
        start_layer: blocks before this one are left out.
    """

    start_layer: int = 0

    def weigh(self, attention: Attention, target: Tensor) -> Tensor:
        gradients = attention.walk_back(target, backpropagation(Gradient()))
        relevance = started(
            [weighted(*pair) for pair in zip(gradients, self.weights(attention, target), strict=True)], self.start_layer
        )
        eye = torch.eye(relevance[0].shape[-1], dtype=relevance[0].dtype, device=relevance[0].device)
        return roll(attention.readout()[:, None], [C + eye for C in relevance])[:, 0]

    @abstractmethod
    def weights(self, attention: Attention, target: Tensor) -> Sequence[Tensor]:
        """What the gradient of each layer's A is multiplied with, in its shape."""


def weighted(gradient: Tensor, weight: Tensor) -> Tensor:
    """C (B, n, n) = mean over heads of (gradient * weight)+."""
    return (gradient * weight).clamp(min=0).mean(1)


@dataclass(frozen=True)
class GradientRollout(WeightedRollout):
    """Attention weighted by its positive gradient, rolled out: C = mean_h (grad A * A)+.

    Source: Chefer et al. 2021, Generic Attention-model Explainability, Eq. 5 and 6.
    """

    def weights(self, attention: Attention, target: Tensor) -> Sequence[Tensor]:
        return attention.matrices()


@dataclass(frozen=True)
class IViT(WeightedRollout):
    """Interpretable ViT: the relevance of attention weighted by its gradient, rolled out: C = mean_h (grad A * R_A)+.

    Args:
        composite: how relevance goes back to the attention; it must not hold attention constant.

    Raises:
        UserError: if no relevance reaches the attention.

    Source: Chefer et al. 2021, Transformer Interpretability Beyond Attention Visualization, Eq. 13 and 14; root inference (anonymous) Table 3. We follow their code
    where text and code differ: C + I is not normalized by rows. All sums are per image, theirs per batch, which is the same for one image.
    """

    composite: Composite = field(kw_only=True)

    def weights(self, attention: Attention, target: Tensor) -> Sequence[Tensor]:
        relevance = attention.walk_back(target, self.composite)
        if not any(bool(R.any()) for R in relevance):
            raise UserError(
                "no relevance reaches the attention; I.ViT needs a composite that shares it between attention and values (attention: half)"
            )
        return relevance
