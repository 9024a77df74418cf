"""Attribution guided factorization: relevance and gradient walk back together, and each layer weighs what they say."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from explainode.explainers.base import Explainer
from explainode.explainers.passes import in_passes, record_pass
from explainode.explainers.relevance import record_logits
from explainode.relevance.rules.agf import Factorization, Streams, agf, softmax_contrast


@dataclass(frozen=True)
class AGF(Explainer):
    """Relevance (B, C, H, W) of the pixels by attribution guided factorization, for networks of convolutions, rectifiers and pooling.

    The sum is that of the relevance at the layer that makes the logits, x * gradient of the contrasted probability: it says nothing of the logit.

    Args:
        rule: which parts count in each layer, and what gives the evidence.
        residual, attention: how sums and attention are passed, see `composites.lrp`; the paper has neither.

    Raises:
        UserError: if relevance reaches an operation that no rule covers, or for an unknown word.

    Source: Gur et al. 2021. We leave out the division by the largest pixel and the sum over channels at the end.
    """

    rule: Factorization
    residual: str = "positive"
    attention: str = "constant"

    def __post_init__(self) -> None:
        agf(self.rule, self.residual, self.attention)  # refuses unknown words at once

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        def compute(x: Tensor, target: Tensor) -> tuple[Tensor]:
            tape = record_logits(model, x, target)
            record_pass(backwards=tape.batch)
            g = softmax_contrast(tape, target)
            walk = Streams(tape, gradients={id(tape.output): g})
            composite = agf(self.rule, self.residual, self.attention)
            return (walk.back({tape.output: tape.output.data * g}, composite, last=True),)

        return in_passes(compute, x, target)[0]
