"""Universal root inference: what part of a layer's input carries the class is found by fitting the layer's output to the relevance that arrived.

A unit f is a linear map with the activation that alone reads it, f(T) = sigma(A T). Its input falls into signal and root, x = S + N: f(S) is to equal
the relevance that arrived, the root N is what is left, and relevance goes to the inputs by what S contributes.

Notation of the root inference paper: T is the signal while it is searched for, R the relevance of the outputs, R_hat the same on the scale of f. Scalars are per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from explainode.errors import UserError, nearest
from explainode.relevance.composite import Assignment, Composite
from explainode.relevance.composites import lrp
from explainode.relevance.linear import LinearMap
from explainode.relevance.operations import Linear, Operation, Value
from explainode.relevance.rule import Relevance, Rule, ratio, vanishing
from explainode.relevance.rules.lrp import Part, ZBox, ZPlus, contributions, hand_back, spread
from explainode.relevance.tape import Tape
from explainode.relevance.walk import Walk

UNITS = ("auto", "rectified", "linear", "positive")
INITS = ("zero", "x")
STEPS = ("exact", "raw")
CONSTRAINTS = ("none", "backtrack", "elementwise", "soft")
PROPAGATIONS = ("shares", "gradient")
SMOOTH = ("gelu", "silu", "mish", "hardswish", "elu", "celu", "selu", "tanh")  # activations with sigma(0) = 0 that bend
HALVINGS = 6
START = 1e-3  # of x: at T = 0 a rectifier has no gradient
DEAD = 1e-4  # of |A x|: below it a rectifier counts as closed where its slope is read, so that rounding decides nothing


@dataclass(eq=False)
class Unit:
    """f(T) = sigma(A T) for T between 0 and x, without the bias, so that f(0) = 0.

    Attributes:
        operation: the linear map; activation: the operation of a smooth sigma, None for a rectifier or none at all.
        rectified: sigma(z) = max(z, 0); linear: sigma(z) = z; both as they are if `activation` is None.
        maps: A in parts, each for the elements of T where its mask is true (None: for all).
    """

    operation: Linear
    maps: list[tuple[Tensor | None, LinearMap]]
    rectified: bool = True
    activation: Operation | None = None

    @classmethod
    def of(cls, operation: Linear, kind: str, walk: Walk) -> Unit:
        """The unit of a linear operation on a tape; `kind` as in `RootInference.unit`."""
        source, A = operation.inputs[0], operation.map
        activation = None
        if kind == "auto":
            activation = smooth_reader(operation, walk.tape)
            kind = "rectified" if source.nonnegative or activation is not None else "positive"
        if kind == "linear" and not source.nonnegative:
            kind = "positive"
        if kind != "positive":
            return cls(operation, [(None, A)], kind == "rectified" and activation is None, activation)
        if source.nonnegative:
            return cls(operation, [(None, A.positive)], rectified=False)
        parts: list[tuple[Tensor | None, LinearMap]] = [(source.data >= 0, A.positive)]
        if A.negative is not None:
            parts.append((source.data < 0, A.negative))
        return cls(operation, parts, rectified=False)

    def z(self, T: Tensor) -> Tensor:
        """A T."""
        return contributions([(T if mask is None else T * mask, A) for mask, A in self.maps])

    def back(self, s: Tensor, rows: Tensor | None = None) -> Tensor:
        """A^T s, of some rows of the batch."""
        x = self.operation.inputs[0].data
        x = x if rows is None else x[rows]
        total: Tensor | None = None
        for mask, A in self.maps:
            part = A.transpose(s, x)
            part = part if mask is None else part.mul_(mask if rows is None else mask[rows])
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def y(self, z: Tensor) -> Tensor:
        """sigma(z)."""
        if self.activation is not None:
            return self.activation.call(z)[0]
        return z.clamp(min=0) if self.rectified else z

    def slope(self, z: Tensor, threshold: Tensor | float = 0.0) -> Tensor:
        """sigma'(z); a rectifier is open above the threshold."""
        if self.activation is not None:
            return self.activation.vjp([z], [torch.ones_like(z)])[0]
        return (z > threshold).to(z.dtype) if self.rectified else torch.ones_like(z)

    def curvature(self, z: Tensor) -> Tensor:
        """sigma''(z)."""
        if self.activation is None:
            return torch.zeros_like(z)
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.activation.call(z)[0].sum(), z, create_graph=True)
            (curvature,) = torch.autograd.grad(slope.sum(), z, allow_unused=True) if slope.requires_grad else (None,)
        return torch.zeros_like(z) if curvature is None else curvature.detach()


