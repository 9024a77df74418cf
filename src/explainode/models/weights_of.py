"""Weights as a value: what a configuration hands to whoever fills a network without knowing of files."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from explainode.models.weights import load_weights


@dataclass(frozen=True)
class WeightsOf:
    """Called with a network, fills it with the weights of a file.

    Args:
        path: a state dict or checkpoint of a network of the same kind.

    Raises:
        UserError: on the call, see `load_weights`.
    """

    path: str

    def __call__(self, network: nn.Module) -> None:
        load_weights(network, self.path)
