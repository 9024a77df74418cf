"""
Your own model
==============

Any `torch.nn.Module` from images to logits is explained as it is. The one convention: pixels are in [0, 1], so the
normalization belongs into the network.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from examples import pictures
from torch import nn

import explainode
from explainode.models import Normalize


class Mine(nn.Module):
    """Nothing that explainode knows: reused layers, in-place operations, functions, attention."""

    def __init__(self, classes=8, width=24):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        for _ in range(2):  # the same layers twice
            tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
            tokens = tokens + torch.nn.functional.gelu(self.mix(tokens))
        return self.head(tokens.mean(1).relu_())


torch.manual_seed(0)
network = nn.Sequential(Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), Mine()).eval()
batch = pictures(2)

# %%
# Four methods from four families, without a line about the network.

methods = ("saliency", "ig_adaptive", "lrp_epsilon", "occlusion")
figure, axes = plt.subplots(1, 5, figsize=(10, 2.3), layout="constrained")
axes[0].imshow(batch.image[0].permute(1, 2, 0))
for axis, name in zip(axes[1:], methods):
    record = explainode.explain(explainode.get(f"explainer/{name}"), network, batch.image)
    heat = record.attribution[0].sum(0).detach().numpy()
    limit = np.abs(heat).max()
    axis.imshow(heat, cmap="RdBu_r", vmin=-limit, vmax=limit, extent=(0, 48, 48, 0))
    axis.set_title(f"{name}\n{record.forwards} forwards", fontsize=8)
for axis in axes:
    axis.axis("off")
plt.show()

# %%
# What comes back is a record: the maps are signed and unscaled, and where a method promises a sum the error of it is
# there.

record = explainode.explain(explainode.get("explainer/ig_adaptive"), network, batch.image)
print(tuple(record.attribution.shape), record.score.tolist(), float(record.completeness_error.abs().max()))

# %%
# A method that does not fit says what it needs.

try:
    explainode.explain(explainode.get("explainer/adjoint_map"), network, batch.image)
except explainode.UserError as reason:
    print(reason)