def smooth_reader(operation: Linear, tape: Tape) -> Operation | None:
    """The smooth activation that alone reads the output of a linear operation, seen through views."""
    value = operation.output
    while value.consumers == 1:
        reader = next(o for o in tape.operations if value in o.inputs)
        if reader.name not in ("view", "_unsafe_view", "reshape"):
            return reader if reader.name in SMOOTH else None
        value = reader.output
    return None


@dataclass(eq=False)
class Signal:
    """What an inference found: the signal S in the shape of x, z = A S, and A x; R_hat is what f(S) was to be."""

    S: Tensor
    z: Tensor
    z_x: Tensor
    R_hat: Tensor


@dataclass(frozen=True)
class Inference:
    """Algorithm 1: gradient descent on |f(T) - R_hat|^2.

    Args:
        steps: how many.
        init: T begins at `x`, or at (nearly) `zero`. With a gradient constraint `x` is self-defeating: the root begins at 0, where rectifiers have no
            gradient, and no step is allowed.
        match: R_hat = R sum f+(x) / sum R, so that relevance and activations are of one size; else R_hat = R.
        box: T stays between 0 and x, element by element, so that signal and root both lie where the layer's inputs lie; else only where x cannot be
            negative T cannot either.
        step: `exact`: to the minimum along the gradient as if f were linear; `raw`: the gradient itself.
        gamma: multiplies the step.
        gradient_constrain: what keeps the root N = x - T where f is as linear as at x, measured by A^T sigma'(A N) against A^T sigma'(A x):
            `backtrack`: an image's step is halved, six times at most, until the mean difference is below tau times the mean gradient, and is not done
            at all if that is not enough; the next begins with twice the part that was done; `elementwise`: elements whose difference is above stay;
            `soft`: each element's step is multiplied by exp(-difference / mean gradient); `none`.
        tau: see there.

    Raises:
        UserError: for an unknown word, no step, or a gamma or tau that is not positive.

    Source: root inference (anonymous), Eq. 10-16 and Algorithm 1, which leaves open what all switches but `steps` and `gamma` decide. We match, box and step exactly:
    as written the relevance is far smaller than activations, so the signal vanishes and N = x is no root, and raw steps diverge.
    """

    steps: int = 20
    init: str = "zero"
    match: bool = True
    box: bool = True
    step: str = "exact"
    gamma: float = 1.0
    gradient_constrain: str = "backtrack"
    tau: float = 0.5

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.gamma > 0 or not self.tau > 0:
            raise UserError(
                f"steps, gamma and tau must be positive, got {self.steps}, {self.gamma} and {self.tau}; try 20, 1 and 0.5"
            )
        _check(self.init, INITS, "init")
        _check(self.step, STEPS, "step")
        _check(self.gradient_constrain, CONSTRAINTS, "gradient_constrain")

    def __call__(self, unit: Unit, R: Tensor, walk: Walk) -> Signal:
        """The signal for relevance R, in the shape of the unit's output."""
        into, out, samples = unit.operation.inputs[0], unit.operation.output, walk.samples
        x = into.data
        z_x = unit.z(x)
        R_hat = R
        if self.match:
            k = ratio(samples.sum(out, unit.y(z_x).clamp(min=0)), samples.sum(out, R))
            R_hat = R * samples.spread(out, k)
        linear_region = _LinearRegion(self, unit, z_x, walk) if self.gradient_constrain != "none" else None
        closed = DEAD * z_x.abs()
        T, z = (x, z_x) if self.init == "x" else (START * x, START * z_x)
        for _ in range(self.steps):
            slope = unit.slope(z, closed)
            r = unit.y(z) - R_hat
            g = unit.back(2 * r * slope)
            Jz = unit.z(g)  # A g
            t = self._length(r, slope * Jz, out, walk)
            d = g * samples.spread(into, t)
            if linear_region is not None:
                d = linear_region.limit(d, z, Jz * samples.spread(out, t))
                if bool(linear_region.stuck.all()):
                    break
            T = self.constrain(T - d, x, into.nonnegative)
            z = unit.z(T)
        return Signal(T, z, z_x, R_hat)

    def _length(self, r: Tensor, Jg: Tensor, out: Value, walk: Walk) -> Tensor:
        """(B,): gamma <r, Jg> / <Jg, Jg>, the step along -g that minimizes |r - t Jg|^2, or gamma."""
        if self.step == "raw":
            return torch.full((walk.tape.batch,), self.gamma, dtype=torch.float64, device=r.device)
        return self.gamma * ratio(walk.samples.sum(out, r * Jg), walk.samples.sum(out, Jg.square()))

    def constrain(self, T: Tensor, x: Tensor, nonnegative: bool) -> Tensor:
        """T in its domain, Eq. (16)."""
        if nonnegative:
            T = T.clamp_(min=0)
            return torch.minimum(T, x) if self.box else T
        return T.clamp(x.clamp(max=0), x.clamp(min=0)) if self.box else T


