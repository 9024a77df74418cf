"""
Your own data
=============

A folder per class is enough. Masks, boxes and fixations are optional; each one unlocks the metrics that need it.
"""

import torch
from examples import CLASSES, FOLDER, command, pictures
from PIL import Image

import explainode

batch = pictures(16)
for number, (image, label) in enumerate(zip(batch.image, batch.label)):
    for split in ("train", "val", "test"):
        folder = FOLDER / "mine" / split / CLASSES[int(label)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()).save(folder / f"{number}.png")
print(sorted(path.name for path in (FOLDER / "mine" / "train").iterdir()))

# %%
# From Python
# -----------

data = explainode.get("data/image_folder", root=str(FOLDER / "mine"), size=32, num_classes=8, seed=0)
data.setup("test")
first = next(iter(data.test_dataloader()))
print(tuple(first.image.shape), float(first.image.min()), float(first.image.max()), first.label.tolist())

# %%
# From the command line
# ---------------------

small = (
    "model=six_block model.width=8 data.size=32 data.num_classes=8 data.batch_size=8 trainer.max_epochs=1 logger=[csv]"
)
command(f"train data=image_folder data.root=mine {small} run_dir=runs/mine")

# %%
# A folder that is not what was expected is answered in a sentence.

(FOLDER / "empty").mkdir()
command("train data=image_folder data.root=empty data.num_classes=8 model=six_block run_dir=runs/none")
