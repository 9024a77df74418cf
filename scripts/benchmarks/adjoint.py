"""Exactness, memory and time of the gradients of `RungeKutta`, beside other ways: `python scripts/benchmarks/adjoint.py`.

The field is that of torchdiffeq's odenet_mnist: GroupNorm(32, 64) - ReLU - Conv 3x3 - GroupNorm - ReLU - Conv 3x3 - GroupNorm, the time being a
65th channel of both convolutions; the state is (32, 64, 8, 8), float32, half a MiB. Memory is the peak of what a forward and a backward
pass hold on the CPU: torch.profiler reports every allocation and release, temporaries inside operations included; we add them up in
the order of time. One unit is one state. Times are CPU times of one thread, medians over rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time

# before torch is imported: its profiler announces each of its starts, and that there is no GPU to be looked at
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch
import torch.nn.functional as F
from timing import ratios, row
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from explainode.dynamics.solver import RungeKutta
from explainode.dynamics.step import step
from explainode.dynamics.tableau import RK4, TABLEAUS

Solve = Callable[[nn.Module, Tensor, int], Tensor]


class ConcatConv(nn.Module):
    """A convolution that sees the time as one more channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels + 1, channels, 3, padding=1)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.conv(torch.cat([torch.ones_like(x[:, :1]) * t, x], 1))


