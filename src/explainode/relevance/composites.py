"""How composites are put together: rules for the linear maps, and one choice for each other kind of operation."""

from __future__ import annotations

from collections.abc import Sequence

from explainode.errors import UserError, nearest
from explainode.relevance.composite import Assignment, Composite
from explainode.relevance.rule import Rule
from explainode.relevance.rules.attention import ConstantAttention, ConstantScale, HalfBilinear, SoftmaxTaylor
from explainode.relevance.rules.lrp import Flat
from explainode.relevance.rules.structure import AffineShare, Gate, Half, Pass, Route, Split

ATTENTION = ("constant", "half", "taylor")
PRODUCTS = ("gate", "half")
# What a value came from and where it goes, whatever the numbers: features and summands count alike, attention by its weights.
PATHS = Composite(
    [Assignment(rule) for rule in (Flat(), Split("half"), Route("absorb"), Gate(), ConstantAttention(), Pass())],
    seed="one",
)


def lrp(
    linear: Sequence[Assignment],
    residual: str = "positive",
    products: str = "gate",
    attention: str = "constant",
    constants: str = "spread",
    seed: str = "logit",
) -> Composite:
    """Layer-wise relevance propagation: `linear` decides the linear maps, the rest stands for all other operations.

    Activations, normalization and softmax pass relevance on; the winner of a maximum takes it. Where constants absorb, layer and group
    normalization are linear with a constant scale instead: with a signed split relevance stays input * gradient of a linear network.

    Args:
        linear: assignments for linear maps and averages, in order of precedence; any other assignment may stand here too and comes first.
        residual: how a sum is split, see `Split`.
        products: `gate`: one factor takes all; `half`: half each.
        attention: `constant`: attention is a constant matrix, values take all; `half`: values and attention half each, softmax passes;
            `taylor`: half each, softmax by its first-order share (AttnLRP).
        constants: `spread`: offsets and class tokens take nothing; `absorb`: they keep their share, as biases that are absorbed.
        seed: what the walk begins with, see `Composite`.

    Raises:
        UserError: for an unknown word.
    """
    for word, words, name in ((products, PRODUCTS, "products"), (attention, ATTENTION, "attention")):
        if word not in words:
            raise UserError(
                f"{name} must be one of {', '.join(words)}, got {word!r}; the nearest are {nearest(word, words)}"
            )
    positive = residual == "positive"
    structure: list[Rule | Assignment] = [Split(residual), Route(constants), Gate() if products == "gate" else Half()]
    if constants == "absorb":
        structure += [
            AffineShare(),
            *(Assignment(ConstantScale(0.0), op=f"native_{what}_norm") for what in ("layer", "group")),
        ]
    if attention == "constant":
        structure.append(ConstantAttention(positive))
    else:
        structure.append(HalfBilinear(positive))
    if attention == "taylor":
        structure.append(SoftmaxTaylor())
    structure.append(Pass())
    return Composite(
        [*linear, *(rule if isinstance(rule, Assignment) else Assignment(rule) for rule in structure)], seed
    )


def backpropagation(rule: Rule) -> Composite:
    """One rule for every operation, beginning with 1: the gradient and its bent forms."""
    return Composite([Assignment(rule)], seed="one")
