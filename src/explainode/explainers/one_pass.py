"""Methods that read their map off one forward and one backward, so that several of them share the pass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from explainode.explainers.base import Explainer
from explainode.explainers.layers import activations_and_gradients


@dataclass(frozen=True)
class OnePass(Explainer):
    """A function of the activation at one place of the network and of the score's gradient there."""

    @abstractmethod
    def place(self, model: nn.Module, x: Tensor) -> str:
        """The name of a layer, or `PIXELS` for the images themselves."""

    @abstractmethod
    def read(self, A: Tensor, gradient: Tensor) -> Tensor:
        """The map, from the activation A (B, C, h, w) and the gradient (B, C, h, w) at the place."""

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return read_together([self], model, x, target)[0]


def read_together(explainers: Sequence[OnePass], model: nn.Module, x: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    """What each explainer's `attribute` returns, bit for bit, from one forward and one backward for all of them."""
    places = [explainer.place(model, x) for explainer in explainers]
    held, _ = activations_and_gradients(model, x, target, places)
    return tuple(explainer.read(*held[place]) for explainer, place in zip(explainers, places, strict=True))
