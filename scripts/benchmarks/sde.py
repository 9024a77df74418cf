"""Stochastic solvers: exactness, peak memory, time and measured orders, beside torchsde: `python scripts/benchmarks/sde.py`.

The field is torchdiffeq's odenet_mnist (75,392 parameters) on states (32, 64, 8, 8) in float32; one state is 0.5 MiB. Peak memory is the highest sum of
the CPU allocator's events over one forward and backward pass, as torch's profiler lists them: what was there before does not count. One thread.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from typing import Any

# before torch is imported: its profiler announces each of its starts, and that there is no GPU to be looked at
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import numpy as np
import torch
import torchsde
from timing import ratios, row
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from explainode.dynamics.brownian import BrownianPath
from explainode.dynamics.diffusion import AdditiveDiffusion, LearnedDiffusion, MultiplicativeDiffusion
from explainode.dynamics.sde import EulerMaruyama, Milstein, StochasticSolver
from explainode.dynamics.torch_sde import TorchSDE
from explainode.models.neural_ode import TimeConditionedField
from explainode.randomness import sample_keys

SHAPE = (32, 64, 8, 8)
KEY = sample_keys(torch.arange(SHAPE[0]), 0)
DIFFUSIONS: dict[str, Callable[[], nn.Module]] = {
    "additive": lambda: AdditiveDiffusion(0.1),
    "multiplicative": lambda: MultiplicativeDiffusion(0.1),
    "learned": lambda: LearnedDiffusion(SHAPE[1], 0.1),
}
Solver = Callable[..., Tensor]


def by_hand(steps: int) -> Solver:
    """What anybody would write: Euler-Maruyama in a loop, torch's own noise."""

    def solve(drift: nn.Module, diffusion: nn.Module, x: Tensor, key: Tensor) -> Tensor:
        h = 1 / steps
        for n in range(steps):
            t = torch.tensor(n * h, dtype=x.dtype)
            x = x + drift(t, x) * h + diffusion(t, x) * (math.sqrt(h) * torch.randn_like(x))
        return x

    return solve


def fields(diffusion: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    return TimeConditionedField(SHAPE[1]).to(dtype), DIFFUSIONS[diffusion]().to(dtype), torch.randn(SHAPE).to(dtype)


def gradients(solver: Solver, drift: nn.Module, diffusion: nn.Module, x0: Tensor) -> list[Tensor]:
    x = x0.clone().requires_grad_()
    loss = solver(drift, diffusion, x, KEY).square().sum()
    return list(torch.autograd.grad(loss, [x, *drift.parameters(), *diffusion.parameters()]))


def distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(ours, theirs, strict=True))


# --- exactness -----------------------------------------------------------------------------------------------------------------------


def exactness() -> None:
    print(f"\n{'float64: relative error against backprop through the same steps':72}{'dX0':>10}{'d theta':>10}  target")
    for kind in (EulerMaruyama, Milstein):
        for diffusion in DIFFUSIONS:
            for steps in (4, 16):
                problem = fields(diffusion, torch.float64)
                compare(
                    f"{kind.__name__}, {steps} steps, {diffusion}", kind(steps), kind(steps, "backprop"), problem, 1e-13
                )
    for steps in (4, 16):
        problem = fields("additive", torch.float64)
        compare(
            f"torchsde's adjoint, euler, {steps} steps",
            TorchSDE("euler", steps, "adjoint"),
            TorchSDE("euler", steps),
            problem,
            None,
        )
    print(f"\n{'float32: error against float64, of backprop and ours':72}{'backprop':>10}{'ours':>10}  target")
    for kind in (EulerMaruyama, Milstein):
        exact = gradients(kind(16), *fields("multiplicative", torch.float64))
        single = [
            [g.double() for g in gradients(kind(16, gradient), *fields("multiplicative"))]
            for gradient in ("backprop", "discrete")
        ]
        errors = [distance(found, exact) for found in single]
        print(
            f"{kind.__name__ + ', 16 steps, multiplicative':72}{errors[0]:10.1e}{errors[1]:10.1e}  {verdict(errors[1], 2 * errors[0])}"
        )


def compare(
    what: str, ours: Solver, theirs: Solver, problem: tuple[nn.Module, nn.Module, Tensor], target: float | None
) -> None:
    (a, *b), (c, *d) = gradients(ours, *problem), gradients(theirs, *problem)
    state, parameters = distance([a], [c]), distance(b, d)
    print(f"{what:72}{state:10.1e}{parameters:10.1e}  {verdict(max(state, parameters), target)}")


def verdict(value: float, target: float | None) -> str:
    return "" if target is None else f"<= {target:<7.3g} {'met' if value <= target else 'MISSED'}"


# --- memory and time -----------------------------------------------------------------------------------------------------------------


def contenders(steps: int) -> dict[str, Solver]:
    return {
        "by hand, backprop": by_hand(steps),
        "EulerMaruyama, backprop": EulerMaruyama(steps, "backprop"),
        "EulerMaruyama": EulerMaruyama(steps),
        "Milstein": Milstein(steps),
        "torchsde, euler": TorchSDE("euler", steps),
        "torchsde, euler, adjoint (approximate)": TorchSDE("euler", steps, "adjoint"),
    }


STATES, TIME = 33.0, 1.45  # targets for EulerMaruyama with 16 steps


def memory() -> None:
    print(f"\n{'peak memory of forward and backward, in states':64}{'4':>8}{'16':>8}{'64':>8} steps; target at 16")
    for diffusion in DIFFUSIONS:
        for name in contenders(16):
            peaks = []
            for steps in (4, 16, 64):
                solver, problem = contenders(steps)[name], fields(diffusion)
                peaks.append(peak(lambda solver=solver, problem=problem: gradients(solver, *problem)))
            numbers = "".join(f"{p:8.1f}" for p in peaks)
            print(
                f"{diffusion + ': ' + name:64}{numbers}  {verdict(peaks[1], STATES if name == 'EulerMaruyama' else None)}"
            )


