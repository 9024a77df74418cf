"""Where in the image each element of a recorded tensor lies: found by walking along the tape, never by the sizes of axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from explainode.relevance.operations import Operation, Slot, Value
from explainode.relevance.samples import Samples
from explainode.relevance.tape import Tape

# these put numbers elsewhere along axes on which one place stands for all of them only if it is the same on all
_SAME_PLACE = {"clone", "alias", "detach", "_to_copy", "lift_fresh", "masked_fill"}
_CHANNELS = ("split", "split_with_sizes", "slice", "select")
# (kernel, stride, padding, dilation) among the arguments of pooling
_POOLING = {"avg_pool2d": (1, 2, 3, None), "max_pool2d_with_indices": (1, 2, 3, 4)}
_PICTURE = ("convolution", *_POOLING)
_RESIZED = {"_adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_bilinear2d", "upsample_nearest2d", "upsample_bicubic2d",
            "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa", "_upsample_nearest_exact2d", "pixel_shuffle", "pixel_unshuffle"}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How what a layer returns becomes feature maps (B, C, h, w).

    Attributes:
        image: the axis of the images; None: the slowest part of the first axis (windows of an image, one after the other).
        channels: the axes, without that of the images, along which the place does not change.
        order: (h w,) positions along the other axes, flattened, in raster order; elements without a place (class tokens) are left out.
        size: (h, w).
        plain: it is (B, C, h, w) already.
    """

    image: int | None
    channels: tuple[int, ...]
    order: Tensor
    size: tuple[int, int]
    plain: bool = False

    def to_maps(self, x: Tensor, batch: int) -> Tensor:
        """(B, C, h, w) of what the layer returned for `batch` images."""
        if self.plain:
            return x
        x = x.unflatten(0, (batch, -1)) if self.image is None else x.movedim(self.image, 0)
        channels = [axis + 1 for axis in self.channels]
        places = [axis for axis in range(1, x.dim()) if axis not in channels]
        flat = x.permute(0, *channels, *places).reshape(batch, math.prod(x.shape[axis] for axis in channels), -1)
        return flat[:, :, self.order.to(x.device)].unflatten(2, self.size)


Coordinate = Tensor | None  # broadcastable to the value; NaN where an element has none, None where no element has one