class OdeNet(nn.Module):
    """f(t, x) of torchdiffeq's example, (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.GroupNorm(min(32, channels), channels) for _ in range(3))
        self.conv1, self.conv2 = ConcatConv(channels), ConcatConv(channels)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        x = self.conv1(t, F.relu(self.norm1(x)))
        x = self.conv2(t, F.relu(self.norm2(x)))
        return self.norm3(x)


def checkpoint_per_step(field: nn.Module, x: Tensor, steps: int) -> Tensor:
    """What torch offers for the same purpose: each step is stored by its start, and its graph is built again as a whole."""

    def one_step(x: Tensor, n: int) -> Tensor:
        return step(RK4, lambda t, x: field(torch.as_tensor(t), x), n / steps, (n + 1) / steps, x, range(4)).state

    for n in range(steps):
        x = checkpoint(one_step, x, n, use_reentrant=False)  # type: ignore[assignment]
    return x


def ours(**settings: str) -> Solve:
    return lambda field, x, steps: RungeKutta(**{"tableau": "rk4", "steps": steps, **settings})(field, x)  # type: ignore[arg-type]


METHODS: dict[str, Solve] = {
    "naive backpropagation": ours(gradient="backprop"),
    "symplectic, step": ours(),
    "symplectic, stage": ours(memory="stage"),
    "symplectic, sqrt": ours(memory="sqrt"),
    "torch checkpoint per step": checkpoint_per_step,
    "torchdiffeq adjoint (3/8 rule)": ours(tableau="rk4_38", gradient="adjoint"),
}


def training(field: nn.Module, x0: Tensor, solve: Solve, steps: int, input_only: bool = False) -> Callable[[], None]:
    """One forward and backward pass; with `input_only` the parameters are frozen, as explanations freeze them."""

    def call() -> None:
        for p in field.parameters():
            p.grad = None
            p.requires_grad_(not input_only)
        solve(field, x0.clone().requires_grad_(), steps).sum().backward()

    return call


def peak(call: Callable[[], None], x0: Tensor, warm: bool = False) -> float:
    """The most memory that a call holds at one time, in states."""
    if not warm:
        call()  # what is allocated once for all (tables, caches) is not the method's
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held = most = 0
    for _, change in sorted(events, key=lambda event: event[0]):
        held += change
        most = max(most, held)
    return most / x0.nbytes


def relative(found: Sequence[Tensor], truth: Sequence[Tensor]) -> list[float]:
    """The relative errors with respect to x0, and to all parameters together."""
    pairs = [(found[:1], truth[:1]), (found[1:], truth[1:])]
    flat = [[torch.cat([part.double().flatten() for part in side]) for side in pair] for pair in pairs]
    return [float((a - b).norm() / b.norm()) for a, b in flat]


def exactness() -> None:
    """Errors of the gradient against float64 backpropagation through the same steps; of the three memory modes, the largest."""
    torch.manual_seed(0)
    field, x0 = OdeNet(16), torch.randn(4, 16, 6, 6)

    def gradients(dtype: torch.dtype, solver: RungeKutta, grid: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        f, x = copy.deepcopy(field).to(dtype), x0.to(dtype).requires_grad_()
        solution = solver.solve(f, x, grid=grid)
        return list(torch.autograd.grad(solution.state.square().sum(), [x, *f.parameters()])), solution.grid

    print(
        f"\n{'relative error of the gradient, C=16, 6x6, batch 4':44}{'float64':>22}{'float32 / naive':>24}{'torchdiffeq adjoint':>24}"
    )
    print(f"{'(target 1e-13; 2)':44}{'dx0':>11}{'dtheta':>11}{'dx0':>13}{'dtheta':>11}{'dx0':>13}{'dtheta':>11}")
    worst = [0.0, 0.0]
    for name, method in TABLEAUS.items():
        for steps in (4, 16, None):
            if steps is None and not method.adaptive:
                continue
            settings = {"tableau": name, "steps": steps, "rtol": 1e-3, "atol": 1e-3}
            truth, grid = gradients(torch.float64, RungeKutta(gradient="backprop", **settings))  # type: ignore[arg-type]
            exact = [
                max(errors)
                for errors in zip(
                    *(
                        relative(gradients(torch.float64, RungeKutta(memory=memory, **settings))[0], truth)
                        for memory in ("step", "stage", "sqrt")
                    ),  # type: ignore[arg-type]
                    strict=True,
                )
            ]
            naive = relative(gradients(torch.float32, RungeKutta(gradient="backprop", **settings), grid)[0], truth)  # type: ignore[arg-type]
            single = relative(gradients(torch.float32, RungeKutta(**settings), grid)[0], truth)  # type: ignore[arg-type]
            try:
                continuous = relative(gradients(torch.float64, RungeKutta(gradient="adjoint", **settings))[0], truth)  # type: ignore[arg-type]
                note = "".join(f"{error:>{width}.1e}" for error, width in zip(continuous, (13, 11), strict=True))
            except ValueError:
                note = f"{'-':>13}{'-':>11}"  # torchdiffeq has no such method
            shares = [a / b for a, b in zip(single, naive, strict=True)]
            worst = [max(worst[0], *exact), max(worst[1], *shares)]
            label = f"{name}, {f'{steps} steps' if steps else f'adaptive ({len(grid) - 1} steps)'}"
            print(f"{label:44}{exact[0]:>11.1e}{exact[1]:>11.1e}{shares[0]:>13.2f}{shares[1]:>11.2f}{note}")
    verdicts = ["met" if value <= target else "MISSED" for value, target in zip(worst, (1e-13, 2.0), strict=True)]
    print(f"worst: float64 {worst[0]:.1e} ({verdicts[0]}), float32 / naive {worst[1]:.2f} ({verdicts[1]})")


def memory(field: nn.Module, x0: Tensor, counts: Sequence[int]) -> None:
    """Peak memory in states, and its growth per step."""
    targets = {"symplectic, step": 90.0, "symplectic, sqrt": 43.0}
    print(
        f"\n{'peak memory in states, rk4, forward + backward':44}"
        + "".join(f"{f'{n} steps':>12}" for n in counts)
        + f"{'per step':>12}  target"
    )
    for input_only in (False, True):
        for name, solve in METHODS.items():
            if input_only and not name.startswith(("symplectic", "naive")):
                continue
            peaks = [peak(training(field, x0, solve, n, input_only), x0) for n in counts]
            growth = (peaks[-1] - peaks[-2]) / (counts[-1] - counts[-2])
            target = targets.get(name) if counts[-1] == 64 else None
            verdict = "" if target is None else f"  <= {target:g} {'met' if peaks[-1] <= target else 'MISSED'}"
            label = f"{name}{', dx0 only' if input_only else ''}"
            print(f"{label:44}" + "".join(f"{value:>12.1f}" for value in peaks) + f"{growth:>12.2f}{verdict}")


def time(field: nn.Module, x0: Tensor, steps: int, rounds: int) -> None:
    """CPU time against naive backpropagation."""
    targets = {
        ("symplectic, step", False): 1.65,
        ("symplectic, stage", False): 1.45,
        ("symplectic, sqrt", False): 2.0,
        ("symplectic, step", True): 1.55,
        ("symplectic, stage", True): 1.55,
    }
    for input_only in (False, True):
        calls = {name: training(field, x0, solve, steps, input_only) for name, solve in METHODS.items()}
        if input_only:
            calls.pop("torchdiffeq adjoint (3/8 rule)")
        result, milliseconds = ratios(calls, rounds)
        what = "gradient of x0 alone" if input_only else "gradient of x0 and parameters"
        print(
            f"\n{f'time / naive backpropagation, rk4, {steps} steps, {what}':64}{'ratio':>8}  target          naive {milliseconds:.0f} ms"
        )
        for name in list(calls)[1:]:
            row(f"  {name}", result[name], targets.get((name, input_only)))


def curves(
    field: nn.Module, x0: Tensor, counts: Sequence[int], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """For each number of steps the peak states of all methods, and their CPU seconds, the least of the turns.

    Methods take turns, of which short solutions get more than `rounds`.
    """
    states: dict[str, list[float]] = {name: [] for name in METHODS}
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for n in counts:
        calls = {name: training(field, x0, solve, n) for name, solve in METHODS.items()}
        for name, call in calls.items():
            states[name].append(peak(call, x0, warm=n > counts[0]))
        turns = [{name: cpu_seconds(call) for name, call in calls.items()} for _ in range(max(rounds, 32 // n))]
        print(f"\n{f'{n} steps':44}{'states':>12}{'CPU seconds':>14}")
        for name in METHODS:
            seconds[name].append(min(turn[name] for turn in turns))
            print(f"{name:44}{states[name][-1]:>12.0f}{seconds[name][-1]:>14.2f}", flush=True)
    return states, seconds


def cpu_seconds(call: Callable[[], None]) -> float:
    """CPU time of this process for one call: on a shared machine the clock on the wall measures the neighbors too."""
    start = process_time()
    call()
    return process_time() - start


def plot(
    states: dict[str, list[float]], seconds: dict[str, list[float]], counts: Sequence[int], state: float, file: Path
) -> None:
    """Memory and time of all methods against the number of steps, as one figure; `state` is the size of one in MiB."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # text stays text, and two runs with the same numbers write the same file
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "explainode"})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name in METHODS:
        style = {"linestyle": "--" if name.startswith("torch") else "-", "marker": "o", "markersize": 3, "label": name}
        left.plot(counts, states[name], **style)
        right.plot(counts, seconds[name], **style)
    for axes, title, label in (
        (left, "peak memory, forward + backward", f"states of {state:g} MiB"),
        (right, "time, forward + backward", "CPU seconds, one thread"),
    ):
        axes.set(xscale="log", yscale="log", xlabel="rk4 steps", ylabel=label, title=title)
        axes.set_xticks(counts, [str(n) for n in counts], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
    print(f"wrote {file}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 16, 64], help="of the memory table")
    parser.add_argument(
        "--parts", nargs="+", default=["exactness", "memory", "time"], choices=["exactness", "memory", "time"]
    )
    parser.add_argument(
        "--plot", type=Path, help="write memory and time against the number of steps to this file, and nothing else"
    )
    parser.add_argument(
        "--largest", type=int, default=256, help="number of steps in the plot; naively 256 take 3.6 GiB"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    field, x0 = OdeNet(), torch.randn(32, 64, 8, 8)
    if options.plot is not None:
        counts = [n for n in (4, 8, 16, 32, 64, 128, 256) if n <= options.largest]
        plot(*curves(field, x0, counts, options.rounds), counts, x0.nbytes / 2**20, options.plot)
        return
    if "exactness" in options.parts:
        exactness()
    if "memory" in options.parts:
        memory(field, x0, options.steps)
    if "time" in options.parts:
        for steps in (8, 64):
            time(field, x0, steps, options.rounds if steps == 8 else max(1, options.rounds // 2))


if __name__ == "__main__":
    main()
