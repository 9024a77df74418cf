"""
A sweep, on this machine and on SLURM
=====================================

Every setting can be swept with `-m`; the launcher decides where the points run. Seeds are settings too, and the unit
of every claim about a recipe.
"""

from examples import FOLDER, command

small = (
    "data=shapes data.size=16 data.train_size=64 data.val_size=16 data.test_size=16 model=six_block "
    "model.width=4 model.blocks=1 trainer.max_epochs=1 logger=[csv] explainer=[saliency] metric=[smoothness]"
)

# %%
# Two noises and two seeds, one after the other.

command(f"train -m {small} model.noise.magnitude=0,0.2 seed=0,1", last=600)
sweep = next((FOLDER / "multirun/train").iterdir())
for run in sorted(path for path in sweep.iterdir() if path.is_dir()):
    print(run.name)

# %%
# Compared by recipe
# ------------------
# `compare` groups runs that differ in nothing but their seed. Two seeds carry no claim about a recipe, and it says so.

command(f"compare {sweep}")

# %%
# On a cluster
# ------------
# The same words with another launcher; each point is a job that is requeued when it loses its place, and goes on bit
# for bit::
#
#     explainode train -m model.noise.magnitude=0,0.1,0.5 seed=0,1,2,3 hydra/launcher=submitit_slurm trainer.devices=4
#     sbatch --ntasks-per-node=4 --gres=gpu:4 scripts/train.sbatch experiment=cifar10_compare data.root=data
#
# `Scale <../scale.html>`_ says what is kept when a job dies, and how.
