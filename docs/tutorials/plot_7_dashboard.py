"""
Reading what was logged
=======================

Where there is no network, W&B's runs are kept offline and uploaded later with `explainode sync`; the same rows lie in
`metrics.csv` and in the report.
"""

import csv
from collections import defaultdict

import matplotlib.pyplot as plt
from examples import FOLDER, command

words = (
    "train data=shapes data.size=16 data.train_size=512 data.val_size=64 data.test_size=64 "
    "model=six_block model.width=8 trainer.max_epochs=4 logger=[csv] explainer=[saliency,random_map] metric=[deletion,max_sensitivity] run_dir=runs/a"
)
command(words, last=600)

# %%
# One table, long form: a line per epoch, split, explainer and metric.

with open(FOLDER / "runs/a/metrics.csv", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
series = defaultdict(list)
for row in rows:
    if row["split"] == "val" and row["value"]:
        series[row["explainer"], row["metric"]].append((int(row["epoch"]), float(row["value"])))
print(*sorted({f"{explainer or 'network'}: {metric}" for explainer, metric in series}), sep="\n")

# %%
# Curves over epochs, each method beside the random map. A faithfulness that improves only because the network does
# improves for the random map too.

chosen = sorted(
    {metric for (explainer, metric) in series if explainer and metric.startswith(("deletion", "max_sensitivity"))}
)[:3]
figure, axes = plt.subplots(1, len(chosen), figsize=(3.4 * len(chosen), 2.8), layout="constrained", squeeze=False)
for axis, metric in zip(axes[0], chosen):
    for explainer in ("saliency", "random_map"):
        axis.plot(*zip(*sorted(series[explainer, metric])), marker="o", label=explainer)
    axis.set_title(metric, fontsize=8)
    axis.set_xlabel("epoch")
axes[0, 0].legend(fontsize=8)
plt.show()