class Places:
    """Row and column of every element, for all values of a tape.

    The middle of the pixels that an element sees is its place. Views, windows and class tokens are followed element by element; linear maps and means
    stand in the middle of what they read; attention lies where its queries lie; of several summands the one that is not broadcast says where.
    """

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.samples = Samples(tape.batch)
        height, width = tape.input.data.shape[-2:]
        rows, columns = (torch.arange(n, dtype=torch.float64, device=tape.input.data.device) for n in (height, width))
        self._of: dict[int, tuple[Coordinate, Coordinate]] = {id(tape.input): (rows[:, None], columns[None])}
        for operation in tape.operations:
            found = [self._follow(operation, axis) for axis in (0, 1)]
            for output, *pair in zip(operation.outputs, *found, strict=True):
                self._of[id(output)] = (pair[0], pair[1])

    def of(self, value: Value) -> tuple[Coordinate, Coordinate]:
        """Row and column, each broadcastable to the value."""
        return self._of.get(id(value), (None, None))

    def layout(self, value: Value) -> Layout | None:
        """How `value` becomes maps; None if its elements are not one for each place of a grid."""
        row, column = self.of(value)
        if row is None or column is None or value.data.dim() < 3:
            return None
        shape, image = value.data.shape, self._image_axis(value)
        if image is None and not self.samples.leading(value):
            return None
        row, column = (_per_image(part.expand(shape), image, self.tape.batch) for part in (row, column))
        channels = tuple(a for a in range(row.dim()) if _is_constant(row, a) and _is_constant(column, a))
        for axis in channels:
            row, column = row.narrow(axis, 0, 1), column.narrow(axis, 0, 1)
        row, column = row.flatten(), column.flatten()
        placed = (~(row.isnan() | column.isnan())).nonzero()[:, 0]
        (rows, row), (columns, column) = (_ranks(part[placed]) for part in (row, column))
        at = row * columns + column
        if len(placed) == 0 or len(at) != rows * columns or len(at.unique()) != len(at):
            return None
        if len(at) == 1 and tuple(shape[2:]) != (1, 1):  # the middle of all that was read is no place
            return None
        order = placed[at.argsort()]
        plain = image == 0 and channels == (0,) and len(shape) == 4 and torch.equal(placed, order)
        return Layout(image, channels, order, (rows, columns), plain and len(order) == shape[2] * shape[3])

    def _image_axis(self, value: Value) -> int | None:
        """The axis along which the images lie one by one."""
        batch, shape = self.tape.batch, value.data.shape
        if batch == 1:
            return None if not shape else 0 if shape[0] == 1 else None
        ids = self.samples.ids(value)
        for axis, size in enumerate(shape):
            if size == batch:
                numbers = torch.arange(batch, device=ids.device, dtype=ids.dtype)
                if bool((ids == numbers.view(-1, *[1] * (len(shape) - 1 - axis))).all()):
                    return axis
        return None

    def _follow(self, operation: Operation, axis: int) -> list[Coordinate]:
        """The coordinate of each output from those of the inputs."""
        given = [self._of.get(id(value), (None, None))[axis] for value in operation.inputs]
        outputs = operation.outputs
        if all(coordinate is None for coordinate in given):
            return [None] * len(outputs)
        shapes = [value.data.shape for value in operation.inputs]
        if operation.name in _PICTURE or operation.name in _RESIZED:
            return [_resampled(operation, given[0], shapes[0], output.data.shape, axis) for output in outputs]
        if operation.kind == "rearrangement":
            return _moved(operation, given, shapes)
        if operation.kind == "bilinear":
            return [_attended(given)]
        if operation.kind == "linear":
            on_right = operation.name in ("mm", "bmm", "addmm", "baddbmm") and not isinstance(operation.args[-2], Slot)
            return [_middle(given[0], shapes[0], [-2 if on_right else -1])]
        if operation.kind in ("average", "max", "length") and outputs[0].data.dim() != 0 and _reduced(operation):
            return [_mean_over(operation, given[0], shapes[0], output) for output in outputs]
        if operation.kind == "average":  # fold and its like: the middle of what is added
            return [_weighed(operation, given[0], shapes[0])]
        return [_elementwise(given, shapes, output.data.shape) for output in outputs]


def _per_image(x: Tensor, image: int | None, batch: int) -> Tensor:
    """Of the first image."""
    return (x.unflatten(0, (batch, -1)) if image is None else x.movedim(image, 0))[0]


def _is_constant(x: Tensor, axis: int) -> bool:
    return x.shape[axis] == 1 or x.stride(axis) == 0 or torch.equal(*_numbers(x, x.narrow(axis, 0, 1).expand_as(x)))


def _numbers(*parts: Tensor) -> list[Tensor]:
    """With a number in the place of NaN, which equals nothing."""
    return [part.nan_to_num(nan=-1e9) for part in parts]


def _compact(x: Tensor) -> Coordinate:
    """Without the axes along which nothing changes."""
    if bool(x.isnan().all()):
        return None
    for axis in range(x.dim()):
        if x.shape[axis] > 1 and _is_constant(x, axis):
            x = x.narrow(axis, 0, 1)
    while x.dim() and x.shape[0] == 1:
        x = x[0]
    return x.contiguous()


def _ranks(coordinate: Tensor) -> tuple[int, Tensor]:
    """How many different numbers there are, to a thousandth of a pixel, and the rank of each."""
    numbers, ranks = (coordinate * 1024).round().unique(return_inverse=True)
    return len(numbers), ranks


