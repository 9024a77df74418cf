"""What every explainer is: configuration with one method, called with the network, the images and the classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from explainode.attribution import graph_is_kept
from explainode.errors import UserError
from explainode.explainers.gradients import input_gradient
from explainode.explainers.guard import guard
from explainode.explainers.layers import cut_at
from explainode.explainers.passes import count_passes, one_by_one_if_mixed, pass_limit, predict, rows_per_pass
from explainode.explainers.targets import Target, Unit, as_indices, resolve_target
from explainode.randomness import current_scope, noise_scope

__all__ = [
    "BoundExplainer",
    "Explainer",
    "count_passes",
    "gradient",
    "guard",
    "input_gradient",
    "pass_limit",
    "predict",
    "resolve_target",
    "rows_per_pass",
]


gradient = input_gradient  # its first name, which methods of users import from here


def check_images(x: Tensor) -> Tensor:
    """`x`, detached (unless `keep_graph` is open) and usable by autograd, if it is a batch of images (B, C, H, W) in floating point.

    Raises:
        UserError: otherwise.
    """
    if x.dim() != 4 or not x.is_floating_point():
        raise UserError(
            f"x is a tensor of shape {tuple(x.shape)} and type {str(x.dtype).removeprefix('torch.')}, "
            "expected images (B, C, H, W) in floating point; add the batch dimension, divide bytes by 255"
        )
    if graph_is_kept():
        return x
    return x.clone() if x.is_inference() else x.detach()


@contextmanager
def prepared(model: nn.Module, x: Tensor, target: Target) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
    """Context in which a method may work: the network under the guard, the images, the classes (B,) int64, in a noise scope.

    To explain a unit is to explain the network that ends at its layer: the unit is one of its outputs.
    """
    with guard(model) as network:
        x = check_images(x)
        if isinstance(target, Unit):
            network, target = cut_at(network, target), target.channel
        with nullcontext() if current_scope() is not None else noise_scope(torch.arange(len(x)), active=False):
            if target is None or callable(target):
                target = resolve_target(target, predict(network, x))
            classes = as_indices(target, len(x), x.device)
            with one_by_one_if_mixed(network, x):
                yield network, x, classes.clone() if classes.is_inference() else classes


def finished(attribution: Tensor) -> Tensor:
    """An attribution as it leaves the method: detached (unless `keep_graph` is open), float32 at least."""
    return (attribution if graph_is_kept() else attribution.detach()).to(
        torch.promote_types(attribution.dtype, torch.float32)
    )


@dataclass(frozen=True)
class Explainer(ABC):
    """An explanation method and its parameters, without a network: one instance serves any number of them.

    Attributes:
        stochastic: the method samples, so that another `draw` of the noise scope gives another attribution.
        class_specific: the attribution depends on the explained class.
        needs_ode: only networks that solve an equation can be explained.
        needs_attention: only networks with attention among all tokens can be explained.
        learns: the method must be fitted to a network before it explains it.
        control: which of `metrics.results.CONTROLS` the method is: a map that a real explanation has to beat; empty for explanations.
    """

    stochastic: ClassVar[bool] = False
    class_specific: ClassVar[bool] = True
    needs_ode: ClassVar[bool] = False
    needs_attention: ClassVar[bool] = False
    learns: ClassVar[bool] = False
    control: ClassVar[str] = ""

    def __call__(self, model: nn.Module, x: Tensor, target: Target = None) -> Tensor:
        """The attribution of the target's logit to `x`, in any state of the model and of torch, which stay as they are.

        Without a target one forward finds the predicted class. Outside of a noise scope noise blocks are silent, and the rows count as
        samples 0..B-1 of seed 0 for what the method draws.

        Args:
            model: a network from pixels (B, C, H, W) to logits (B, K), or a wrapper of one.
            x: (B, C, H, W) on the model's device.
            target: None, a class, one class per image, a callable from logits (B, K) to classes (B,), or a `Unit` of a layer.

        Returns:
            (B, C, H, W) or (B, 1, h, w): signed, unreduced, unnormalized, detached, float32 at least.

        Raises:
            UserError: if x or the target does not fit.
        """
        with prepared(model, x, target) as (network, x, classes):
            return finished(self.attribute(network, x, classes))

    @abstractmethod
    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """The method itself, under the guard: `x` (B, C, H, W) is detached, `target` is (B,) int64."""

    def expected_sum(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor | None:
        """(B,): what each image's attribution must add up to; None where the method promises no sum."""
        return None

    def diagnose(self, model: nn.Module, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Further numbers (B,) about the attribution of each image, by name: what a user must know to trust it."""
        return {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.fit is not Explainer.fit and not cls.learns:
            raise TypeError(
                f"{cls.__name__} has a fit of its own: derive it from LearningExplainer, or say `learns = True`"
            )

    def fit(self, model: nn.Module, batches: Iterable[Any]) -> Explainer:
        """The explainer ready for `model`; only methods that learn do something here (see `LearningExplainer`)."""
        return self

    def bind(self, model: nn.Module) -> BoundExplainer:
        """This method on one model, with Captum's call."""
        return BoundExplainer(self, model)


@dataclass(frozen=True)
class BoundExplainer:
    """`attribute(inputs, target=...)` as in Captum, so that other tools accept our explainers."""

    explainer: Explainer
    model: nn.Module

    def attribute(self, inputs: Tensor | tuple[Tensor, ...], target: Target = None) -> Tensor | tuple[Tensor, ...]:
        """The attribution of `inputs` (B, C, H, W); a tuple of one tensor is answered by a tuple of one.

        Raises:
            UserError: if there are several inputs.
        """
        if isinstance(inputs, Tensor):
            return self.explainer(self.model, inputs, target)
        if len(inputs) != 1:
            raise UserError(f"got {len(inputs)} input tensors, expected one; explainode explains networks of one input")
        return (self.explainer(self.model, inputs[0], target),)
