"""
Your own explanation method
===========================

Say what it returns for one batch. The guard, targets, noise, chunks and counting are around you already.
"""

from dataclasses import dataclass

import matplotlib.pyplot as plt
from examples import network, pictures

import explainode
from explainode.explainers import Explainer, input_gradient


@dataclass(frozen=True)
class Sharpened(Explainer):
    """|gradient|^power, (B, C, H, W), non-negative."""

    power: float = 2.0

    def attribute(self, model, x, target):
        return input_gradient(model, x, target)[0].abs().pow(self.power)


net, batch = network(), pictures(3)
figure, axes = plt.subplots(1, 4, figsize=(9, 2.4), layout="constrained")
axes[0].imshow(batch.image[0].permute(1, 2, 0))
for axis, power in zip(axes[1:], (0.5, 1.0, 2.0)):
    record = explainode.explain(Sharpened(power), net, batch.image)
    axis.imshow(record.attribution[0].sum(0).detach(), cmap="magma")
    axis.set_title(f"power {power}", fontsize=9)
for axis in axes:
    axis.axis("off")
plt.show()

# %%
# It is counted and works under noise, in chunks and for any target like every other.

record = explainode.explain(Sharpened(), net, batch.image, batch.label, chunk_size=2)
print(record.forwards, record.backwards, record.target.tolist())

# %%
# Beside the others
# -----------------
# Powers keep the order of the pixels, so a metric that reads the order alone cannot tell them apart; one that reads
# the mass can.

methods = {f"power {p}": Sharpened(p) for p in (1.0, 2.0)} | {"random map": explainode.get("explainer/random_map")}
metrics = {name: explainode.get(f"metric/{name}") for name in ("deletion", "relevance_mass")}
many = pictures(32)
results = explainode.evaluate(net, methods, metrics, [many], n=32)
for row in results.rows:
    if row.metric.split("[")[0] in ("deletion", "relevance_mass"):
        print(f"{row.explainer:<12}{row.metric:<40}{row.value:7.3f}")

# %%
# A yaml beside it makes it an entry of the register; `the contributing guide <../contributing.html>`_ has the whole
# example.