def _moved(operation: Operation, given: Sequence[Coordinate], shapes: Sequence[torch.Size]) -> list[Coordinate]:
    """The same numbers in another place; constants have no place."""
    first = given[0]
    if operation.name in _SAME_PLACE:
        return [first]
    if operation.name in _CHANNELS and first is not None:
        axis = operation.args[2 if operation.name.startswith("split") else 1] if len(operation.args) > 1 else 0
        if operation.name.startswith("split") and len(operation.args) < 3:
            axis = 0
        from_right = len(shapes[0]) - axis % len(shapes[0])
        if operation.name != "select" and (first.dim() < from_right or first.shape[-from_right] == 1):
            return [first] * len(operation.outputs)
    if operation.name == "cat" and len(given) == len(operation.args[0]):
        axis = operation.args[1] if len(operation.args) > 1 else 0
        from_right = len(shapes[0]) - axis % len(shapes[0])
        if all(c is not None and (c.dim() < from_right or c.shape[-from_right] == 1) for c in given):
            numbers = [_numbers(c)[0] for c in given if c is not None]
            if all(c.shape == numbers[0].shape and torch.equal(c, numbers[0]) for c in numbers[1:]):
                return [first]
    full = [
        torch.full(shape, torch.nan, dtype=torch.float64, device=_device(given)) if c is None else c.expand(shape)
        for c, shape in zip(given, shapes, strict=True)
    ]
    return [_compact(output) for output in _nowhere(operation).call(*full)]


def _device(given: Sequence[Coordinate]) -> torch.device:
    return next(c.device for c in given if c is not None)


def _nowhere(operation: Operation) -> Operation:
    """The operation with NaN in the place of every constant number."""
    args, kwargs = tree_map(
        lambda leaf: (
            torch.full_like(leaf, torch.nan, dtype=torch.float64)
            if isinstance(leaf, Tensor) and leaf.is_floating_point()
            else leaf
        ),
        (operation.args, operation.kwargs),
    )
    if operation.name == "constant_pad_nd":
        args = (*args[:2], torch.nan)
    kwargs = {name: kwargs[name] for name in kwargs if name != "dtype"}
    return replace(operation, args=args, kwargs=kwargs)


def _middle(coordinate: Coordinate, shape: torch.Size, axes: Sequence[int]) -> Coordinate:
    """The mean along axes, which stay with one element."""
    if coordinate is None:
        return None
    axes = [axis for axis in axes if -axis <= coordinate.dim() and coordinate.shape[axis] > 1]
    return coordinate.nanmean(axes, keepdim=True) if axes else coordinate


def _reduced(operation: Operation) -> bool:
    return operation.name in (
        "mean",
        "sum",
        "amax",
        "amin",
        "max",
        "min",
        "linalg_vector_norm",
        "std",
        "var",
        "logsumexp",
    )


def _mean_over(operation: Operation, coordinate: Coordinate, shape: torch.Size, output: Value) -> Coordinate:
    """Of a mean, a sum or a maximum along axes."""
    if coordinate is None:
        return None
    args = operation.args[2:] if operation.name == "linalg_vector_norm" else operation.args[1:]
    dims = args[0] if args and isinstance(args[0], int | list | tuple) and not isinstance(args[0], bool) else None
    axes = [dim % len(shape) for dim in ([dims] if isinstance(dims, int) else dims or range(len(shape)))]
    middle = _middle(coordinate, shape, [axis - len(shape) for axis in axes])
    assert middle is not None
    if output.data.dim() == len(shape):
        return middle
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    full = middle.reshape(*[1] * (len(shape) - middle.dim()), *middle.shape)
    return full.permute(*kept, *axes).flatten(len(kept))[..., 0] if kept else None


def _weighed(operation: Operation, coordinate: Coordinate, shape: torch.Size) -> Coordinate:
    """Of sums with weights that are never negative: the middle of what is added."""
    if coordinate is None:
        return None
    full = coordinate.expand(shape)
    here = ~full.isnan()
    total, count = (operation.call(part)[0] for part in (full.nan_to_num(), here.to(full.dtype)))
    return _compact(torch.where(count == 0, torch.nan, total / count))


