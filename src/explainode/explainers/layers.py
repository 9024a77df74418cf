"""Layers by name or by what they are, what they return, the gradient of the score there, and the network that ends at one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from explainode.attribution import begin_graph, graph_is_kept
from explainode.errors import UserError, nearest
from explainode.explainers.passes import differentiate_at, forward, in_passes, predict
from explainode.explainers.targets import Unit, select_score
from explainode.randomness import noise_rows

PIXELS = ""  # the place before the first layer: the images themselves

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


def token_grid(tokens: int, size: Sequence[int]) -> tuple[int, int] | None:
    """(h, w) of the patches among `tokens` of an image of `size` (H, W); None if they form no grid of the image's shape.

    What is left over, at most eight, are prefix tokens (class, distillation, registers); the fewest that leave a grid are taken.
    """
    height, width = size
    for patches in range(tokens, max(tokens - 9, 3), -1):
        h = math.isqrt(patches * height // width)
        if h > 1 and patches % h == 0 and patches // h > 1 and h * width == patches // h * height:
            return h, patches // h
    return None


def as_map(output: Tensor, x: Tensor) -> Tensor:
    """(R, C, h, w): a map as it is; patch tokens (R, N, C) on their grid, without the prefix tokens."""
    if output.dim() == 4:
        return output
    grid = token_grid(output.shape[1], x.shape[-2:])
    assert grid is not None, "check_map lets only tokens on a grid pass"
    return output[:, output.shape[1] - grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)


def is_tokens(output: Any, x: Tensor) -> bool:
    """Whether `output` is one token (R, N, C) for each patch of the images, and perhaps some more."""
    return (
        isinstance(output, Tensor)
        and output.dim() == 3
        and len(output) == len(x)
        and token_grid(output.shape[1], x.shape[-2:]) is not None
    )


def check_map(name: str, output: Any, x: Tensor) -> Tensor:
    """`output` of layer `name` if it is a feature map of x, or its patch tokens.

    Raises:
        UserError: if it is neither.
    """
    if (isinstance(output, Tensor) and output.dim() == 4 and len(output) == len(x)) or is_tokens(output, x):
        return output
    got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise UserError(
        f"layer {name!r} returns {got}, expected a feature map ({len(x)}, C, h, w); choose a convolutional layer"
    )


def last_call(name: str, seen: Sequence[Tensor]) -> Tensor:
    """What a layer returned last.

    Raises:
        UserError: if it was never called.
    """
    if not seen:
        raise UserError(f"layer {name!r} took no part in the forward pass; choose another layer")
    return seen[-1]


def layer_names(model: nn.Module) -> list[str]:
    """The names by which layers may be asked for; wrappers of compiled submodules leave no trace in them."""
    return [name.replace("_orig_mod.", "").removesuffix("._orig_mod") for name, _ in model.named_modules() if name]


def get_layer(model: nn.Module, name: str) -> nn.Module:
    """The layer called `name`.

    Raises:
        UserError: if there is none.
    """
    try:
        return model.get_submodule(name or "(no name)")  # torch would take "" for the whole network
    except AttributeError:
        raise UserError(
            f"no layer named {name!r} in {type(model).__name__}; the nearest are {nearest(name, layer_names(model))}"
        ) from None


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
        UserError: if no layer has that name, no layer returns a map (B, C, h, w) of more than one position, or the network is a transformer
            whose only map are its patches.
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
        tokens: list[str] = []  # layers after the last map that return tokens

        def remember(module: nn.Module, args: Any, output: Any) -> None:
            if is_feature_map(module, output, 1):
                finished.append(names[module])
                tokens.clear()
            elif is_tokens(output, x[:1]):
                tokens.append(names[module])

        with hooked(list(names), remember), noise_rows(torch.zeros(1, dtype=torch.int64)):
            predict(model, x[:1])
        if not finished:
            raise UserError(
                f"no layer of {type(model).__name__} returns a feature map (B, C, h, w); use a method that needs none"
            )
        if len(tokens) > len(
            finished
        ):  # a head that pools by attention has few such layers, a transformer has little else
            raise UserError(
                f"{type(model).__name__} has no feature map behind {finished[-1]!r}, which only cuts the image into patches: its layers return tokens; "
                "name a layer of tokens before the last attention (layer=...), or use a method that needs no layer (saliency, ig, smoothgrad)"
            )
        known[key] = finished[-1]
    return known[key]


@torch.no_grad()
def activation(model: nn.Module, x: Tensor, name: str) -> Tensor:
    """(B, C, h, w): what a layer returned for x, by one forward without a graph; of several calls the last.

    Raises:
        UserError: if the layer is not called or does not return a feature map.
    """
    layer = get_layer(model, name)

    def evaluate(x: Tensor) -> tuple[Tensor]:
        seen: list[Tensor] = []

        def remember(module: nn.Module, args: Any, output: Any) -> None:
            seen[:] = [check_map(name, output, x).clone()]  # what comes after may work in place

        with hooked([layer], remember):
            forward(model, x)
        return (last_call(name, seen),)

    return in_passes(evaluate, x)[0]


def activations_and_gradients(
    model: nn.Module, x: Tensor, target: Tensor, places: Sequence[str]
) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """What layers returned for x and the gradient of the target logits there, for several places from one forward and one backward.

    The graph begins at the first place that the network reaches: under the guard nothing before it asks for a gradient, so nothing before
    it is recorded. The network goes on with a copy of each activation, so that an in-place operation after a layer leaves it as it was. If a
    layer is called several times (the vector field of a solver), the last call counts.

    Args:
        places: names of layers, or `PIXELS` for x itself.

    Returns:
        (activation, gradient) by place, both (B, C, h, w), and the score (B,).

    Raises:
        UserError: if a layer is not called or does not return a feature map.
    """
    places = tuple(dict.fromkeys(places))
    layers = {name: get_layer(model, name) for name in places if name != PIXELS}

    def evaluate(x: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        seen: dict[str, Tensor] = {}
        begun: set[str] = set()  # places at which a graph began

        def hold(name: str, module: nn.Module, args: Any, output: Any) -> Tensor:
            check_map(name, output, x)
            if begun <= {name} or not output.requires_grad:
                output = begin_graph(output)
                begun.add(name)
            seen[name] = output
            return output.clone()

        if PIXELS in places:
            seen[PIXELS] = x = begin_graph(x)
            begun.add(PIXELS)
        elif not graph_is_kept():
            x = x.detach()
        with ExitStack() as stack:
            for name, layer in layers.items():
                stack.enter_context(hooked([layer], partial(hold, name)))
            stack.enter_context(torch.enable_grad())
            score = select_score(forward(model, x), target)
        for name in places:
            last_call(name, [seen[name]] if name in seen else [])
        gradients = differentiate_at(score, [seen[name] for name in places])
        held = [*(seen[name] if graph_is_kept() else seen[name].detach() for name in places), *gradients]
        return (*(as_map(tensor, x) for tensor in held), score.detach())

    *held, score = in_passes(evaluate, x, target)
    return {name: (held[i], held[i + len(places)]) for i, name in enumerate(places)}, score


def activation_and_gradient(model: nn.Module, x: Tensor, target: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """activation (B, C, h, w), gradient (B, C, h, w) and score (B,) of one layer, see `activations_and_gradients`."""
    held, score = activations_and_gradients(model, x, target, [name])
    return *held[name], score


def cut_at(model: nn.Module, unit: Unit) -> nn.Module:
    """The network that ends at a unit's layer: from x to `unit.read` (B, C) of it, so that the unit is output number `unit.channel`.

    A shell around the same parts under the same names: layers are found, parameters are shared and copied as in the model itself. The whole
    model runs; what comes after the layer takes no part in the score.

    Raises:
        UserError: if there is no such layer.
    """
    get_layer(model, unit.layer)
    shell = copy(model)
    whole = vars(model).get("forward", partial(type(model).forward, shell))
    shell.forward = partial(_units, shell, unit, whole)  # partials, so that a deep copy of the shell calls the copy
    return shell


def _units(shell: nn.Module, unit: Unit, whole: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    seen: list[Tensor] = []

    def remember(module: nn.Module, args: Any, output: Any) -> Tensor:
        single = isinstance(output, Tensor) and output.dim() == 2 and len(output) == len(x)
        seen[:] = [output if single else as_map(check_map(unit.layer, output, x), x)]
        return output.clone()

    with hooked([get_layer(shell, unit.layer)], remember):
        whole(x)
    return unit.read(last_call(unit.layer, seen))
