"""
Your own metric
===============

Say what one image scores. The table, intervals, ranks and files are around you already.
"""

from examples import network, pictures

import explainode
from explainode.metrics import ExplanationMetric


class ShareInTheMiddle(ExplanationMetric):
    """Share of the absolute map inside of the middle quarter of the picture, in [0, 1]."""

    higher_is_better = None
    role = "complexity"
    kind = "share_in_the_middle"

    def measure(self, explanation):
        heat = explanation.heatmap().abs()
        height, width = heat.shape[-2:]
        middle = heat[:, height // 4 : height - height // 4, width // 4 : width - width // 4]
        return (middle.flatten(1).sum(1) / heat.flatten(1).sum(1))[:, None]


net, batch = network(), pictures(32)
methods = {name: explainode.get(f"explainer/{name}") for name in ("ig", "gradcam", "centre_prior", "random_map")}
results = explainode.evaluate(net, methods, {"middle": ShareInTheMiddle()}, [batch], n=32)
for row in results.rows:
    if row.metric.startswith("middle"):
        print(f"{row.explainer:<14}{row.value:6.3f}  [{row.low:.3f}, {row.high:.3f}]  n={row.n}")

# %%
# The interval over images came without a line; so do values per image, sums over processes and files.

print(
    {name: tuple(values.shape) for name, values in list(results.samples.items())[:2]}
    if hasattr(results, "samples")
    else ""
)

# %%
# `role` says what the metric judges; tables and sentences read it, never the name. A metric of faithfulness would be
# held against the controls at once.
