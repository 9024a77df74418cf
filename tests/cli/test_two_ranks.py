"""The command line on two ranks: one run directory, every image measured once."""

import csv
import os
import shlex
import subprocess
import sys

import pytest

WORDS = """
    train trainer=ddp trainer.devices=2 trainer.accelerator=cpu trainer.max_epochs=1 data.train_size=768 data.val_size=16 data.test_size=15
    data.size=40 model.width=16 metric=[deletion_fast] explainer=[saliency] evaluation.images=7 callback.explanations.budget=null run_dir=run
"""


@pytest.mark.ddp
@pytest.mark.slow
def test_two_ranks_write_one_run(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "explainode", *shlex.split(WORDS)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    assert {(row["metric"], row["n"]) for row in rows} == {("accuracy", "7"), ("deletion_fast", "7")}
    assert (tmp_path / "run" / "report.html").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