class _LinearRegion:
    """Keeps the root where the gradient of the unit's summed output is nearly that at x."""

    def __init__(self, inference: Inference, unit: Unit, z_x: Tensor, walk: Walk) -> None:
        self.inference, self.unit, self.z_x, self.walk = inference, unit, z_x, walk
        self.slope_x = unit.slope(z_x)
        self.into = unit.operation.inputs[0]
        size = walk.samples.sum(self.into, unit.back(self.slope_x).abs())
        self.allowed = inference.tau * size
        self.mean = size / (self.into.data.numel() / walk.tape.batch)
        self.scale = torch.ones_like(size)  # of the step to be tried first
        self.stuck = torch.zeros_like(
            size, dtype=torch.bool
        )  # images whose step was not done: the next would be the same

    def difference(self, z_N: Tensor) -> Tensor:
        """|A^T (sigma'(A N) - sigma'(A x))|, in the shape of x."""
        return self.unit.back(self.unit.slope(z_N, DEAD * self.z_x.abs()) - self.slope_x).abs_()

    def limit(self, d: Tensor, z: Tensor, dz: Tensor) -> Tensor:
        """The part of the step d that is allowed, from the signal with A T = z; dz = A d. Before the box: A N is then known from what is known."""
        samples, rest = self.walk.samples, self.z_x - z
        if self.inference.gradient_constrain == "soft":
            return d * torch.exp(-ratio(self.difference(rest + dz), samples.spread(self.into, self.mean)))
        if self.inference.gradient_constrain == "elementwise":
            bound = samples.spread(self.into, self.inference.tau * self.mean)
            return torch.where(self.difference(rest + dz) <= bound, d, 0.0)
        return d * samples.spread(self.into, self._backtrack(rest, dz))

    def _backtrack(self, rest: Tensor, dz: Tensor) -> Tensor:
        """(B,): the largest part of the step that is allowed, of 1, 1/2, 1/4, ... from twice what was allowed last; or 0."""
        out, samples = self.unit.operation.output, self.walk.samples
        scale = torch.where(self.stuck, 0.0, self.scale)
        open_ = ~self.stuck  # images that are not decided
        for _ in range(HALVINGS + 1):
            z_N = torch.addcmul(rest, dz, samples.spread(out, scale))
            open_ = open_ & (self._amount(z_N, open_) > self.allowed)
            if not bool(open_.any()):
                self.scale = (2 * scale).clamp(max=1)
                return scale
            scale = torch.where(open_, scale / 2, scale)
        self.stuck = self.stuck | open_
        scale = torch.where(open_, 0.0, scale)
        self.scale = (2 * scale).clamp(max=1)
        return scale

    def _amount(self, z_N: Tensor, images: Tensor) -> Tensor:
        """(B,): the summed difference of some images; of others anything."""
        out, samples = self.unit.operation.output, self.walk.samples
        if bool(images.all()) or not (samples.leading(self.into) and samples.leading(out)):
            return samples.sum(self.into, self.difference(z_N))
        rows = images.repeat_interleave(len(z_N) // len(images)).nonzero()[:, 0]
        into = images.repeat_interleave(len(self.into.data) // len(images)).nonzero()[:, 0]
        slope = self.unit.slope(z_N[rows], DEAD * self.z_x[rows].abs()) - self.slope_x[rows]
        amounts = self.unit.back(slope, into).abs_().reshape(int(images.sum()), -1).sum(1, dtype=self.allowed.dtype)
        return torch.zeros_like(self.allowed).masked_scatter_(images, amounts)


@dataclass(frozen=True)
class RootInference(Rule):
    """R_i = sum_j q_ij / (sum_i q_ij) R_j with q_ij = (S_i a_ij)+: the z+ rule, evaluated at the inferred signal S.

    Args:
        inference: how the signal is found.
        positive_constrain: only positive contributions count; else q_ij = S_i a_ij, for neurons with f_j(S) > 0.
        second_order: neurons with a smooth sigma weigh as the second-order Taylor polynomial of f at S says of f(S) on the way to the zero signal,
            z sigma'(z) - z^2 sigma''(z) / 2; without, as the first-order one. Both are f(S) itself where sigma is piecewise linear: nothing changes there.
        propagation: `shares`: as above; `gradient`: R_i = S_i d sum_j f_j(S) / d S_i, which takes the fitted f for R and conserves nothing.
        unit: what f is: `rectified`: max(A T, 0), for inputs that cannot be negative; `linear`: A T, for logits; `positive`:
            A+ T+ + A- T-, for inputs of both signs; `auto`: sigma(A T) if a smooth activation alone reads the output, else `rectified` or
            `positive` by the sign of the inputs.

    Relevance of both signs is split, and each sign has a signal of its own. What arrives at neurons that the signal does not reach is handed to the
    others of the image in proportion, so the sum is conserved. Measured per image: `root_residual` |f(S) - R_hat|^2 / |R_hat|^2; `root_output`
    sum f(N)+ / sum f(x)+, 0 for a true root; `root_gradient_mse` of A^T sigma' at N and at x.

    Raises:
        UserError: for an unknown word.

    Source: root inference (anonymous), Eq. 17, Algorithm 1, Sec. 3. We share out what arrived instead of multiplying Eq. 17 out, which is the paper's "only the
    positive output" made conserving; drop biases, so that f(0) = 0; and read the second-order term at S with the sign that leads to zero.
    """

    kinds = ("linear",)
    inference: Inference = field(default_factory=Inference)
    positive_constrain: bool = True
    second_order: bool = True
    propagation: str = "shares"
    unit: str = "auto"

    def __post_init__(self) -> None:
        _check(self.propagation, PROPAGATIONS, "propagation")
        _check(self.unit, UNITS, "unit")

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        assert isinstance(operation, Linear)
        (R,) = relevance
        assert R is not None
        unit = Unit.of(operation, self.unit, walk)
        parts = signs(R, operation.output, walk) if self.propagation == "shares" else [R]
        found = [self.infer(unit, part, walk) for part in parts]
        share, S, numbers = found[0]
        if len(found) > 1:  # each sign counts as much as relevance has it
            other, S_other, numbers_other = found[1]
            amounts = [walk.samples.sum(operation.output, part.abs()) for part in parts]
            weight = ratio(amounts[0], amounts[0] + amounts[1])
            share = share + other
            S = torch.lerp(S_other, S, walk.samples.spread(operation.inputs[0], weight))
            numbers = {name: torch.lerp(numbers_other[name], number, weight) for name, number in numbers.items()}
        for name, number in numbers.items():
            walk.measure(name, number)
        if walk.signals is not None:
            walk.signals.setdefault(operation.module, []).append(S)
        return (share,)

    def infer(self, unit: Unit, R: Tensor, walk: Walk) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The relevance of the inputs, the signal, and what is measured."""
        signal = self.inference(unit, R, walk)
        return self.share(unit, signal, R, walk), signal.S, measure(unit, signal, walk)

    def share(self, unit: Unit, signal: Signal, R: Tensor, walk: Walk) -> Tensor:
        """The relevance of the inputs."""
        operation, S, x = unit.operation, signal.S, unit.operation.inputs[0].data
        if self.propagation == "gradient":
            return S * unit.back(unit.slope(signal.z, DEAD * signal.z_x.abs()))
        parts: list[Part] = [(S, operation.map)]
        if self.positive_constrain:
            parts = positive_parts(operation, S)
            z = contributions(parts)
            dead = vanishing(z)
        else:
            z = signal.z
            dead = vanishing(z) | (unit.y(z) <= 0)
        R, lost = hand_to_living(R * self.weight(unit, signal.z), R, dead, operation, walk)
        share = hand_back(parts, torch.where(dead, 0.0, R / torch.where(dead, 1.0, z)), x)
        return share if lost is None else share + spread(operation, lost)

    def weight(self, unit: Unit, z: Tensor) -> Tensor | float:
        """What the Taylor polynomial says of sigma(z), as a part of it; 1 for piecewise linear units and where z <= 0."""
        if unit.activation is None:
            return 1.0
        y, taylor = unit.y(z), z * unit.slope(z)
        if self.second_order:
            taylor = taylor - z.square() * unit.curvature(z) / 2
        bends = (z > 0) & ~vanishing(y)
        return torch.where(bends, taylor / torch.where(bends, y, 1.0), 1.0).clamp(min=0)


def measure(unit: Unit, signal: Signal, walk: Walk) -> dict[str, Tensor]:
    """How well a signal fits and how near its root is, (B,) by name; see `RootInference`."""
    into, out, samples = unit.operation.inputs[0], unit.operation.output, walk.samples
    z_N = signal.z_x - signal.z
    residual = samples.sum(out, (unit.y(signal.z) - signal.R_hat).square())
    of_N, of_x = (samples.sum(out, unit.y(z).clamp(min=0)) for z in (z_N, signal.z_x))
    difference = unit.back(unit.slope(z_N, DEAD * signal.z_x.abs()) - unit.slope(signal.z_x))
    return {
        "root_residual": ratio(residual, samples.sum(out, signal.R_hat.square())),
        "root_output": ratio(of_N, of_x),
        "root_gradient_mse": samples.sum(into, difference.square()) / (into.data.numel() / walk.tape.batch),
    }


@dataclass(frozen=True)
class EM(Rule):
    """T <- T * A+^T (R / A+ T) / A+^T 1 from T = x, then R_i = T_i (A+^T 1)_i: the multiplicative root inference.

    Each step lowers the divergence KL(R || A+ T), keeps T >= 0, and at every step the relevance of the inputs adds up to that of the outputs. One
    step is the z+ rule; two are sharper; many over-fit. Inputs of both signs: the pair T+ with A+, T- with A-. Relevance of both signs is split.

    Raises:
        UserError: for no step.

    Source: ours, as expectation maximization (Richardson 1972; Lucy 1974) on the root inference paper's Eq. 9; not the paper's method.
    """

    kinds = ("linear",)
    steps: int = 2

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(
                f"steps must be at least 1, got {self.steps}; 1 is the z+ rule, 2 the recommended sharpening"
            )

    def propagate(self, operation: Operation, relevance: Relevance, walk: Walk) -> Relevance:
        assert isinstance(operation, Linear)
        (R,) = relevance
        assert R is not None
        total: Tensor | None = None
        for part in signs(R, operation.output, walk):
            share = self.share(operation, part, walk)
            total = share if total is None else total + share
        return (total,)

    def share(self, operation: Linear, R: Tensor, walk: Walk) -> Tensor:
        x = operation.inputs[0].data
        parts = [(T, A) for T, A in positive_parts(operation, x) if A is not None]
        n = [A.transpose(torch.ones_like(R), x) for _, A in parts] if self.steps > 1 else []
        for _ in range(self.steps - 1):
            s = ratio(R, contributions([*parts]))
            parts = [(T * ratio(A.transpose(s, x), n_A), A) for (T, A), n_A in zip(parts, n, strict=True)]
        return ZPlus().hand_out(operation, R, contributions([*parts]), [*parts], walk)


def positive_parts(operation: Linear, S: Tensor) -> list[Part]:
    """S+ with A+ and S- with A-, the second only where inputs can be negative."""
    A = operation.map
    if operation.inputs[0].nonnegative:
        return [(S, A.positive)]
    return [(S.clamp(min=0), A.positive), (S.clamp(max=0), A.negative)]


def signs(R: Tensor, out: Value, walk: Walk) -> list[Tensor]:
    """Relevance as a sum of parts that have one sign in each image: R itself where it has one."""
    parts = [R.clamp(min=0), R.clamp(max=0)]
    up, down = (walk.samples.sum(out, part) for part in parts)
    return parts if bool(((up > 0) & (down < 0)).any()) else [R]


def hand_to_living(
    weighted: Tensor, R: Tensor, dead: Tensor, operation: Linear, walk: Walk
) -> tuple[Tensor, Tensor | None]:
    """`weighted` relevance of the living neurons, scaled per image so that it adds up to R; and what no neuron of the image can take, or None."""
    out, samples = operation.output, walk.samples
    arrived, living = samples.sum(out, R), samples.sum(out, torch.where(dead, 0.0, weighted))
    nobody = vanishing(living) & ~vanishing(arrived)
    lost = None
    if bool(nobody.any()):
        lost = R * samples.spread(out, nobody.to(R.dtype))
        walk.note("spread", out, lost)
    return weighted * samples.spread(out, ratio(arrived, living)), lost


def root_inference(
    inference: Inference,
    positive_constrain: bool = True,
    second_order: bool = True,
    propagation: str = "shares",
    low: float = 0.0,
    high: float = 1.0,
    residual: str = "positive",
    attention: str = "constant",
    seed: str = "logit",
) -> Composite:
    """Root inference in every linear map but the first, which has z^B; averages by z+, everything else as in `composites.lrp`.

    Args:
        inference, positive_constrain, second_order, propagation: see `RootInference`.
        low, high: of the pixels.
        residual, attention, seed: see `composites.lrp`.

    Raises:
        UserError: for an unknown word or low >= high.
    """

    def rule(unit: str) -> RootInference:
        return RootInference(inference, positive_constrain, second_order, propagation, unit)

    return _first_by_box(
        [Assignment(rule("linear"), position="last"), Assignment(rule("auto"))], low, high, residual, attention, seed
    )


def dtd_em(
    steps: int = 2,
    low: float = 0.0,
    high: float = 1.0,
    residual: str = "positive",
    attention: str = "constant",
    seed: str = "logit",
) -> Composite:
    """`EM` in every linear map but the first, which has z^B; averages by z+.

    Args:
        steps: see `EM`.
        low, high: of the pixels.
        residual, attention, seed: see `composites.lrp`.

    Raises:
        UserError: for no step, an unknown word or low >= high.
    """
    return _first_by_box([Assignment(EM(steps))], low, high, residual, attention, seed)


def _first_by_box(
    linear: Sequence[Assignment], low: float, high: float, residual: str, attention: str, seed: str
) -> Composite:
    first = Assignment(ZBox(low, high), kind="linear", position="first")
    return lrp([first, *linear, Assignment(ZPlus(), kind="average")], residual=residual, attention=attention, seed=seed)


def _check(word: str, words: tuple[str, ...], name: str) -> None:
    if word not in words:
        raise UserError(
            f"{name} must be one of {', '.join(words)}, got {word!r}; the nearest are {nearest(word, words)}"
        )
