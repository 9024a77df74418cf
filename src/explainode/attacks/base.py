"""What every attack is: configuration with one method, called with the network, the images and the classes to be left.

Pixels lie in [0, 1]: normalization is the network's own first part, so radii mean the same for every network.
Shape letters: B batch, C channels, H, W pixels, K classes, A rows that are still attacked.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from explainode.errors import UserError
from explainode.randomness import current_scope, noise_rows, noise_scope
from explainode.turns import EAGER, exclusive

Forward = Callable[[Tensor, Tensor], Tensor]
"""`forward(x (A, C, H, W), rows (A,))` -> (A, K) logits; `rows` says which image of the batch each row is, so that it keeps its own noise."""

_PIXELS_PER_PASS = (
    16 * 224 * 224
)  # as many rows with a graph as sixteen 224x224 pictures: about 2 GiB of ResNet-18's activations


@dataclass(frozen=True)
class AttackResult:
    """What an attack found.

    Attributes:
        x: (B, C, H, W) pixels in [0, 1]; the last ones tried where the attack failed.
        success: (B,) bool, the network's prediction for `x` is not `target`.
        steps: (B,) int64, steps until the prediction first left `target`: 0 where it was another class from the start, all of them on failure.
    """

    x: Tensor
    success: Tensor
    steps: Tensor

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Attack(ABC):
    """An untargeted attack and its parameters, without a network: one instance serves any number of them.

    An image that the network does not give `target` from the start is left as it is. Each image is attacked by itself: the result does not
    depend on the batch, and random numbers are keyed by the noise scope's samples (rows 0..B-1 of seed 0 outside of one).
    """

    def __call__(
        self, model: nn.Module, x: Tensor, target: Tensor | int, allowed: Tensor | None = None
    ) -> AttackResult:
        """Move each image until the network no longer says `target`, in any state of the network, which stays as it is.

        Args:
            model: a network from pixels (B, C, H, W) in [0, 1] to logits (B, K), or a wrapper of one.
            x: (B, C, H, W) pixels in [0, 1].
            target: (B,) classes to be left (usually the predicted or the true ones), or one class.
            allowed: (B, 1 or C, H, W) bool, the values that may change; None: all.

        Raises:
            UserError: if images, classes or `allowed` have another shape, or pixels lie outside [0, 1].
        """
        x = _check_images(x)
        target = _check_classes(target, x)
        if not len(x):
            return AttackResult(x, torch.zeros_like(target, dtype=torch.bool), torch.zeros_like(target))
        allowed = self.permitted(x, allowed)
        scope = nullcontext() if current_scope() is not None else noise_scope(torch.arange(len(x)), active=False)
        limit = max(1, _PIXELS_PER_PASS // (x.shape[-1] * x.shape[-2]))
        parts = []
        with _ready(model) as network, scope:
            for rows in torch.arange(len(x), device=x.device).split(limit):
                part = None if allowed is None else allowed[rows]
                with noise_rows(rows):
                    parts.append(self.attack(_forward(network), x[rows], target[rows], part))
        return AttackResult(
            *(torch.cat([getattr(part, name) for part in parts]).detach() for name in ("x", "success", "steps"))
        )

    def permitted(self, x: Tensor, allowed: Tensor | None) -> Tensor | None:
        """`allowed` as a bool mask that fits x.

        Raises:
            UserError: if it is no mask, or of another shape.
        """
        if allowed is None:
            return None
        if allowed.dtype != torch.bool:
            kind = str(allowed.dtype).removeprefix("torch.")
            raise UserError(
                f"allowed must be a bool mask, got {kind}; rank a relevance map with GuidedPGD, or compare it with a threshold"
            )
        _check_map(x, allowed)
        return allowed.to(x.device)

    @abstractmethod
    def attack(self, forward: Forward, x: Tensor, target: Tensor, allowed: Tensor | None) -> AttackResult:
        """The method itself: gradients are on, the network is in eval mode, `x` (B, C, H, W) is detached, `target` is (B,) int64."""


def _check_images(x: Tensor) -> Tensor:
    if x.dim() != 4 or not x.is_floating_point():
        raise UserError(f"images must be a float tensor of shape (B, C, H, W), got {x.dtype} of shape {tuple(x.shape)}")
    if len(x) and not (float(x.amin()) >= 0 and float(x.amax()) <= 1):
        raise UserError(
            f"pixels must lie in [0, 1], got {float(x.amin()):.4g} to {float(x.amax()):.4g}; "
            "attacks step in pixel units, so put the normalization into the network (explainode's Normalize)"
        )
    return x.clone() if x.is_inference() else x.detach()


def _check_classes(target: Tensor | int, x: Tensor) -> Tensor:
    classes = torch.as_tensor(target, device=x.device)
    if classes.is_floating_point() or classes.dtype == torch.bool:
        raise UserError(
            f"target has type {str(classes.dtype).removeprefix('torch.')}, expected class indices; give whole numbers"
        )
    if classes.dim() == 0:
        classes = classes.expand(len(x))
    if classes.shape != (len(x),):
        raise UserError(
            f"target must have shape ({len(x)},), got {tuple(classes.shape)}; give one class, or one per image"
        )
    return classes.to(torch.int64)


def _check_map(x: Tensor, values: Tensor) -> None:
    if (
        values.dim() != 4
        or len(values) != len(x)
        or values.shape[1] not in (1, x.shape[1])
        or values.shape[-2:] != x.shape[-2:]
    ):
        raise UserError(
            f"allowed must have shape {(len(x), x.shape[1], *x.shape[-2:])} or one channel, got {tuple(values.shape)}; one mask per image"
        )


def _forward(network: nn.Module) -> Forward:
    def forward(x: Tensor, rows: Tensor) -> Tensor:
        with noise_rows(rows):
            logits = network(x)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
            got = (
                f"a tensor of shape {tuple(logits.shape)}"
                if isinstance(logits, Tensor)
                else f"a {type(logits).__name__}"
            )
            raise UserError(
                f"the model returned {got} for {len(x)} images, expected logits (B, K); wrap it so that it returns logits alone"
            )
        return logits

    return forward


@contextmanager
def _ready(model: nn.Module) -> Iterator[nn.Module]:
    """The unwrapped network in eval mode with frozen parameters, gradients on, autocast and compiled code off; then all is as it was.

    A small sister of the explainers' guard, which lives a floor above and also cares for generators and attention.
    """
    network = model
    while True:
        if isinstance(network, (DistributedDataParallel, DataParallel, AveragedModel)):
            network = network.module
        elif isinstance(inner := network._modules.get("_orig_mod"), nn.Module):
            network = inner
        else:
            break
    with exclusive(network):
        modes = [(module, module.training) for module in network.modules()]
        trainable = [parameter for parameter in network.parameters() if parameter.is_leaf and parameter.requires_grad]
        devices = {"cpu", *(parameter.device.type for parameter in network.parameters())}
        try:
            network.eval()
            for parameter in trainable:
                parameter.requires_grad_(False)
            with ExitStack() as stack:
                if "torch._dynamo" in sys.modules:
                    stack.enter_context(EAGER)
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.enable_grad())
                for device in devices:
                    if torch.amp.is_autocast_available(device):
                        stack.enter_context(torch.autocast(device, enabled=False))
                yield network
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)
            for module, training in modes:
                module.training = training


def input_gradient(score: Tensor, x: Tensor, keep: bool = False) -> Tensor:
    """Gradient (A, C, H, W) of each row's own score (A,) to x; no `.grad` is touched; `keep` the graph for further scores.

    Raises:
        UserError: if the score has no graph to x.
    """
    found = (
        torch.autograd.grad(score.sum(), x, retain_graph=keep, allow_unused=True)[0] if score.requires_grad else None
    )
    if found is None:
        raise UserError(
            "the logits carry no gradient to the input; the model detaches it or runs under no_grad, so use an attack without gradients (one_pixel)"
        )
    return found
