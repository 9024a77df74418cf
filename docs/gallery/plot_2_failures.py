"""
How maps deceive
================

Five ways in which a map looks like an explanation and is none, each with the number that finds it out.
"""

import copy

import matplotlib.pyplot as plt
import numpy as np
import torch
from examples import CLASSES, network, pictures

import explainode

net, batch = network(), pictures(6)


def show(maps, title):
    """One row of maps, a title over each."""
    figure, axes = plt.subplots(1, len(maps), figsize=(1.9 * len(maps), 2.3), layout="constrained")
    for axis, (name, heat) in zip(axes, maps.items()):
        heat = np.asarray(heat)
        if heat.ndim == 3:
            axis.imshow(heat.transpose(1, 2, 0))
        else:
            limit = np.abs(heat).max() or 1.0
            axis.imshow(heat, cmap="RdBu_r", vmin=-limit, vmax=limit, extent=(0, 48, 48, 0))
        axis.set_title(name, fontsize=8)
        axis.axis("off")
    figure.suptitle(title, fontsize=10)
    plt.show()


def explain(method, model=net, target=None, **settings):
    """One record for all pictures."""
    return explainode.explain(explainode.get(f"explainer/{method}", **settings), model, batch.image, target)


def heat(record, picture=0):
    """(h, w) of one picture, channels summed."""
    return record.attribution[picture].sum(0).detach().numpy()


def correlation(a, b):
    """Of two records' maps, mean over the pictures."""
    flat = [record.attribution.sum(1).flatten(1) for record in (a, b)]
    return float(torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*flat)]).mean())


# %%
# A picture of the edges
# ----------------------
# Guided backpropagation keeps its shapes when the last layers of the network are drawn anew: what it shows was not
# learned there.

forgetful = copy.deepcopy(net)
torch.manual_seed(3)
for module in list(forgetful.modules())[-2:]:
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()
maps, kept = {"picture": batch.image[0]}, {}
for method in ("guided_backprop", "saliency", "gradcam"):
    before, after = explain(method, target=batch.label), explain(method, forgetful, batch.label)
    maps |= {method: heat(before), f"{method},\nhead drawn anew": heat(after)}
    kept[method] = correlation(before, after)
show(maps, "the head of the network is drawn anew")
print("correlation of the map before and after:", {name: round(value, 2) for name, value in kept.items()})

# %%
# The same map for every class
# ----------------------------
# Ask for another class. A map that does not move does not explain the class.

other = (batch.label + 1) % len(CLASSES)
for method in ("guided_backprop", "fem", "lrp_epsilon_plus", "ig"):
    same = correlation(explain(method, target=batch.label), explain(method, target=other))
    print(f"{method:<18} correlation between the maps of two classes: {same:+.2f}")

# %%
# A slope taken for a contribution
# --------------------------------
# Contributions add up to the score less the score of the baseline; a saliency map is a slope and adds up to nothing.

for method in ("ig_adaptive", "deep_lift", "input_x_gradient"):
    record = explain(method)
    error = record.completeness_error
    print(
        f"{method:<18} completeness error: {'no sum is promised' if error is None else f'{float(error.abs().max()):.1e}'}"
    )

# %%
# A bump in the middle
# --------------------
# Objects stand in the middle of photographs. A map that knows nothing but that beats many methods where they do; so
# it stands in every table of ours.

maps = {
    "picture": batch.image[1],
    "centre_prior": heat(explain("centre_prior"), 1),
    "gradcam": heat(explain("gradcam"), 1),
    "ig": heat(explain("ig"), 1),
}
show(maps, "which of these was told the network?")
inside = (batch.mask == 1).float()
for method in ("centre_prior", "random_map", "gradcam", "ig"):
    positive = explain(method).attribution.sum(1, keepdim=True).clamp(min=0)
    positive = torch.nn.functional.interpolate(positive, size=inside.shape[-2:], mode="bilinear")[:, 0]
    share = (positive * inside).flatten(1).sum(1) / positive.flatten(1).sum(1).clamp(min=1e-12)
    print(
        f"{method:<14} share of the map inside of the object: {float(share.mean()):.2f}  (area of the objects: {float(inside.mean()):.2f})"
    )

# %%
# A network that looks elsewhere
# ------------------------------
# A map that lies beside the object is not wrong: here each background betrays the class, and a good map shows that.

cue = pictures(6, spurious=1.0)
maps = {"picture": cue.image[0]} | {
    method: explainode.explain(explainode.get(f"explainer/{method}"), net, cue.image[:1]).attribution[0].sum(0).detach()
    for method in ("saliency", "ig", "gradcam", "lrp_epsilon_plus")
}
show(maps, "background of the class's own hue")
