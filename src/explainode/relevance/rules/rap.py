"""Relative attributing propagation: relevance by the size of a contribution, whatever its sign, then shifted until what matters less is negative.

Three steps, from the logits to the pixels. At the logits every input counts by its absolute influence, so nothing is negative there. Below, a unit
hands its relevance to the inputs that speak for it and, again, a part of it to those that speak against it; what is too much by that is taken evenly
from all inputs that have relevance, so that the small ones turn negative and the sum stays. At the pixels z^B.

Notation: P_j = sum_i (x_i a_ij)+ and N_j = sum_i |(x_i a_ij)-|, what speaks for and against output j; R+ and R- the positive and negative parts of R.
Source: Nam et al. 2020 (RAP, AAAI; arXiv:1904.00605) for the three steps; the formulas are read off the authors' published code, not the paper's
equations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from explainode.errors import UserError, nearest
from explainode.relevance.composite import Assignment, Composite
from explainode.relevance.composites import lrp
from explainode.relevance.operations import Linear, Operation
from explainode.relevance.rule import Relevance, Rule, ratio
from explainode.relevance.rules.lrp import (
    LinearRule,
    Part,
    ZBox,
    ZPlus,
    contributions,
    hand_back,
    negative_parts,
    positive_parts,
    spread,
)
from explainode.relevance.walk import Walk

NEGATIVE = ("same", "against")
BOXES = ("image", "pixels")


@dataclass(frozen=True)
class AbsoluteInfluence(LinearRule):
    """q_ij = |x_i a_ij|: what speaks for an output and what speaks against it count alike; the layer that makes the logits.

    Source: Nam et al. 2020, the first step. The authors' code propagates R_i = x_i a_ij f_j / z_j, bias included, and replaces it by
    |R_i| sum R / sum |R|. For one class that is |x_i a_ij| f_j / sum_i |x_i a_ij|, which we write at once: z_j, which may vanish, cancels.
    """

    def share(self, operation: Linear, R: Tensor, walk: Walk) -> Tensor:
        parts: list[Part] = [(operation.inputs[0].data.abs(), operation.map.entries(torch.abs))]
        return self.hand_out(operation, R, contributions(parts), parts, walk)


@dataclass(frozen=True)
class RelativeAttribution(Rule):
    """C_i = sum_j ((x_i a_ij)+ / P_j + |(x_i a_ij)-| / (P_j + N_j)) R_j, then R_i = C_i - (sum C - sum R) / n for the n inputs with C_i != 0.

    Sums and n are those of one image, over the whole layer. The second term is what the units hand out beyond what they have; the uniform shift takes
    it back, and hands out what units have that nothing speaks for. An input of value zero has no relevance, before and after. Biases take nothing.

    Args:
        negative: where R- goes: `same`: as R+; `against`: all of it to the inputs that speak against the unit,
            sum_j (1 / N_j + 1 / (P_j + N_j)) |(x_i a_ij)-| R-_j, so that what inhibits an irrelevant neuron is irrelevant.

    Relevance of an image in which no input can take any is handed out evenly and noted as `spread`.

    Raises:
        UserError: for another word.

    Source: Nam et al. 2020; the authors' code has `same` for dense layers and `against` for convolutions, and does not say why. It runs inputs x+
    and x- through the rule separately, each with all of R and both with a shift of its own, so that the sum doubles where inputs have both signs,
    and takes a positive weight for support even where the input is negative. We sort by the sign of x_i a_ij and shift once; for inputs that cannot
    be negative, all that the authors have, that is the same.
    """

    kinds = ("linear",)
    negative: str = "same"

    def __post_init__(self) -> None:
        _check(self.negative, NEGATIVE, "negative")

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        assert isinstance(operation, Linear)
        (R,) = relevance
        assert R is not None
        return (self.shift(operation, R, self.contribute(operation, R), walk),)

    def contribute(self, operation: Linear, R: Tensor) -> Tensor:
        """C, in the shape of the input."""
        x = operation.inputs[0].data
        for_it, against = positive_parts(operation, x), negative_parts(operation, x)
        P = contributions(for_it)
        if all(A is None for _, A in against):
            return hand_back(for_it, ratio(R, P), x)
        N = -contributions(against)
        to_for, to_against = ratio(R, P), ratio(R, P + N)
        if self.negative == "against":
            to_for = to_for.clamp(min=0)
            to_against = to_against + ratio(R.clamp(max=0), N)
        return hand_back(for_it, to_for, x) - hand_back(against, to_against, x)

    def shift(self, operation: Linear, R: Tensor, C: Tensor, walk: Walk) -> Tensor:
        """C with the same taken from every element of an image that is not 0, so that it adds up to what R does."""
        into, out, samples = operation.inputs[0], operation.output, walk.samples
        reached = C != 0
        n, too_much = samples.sum(into, reached.to(C.dtype)), samples.sum(into, C) - samples.sum(out, R)
        share = C - samples.spread(into, too_much / n.clamp(min=1)) * reached
        if bool((n > 0).all()):
            return share
        lost = R * samples.spread(out, (n == 0).to(R.dtype))
        walk.note("spread", out, lost)
        return share + spread(operation, lost)


@dataclass(frozen=True)
class ImageBox(LinearRule):
    """z^B between the least and the largest value of each image, over all channels, as the first layer receives it.

    Source: Montavon et al. 2017, Eq. 14, with the bounds of Nam et al.'s code, which are the image's own and not its domain's.
    """

    def share(self, operation: Linear, R: Tensor, walk: Walk) -> Tensor:
        x = operation.inputs[0].data
        axes = tuple(range(1, x.dim()))
        A = operation.map  # x a - l a+ - h a- = (x - l) a+ + (x - h) a-
        parts: list[Part] = [(x - x.amin(axes, keepdim=True), A.positive), (x - x.amax(axes, keepdim=True), A.negative)]
        return self.hand_out(operation, R, contributions(parts), parts, walk)


def rap(
    dense: str = "same",
    convolution: str = "against",
    box: str = "image",
    residual: str = "positive",
    attention: str = "constant",
    seed: str = "logit",
) -> Composite:
    """Absolute influence at the logits, relative attribution below, z^B at the pixels; averages by z+, everything else as in `composites.lrp`.

    A network of one layer has the absolute influence alone. Relevance grows by up to three times in each layer while its sum stays, so that in deep
    networks the sum is a small difference of large numbers.

    Args:
        dense, convolution: where negative relevance goes in these layers, see `RelativeAttribution`.
        box: the bounds at the pixels: of each `image`, or [0, 1], that of all `pixels`.
        residual, attention, seed: see `composites.lrp`.

    Raises:
        UserError: for an unknown word.

    Source: Nam et al. 2020 and the authors' code, which knows VGG and ResNet and begins with the logit. It splits residual sums in proportion
    (`residual=signed`); we prefer `positive`, which stays bounded where the branches cancel. It passes batch normalization by itself; we fold it into
    the layer before, so that the weights are those by which the inputs contribute.
    """
    _check(box, BOXES, "box")
    linear = [
        Assignment(AbsoluteInfluence(), position="last"),
        Assignment(ImageBox() if box == "image" else ZBox(), kind="linear", position="first"),
        Assignment(RelativeAttribution(convolution), op="convolution"),
        Assignment(RelativeAttribution(dense)),
        Assignment(ZPlus(), kind="average"),
    ]
    return lrp(linear, residual=residual, attention=attention, seed=seed)


def _check(word: str, words: tuple[str, ...], name: str) -> None:
    if word not in words:
        raise UserError(
            f"{name} must be one of {', '.join(words)}, got {word!r}; the nearest are {nearest(word, words)}"
        )