def peak(call: Callable[[], Any]) -> float:
    """The most memory that is allocated at once during the call, in states."""
    call()  # caches fill
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return held.max() / (4 * math.prod(SHAPE))


def times(rounds: int) -> None:
    for diffusion in DIFFUSIONS:
        calls = {}
        for name, solver in contenders(16).items():
            problem = fields(diffusion)
            calls[name] = lambda solver=solver, problem=problem: gradients(solver, *problem)
        found, milliseconds = ratios(calls, rounds)
        print(
            f"\ntime of forward and backward, 16 steps, {diffusion}; by hand {milliseconds:.0f} ms; CPU time, medians of {rounds} rounds"
        )
        for name, ratio in found.items():
            row(f"  {name}", ratio, TIME if name == "EulerMaruyama" else None)


# --- orders --------------------------------------------------------------------------------------------------------------------------

PATHS = (64, 1024)
GRIDS = [(4 << level, level) for level in range(6)]
MU, SIGMA, THETA = 0.5, 0.7, 1.5


class OurPath(torchsde.BaseBrownian):
    """Our Brownian path, handed to torchsde."""

    shape, dtype, device, levy_area_approximation = PATHS, torch.float64, torch.device("cpu"), "none"

    def __init__(self, level: int) -> None:
        self.path, self.level = BrownianPath(sample_keys(torch.arange(PATHS[0]), 0), 4), level

    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Tensor:
        return self.path.increment(
            round(float(ta) * (4 << self.level)), torch.empty(PATHS, dtype=self.dtype), self.level
        )

    def __repr__(self) -> str:
        return "our path"


class Equation:
    """dX = drift dt + diffusion dW as torchsde reads it, X(0) = 1, and its solution X(1) along our path."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(
        self, drift: Callable[[Tensor], Tensor], diffusion: Callable[[Tensor], Tensor], solution: Tensor
    ) -> None:
        self.drift, self.diffusion, self.solution = drift, diffusion, solution

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.drift(y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self.diffusion(y)


def equations() -> dict[str, Equation]:
    """Geometric Brownian motion in closed form; Ornstein-Uhlenbeck, exact in law with the path on the finest grid (see the tests)."""
    finest, x = OurPath(GRIDS[-1][1]), torch.ones(PATHS, dtype=torch.float64)
    steps = GRIDS[-1][0]
    h, brownian = 1 / steps, torch.zeros_like(x)
    decay = -math.expm1(-THETA * h)
    rest = -math.expm1(-2 * THETA * h) / (2 * THETA) - decay**2 / (THETA**2 * h)
    generator = torch.Generator().manual_seed(0)
    for n in range(steps):
        w = finest(n * h)
        brownian = brownian + w
        fresh = torch.randn(PATHS, dtype=x.dtype, generator=generator)
        x = x * math.exp(-THETA * h) + SIGMA * (w * decay / (THETA * h) + math.sqrt(rest) * fresh)
    return {
        "geometric Brownian motion": Equation(
            lambda y: MU * y, lambda y: SIGMA * y, (MU - SIGMA**2 / 2 + SIGMA * brownian).exp()
        ),
        "Ornstein-Uhlenbeck": Equation(lambda y: -THETA * y, lambda y: torch.full_like(y, SIGMA), x),
    }


def orders() -> None:
    """Slopes of log error on log step: of E |X_N - X(1)|, and of |E X_N - E X(1)| with the solution on the same paths as control variate."""
    print(f"\n{'measured orders on 65,536 paths, 4 to 128 steps':64}{'strong':>8}{'weak':>8}{'stated':>12}")
    for name, equation in equations().items():
        for what, (solve, strong, weak) in methods(equation, additive=name == "Ornstein-Uhlenbeck").items():
            errors = [solve(n, level) - equation.solution for n, level in GRIDS]
            found = slope([e.abs().mean().item() for e in errors]), slope([abs(e.mean().item()) for e in errors])
            print(f"{name + ': ' + what:64}{found[0]:8.2f}{found[1]:8.2f}{f'{strong:g}, {weak:g}':>12}")


def methods(equation: Equation, additive: bool) -> dict[str, tuple[Callable[[int, int], Tensor], float, float]]:
    """What takes (steps, level) to X_N, with the strong and weak orders that theory states."""
    x0, key = torch.ones(PATHS, dtype=torch.float64), sample_keys(torch.arange(PATHS[0]), 0)
    found: dict[str, tuple[Callable[[int, int], Tensor], float, float]] = {}
    kinds: tuple[tuple[type[StochasticSolver], str], ...] = ((EulerMaruyama, "euler"), (Milstein, "milstein"))
    for kind, method in kinds:
        orders = 1.0 if additive else kind.strong_order, kind.weak_order
        found[kind.__name__] = (
            lambda n, level, kind=kind: kind(n, refinement=level)(equation.f, equation.g, x0, key),
            *orders,
        )
        found[f"torchsde, {method}, on our path"] = (
            lambda n, level, method=method: theirs(equation, method, n, OurPath(level)),
            *orders,
        )
    return found


def theirs(equation: Equation, method: str, steps: int, path: OurPath) -> Tensor:
    span = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return torchsde.sdeint(
        equation, torch.ones(PATHS, dtype=torch.float64), span, bm=path, method=method, dt=1 / steps
    )[-1]


def slope(errors: list[float]) -> float:
    return -np.polyfit(np.log([n for n, _ in GRIDS]), np.log(errors), 1)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    exactness()
    memory()
    times(options.rounds)
    orders()


if __name__ == "__main__":
    main()
