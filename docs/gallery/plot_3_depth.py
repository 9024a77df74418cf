"""
A ResNet as an ODE, seen at every depth
=======================================

The blocks of a ResNet are Euler steps. Divide them, and the network becomes a neural ODE whose state and adjoint can
be asked at any depth t.
"""

import matplotlib.pyplot as plt
import numpy as np
from examples import network, pictures

import explainode
from explainode.dynamics import RungeKutta
from explainode.models import NeuralODE

net, batch = network(), pictures(2)
euler = NeuralODE.from_resnet(net, RungeKutta("euler", steps=1)).eval()
print("Euler with one step is the ResNet:", bool((euler(batch.image) == net(batch.image)).all()))

# %%
# How far is the ResNet from its flow?
# ------------------------------------
# If it were near, finer steps would change little. An ordinary trained network is not near.

for steps in (1, 2, 4, 8):
    ode = NeuralODE.from_resnet(net, RungeKutta("euler", steps=steps)).eval()
    gap = (ode(batch.image).softmax(1) - net(batch.image).softmax(1)).abs().sum(1).mean()
    print(f"{steps} steps a block: total change of the probabilities {float(gap):.3f}")

# %%
# Maps along the way
# ------------------

ode = NeuralODE.from_resnet(net, RungeKutta("euler", steps=2)).eval()
depths = (0.0, 0.25, 0.5, 0.75, 1.0)
figure, axes = plt.subplots(2, len(depths) + 1, figsize=(11, 3.9), layout="constrained")
for row in range(2):
    axes[row, 0].imshow(batch.image[row].permute(1, 2, 0))
    for axis, t in zip(axes[row, 1:], depths):
        record = explainode.explain(explainode.get("explainer/adjoint_cam", t=t), ode, batch.image)
        heat = record.attribution[row].sum(0).detach().numpy()
        limit = np.abs(heat).max() or 1.0
        axis.imshow(heat, cmap="RdBu_r", vmin=-limit, vmax=limit, extent=(0, 48, 48, 0))
        axis.set_title(f"t = {t}", fontsize=9)
for axis in axes.flat:
    axis.axis("off")
plt.show()
