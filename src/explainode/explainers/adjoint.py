"""Explanations by the adjoint of a neural ODE: the score's gradient at the first state, at the pixels, and at any depth in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from explainode.dynamics.block import ODEBlock, ode_blocks
from explainode.errors import UserError, nearest
from explainode.explainers.base import Explainer
from explainode.explainers.cam import cam
from explainode.explainers.gradients import input_gradient
from explainode.explainers.passes import differentiate, forward, in_passes, predict
from explainode.explainers.targets import select_score

PLACES = ("state", "pixel")


def continuous_blocks(model: nn.Module) -> list[ODEBlock]:
    """The blocks of a network that solve equations, in the order of its modules.

    Raises:
        UserError: if there are none.
    """
    blocks = list(ode_blocks(model).values())
    if not blocks:
        raise UserError(
            f"{type(model).__name__} solves no equation, so it has no adjoint to explain it by; "
            "train a neural ODE (model=neural_ode), or explain a ResNet through one (explainer=[surrogate])"
        )
    return blocks


def state_and_adjoint(
    model: nn.Module, x: Tensor, target: Tensor, block: ODEBlock, position: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The state X within a block, and alpha = dy_target/dX there: the adjoint at that depth, by the exact discrete adjoint of the solver.

    Row i of dy/dX_N * delta_N (Eq. 23) is alpha_0 with the seed alpha_N = dy_i/dX_N: one backward pass, and delta_N is never built.

    Args:
        position: in [0, 1] within the block; the time of the solver's own steps that comes nearest is taken.

    Returns:
        X, alpha: (B, *S), both detached.
    """

    def compute(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        state: Tensor | None = None

        def begin(reached: Tensor) -> Tensor:
            nonlocal state
            state = reached.detach().requires_grad_()
            return state.clone()

        def solve(start: Tensor) -> Tensor:
            grid = block.grid(start)
            split = int((grid - (grid[0] + position * (grid[-1] - grid[0]))).abs().argmin())
            if split in (0, len(grid) - 1):
                return block.solve(begin(start)).state if split == 0 else begin(block.solve(start).state)
            return block.solve(begin(block.solve(start, grid[: split + 1]).state), grid[split:]).state

        with replaced(block, solve), torch.enable_grad():
            score = select_score(forward(model, x.detach()), target)
        assert state is not None, "every block of the network takes part in its forward pass"
        return state.detach(), differentiate(score, state)

    state, adjoint = in_passes(compute, x, target)
    return state, adjoint


@contextmanager
def replaced(block: ODEBlock, solve: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Context in which a block computes `solve(x)`, inside its own hooks."""
    block.forward = solve  # type: ignore[method-assign, assignment]  # on this module alone
    try:
        yield
    finally:
        del block.forward


@dataclass(frozen=True)
class AdjointMap(Explainer):
    """ReLU(dy_c/dX_0) * X_0: what the first state, or the pixels, contribute to the class, counting positive gradients only.

    Args:
        at: "state" for X_0, the input of the first equation (summed over channels), or "pixel" for the image.
        relu: as in the paper; without it the map is the whole product of gradient and state.

    Returns (B, 1, h, w) of the state's resolution for "state" (7x7 for the CIFAR net of the paper), (B, C, H, W) for "pixel".

    Raises:
        UserError: for another place, or a network that solves no equation.

    Source: Lei et al. 2023, Definition 1 and Eq. 21-24. We take y to be the logit, as for every gradient here; the paper's y passed the softmax.
    """

    needs_ode: ClassVar[bool] = True
    at: str = "state"
    relu: bool = True

    def __post_init__(self) -> None:
        if self.at not in PLACES:
            raise UserError(
                f"the adjoint map is taken at {' or '.join(PLACES)}, got at={self.at!r}; the nearest is {nearest(str(self.at), PLACES, 1)}"
            )

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        first = continuous_blocks(model)[0]
        if self.at == "pixel":
            X_0, alpha_0 = x, input_gradient(model, x, target)[0]
        else:
            X_0, alpha_0 = state_and_adjoint(model, x, target, first)
        feature = alpha_0.relu() if self.relu else alpha_0
        contribution = feature * X_0  # Eq. (21), (24)
        return contribution if self.at == "pixel" else contribution.sum(1, keepdim=True)


@dataclass(frozen=True)
class AdjointCAM(Explainer):
    """A class activation map of the state at any depth: X_k(t), weighted by the mean of its adjoint alpha_k(t) over the plane.

    Args:
        t: depth in [0, 1], from the first state of the first equation to the last state of the last one, every equation taking an equal share; the
            nearest time that the solver visits is taken. At 1 it is Grad-CAM of the last block, bit for bit.
        relu: keep only what speaks for the class.

    Returns (B, 1, h, w) at the state's resolution, in [0, inf) with `relu`.

    Raises:
        UserError: if t is no number in [0, 1], or the network solves no equation.

    Source: Lei et al. 2023, Sec. 6.1 (Adjoint-CAM, at the last layer); Selvaraju et al. 2017. Other depths are ours.
    """

    needs_ode: ClassVar[bool] = True
    t: float = 1.0
    relu: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.t, (int, float)) or not 0.0 <= self.t <= 1.0:
            raise UserError(f"t is a depth in [0, 1], got {self.t!r}; 0 is the first state, 1 the last")

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        blocks = continuous_blocks(model)
        number = min(int(self.t * len(blocks)), len(blocks) - 1)
        state, adjoint = state_and_adjoint(model, x, target, blocks[number], self.t * len(blocks) - number)
        return cam(state, adjoint, self.relu)


@dataclass(frozen=True)
class ThroughSurrogate(Explainer):
    """Explains a network through another that stands for it, and says how far the two are apart.

    Every explanation carries `kappa`, the distance of the two predictions (Definition 2): a map of a surrogate explains the network only
    where kappa is small.

    Args:
        convert: makes the surrogate of a network, `model -> nn.Module`.
        explainer: explains the surrogate.

    Source: Lei et al. 2023, Definition 2 and Theorem 1.
    """

    convert: Callable[[nn.Module], nn.Module]
    explainer: Explainer

    def __post_init__(self) -> None:
        settings = getattr(self.convert, "keywords", {})
        if settings.get("tied") and not settings.get("weights"):
            raise UserError(
                "a tied surrogate has new, untrained fields: distil it first (module=surrogate) and give its weights (convert.weights)"
            )

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return self.explainer.attribute(self._stand_in(model), x, target)

    def expected_sum(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor | None:
        return self.explainer.expected_sum(self._stand_in(model), x, target)

    def diagnose(self, model: nn.Module, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"kappa": kappa(predict(model, x), predict(self._stand_in(model), x))}

    def _stand_in(self, model: nn.Module) -> nn.Module:
        """The surrogate of the model as it is now, made once."""
        now = tuple((id(tensor), tensor._version, tensor.device) for tensor in (*model.parameters(), *model.buffers()))
        known = _surrogates.setdefault(model, {})
        if id(self.convert) not in known or known[id(self.convert)][0] != now:
            surrogate = self.convert(model).to(next(model.parameters()).device).eval().requires_grad_(False)
            known[id(self.convert)] = (now, self.convert, surrogate)
        return known[id(self.convert)][2]


# Per network: how it was converted -> what it was then (tensors and their versions), the conversion (kept, so that its id stays its own), the surrogate.
_surrogates: WeakKeyDictionary[nn.Module, dict[int, tuple[Any, Any, nn.Module]]] = WeakKeyDictionary()


def kappa(logits: Tensor, surrogate: Tensor) -> Tensor:
    """(B, K), (B, K) -> (B,) in [0, sqrt 2]: the Euclidean distance of the two class probabilities.

    Source: Lei et al. 2023, Definition 2 (Eq. 25).
    """
    return (logits.float().softmax(1) - surrogate.float().softmax(1)).norm(dim=1)
