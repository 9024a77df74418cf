"""
Coming from Captum, zennit, torchdiffeq, torchsde
=================================================

The same numbers, the same call for all of them, and what is different.
"""

import importlib.util

import torch
from examples import network, pictures

import explainode
from explainode.dynamics import RungeKutta

net, batch = network(), pictures(2)
x, target = batch.image, batch.label
installed = {
    name: importlib.util.find_spec(name) is not None for name in ("captum", "zennit", "torchdiffeq", "torchsde")
}
print(installed)

# %%
# Captum
# ------
# `IntegratedGradients(net).attribute(x, target=target, n_steps=50)` is `explain(get("explainer/ig", steps=50), net,
# x, target)`. The batch, the target and the chunk size are arguments of the call, the method is data; what is
# returned also knows its completeness error and its cost.

ours = explainode.explain(explainode.get("explainer/ig", steps=50), net, x, target)
if installed["captum"]:
    from captum.attr import IntegratedGradients

    theirs = IntegratedGradients(net).attribute(x, target=target, n_steps=50, method="gausslegendre")
    print("largest difference to Captum:", float((ours.attribution - theirs).abs().max()))
print("completeness error:", ours.completeness_error.tolist())

# %%
# zennit
# ------
# A zennit composite registers hooks on modules by their class; here the rules see every operation as it reaches its
# kernel, so a reused module or a functional call is no trap. `EpsilonPlus()` is `explainer/lrp_epsilon_plus`;
# composites are yaml files.

record = explainode.explain(explainode.get("explainer/lrp_epsilon_plus"), net, x, target)
print(
    "relevance, and the logit that it started from:",
    record.attribution.flatten(1).sum(1).tolist(),
    record.score.tolist(),
)

# %%
# torchdiffeq
# -----------
# `odeint(f, x, t, method="rk4")` is `RungeKutta("rk4", steps=n).solve(f, x, t0, t1)`. Gradients go through a
# symplectic adjoint: exact as backpropagation through the steps is, at the memory of one state a step.


def spin(t, y):
    """A rotation: after 2 pi everything is back."""
    return torch.stack([y[:, 1], -y[:, 0]], 1)


start = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
end = RungeKutta("rk4", steps=100).solve(spin, start, 0.0, 2 * torch.pi)
end = end if isinstance(end, torch.Tensor) else end.state
print("back where it began:", end.tolist())
end[0, 0].backward()
print("gradient:", start.grad.tolist())
if installed["torchdiffeq"]:
    from torchdiffeq import odeint

    times = torch.linspace(0, 2 * torch.pi, 101, dtype=torch.float64)
    print("torchdiffeq:      ", odeint(spin, start.detach(), times, method="rk4")[-1].tolist())

# %%
# torchsde
# --------
# `sdeint(sde, y0, ts)` draws from a Brownian interval; here paths are keyed by picture, block, step and draw, so that
# a twin can be explained under the same path that it was evaluated under: `noise="path"` and a seed, and nothing else
# to keep.
