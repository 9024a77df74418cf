"""Explainers that learn of a network before they explain it: what they learned is tensors apart from their configuration, and has a hash."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from explainode.errors import UserError
from explainode.explainers.base import Explainer
from explainode.explainers.guard import unwrap
from explainode.files import replacing, told_in_one_sentence
from explainode.hashing import digest, network_digest

Own = TypeVar("Own", bound="LearningExplainer")


@dataclass(frozen=True, eq=False)
class Learned:
    """What an explainer learned.

    Attributes:
        state: tensors by name.
        network: digest of the network that it was learned of; recipe: of how it was learned, which decides whether it can be used again.
    """

    state: Mapping[str, Tensor]
    network: str
    recipe: str = ""

    @property
    def digest(self) -> str:
        """16 hex digits over the tensors and the network."""
        return digest([*sorted(self.state.items()), (f"network {self.network}", torch.empty(0))])

    def save(self, path: Path) -> None:
        """Write a file that `torch.load(weights_only=True)` reads.

        Raises:
            UserError: if it cannot be written.
        """
        facts = {"network": self.network, "recipe": self.recipe, "digest": self.digest}
        with told_in_one_sentence(path), replacing(path) as file:
            torch.save({"state": dict(self.state), **facts}, file)

    @classmethod
    def load(cls, path: Path) -> Learned:
        """What `save` wrote; only tensors and text are read, whatever the file holds.

        Raises:
            UserError: if the file is missing, damaged, or not what was written.
        """
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
            state = found["state"]
            if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()):
                raise TypeError("it holds other things than tensors")
            learned = cls(state, str(found["network"]), str(found["recipe"]))
            if learned.digest != found["digest"]:
                raise ValueError("its hash differs")
        except Exception as error:  # foreign bytes may break the reader in any way
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{path} does not hold what an explainer learned ({reason}); remove it and fit again"
            ) from error
        return learned


@dataclass(frozen=True)
class LearningExplainer(Explainer):
    """Base of explainers that `learn`; `fit` makes one that knows a network, and leaves this one as it is.

    Example:
        >>> import explainode
        >>> from explainode.evaluation import in_batches
        >>> network = explainode.get("model/small_vgg", num_classes=4)
        >>> explainer = explainode.get("explainer/pattern_net").fit(network, in_batches(torch.rand(4, 3, 32, 32)))
        >>> explainer.learned.network == network_digest(network)
        True
        >>> explainode.explain(explainer, explainode.get("model/small_vgg", num_classes=4), torch.rand(1, 3, 32, 32))
        Traceback (most recent call last):
        explainode.errors.UserError: PatternNet was fitted to another network ...
    """

    learns: ClassVar[bool] = True
    learned: Learned | None = field(default=None, init=False, repr=False, compare=False)

    @abstractmethod
    def learn(self, model: nn.Module, batches: Iterable[Any]) -> Mapping[str, Tensor]:
        """What there is to know, from batches with `image` (B, C, H, W) and `sample_id` (B,).

        Raises:
            UserError: if there is no image.
        """

    def fit(self: Own, model: nn.Module, batches: Iterable[Any]) -> Own:
        """The explainer with what it learned of `model`.

        Raises:
            UserError: if there is no image.
        """
        return self.knowing(Learned(self.learn(model, batches), network_digest(unwrap(model))))

    def knowing(self: Own, learned: Learned) -> Own:
        """The explainer with what was learned before."""
        fitted = copy.copy(self)
        object.__setattr__(fitted, "learned", learned)
        return fitted

    @property
    def state(self) -> Mapping[str, Tensor]:
        """What was learned.

        Raises:
            UserError: before it was fitted.
        """
        if self.learned is None:
            raise UserError(
                f"{type(self).__name__} has not seen data yet; call explainer.fit(model, batches) and use what it returns"
            )
        return self.learned.state

    def check_network(self, model: nn.Module) -> None:
        """Refuse another network than the one that was learned of. A metric that randomizes a copy asks past this on purpose.

        Raises:
            UserError: naming both hashes.
        """
        if self.learned is not None and (here := network_digest(unwrap(model))) != self.learned.network:
            raise UserError(
                f"{type(self).__name__} was fitted to another network ({self.learned.network} then, {here} here); "
                "fit it to this one: explainer.fit(model, batches)"
            )
