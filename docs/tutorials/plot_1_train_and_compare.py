"""
Train, explain while training, compare
======================================

The verbs of the command line, called from Python: a ResNet and its noise-injected twin, small enough to train while
this page is built.
"""

import csv

import matplotlib.pyplot as plt
from examples import FOLDER, command

small = "data=shapes data.size=16 data.train_size=256 data.val_size=32 data.test_size=32 model=six_block model.width=8 trainer.max_epochs=2 logger=[csv]"

# %%
# Two runs
# --------
# A setting is `key=value`; a name that does not exist is answered with the nearest ones.

command(f"train {small} run_dir=runs/plain")
command(f"train {small} model.noise.magnitude=0.2 run_dir=runs/noisy")
command(f"train {small} model.noise.magnitud=0.2")

# %%
# What a run leaves
# -----------------

for file in sorted((FOLDER / "runs/plain").rglob("*")):
    if file.is_file() and len(file.relative_to(FOLDER / "runs/plain").parts) == 1:
        print(f"{file.stat().st_size:>9}  {file.name}")

# %%
# Every number is a row: value, interval, n.

with open(FOLDER / "runs/plain/metrics.csv", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
print(", ".join(rows[0]))
for row in rows[-6:]:
    print(
        f"{row['explainer']:<14}{row['metric']:<24}{float(row['value']):8.3f}  [{row['low']}, {row['high']}]  n={row['n']}"
    )

# %%
# The panel beside the report.

picture = next((FOLDER / "runs/plain").glob("*.png"))
figure = plt.figure(figsize=(10, 4), layout="constrained")
plt.imshow(plt.imread(picture))
plt.axis("off")
plt.show()

# %%
# Image by image
# --------------
# One seed an arm is two networks, not two recipes; the sentence says so.

command("compare runs/plain runs/noisy")
