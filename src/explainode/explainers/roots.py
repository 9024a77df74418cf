"""Root inference: relevance whose rules infer, at each layer, which part of the input carries the class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from explainode.errors import UserError, nearest
from explainode.explainers.passes import record_pass
from explainode.explainers.relevance import Relevance, record_logits
from explainode.relevance.walk import Walk, seed


@dataclass(frozen=True)
class Decomposition:
    """The input of a layer's last call, x = signal + root, each in its shape."""

    signal: Tensor
    root: Tensor


@dataclass(frozen=True)
class RootInference(Relevance):
    """Relevance by a composite that infers roots, with what the inference says of itself.

    Reported per image, on average over the layers: how far the fit is from what it was to be (`root_residual`), what the network's layers
    still say of their roots (`root_output`: 0 for a true root, 1 if nothing was taken away), and how much their gradients differ from those at the
    layers' inputs (`root_gradient_mse`).

    Source: root inference (anonymous).
    """

    def decompose(self, model: nn.Module, x: Tensor, target: Tensor, names: Sequence[str]) -> dict[str, Decomposition]:
        """Signal and root of the inputs of named layers, convolutions or dense layers where the composite infers roots.

        Raises:
            UserError: if no root is inferred at one of them.

        Source: root inference (anonymous), Eq. 5 and Fig. 7.
        """
        tape = record_logits(model, x, target)
        record_pass(backwards=len(x))
        walk = Walk(tape, signals={})
        walk.back({tape.output: seed(tape, target, self.composite.seed)}, self.composite)
        assert walk.signals is not None
        found = {}
        for name in names:
            if name not in walk.signals:
                raise UserError(
                    f"no root is inferred at layer {name!r}; the nearest where one is are {nearest(name, walk.signals)}"
                )
            signal = walk.signals[name][0]
            last = next(o for o in reversed(walk.tape.operations) if o.module == name and o.kind == "linear")
            found[name] = Decomposition(signal, last.inputs[0].data - signal)
        return found