def _attended(given: Sequence[Coordinate]) -> Coordinate:
    """Of a product a b: where the rows of a lie, else where the columns of b lie. Queries stand in rows: attention lies where they do."""
    for coordinate, axis in zip(given, (-1, -2), strict=True):
        if coordinate is not None and (coordinate.dim() < -axis or coordinate.shape[axis] == 1):
            return coordinate
    return None


def _elementwise(given: Sequence[Coordinate], shapes: Sequence[torch.Size], shape: torch.Size) -> Coordinate:
    """Of the input that has the output's shape and the most elements with a place."""
    best, score = None, (-1, -1.0)
    for coordinate, own in zip(given, shapes, strict=True):
        if coordinate is None:
            continue
        try:
            size = torch.broadcast_shapes(own, shape)
        except RuntimeError:
            continue
        rank = (int(own == shape), -float(coordinate.isnan().double().mean()))
        if size == shape and rank > score:
            best, score = coordinate, rank
    return best


def _resampled(
    operation: Operation, coordinate: Coordinate, before: torch.Size, after: torch.Size, axis: int
) -> Coordinate:
    """Of a kernel that moves over a picture, and of a picture that is resized: a regular grid becomes another one."""
    if coordinate is None or len(before) != 4:
        return None
    at = axis - 2
    grid = _grid(coordinate, before, at)
    if grid is None:
        return None
    start, pace = grid
    if operation.name in _PICTURE:
        offset, step = _kernel(operation, axis)
    else:
        step = before[at] / after[at]
        offset = (step - 1) / 2
    indices = offset + step * torch.arange(after[at], dtype=torch.float64, device=coordinate.device)
    found = start + pace * indices
    return found[:, None] if axis == 0 else found[None]


def _grid(coordinate: Tensor, shape: torch.Size, at: int) -> tuple[float, float] | None:
    """(first, difference) of a coordinate that grows evenly along the axis `at` and depends on no other; gaps (padding) are filled."""
    others = [axis for axis in range(-coordinate.dim(), 0) if axis != at and coordinate.shape[axis] > 1]
    line = coordinate.nanmean(others, keepdim=True) if others else coordinate
    if others and not bool(((coordinate - line).abs() < 1e-6)[~coordinate.isnan()].all()):
        return None
    line = line.flatten()
    if len(line) != shape[at]:
        return (float(line[0]), 0.0) if len(line) == 1 else None
    there = (~line.isnan()).nonzero()[:, 0]
    if len(there) < 2:
        return (float(line[there[0]]), 0.0) if len(there) == 1 and len(line) == 1 else None
    first, last = int(there[0]), int(there[-1])
    pace = float(line[last] - line[first]) / (last - first)
    start = float(line[first]) - pace * first
    even = start + pace * torch.arange(len(line), dtype=line.dtype, device=line.device)
    return (start, pace) if torch.allclose(even[there], line[there], atol=1e-6) else None


def _kernel(operation: Operation, axis: int) -> tuple[float, float]:
    """(offset, step): the input's index at the middle of the kernel for output 0, and from one output to the next."""
    args = operation.args
    if operation.name == "convolution":
        kernel, stride, padding, dilation = (_pair(part, axis) for part in (args[1].shape[2:], *args[3:6]))
        middle = (kernel - 1) / 2 * dilation - padding
        return (-middle / stride, 1 / stride) if args[6] else (middle, stride)
    where = _POOLING[operation.name]
    kernel, stride, padding, dilation = (
        _pair(args[place], axis) if place is not None and len(args) > place and args[place] != [] else default
        for place, default in zip(where, (1, _pair(args[1], axis), 0, 1), strict=True)
    )
    return (kernel - 1) / 2 * dilation - padding, stride


def _pair(sizes: int | Sequence[int], axis: int) -> int:
    return sizes if isinstance(sizes, int) else sizes[0] if len(sizes) == 1 else sizes[axis]
