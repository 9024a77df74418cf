"""
All methods side by side
========================

Every explainer of the register that fits a convolutional network and needs no training, on the same three pictures,
with what it costs. Blue speaks
against the class, red for it; a yellow line is the border of the object, which the network never saw.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
from examples import CLASSES, network, pictures

import explainode
from explainode.explainers import LearningExplainer
from explainode.registry import names

net, batch = network(), pictures(3)

# %%
# What fits, and what does not
# ----------------------------
# A method that needs attention, an ODE or a fit of its own says so.

records, left_out = {}, {}
for name in names("explainer"):
    explainer = explainode.get(f"explainer/{name}")
    if isinstance(explainer, LearningExplainer):
        left_out[name] = "has to be fitted to the network first"
        continue
    start = time.perf_counter()
    try:
        record = explainode.explain(explainer, net, batch.image, batch.label)
    except explainode.UserError as reason:
        left_out[name] = str(reason)
        continue
    records[name] = (record, time.perf_counter() - start)
print(f"{len(records)} methods; left out:")
for name, reason in left_out.items():
    print(f"  {name:<22} {reason[:100]}")

# %%
# The maps
# --------
# Channels are summed; each map has its own scale, so colors compare places of one map and not two maps.


def draw(picture, columns=8):
    """All maps of one picture."""
    rows = -(-len(records) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(11, 1.55 * rows), layout="constrained")
    outline = {"levels": [0.5], "colors": "goldenrod", "linewidths": 0.8, "extent": (0, 48, 0, 48), "origin": "upper"}
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, (record, _)) in zip(axes.flat, records.items()):
        heat = record.attribution[picture].sum(0).detach().numpy()
        limit = np.abs(heat).max() or 1.0
        axis.imshow(heat, cmap="RdBu_r", vmin=-limit, vmax=limit, extent=(0, 48, 48, 0), interpolation="nearest")
        axis.contour(batch.mask[picture] == 1, **outline)
        axis.set_title(name, fontsize=7)
    figure.suptitle(CLASSES[int(batch.label[picture])], fontsize=11)
    plt.show()


draw(0)

# %%

draw(1)

# %%

draw(2)

# %%
# What they cost
# --------------
# Passes of three pictures through the network, and seconds on the machine that built this page.

print(f"{'method':<26}{'forwards':>9}{'backwards':>10}{'seconds':>9}")
for name, (record, seconds) in sorted(records.items(), key=lambda item: item[1][1]):
    print(f"{name:<26}{record.forwards:>9}{record.backwards:>10}{seconds:>9.3f}")
