"""What a network computes, operation by operation: one class per kind of operation, and the table of torch's operations.

Operations are torch's own, as they reach a kernel: modules, functions, `+=`, einsum, attention and solver loops all end there, so there is one
short table and nothing can pass beside it. An operation that is not in the table stays `Unknown` and is refused when relevance reaches it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from explainode.errors import UserError
from explainode.relevance.linear import Average, Convolution, LinearMap, MatrixProduct

aten = torch.ops.aten


@dataclass(eq=False)
class Value:
    """A tensor that depends on the input.

    Attributes:
        data: what it was when it was computed.
        producer: the operation that computed it; None for the input.
        nonnegative: it cannot be negative, whatever the input: known without looking at the numbers.
        consumers: how many operations read it.
    """

    data: Tensor
    producer: Operation | None = field(default=None, repr=False)  # a repr would walk the whole network
    nonnegative: bool = False
    consumers: int = 0


@dataclass(frozen=True)
class Slot:
    """The place of input number `index` in the arguments of an operation."""

    index: int


@dataclass(eq=False)
class Operation:
    """One operation on tensors that depend on the input; everything else among its arguments is constant.

    Attributes:
        function: torch's operation; args, kwargs: its arguments, with a `Slot` where an input belongs.
        inputs, outputs: what it read and made.
        module: the name of the module that called it; index: its place in the order of computing.
        extra: further results that depend on nothing that is explained, such as the positions of a maximum.
    """

    kind: ClassVar[str] = "unknown"

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...] = ()
    module: str = ""
    index: int = -1
    extra: tuple[Any, ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        """Torch's name: `convolution`, `native_layer_norm`, ..."""
        return str(self.function).split(".")[1]

    def __str__(self) -> str:
        return f"operation {self.name!r}" + (f" in {self.module!r}" if self.module else "")

    @property
    def output(self) -> Value:
        return self.outputs[0]

    def keeps_sign(self) -> bool:
        """Whether the outputs cannot be negative, given what is known of the inputs."""
        return False

    def release(self) -> None:
        """Let go of the outputs' data and of whatever was worked out: for a walk that nobody follows."""
        for value in self.outputs:
            value.data = value.data.new_empty(0)
        self.extra = ()

    def call(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The operation on other inputs -> its explained outputs."""
        found = self.results(*inputs)
        return found[: len(self.outputs)] if self.outputs else found

    def results(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """All that the operation makes of other inputs."""
        args, kwargs = tree_map(
            lambda leaf: inputs[leaf.index] if isinstance(leaf, Slot) else leaf, (self.args, self.kwargs)
        )
        if self.name in ("view", "_unsafe_view"):  # the other inputs may lie otherwise in memory
            return (args[0].reshape(args[1]),)
        if self.name == "as_strided":  # likewise; what was recorded lies in order
            args = (args[0].contiguous(), *args[1:])
        result = self.function(*args, **kwargs)
        return (result,) if isinstance(result, Tensor) else tuple(result)

    def vjp(self, inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """(d outputs / d inputs)^T cotangents at `inputs`; None stands for zeros."""
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in inputs]
            outputs = self.call(*leaves)
            pairs = [(y, c) for y, c in zip(outputs, cotangents, strict=True) if c is not None]
            grads = torch.autograd.grad([y for y, _ in pairs], leaves, [c for _, c in pairs], allow_unused=True)
        return tuple(torch.zeros_like(x) if grad is None else grad for x, grad in zip(inputs, grads, strict=True))


class Unknown(Operation):
    """Not in the table: nobody has said how relevance passes through it."""


class Linear(Operation):
    """y = A x + b with constant A and b."""

    kind = "linear"
    rectified: str | None = None  # the name of the activation that alone reads the output

    @property
    def map(self) -> LinearMap:
        raise NotImplementedError

    @property
    def bias(self) -> Tensor | None:
        """Broadcastable to the output."""
        return None

    def transpose(self, r: Tensor) -> Tensor:
        """A^T r, in the shape of the input."""
        return self.map.transpose(r, self.inputs[0].data)


class ConvolutionOperation(Linear):
    """A convolution, also a transposed one: the linear map that its arguments say."""

    @property
    def map(self) -> LinearMap:
        _, weight, _, stride, padding, dilation, transposed, output_padding, groups = self.args
        return Convolution(weight, stride, padding, dilation, transposed, output_padding, groups)

    @property
    def bias(self) -> Tensor | None:
        bias, dims = self.args[2], self.args[1].dim() - 2
        return None if bias is None else bias.view(-1, *[1] * dims)


class ProductWithConstant(Linear):
    """mm, bmm, addmm, baddbmm: a product of matrices of which one is constant."""

    @property
    def map(self) -> LinearMap:
        left, right = self.args[-2:]
        alpha = self.kwargs.get("alpha", 1)
        weight = right if isinstance(left, Slot) else left
        return MatrixProduct(weight if alpha == 1 else alpha * weight, on_left=isinstance(left, Slot))

    @property
    def bias(self) -> Tensor | None:
        if len(self.args) < 3:
            return None
        beta = self.kwargs.get("beta", 1)
        return self.args[0] if beta == 1 else beta * self.args[0]


class Folded(Linear):
    """A linear operation and the batch normalization that alone reads it, as one linear operation; no weight is edited."""

    def __init__(self, linear: Linear, norm: BatchNorm) -> None:
        super().__init__(
            linear.function, linear.args, linear.kwargs, linear.inputs, norm.outputs, linear.module, norm.index
        )
        self.linear, self.norm = linear, norm

    def release(self) -> None:
        super().release()
        self.__dict__.pop("map", None)

    @cached_property
    def map(self) -> LinearMap:
        return self.linear.map.scaled_outputs(self.norm.slope)

    @cached_property
    def bias(self) -> Tensor:
        offset = self.norm.offset
        return offset if self.linear.bias is None else offset + self.norm.slope * self.linear.bias

    def transpose(self, r: Tensor) -> Tensor:
        if (
            isinstance(self.linear, ConvolutionOperation) and r.numel() < self.args[1].numel()
        ):  # fewer outputs than weights: scale the outputs
            return self.linear.map.transpose(r * self.norm.slope, self.inputs[0].data)
        return super().transpose(r)


class AverageOperation(Linear):
    """Means, sums and interpolation: linear, with weights that are nobody's parameters and never negative."""

    kind = "average"

    @property
    def map(self) -> LinearMap:
        return Average(self)

    def keeps_sign(self) -> bool:
        return all(value.nonnegative for value in self.inputs)


class Affine(Operation):
    """y = a x + c, element by element, with constant a and c."""

    kind = "affine"

    @property
    def slope(self) -> Tensor:
        """a, broadcastable to the output."""
        one = torch.ones((), dtype=self.output.data.dtype, device=self.output.data.device)
        # in its type: a float32 with axes would win over a double without
        left, right = (part.to(one) if isinstance(part, Tensor) else part for part in (*self.args, None)[:2])
        name = self.name
        if name == "mul":
            return one * (right if isinstance(left, Slot) else left)
        if name == "div":
            return one / right
        if name == "neg":
            return -one
        alpha = self.kwargs.get("alpha", 1)
        if name == "rsub":
            return -alpha * one
        if isinstance(left, Slot):
            return one
        return alpha * one if name == "add" else -alpha * one

    def keeps_sign(self) -> bool:
        constant = self.args[1] if self.name in ("mul", "div") and isinstance(self.args[0], Slot) else None
        return isinstance(constant, int | float) and constant >= 0 and self.inputs[0].nonnegative


class BatchNorm(Affine):
    """Batch normalization by running statistics: one slope and one offset per channel."""

    @cached_property
    def _scale_and_offset(self) -> tuple[Tensor, Tensor]:
        _, weight, bias, mean, variance, _, *rest = self.args
        scale = (variance + rest[-1 if self.name == "_native_batch_norm_legit_no_training" else 1]).rsqrt()
        scale = scale if weight is None else weight * scale
        offset = -mean * scale if bias is None else bias - mean * scale
        shape = (-1, *[1] * (self.output.data.dim() - 2))
        return scale.view(shape), offset.view(shape)

    @property
    def slope(self) -> Tensor:
        return self._scale_and_offset[0]

    @property
    def offset(self) -> Tensor:
        """c, broadcastable to the output."""
        return self._scale_and_offset[1]


class Activation(Operation):
    """A function of each element alone."""

    kind = "activation"

    def keeps_sign(self) -> bool:
        low = self.args[1] if self.name in ("hardtanh", "clamp", "clamp_min") and len(self.args) > 1 else None
        return self.name in _NONNEGATIVE or (isinstance(low, int | float) and low >= 0)


class Sum(Operation):
    """a + b or a - b, both explained."""

    kind = "sum"
    rectified: str | None = None  # as of a linear operation

    @property
    def signs(self) -> tuple[float, float]:
        """The constants before a and b."""
        alpha = self.kwargs.get("alpha", 1)
        return (1.0, alpha) if self.name == "add" else (1.0, -alpha)

    def keeps_sign(self) -> bool:
        return self.name == "add" and all(value.nonnegative for value in self.inputs)


class Product(Operation):
    """a * b or a / b, both explained, element by element."""

    kind = "product"

    def keeps_sign(self) -> bool:
        return all(value.nonnegative for value in self.inputs)


class Bilinear(Operation):
    """A product of two explained matrices: queries with keys, attention with values."""

    kind = "bilinear"

    def keeps_sign(self) -> bool:
        return all(value.nonnegative for value in self.inputs)


class Softmax(Operation):
    """Weights that are positive and add up to 1 along `dim`."""

    kind = "softmax"

    def keeps_sign(self) -> bool:
        return True

    @property
    def dim(self) -> int:
        return self.args[1]


class Norm(Operation):
    """Layer, group and instance normalization: by statistics of the input itself."""

    kind = "norm"


class Length(Operation):
    """The Euclidean length of vectors."""

    kind = "length"

    def keeps_sign(self) -> bool:
        return True

    def spread(self, lengths: Tensor) -> Tensor:
        """A number per vector, at each of its elements; broadcastable to the input."""
        dims = self.args[2] if len(self.args) > 2 else None
        if dims is None or (len(self.args) > 3 and self.args[3]):
            return lengths
        rank = self.inputs[0].data.dim()
        for dim in sorted(dim % rank for dim in ([dims] if isinstance(dims, int) else dims)):
            lengths = lengths.unsqueeze(dim)
        return lengths


class Maximum(Operation):
    """The value of a winner: max pooling, amax, where, maximum."""

    kind = "max"

    def keeps_sign(self) -> bool:
        return all(value.nonnegative for value in self.inputs) and self.name in (
            "max_pool2d_with_indices",
            "amax",
            "max",
            "maximum",
        )

    def vjp(self, inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        if self.name == "max_pool2d_with_indices" and inputs[0] is self.inputs[0].data and cotangents[0] is not None:
            defaults: tuple[Any, ...] = (None, None, [], 0, 1, False)
            kernel, stride, padding, dilation, ceil = (*self.args, *defaults[len(self.args) :])[1:]
            back = aten.max_pool2d_with_indices_backward
            return (back(cotangents[0], inputs[0], kernel, stride, padding, dilation, ceil, self.extra[0]),)
        return super().vjp(inputs, cotangents)


class Rearrangement(Operation):
    """The same numbers in another place: views, concatenation, padding, indexing."""

    kind = "rearrangement"

    def keeps_sign(self) -> bool:
        if self.name in ("cat", "stack"):
            whole = len(self.inputs) == len(self.args[0])
            return whole and all(value.nonnegative for value in self.inputs)
        return all(value.nonnegative for value in self.inputs) and self.name != "masked_fill"

    def vjp(self, inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        if self.name == "detach":  # the same numbers: what stops the gradient stops no relevance
            (cotangent,) = cotangents
            return (torch.zeros_like(inputs[0]) if cotangent is None else cotangent,)
        return super().vjp(inputs, cotangents)


def moves_one(operation: Operation) -> bool:
    """Whether an operation only puts the numbers of one value into other places."""
    return operation.kind == "rearrangement" and len(operation.inputs) == 1


_NONNEGATIVE = {"relu", "sigmoid", "hardsigmoid", "exp", "sqrt", "abs"}

Kind = type[Operation]


def _with_constant(one: Kind, several: Kind) -> Callable[[Sequence[Any], int], Kind]:
    """One kind if a single input is explained, another if more are."""
    return lambda args, inputs: one if inputs == 1 else several


def _quotient(args: Sequence[Any], inputs: int) -> Kind:
    if inputs > 1:
        return Product
    return Affine if isinstance(args[0], Slot) else Activation


def _matrix_product(args: Sequence[Any], inputs: int) -> Kind:
    factors = sum(isinstance(factor, Slot) for factor in args[-2:])
    if len(args) > 2 and isinstance(args[0], Slot):
        return Unknown  # an explained tensor where the constant bias is expected
    return ProductWithConstant if factors == 1 else Bilinear


def _batch_norm(args: Sequence[Any], inputs: int) -> Kind:
    training = args[5] if len(args) > 7 else False
    return Norm if training or args[3] is None else BatchNorm


def _power(args: Sequence[Any], inputs: int) -> Kind:
    return Activation if inputs == 1 else Unknown


def _convolution(args: Sequence[Any], inputs: int) -> Kind:
    return ConvolutionOperation if inputs == 1 and isinstance(args[0], Slot) else Unknown


def _index_put(args: Sequence[Any], inputs: int) -> Kind:
    return Unknown if len(args) > 3 and args[3] else Rearrangement  # accumulating adds


def _vector_norm(args: Sequence[Any], inputs: int) -> Kind:
    return Length if len(args) < 2 or args[1] == 2 else Unknown


def _sampled(args: Sequence[Any], inputs: int) -> Kind:
    """A constant grid averages pixels, by weights that are never negative unless it interpolates by cubes (2)."""
    return AverageOperation if inputs == 1 and isinstance(args[0], Slot) and args[2] != 2 else Unknown


def _names(kind: Kind, names: str) -> dict[str, Callable[[Sequence[Any], int], Kind]]:
    return dict.fromkeys(names.split(), lambda args, inputs: kind)


TABLE: dict[str, Callable[[Sequence[Any], int], Kind]] = {
    "convolution": _convolution,
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), _matrix_product),
    **dict.fromkeys(("add", "sub"), _with_constant(Affine, Sum)),
    **_names(Affine, "neg rsub"),
    "mul": _with_constant(Affine, Product),
    "div": _quotient,
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"),
        _batch_norm,
    ),
    **_names(Norm, "native_layer_norm native_group_norm"),
    "pow": _power,
    "linalg_vector_norm": _vector_norm,
    "index_put": _index_put,
    "grid_sampler_2d": _sampled,
    **_names(
        Activation,
        "relu leaky_relu elu celu selu gelu silu mish softplus hardswish hardsigmoid hardtanh sigmoid tanh exp log sqrt rsqrt reciprocal abs square "
        "clamp clamp_min clamp_max threshold sin cos erf expm1 log1p _prelu_kernel",
    ),
    **_names(
        AverageOperation,
        "mean sum avg_pool2d _adaptive_avg_pool2d avg_pool3d _adaptive_avg_pool3d avg_pool1d upsample_bilinear2d upsample_nearest2d "
        "_upsample_nearest_exact2d _upsample_bilinear2d_aa upsample_trilinear3d upsample_nearest3d upsample_linear1d upsample_nearest1d col2im cumsum",
    ),
    **_names(Softmax, "_softmax _safe_softmax"),
    **_names(Maximum, "max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d amax max where"),
    **dict.fromkeys(("maximum", "minimum"), _with_constant(Activation, Maximum)),
    **_names(
        Rearrangement,
        "view _unsafe_view reshape _reshape_alias permute transpose t expand squeeze unsqueeze select slice split split_with_sizes unbind cat stack "
        "clone alias detach constant_pad_nd roll flip index index_select gather masked_fill _to_copy lift_fresh im2col pixel_shuffle "
        "pixel_unshuffle channel_shuffle native_channel_shuffle unfold repeat reflection_pad2d replication_pad2d as_strided",
    ),
}
# of the results of these only the first is explained
FIRST_RESULT_ONLY = {
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "native_layer_norm", "native_group_norm", "max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d", "max",
}  # fmt: skip
# these ask a tensor for its shape and type only
SHAPE_ONLY = {
    "new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like",
}  # fmt: skip
UNINITIALIZED = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
# conditions and positions that depend on the input may steer these: they say whose value is taken
ROUTED_BY_CONDITIONS = {"where", "index", "index_select", "gather", "masked_fill"}


def kind_of(name: str, args: Sequence[Any], inputs: int) -> Kind:
    """The class of torch's operation `name`, called with `args` of which `inputs` are explained."""
    choose = TABLE.get(name)
    return Unknown if choose is None else choose(args, inputs)


def refuse(operation: Operation) -> UserError:
    """What to tell about an operation outside of the table."""
    return UserError(
        f"{operation} is not covered by the relevance rules, expected one of the table in explainode.relevance.operations; "
        "use a gradient method (saliency, ig), or write the layer with covered operations"
    )
