"""Layers by name or by what they are, what they return, the gradient of the score there, and the network that ends at one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from explainode.attribution import begin_graph, graph_is_kept
from explainode.errors import UserError, nearest
from explainode.explainers.gradients import check_gradient, gradients_by_tape, tell
from explainode.explainers.passes import differentiate_at, forward, in_passes
from explainode.explainers.targets import Unit, select_score
from explainode.randomness import noise_rows
from explainode.relevance.composites import PATHS
from explainode.relevance.operations import Value
from explainode.relevance.places import Layout, Places
from explainode.relevance.tape import Tape, record
from explainode.relevance.walk import Walk

PIXELS = ""  # the place before the first layer: the images themselves

# These show the map of another layer: resized, or (in eval mode) as it is.
_PASSIVE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Identity, nn.Dropout, nn.Dropout2d)


@dataclass(frozen=True)
class _Returned:
    """What a layer returns.

    Attributes:
        layout: how it becomes feature maps; None: it does not.
        shape: of two images.
        whole: it is a map (B, C, h, w), or a state that a residual network hands on from block to block, not a product inside of a block.
        speaks: the logits read it at more than one place of the image.
    """

    layout: Layout | None
    shape: tuple[int, ...]
    whole: bool
    speaks: bool


# Per network: its modules and the image shape -> what its layers return, in the order of computing. Looked for once, not in every batch.
_returned: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], dict[str, _Returned]]] = WeakKeyDictionary()


def _layers(model: nn.Module, x: Tensor) -> dict[str, _Returned]:
    """What the layers return for images of x's shape, by name: by one recorded forward of two images, which belongs to the network and is not counted."""
    key = tuple(x.shape[1:]), tuple(map(id, model.modules()))
    known = _returned.setdefault(model, {})
    if key not in known:
        names = [name for name, _ in model.named_modules() if name]
        pair = x[:1].detach().expand(2, *x.shape[1:])  # two: of one image no axis can be told from the axis of images
        # a unit's network may be asked while it is being recorded itself
        with _disable_current_modes(), noise_rows(torch.zeros(2, dtype=torch.int64)):
            try:
                tape = record(model, pair, names)
            except (RuntimeError, AssertionError):
                if not isinstance(model, torch.fx.GraphModule):
                    raise
                raise UserError(
                    "an exported network of a fixed batch has no layers that can be watched; export it with a dynamic batch, load the network as a "
                    "module of Python, or use a method without layers (saliency, ig, lrp_epsilon)"
                ) from None
        last = {name: calls[-1] for name, calls in tape.calls.items() if name}
        places, read = Places(tape), _read_of(tape, list(last.values()))
        order = {id(operation): at for at, operation in enumerate(tape.operations)}
        found = {name: _look(places, value, read) for name, value in last.items()}
        known[key] = dict(sorted(found.items(), key=lambda item: order.get(id(last[item[0]].producer), -1)))
    return known[key]


def _read_of(tape: Tape, values: Sequence[Value]) -> dict[int, Tensor] | None:
    """What the logits read of each value, in its shape; None where an operation hides it."""
    walk = Walk(tape)
    try:
        walk.back({tape.output: torch.ones_like(tape.output.data)}, PATHS, values)
    except UserError:
        return None
    return walk.kept


def _look(places: Places, value: Value, read: dict[int, Tensor] | None) -> _Returned:
    layout, shape = places.layout(value), tuple(value.data.shape)
    if layout is None:
        return _Returned(None, shape, False, False)
    origin = value.producer
    while origin is not None and origin.kind in ("rearrangement", "affine"):
        origin = origin.inputs[0].producer
    whole = layout.plain or (origin is not None and origin.kind in ("sum", "norm"))
    speaks = read is None
    if read is not None and id(value) in read:
        speaks = int((layout.to_maps(read[id(value)], 2)[0] != 0).any(0).sum()) > 1
    return _Returned(layout, shape, whole, speaks)


