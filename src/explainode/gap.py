"""The gap between a network and the surrogate that is to explain it: predictions, labels, maps, and what bounds them.

Letters: B images, K classes, L continuous blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from explainode.data.batch import Batch
from explainode.dynamics.block import ODEBlock, ode_blocks
from explainode.errors import UserError
from explainode.evaluation import Progress
from explainode.explainers.adjoint import kappa
from explainode.explainers.base import Explainer
from explainode.explainers.guard import guard
from explainode.explainers.passes import predict
from explainode.explaining import explain
from explainode.metrics.results import Results, Row
from explainode.metrics.statistics import bootstrap_interval
from explainode.models.neural_ode import NeuralODE, teacher_states

_LARGEST = {"p95": lambda values: float(np.quantile(values, 0.95)), "max": lambda values: float(np.max(values))}


def map_cosine(first: Tensor, second: Tensor) -> Tensor:
    """(B, ...), (B, ...) -> (B,): cosine of two attributions of each image; NaN where one of them is zero everywhere."""
    a, b = first.flatten(1).double(), second.flatten(1).double()
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def measure_gap(
    teacher: nn.Module,
    surrogate: nn.Module,
    explainers: Mapping[str, Explainer],
    batches: Iterable[Batch],
    *,
    name: str = "surrogate",
    split: str = "test",
    epoch: int = 0,
    seed: int = 0,
    total: int | None = None,
    progress: Progress | None = None,
) -> Results:
    """How far a surrogate is from its teacher on given images.

    Rows of the model `name`: `kappa` (Definition 2, in [0, sqrt 2]; its mean, and as `kappa_p95` and `kappa_max` the tail), `agreement` (share of images
    with the same predicted class), and for each explainer `map_cosine` of the two networks' attributions of the teacher's class.

    Explainers that one of the networks cannot answer (the adjoint of a ResNet) are left out by the caller.

    Args:
        total: images that will come, for `progress("gap", images done, total)`, called after each batch.

    Raises:
        UserError: if no batch comes.

    Source: Lei et al. 2023, Definition 2.
    """
    columns: dict[tuple[str, str], dict[int, float]] = {}

    def note(explainer: str, metric: str, ids: list[int], values: Tensor) -> None:
        columns.setdefault((explainer, metric), {}).update(zip(ids, values.double().tolist(), strict=True))

    device = next(teacher.parameters()).device
    surrogate.to(device)
    for batch in batches:
        batch = batch.to(device)
        ids = batch.sample_id.tolist()
        with guard(teacher) as network:
            logits = predict(network, batch.image)
        with guard(surrogate) as network:
            other = predict(network, batch.image)
        note("", "kappa", ids, kappa(logits, other))
        note("", "agreement", ids, (logits.argmax(1) == other.argmax(1)).double())
        for e, explainer in explainers.items():
            ours, theirs = (
                explain(
                    explainer, model, batch.image, logits.argmax(1), seed=seed, sample_ids=batch.sample_id
                ).attribution
                for model in (teacher, surrogate)
            )
            note(e, "map_cosine", ids, map_cosine(ours, theirs))
        if progress is not None:
            done = len(columns["", "kappa"])
            progress("gap", done, done if total is None else total)
    if not columns:
        raise UserError("the gap is measured on images, and none came; give at least one batch")

    results = Results()

    def row(explainer: str, metric: str, **facts: Any) -> Row:
        control = explainers[explainer].control if explainer else ""
        facts |= {"epoch": epoch, "split": split, "model": name, "seconds": 0.0, "protocol": "gap", "control": control}
        return Row(explainer=explainer, metric=metric, **facts)

    for (e, metric), of_images in columns.items():
        results.per_image[name, e, metric] = of_images
        values = np.array([of_images[sample] for sample in sorted(of_images)])
        found = values[~np.isnan(values)]
        low, high = bootstrap_interval(found)
        mean, missing = float(found.mean()) if len(found) else math.nan, len(values) - len(found)
        better = metric != "kappa"
        results.rows.append(
            row(e, metric, value=mean, low=low, high=high, n=len(found), excluded=missing, higher_is_better=better)
        )
    kappas = np.array(list(columns["", "kappa"].values()))
    facts: dict[str, Any] = {
        "low": math.nan,
        "high": math.nan,
        "n": len(kappas),
        "excluded": 0,
        "higher_is_better": False,
    }
    results.rows += [row("", f"kappa_{tail}", value=largest(kappas), **facts) for tail, largest in _LARGEST.items()]
    return results


def refinement(
    surrogate: NeuralODE, steps: Sequence[int], tableau: str | None = None
) -> Iterator[tuple[int, NeuralODE]]:
    """The surrogate with so many steps in each block, one after the other, parameters shared: kappa that stays flat is an ODE's, kappa that rises a
    ResNet's.

    Raises:
        UserError: if its solver has no such setting.
    """
    solver = next(iter(ode_blocks(surrogate).values())).solver
    changes: dict[str, Any] = {} if tableau is None else {"tableau": tableau}
    for count in steps:
        yield count, surrogate.with_solver(_changed(solver, steps=count, **changes))


def _changed(solver: Any, **changes: Any) -> Any:
    """The solver with other settings.

    Raises:
        UserError: if it has no such settings.
    """
    has = {field.name for field in fields(solver)} if is_dataclass(solver) else set()
    if missing := [name for name in changes if name not in has]:
        raise UserError(
            f"{type(solver).__name__} has no setting {missing[0]!r}; choose a RungeKutta solver, such as solver=euler or solver=rk4"
        )
    return replace(solver, **changes)


@dataclass(frozen=True)
class Bound:
    """What can be computed about kappa of each image, beside what was observed; all (B,).

    Attributes:
        observed: kappa.
        defects: (B, L) |Phi_l(X_l) - X_{l+1}|, the error of each continuous block where the teacher's state enters it.
        tail: (B, L) spectral norm of the Jacobian from the end of block l to the probabilities, at the teacher's state.
        product: (B, L) the product of the spectral norms of all later pieces, which is what the theory multiplies.
        estimate: sum_l defects * tail: the first-order bound of kappa.
        product_bound: sum_l defects * product.
        a_priori: Lei et al. 2023's Eq. 9 with p, q, k measured along the teacher's states, times the norm of the head.
        speed, acceleration, lipschitz: p = max |f|, q = max |f_{l+1} - f_l|, k = max spectral norm of df/dX along the states.
    """

    observed: Tensor
    defects: Tensor
    tail: Tensor
    product: Tensor
    estimate: Tensor
    product_bound: Tensor
    a_priori: Tensor
    speed: Tensor
    acceleration: Tensor
    lipschitz: Tensor


def bound(teacher: nn.Module, surrogate: NeuralODE, x: Tensor, iterations: int = 10) -> Bound:
    """The computable bound of kappa for images x (B, C, H, W), and Lei et al. 2023's own.

    Each continuous block starts where the teacher is and misses the teacher's next state by a defect d_l; later pieces enlarge it at most by their
    Lipschitz constants: kappa <= sum_l d_l prod_{m>l} L_m. We estimate every L_m by the spectral norm of the Jacobian at the teacher's state, from below (power
    iteration) and at one point: so both sums are first-order estimates for this image, no certificates.

    Eq. 9 of the paper, |X(T) - X_N| <= (q/k + p) T/N (exp(k T) - 1), is evaluated with T = N = L (blocks of length 1) and measured p, q, k. Where the
    fields are constant, k = 0, we take its limit q T T/N.

    Args:
        iterations: of the power method.
    """
    blocks = ode_blocks(surrogate)
    solver = _changed(next(iter(blocks.values())).solver, gradient="backprop")  # power iteration differentiates twice
    with guard(teacher) as network, guard(surrogate) as stand_in:
        assert isinstance(stand_in, NeuralODE)
        differentiable = stand_in.with_solver(solver)
        ends = list(ode_blocks(differentiable).values())
        states, _ = teacher_states(network, [block.replaces for block in blocks.values() if block.replaces], x)
        observed = kappa(predict(network, x), predict(stand_in, x))
        defects, tails, norms, speeds, slopes, velocities = [], [], [], [], [], []
        for number, (block, (start, end)) in enumerate(zip(ends, states, strict=True)):
            with torch.no_grad():
                defects.append(_norm(block(start) - end))
                velocities.append(block.field(torch.zeros((), dtype=x.dtype, device=x.device), start))
                speeds.append(_norm(velocities[-1]))
            slopes.append(
                spectral_norm(partial(block.field, torch.zeros((), dtype=x.dtype, device=x.device)), start, iterations)
            )
            tails.append(spectral_norm(_piece(differentiable, x, block, None), end, iterations))
            following = ends[number + 1] if number + 1 < len(ends) else None
            norms.append(
                tails[-1]
                if following is None
                else spectral_norm(_piece(differentiable, x, block, following), end, iterations)
            )
    d, tail = torch.stack(defects, 1), torch.stack(tails, 1)
    product = torch.stack(norms, 1).flip(1).cumprod(1).flip(1)
    changes = [_norm(b - a) for a, b in pairwise(velocities) if a.shape == b.shape]
    p, k = torch.stack(speeds, 1).amax(1), torch.stack(slopes, 1).amax(1)
    q = torch.stack(changes, 1).amax(1) if changes else torch.zeros_like(p)
    T = N = len(ends)
    slope = k.double()  # exp(k T) is beyond the range of float32
    distance = torch.where(
        slope > 0, (q / slope + p) * T / N * torch.expm1(slope * T), q * T * T / N
    )  # Eq. (9), and its limit
    a_priori = tail[:, -1].double() * distance
    return Bound(observed, d, tail, product, (d * tail).sum(1), (d * product).sum(1), a_priori, p, q, k)


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


class _Arrived(Exception):
    """The piece has been computed; the rest of the network need not be."""


def _piece(network: nn.Module, x: Tensor, start: ODEBlock, end: ODEBlock | None) -> Callable[[Tensor], Tensor]:
    """The map from the state after `start` to the state after `end`, or to the class probabilities where that is None."""

    def piece(state: Tensor) -> Tensor:
        reached: list[Tensor] = []

        def arrive(module: nn.Module, args: Any, output: Tensor) -> None:
            reached.append(output)
            raise _Arrived

        handles = [start.register_forward_hook(lambda module, args, output: state)]
        if end is not None:
            handles.append(end.register_forward_hook(arrive))
        try:
            return network(x).softmax(1)
        except _Arrived:
            return reached[0]
        finally:
            for handle in handles:
                handle.remove()

    return piece


def spectral_norm(f: Callable[[Tensor], Tensor], x: Tensor, iterations: int = 10) -> Tensor:
    """(B,): the largest singular value of each sample's Jacobian of f at x (B, *S), from below, by the power method on J^T J.

    J v comes from differentiating J^T u with respect to u, so f must allow a second derivative.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        y = f(x)
        u = torch.zeros_like(y, requires_grad=True)
        (pulled,) = torch.autograd.grad(y, x, u, create_graph=True)  # J^T u, linear in u
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    sigma = x.new_zeros(len(x))
    for _ in range(iterations):
        v = v / _norm(v).clamp_min(torch.finfo(v.dtype).tiny).view(-1, *[1] * (v.dim() - 1))
        (pushed,) = torch.autograd.grad(pulled, u, v, retain_graph=True)  # J v
        sigma = _norm(pushed)
        (v,) = torch.autograd.grad(y, x, pushed, retain_graph=True)  # J^T J v
    return sigma.detach()
