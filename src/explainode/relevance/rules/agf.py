"""Attribution guided factorization: LRP through convolutions, its pixels raised or lowered by what activations and gradients say beside it.

Two streams walk back together: the relevance c and the gradient g of the score. At a convolution y = A x, with x >= 0 (channels, pixels):

    C    |x| |A|^T (c / |A| |x|), relevance by absolute contributions
    M    max(mean over channels of x A^T g, 0), divided by its largest pixel
    F_x  how much nearer each pixel's activations are to those of the pixels that C speaks for than to those it speaks against;
    F_g  the same of the pixels' gradients
    P    |A|^T (c / |A| 1), where the relevance lies, whatever x
    r    (F_x + M) / (1 + exp(-C)) + F_g + P where C is not 0

and R = C + r - mean of r over the elements where C is not 0: r moves relevance about and leaves its sum as it is.

Source: Gur et al. 2021, read as in the authors' code where the paper leaves a choice. Where |A| |x| vanishes we spread
the relevance evenly, as all rules do here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from explainode.relevance.composite import Assignment, Composite
from explainode.relevance.composites import lrp
from explainode.relevance.operations import Linear, Operation, Value
from explainode.relevance.places import Places
from explainode.relevance.rule import KINDS, Relevance, Rule, ratio
from explainode.relevance.rules.gradient import Gradient
from explainode.relevance.rules.lrp import LinearRule, Part, ZPlus, contributions, hand_back
from explainode.relevance.tape import Tape
from explainode.relevance.walk import Walk, one_hot

SHARPNESS = 10.0  # of the sigmoid that stands for a step


@dataclass(eq=False)
class Streams(Walk):
    """A walk back that carries the gradient of the score beside the relevance.

    Attributes:
        gradients: gradient by value, of the values that were reached.
        places: of the tape's values, once they are asked for.
        arriving, leaving: the gradients at the outputs and at the inputs of the operation that is being passed.
    """

    gradients: dict[int, Tensor] = field(default_factory=dict)
    places: Places | None = None
    arriving: Relevance = ()
    leaving: Relevance = ()

    def is_map(self, value: Value) -> bool:
        """Whether a value is (B, channels, pixels): its second axis alone does not say where in the image an element lies."""
        self.places = Places(self.tape) if self.places is None else self.places
        layout = self.places.layout(value)
        return layout is not None and layout.image == 0 and layout.channels == (0,)


@dataclass(frozen=True)
class Beside(Rule):
    """A rule, and the gradient passed on beside it.

    An input that gets no relevance but a gradient (a gate) gets zeros, so that the walk goes on there.
    """

    kinds = KINDS
    rule: Rule

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        assert isinstance(walk, Streams)
        walk.arriving = tuple(walk.gradients.pop(id(value), None) for value in operation.outputs)
        walk.leaving = Gradient().propagate(operation, walk.arriving, walk)
        shares = self.rule.propagate(operation, relevance, walk)
        found: list[Tensor | None] = []
        for value, g, share in zip(operation.inputs, walk.leaving, shares, strict=True):
            if g is not None:
                at = id(value)
                walk.gradients[at] = walk.gradients[at] + g if at in walk.gradients else g
                share = torch.zeros_like(value.data) if share is None else share
            found.append(share)
        return tuple(found)


@dataclass(frozen=True)
class TwoStreams(Composite):
    """A composite whose rules are told the gradient; its walk is a `Streams`."""

    def assign(self, tape: Tape) -> Callable[[Operation], Rule]:
        choose = super().assign(tape)
        return lambda operation: Beside(choose(operation))


@dataclass(frozen=True)
class Absolute(LinearRule):
    """q_ij = |x_i a_ij|: what speaks for and against the output alike.

    Source: Gur et al. 2021.
    """

    def share(self, operation: Linear, R: Tensor, walk: Walk) -> Tensor:
        parts: list[Part] = [(operation.inputs[0].data.abs(), operation.map.entries(torch.abs))]
        return self.hand_out(
            operation, R, contributions(parts), parts, walk, None if operation.bias is None else operation.bias.abs()
        )


@dataclass(frozen=True)
class ImageBox(LinearRule):
    """The z^B rule between the smallest and the largest number of each image, as the layer sees it.

    Source: Montavon et al. 2017, Eq. 14; Gur et al. 2021 for the bounds.
    """

    def share(self, operation: Linear, R: Tensor, walk: Walk) -> Tensor:
        x, A = operation.inputs[0].data, operation.map
        axes = tuple(range(1, x.dim()))
        parts: list[Part] = [(x - x.amin(axes, keepdim=True), A.positive), (x - x.amax(axes, keepdim=True), A.negative)]
        return self.hand_out(operation, R, contributions(parts), parts, walk)


@dataclass(frozen=True)
class InputTimesGradient(Rule):
    """R = x A^T g: where the relevance begins, at the layer that makes the logits. What arrives is not looked at.

    Source: Gur et al. 2021.
    """

    kinds = ("linear", "average")

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        assert isinstance(walk, Streams)
        (g,) = walk.leaving
        assert g is not None
        return (operation.inputs[0].data * g,)


@dataclass(frozen=True)
class Factorization(Rule):
    """R = shift(C, r) at convolutions, shift(C, M) at a dense layer that reads a flattened map, C at other linear maps; see above.

    Args:
        evidence: the rule that gives C; `Absolute` is the authors', the root inference paper infers roots instead.
        activations: F_x is a part of r; gradients: F_g; attention: M; places: P.
        damp: (F_x + M) is divided by 1 + exp(-C).

    Without any part R = C. All means and maxima are per image.

    Source: Gur et al. 2021; root inference (anonymous) Table 4 for roots as evidence.
    """

    kinds = ("linear",)
    evidence: Rule = field(default_factory=Absolute)
    activations: bool = True
    gradients: bool = True
    attention: bool = True
    places: bool = True
    damp: bool = True

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        assert isinstance(operation, Linear) and isinstance(walk, Streams)
        (C,) = self.evidence.propagate(operation, relevance, walk)
        (c,), (g_y,), (g_x,) = relevance, walk.arriving, walk.leaving
        assert C is not None and c is not None and g_y is not None and g_x is not None
        x = operation.inputs[0].data
        if operation.name == "convolution":
            return (shift(C, self.residual(operation, C, c, g_y, g_x)),)
        before = operation.inputs[0].producer
        if self.attention and before is not None and before.kind == "rearrangement" and x.dim() == 2:
            shape = before.inputs[0].data.shape
            flattened = len(shape) > 2 and shape[0] == len(x) == walk.tape.batch and shape.numel() == x.numel()
            if flattened and walk.is_map(before.inputs[0]):  # (B, channels, pixels)
                M = attended(x.reshape(shape), g_x.reshape(shape)).expand(shape).reshape(x.shape)
                return (shift(C, M),)
        return (C,)

    def residual(self, operation: Linear, C: Tensor, c: Tensor, g_y: Tensor, g_x: Tensor) -> Tensor:
        """r, in the shape of x."""
        x = operation.inputs[0].data
        r = torch.zeros_like(x)
        if self.activations:
            r = r + nearer(x, C)
        if self.attention:
            r = r + attended(x, g_x)
        if self.damp:
            r = r * torch.sigmoid(C)  # 1 / (1 + exp(-C))
        if self.gradients:
            r = r + nearer(operation.transpose(g_y * (c != 0)), C)
        if self.places:
            parts: list[Part] = [(torch.ones_like(x), operation.map.entries(torch.abs))]
            r = r + hand_back(parts, ratio(c, contributions(parts)), x)
        return r


def shift(C: Tensor, r: Tensor) -> Tensor:
    """C + r - mean of r, over the elements of each image where C is not 0; elsewhere 0.

    Source: Gur et al. 2021.
    """
    axes = tuple(range(1, C.dim()))
    there = (C != 0).to(C.dtype)
    r = r * there
    return C + r - ratio(r.sum(axes, keepdim=True), there.sum(axes, keepdim=True)) * there


def attended(x: Tensor, g: Tensor) -> Tensor:
    """M (B, 1, ...): the positive part of the mean over channels of x g (B, C, ...), divided by its largest pixel.

    Source: Gur et al. 2021.
    """
    return per_maximum((x * g).mean(1, keepdim=True).clamp(min=0))


def nearer(x: Tensor, C: Tensor) -> Tensor:
    """F (B, 1, ...): how much nearer the channels of each pixel of x (B, C, ...) are to the mean where the pixel's relevance is positive than
    to that where it is negative; 0 where they are not.

    H = sigmoid(10 x / max x), one column per pixel; V = the two means of H; W = max((V^T V + I)^-1 V^T H, 0); F = max(W_pos - W_neg, 0).

    Source: Gur et al. 2021.
    """
    H = torch.sigmoid(SHARPNESS * per_maximum(x)).flatten(2)
    pixels = C.mean(1, keepdim=True).flatten(2)
    sets = torch.cat([pixels < 0, pixels > 0], 1).to(H.dtype)  # (B, 2, pixels)
    V = ratio(H @ sets.mT, sets.sum(2)[:, None])  # (B, channels, 2)
    W = torch.linalg.solve(V.mT @ V + torch.eye(2, dtype=H.dtype, device=H.device), V.mT @ H).clamp(min=0)
    return (W[:, 1:] - W[:, :1]).clamp(min=0).unflatten(2, x.shape[2:])


def per_maximum(x: Tensor) -> Tensor:
    """x divided by the largest element of each image; 0 where that vanishes."""
    return ratio(x, x.amax(tuple(range(1, x.dim())), keepdim=True).expand_as(x))


def softmax_contrast(tape: Tape, target: Tensor) -> Tensor:
    """(B, K): the gradient of p_t, p = softmax(y_t exp(-((y - y_t) / sigma)^2 / 2)), sigma = max |y - y_t|, by the logits y of the tape.

    Logits near that of the class count as much as it does itself, so they are what the explanation must tell it from.

    Source: Gur et al. 2021.
    """
    chosen = one_hot(tape, target)
    with torch.enable_grad():
        y = tape.output.data.detach().requires_grad_()
        of_class = y.gather(1, target[:, None])
        difference = y - of_class
        sigma = difference.abs().amax(1, keepdim=True)
        sigma = torch.where(sigma == 0, 1.0, sigma)
        p = (of_class * torch.exp(-0.5 * (difference / sigma).square())).softmax(1)
        return torch.autograd.grad(p, y, chosen)[0]


def agf(rule: Factorization, residual: str = "positive", attention: str = "constant") -> TwoStreams:
    """`rule` in every linear map but the first, which has z^B between the bounds of each image, and the last, where relevance begins.

    Averages by z+, everything else as in `composites.lrp`.

    Args:
        rule: see there.
        residual, attention: see `composites.lrp`.

    Raises:
        UserError: for an unknown word.
    """
    linear = [
        Assignment(ImageBox(), kind="linear", position="first"),
        Assignment(InputTimesGradient(), position="last"),
        Assignment(rule),
        Assignment(ZPlus(), kind="average"),
    ]
    return TwoStreams(lrp(linear, residual=residual, attention=attention).assignments)