def _look_up(model: nn.Module, x: Tensor, name: str) -> _Returned:
    """What layer `name` returns.

    Raises:
        UserError: if there is no such layer, or it returns nothing that depends on the image.
    """
    module = get_layer(model, name)
    found = _layers(model, x).get(next(known for known, other in model.named_modules() if other is module))
    if found is None:
        raise UserError(
            f"layer {name!r} took no part in the forward pass, or returns no single tensor that depends on the image; choose another layer"
        )
    return found


def layout_of(model: nn.Module, x: Tensor, name: str) -> Layout:
    """How what layer `name` returns becomes feature maps (B, C, h, w).

    Raises:
        UserError: if its elements are not one for each place of a grid in the image.
    """
    found = _look_up(model, x, name)
    if found.layout is None:
        shape = (len(x), *found.shape[1:]) if found.shape[0] == 2 else found.shape
        raise UserError(
            f"layer {name!r} returns {shape}, expected a feature map ({len(x)}, C, h, w) or tokens, one for each place of a grid in the image; choose "
            "a convolutional layer"
        )
    return found.layout


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
    """The name of the layer to explain: `name` if it exists, else the last feature map that the logits read at more than one place of the image.

    Last in the order of computing; of several modules that return the same map the outermost. In a transformer whose logits read a class token this is
    the state before the last attention; where they read the mean of the tokens, the last state. Found once for each network and image shape.

    Raises:
        UserError: if no layer has that name, or none returns a map (B, C, h, w), or tokens on a grid, of more than one position.
    """
    if name is not None:
        get_layer(model, name)
        return name
    maps = [
        (label, found)
        for label, found in _layers(model, x).items()
        if found.layout is not None
        and min(found.layout.size) > 1
        and found.whole
        and not isinstance(model.get_submodule(label), _PASSIVE)
    ]
    if not maps:
        raise UserError(
            f"no layer of {type(model).__name__} returns a feature map (B, C, h, w); use a method that needs none"
        )
    return next((label for label, found in reversed(maps) if found.speaks), maps[-1][0])


@torch.no_grad()
def activation(model: nn.Module, x: Tensor, name: str) -> Tensor:
    """(B, C, h, w): what a layer returned for x, by one forward without a graph; of several calls the last.

    Raises:
        UserError: if the layer is not called or does not return a feature map.
    """
    layer, layout = get_layer(model, name), layout_of(model, x, name)

    def compute(x: Tensor) -> tuple[Tensor]:
        seen: list[Tensor] = []

        def remember(module: nn.Module, args: Any, output: Any) -> None:
            seen[:] = [layout.to_maps(output, len(x)).clone()]  # what comes after may work in place

        with hooked([layer], remember):
            forward(model, x)
        return (last_call(name, seen),)

    return in_passes(compute, x)[0]


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
    layouts = {name: layout_of(model, x, name) for name in layers}

    def to_maps(held: Sequence[Tensor], rows: int) -> list[Tensor]:
        return [
            tensor if name == PIXELS else layouts[name].to_maps(tensor, rows)
            for name, tensor in zip([*places, *places], held, strict=True)
        ]

    def compute(x: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        if (verdict := check_gradient(model, x, target)).by_tape:
            pairs, score = gradients_by_tape(model, x, target, [None if name == PIXELS else name for name in places])
            tell(verdict, len(x))
            return (*to_maps([*(A for A, _ in pairs), *(g for _, g in pairs)], len(x)), score)
        seen: dict[str, Tensor] = {}
        begun: set[str] = set()  # places at which a graph began

        def hold(name: str, module: nn.Module, args: Any, output: Any) -> Tensor:
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
        return (*to_maps(held, len(x)), score.detach())

    *held, score = in_passes(compute, x, target)
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
    # partials, so that a deep copy of the shell calls the copy
    shell.forward = partial(_units, shell, model, unit, whole)
    return shell


def _units(shell: nn.Module, model: nn.Module, unit: Unit, whole: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    single = len(_look_up(model, x, unit.layer).shape) == 2
    layout = None if single else layout_of(model, x, unit.layer)
    seen: list[Tensor] = []

    def remember(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen[:] = [output if layout is None else layout.to_maps(output, len(x))]
        return output.clone()

    with hooked([get_layer(shell, unit.layer)], remember):
        whole(x)
    return unit.read(last_call(unit.layer, seen))
