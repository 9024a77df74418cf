"""Layers by name or by what they are, and the gradient of the score at a layer's output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from explainode.errors import UserError, nearest
from explainode.explainers.passes import differentiate, forward, in_passes, predict
from explainode.explainers.targets import select_score
from explainode.randomness import noise_rows

# These show the map of another layer: resized, or (in eval mode) as it is.
_PASSIVE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Identity, nn.Dropout, nn.Dropout2d)

# Per network: its modules and the image shape when the layer was found -> the layer's name. A layer is looked for once, not in every batch.
_found: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], str]] = WeakKeyDictionary()


def is_feature_map(module: nn.Module, output: Any, rows: int) -> bool:
    """Whether `module` made `output` a map (rows, C, h, w) of more than one position in each direction."""
    return (
        isinstance(output, Tensor)
        and output.dim() == 4
        and output.shape[0] == rows
        and output.is_floating_point()
        and min(output.shape[-2:]) > 1
        and not isinstance(module, _PASSIVE)
    )


def layer_names(model: nn.Module) -> list[str]:
    """The names by which layers may be asked for; wrappers of compiled submodules leave no trace in them."""
    return [name.replace("_orig_mod.", "").removesuffix("._orig_mod") for name, _ in model.named_modules() if name]


def get_layer(model: nn.Module, name: str) -> nn.Module:
    """The layer called `name`.

    Raises:
        UserError: if there is none.
    """
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise UserError(f"no layer named {name!r} in {type(model).__name__}; the nearest are {nearest(name, layer_names(model))}") from None


@contextmanager
def hooked(layers: Sequence[nn.Module], hook: Any) -> Iterator[None]:
    """Context in which `hook` is a forward hook of each layer."""
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def find_layer(model: nn.Module, x: Tensor, name: str | None = None) -> str:
    """The name of the layer to explain: `name` if it exists, else the last spatial feature map that the network computes for `x`.

    Last in the order of computing; of several modules that return the same map the outermost. One forward of one image finds it, once for
    each network and image shape.

    Raises:
        UserError: if no layer has that name, or no layer returns a map (B, C, h, w) of more than one position.
    """
    if name is not None:
        get_layer(model, name)
        return name
    modules = dict(model.named_modules())
    key = (tuple(x.shape[1:]), tuple(map(id, modules.values())))
    known = _found.setdefault(model, {})
    if key not in known:
        names = {module: name for name, module in modules.items() if name}
        finished: list[str] = []

        def remember(module: nn.Module, args: Any, output: Any) -> None:
            if is_feature_map(module, output, 1):
                finished.append(names[module])

        with hooked(list(names), remember), noise_rows(torch.zeros(1, dtype=torch.int64)):
            predict(model, x[:1])
        if not finished:
            raise UserError(f"no layer of {type(model).__name__} returns a feature map (B, C, h, w); use a method that needs none")
        known[key] = finished[-1]
    return known[key]


def activation_and_gradient(model: nn.Module, x: Tensor, target: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """What a layer returned for x, the gradient of the target logits there, and the logits.

    The graph begins at the layer: under the guard nothing before it asks for a gradient, so nothing before it is recorded. The network goes
    on with a copy, so that an in-place operation after the layer leaves the activation as it was. If a layer is called several times (the
    vector field of a solver), the last call counts.

    Returns:
        activation (B, C, h, w), gradient (B, C, h, w), score (B,).

    Raises:
        UserError: if the layer is not called or does not return a feature map.
    """
    layer = get_layer(model, name)

    def evaluate(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        activation: Tensor | None = None

        def begin_graph(module: nn.Module, args: Any, output: Any) -> Tensor:
            nonlocal activation
            if not isinstance(output, Tensor) or output.dim() != 4 or len(output) != len(x):
                got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise UserError(f"layer {name!r} returns {got}, expected a feature map ({len(x)}, C, h, w); choose a convolutional layer")
            activation = output.detach().requires_grad_()
            return activation.clone()

        with hooked([layer], begin_graph), torch.enable_grad():
            score = select_score(forward(model, x.detach()), target)
        if activation is None:
            raise UserError(f"layer {name!r} took no part in the forward pass; choose another layer")
        return activation.detach(), differentiate(score, activation), score.detach()

    activation, grad, score = in_passes(evaluate, x, target)
    return activation, grad, score
