"""PatternNet and PatternAttribution, which learn from data what each neuron looks for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from explainode.errors import UserError
from explainode.explainers.guard import guard
from explainode.explainers.learning import LearningExplainer
from explainode.explainers.passes import in_passes, record_pass
from explainode.explainers.relevance import record_logits, walk_back
from explainode.randomness import noise_scope
from explainode.relevance.composites import backpropagation
from explainode.relevance.rules.pattern import Neurons, Pattern, linear_operations
from explainode.relevance.tape import record


@dataclass(frozen=True)
class PatternNet(LearningExplainer):
    """The signal in the image that the class's logit answers to: the gradient with each neuron's pattern in the place of its weights.

    `fit(model, batches)` learns the patterns in one pass over images, ten thousand or more for a good estimate, and returns an explainer of this
    network and no other.

    Raises:
        UserError: before it was fitted, for another network than the one it was fitted to, or a linear layer that has no neurons with weights of their own.

    Source: Kindermans et al. 2018, Sec. 4. We begin with 1 at the class, so that the map is the pattern of the logit.
    """

    attribution: ClassVar[bool] = False

    @property
    def patterns(self) -> tuple[Tensor, ...]:
        """A pattern for each linear operation, in the order in which they run."""
        return tuple(self.state.values())

    def learn(self, model: nn.Module, batches: Iterable[Any]) -> dict[str, Tensor]:
        neurons: list[Neurons] = []
        with guard(model) as network:
            device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
            for batch in batches:
                record_pass(forwards=len(batch.image))
                with noise_scope(batch.sample_id, active=False):
                    operations = linear_operations(record(network, batch.image.to(device)))
                neurons = neurons or [Neurons.of(operation) for operation in operations]
                for mine, operation in zip(neurons, operations, strict=True):
                    mine.add(operation)
            if not neurons:
                raise UserError(
                    f"{type(self).__name__} learns from images and got none; give batches of training images"
                )
            found = [mine.pattern(operation) for mine, operation in zip(neurons, operations, strict=True)]
        return {f"{place:04d}": pattern for place, pattern in enumerate(found)}

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        composite = backpropagation(Pattern(self.patterns, self.attribution))

        def compute(x: Tensor, target: Tensor) -> tuple[Tensor]:
            return (walk_back(record_logits(model, x, target), target, composite)[0],)

        return in_passes(compute, x, target)[0]


@dataclass(frozen=True)
class PatternAttribution(PatternNet):
    """How much each pixel of the signal contributes to the class's logit: the gradient with w a, weights times patterns, in the place of the weights w.

    This is deep Taylor decomposition with the root x - a y, where w^T a = 1.

    Source: Kindermans et al. 2018, Sec. 4.
    """

    attribution: ClassVar[bool] = True
