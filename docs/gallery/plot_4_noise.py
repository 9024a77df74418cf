"""
Noise: off, one path, the mean of many
======================================

A noise-injected twin draws its noise by picture, block, step and draw, so that a path can be kept while something
else changes.
"""

import matplotlib.pyplot as plt
import numpy as np
from examples import network, pictures

import explainode

batch = pictures(2)
twin = network("sde")

# %%
# The same seed gives the same path, whatever else is in the batch.

saliency = explainode.get("explainer/saliency")
two = explainode.explain(saliency, twin, batch.image, noise="path", seed=7)
one = explainode.explain(saliency, twin, batch.image[1:], noise="path", seed=7, sample_ids=two.sample_ids[1:])
print("one picture alone, and in a batch:", bool((two.attribution[1] == one.attribution[0]).all()))

# %%
# Three ways to explain a network that is random.

figure, axes = plt.subplots(1, 6, figsize=(11, 2.2), layout="constrained")
axes[0].imshow(batch.image[0].permute(1, 2, 0))
axes[0].set_title("picture", fontsize=9)
for axis, (noise, seed) in zip(axes[1:], [("off", 0), ("path", 0), ("path", 1), ("mean:4", 0), ("mean:32", 0)]):
    record = explainode.explain(saliency, twin, batch.image, noise=noise, seed=seed)
    heat = record.attribution[0].abs().sum(0).detach().numpy()
    axis.imshow(heat, cmap="magma", vmax=np.quantile(heat, 0.99))
    axis.set_title(f"{noise}, seed {seed}", fontsize=9)
for axis in axes:
    axis.axis("off")
plt.show()
