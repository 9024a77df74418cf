"""The README's commands, run in an empty folder: the same words, with settings added that make the runs small."""

import os
import pickle
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import warm
from PIL import Image

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = README + (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
LINES = [
    line
    for block in re.findall(r"```bash\n(.*?)```", PAGES, flags=re.S)
    for line in block.splitlines()
    if line.startswith("explainode ")
]
# one needs a cluster, one published weights: they are composed in test_docs
ELSEWHERE = ("hydra/launcher=submitit_slurm", "experiment=benchmark_cifar10")
SMALL = {
    "demo": "data.train_size=512 data.val_size=32 data.test_size=32 trainer.max_epochs=1 evaluation.images=4 evaluation.panel=2",
    "train": "data.train_size=256 data.val_size=32 data.batch_size=32 trainer.max_epochs=1 evaluation.images=4 evaluation.panel=2 "
    "'metric=[deletion_fast]' 'explainer=[saliency,gradcam]'",
    "evaluate": "evaluation.images=4 evaluation.panel=2",
    "benchmark": "evaluation.images=4 evaluation.panel=2 'metric=[deletion_fast]' 'explainer=[saliency,gradcam,random_map]'",
}


def small(line: str) -> str:
    """The line with its verb's small settings; a README path of the user's becomes one of the test's."""
    line = line.split("  #")[0].rstrip()
    verb = line.split()[1]
    extra = SMALL.get(verb, "")
    if verb == "train" and "data.root=data" in line:
        extra += " data.verify=false"
    if line.endswith("run_dir=runs/b"):  # of its epochs one is chosen later, by accuracy
        extra = extra.replace(
            "trainer.max_epochs=1",
            "trainer.max_epochs=2 callback.explanations.budget=null callback.explanations.images=4",
        )
    if (
        "cifar10_conditioned" in line
    ):  # pictures of noise teach nothing: what learns them fast blows up, on some machines
        extra += " module.optimizer.lr=1e-4"
    if "experiment=surrogate" in line:  # a solver in every block
        extra = extra.replace("data.train_size=256", "data.train_size=32").replace(
            "data.batch_size=32", "data.batch_size=16"
        )
    if verb == "evaluate" and "experiment" not in line:
        extra += " 'metric=[deletion_fast,max_sensitivity]'"
    if " -m " in line:  # a sweep: what counts is that each point is one
        extra = extra.replace("data.train_size=256", "data.train_size=64")
    if verb == "evaluate" and "cifar10" in line:
        extra += " data.verify=false data.val_size=32"
    line = re.sub(r"multirun/train/\S+", "multirun/train/*", line)  # of whenever the sweep before it began
    return f"{line} {extra}".strip()


def make_cifar10(root: Path) -> None:
    """A folder in CIFAR-10's layout with a few random pictures."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        content = {
            b"batch_label": name.encode(),
            b"labels": [int(i) % 10 for i in range(100)],
            b"data": generator.integers(0, 256, (100, 3072), dtype=np.uint8),
            b"filenames": [f"{i}.png".encode() for i in range(100)],
        }
        (folder / name).write_bytes(pickle.dumps({key.decode(): value for key, value in content.items()}, protocol=4))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(
        pickle.dumps({"label_names": names, "num_vis": 3072, "num_cases_per_batch": 100}, protocol=4)
    )


def test_the_python_of_the_readme_runs():
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    found: dict = {}
    exec(compile(block, "README.md", "exec"), found)
    assert found["record"].attribution.shape[:2] == (2, 1)


def test_the_readme_is_read_in_a_minute():
    assert len(README.splitlines()) <= 90


@pytest.mark.slow
def test_every_command_of_the_readme_runs(tmp_path):
    assert len(LINES) >= 8
    make_cifar10(tmp_path / "data")
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(
        tmp_path / "picture.jpg"
    )
    outside = {
        name: value for name, value in os.environ.items() if name != "EXPLAINODE_RUN_ID"
    }  # of tests before this one
    home = outside | {
        "WANDB_MODE": "offline",
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    start = "demo trainer.max_epochs=1"
    for line in [f"explainode {start}", *(line for line in LINES if not any(words in line for words in ELSEWHERE))]:
        words = ["-m", *shlex.split(small(line))]
        if words[-1].endswith("*"):
            words[-1:] = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob(words[-1]))
        done = warm.run(words, tmp_path, home, timeout=300)
        assert done.returncode == 0, f"{small(line)}\n{done.stdout[-1500:]}\n{done.stderr[-2500:]}"
        assert "Traceback" not in done.stderr
