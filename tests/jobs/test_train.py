"""`explainode train` within this process: whose a run directory is, and what its rows say of the training."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from explainode.cli import main as door
from explainode.runs.claim import CLAIM, Owner, started_at
from explainode.runs.directory import RunDirectory

SMALL = shlex.split(
    """trainer=debug trainer.detect_anomaly=false model.width=16 model.blocks=1 data.size=32 data.batch_size=8 data.train_size=24 data.val_size=8
    data.test_size=8 trainer.limit_train_batches=1.0 module.scheduler=null explainer=[saliency] metric=[smoothness]
    evaluation.images=2 evaluation.panel=1 callback=[checkpoint,finite,interrupt,random_state,requeue] logger=[csv]"""
)


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """Train in `tmp_path`; the status and what was said on stderr."""
    for name in os.environ:
        if name.startswith(("SLURM_", "SUBMITIT_", "EXPLAINODE_")) or name in ("RANK", "LOCAL_RANK", "NODE_RANK"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["explainode"])

    def run(*words):
        status = door.main(["train", *SMALL, *words])
        return status, capsys.readouterr().err

    return run


@pytest.fixture
def other():
    """Another process of this machine that is alive, as an owner."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield replace(Owner.here(), pid=process.pid, started=started_at(process.pid))
    process.communicate(b"\n")


def test_a_directory_of_a_living_run_is_refused_before_anything_is_written(train, tmp_path, other):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CLAIM).write_text(json.dumps(asdict(other)))
    status, said = train("run_dir=run")
    assert status == 2 and f"process {other.pid} on {other.host}" in said
    assert [path.name for path in (tmp_path / "run").iterdir()] == [CLAIM]


def test_a_demo_does_not_replace_one_that_is_going_on(train, tmp_path, other, capsys):
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "config.yaml").write_text("name: demo\n")
    (tmp_path / "runs" / "demo" / CLAIM).write_text(json.dumps(asdict(other)))
    assert door.main(["demo"]) == 2
    assert f"process {other.pid}" in capsys.readouterr().err
    assert (tmp_path / "runs" / "demo" / "config.yaml").is_file()


def test_a_dead_runs_directory_is_taken_over_and_released(train, tmp_path, other):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CLAIM).write_text(json.dumps(asdict(replace(other, pid=2**22 + 1))))
    assert train("run_dir=run", "trainer.max_epochs=1")[0] == 0
    assert not (tmp_path / "run" / CLAIM).exists()


def test_a_run_is_not_overwritten_nor_shortened_nor_trained_otherwise(train, tmp_path):
    """A finished run: refused without ckpt_path, and with other steps or fewer epochs; more epochs go on with it."""
    assert train("run_dir=run", "trainer.max_epochs=2")[0] == 0
    before = (tmp_path / "run" / "checkpoints" / "six_block" / "last.ckpt").read_bytes()
    for words, why in (
        ([], "go on with it by ckpt_path=auto"),
        (["ckpt_path=auto", "trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches=1, and not 2"),
        (["ckpt_path=auto", "trainer.gradient_clip_val=0.5"], "trainer.gradient_clip_val=None, and not 0.5"),
        (["ckpt_path=auto", "callback=[checkpoint,ema]"], "callback.ema=None, and not {"),
        (["ckpt_path=auto", "trainer.precision=bf16-mixed"], "trainer.precision=32-true, and not bf16-mixed"),
        (["ckpt_path=auto", "trainer.max_epochs=1"], "trainer.max_epochs=2, and not 1"),
    ):
        status, said = train("run_dir=run", *words)
        assert status == 2 and why in said, said
    assert (tmp_path / "run" / "checkpoints" / "six_block" / "last.ckpt").read_bytes() == before
    assert train("run_dir=run", "ckpt_path=auto", "trainer.max_epochs=3")[0] == 0
    assert {row.epoch for row in RunDirectory(tmp_path / "run").read_rows()} == {2, 3}


def test_two_runs_of_one_second_have_two_directories(train, tmp_path, monkeypatch):
    monkeypatch.setenv("EXPLAINODE_RUN_ID", "2026-01-31_12-00-00")
    for _ in range(2):
        assert train("trainer.max_epochs=1")[0] == 0
    assert sorted(path.name for path in (tmp_path / "runs" / "train").iterdir()) == [
        "2026-01-31_12-00-00",
        "2026-01-31_12-00-00-2",
    ]


def test_two_runs_of_one_job_have_two_directories_and_find_them_again(train, tmp_path, monkeypatch):
    """Two programs in one batch script; after a requeue each goes on with its own, whichever comes first."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    for seed in (0, 1):
        assert train("trainer.max_epochs=1", f"seed={seed}")[0] == 0
    runs = tmp_path / "runs" / "train"
    seeds = {path.name: RunDirectory(path).read_config()["seed"] for path in runs.iterdir()}
    assert seeds == {"17": 0, "17-2": 1}
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert train("trainer.max_epochs=1", "seed=1")[0] == 0
    assert {path.name: RunDirectory(path).read_config()["seed"] for path in runs.iterdir()} == seeds


def test_the_last_row_says_how_long_was_trained(train, tmp_path):
    """Three batches an epoch: the fifth step is in the second epoch, not the tenth."""
    assert train("run_dir=run", "trainer.max_epochs=10", "trainer.max_steps=5")[0] == 0
    folder = RunDirectory(tmp_path / "run")
    assert {row.epoch for row in folder.read_rows() if row.split == "test"} == {2}
    assert "six_block was stopped early: measured after 5 steps, in epoch 2 of 10." in folder.read_warnings()


def test_a_fresh_training_does_not_join_the_curve_of_a_broken_one(train, tmp_path):
    """Killed before its first checkpoint, then begun anew: another token for W&B; a training that goes on keeps it."""
    token = tmp_path / "run" / "wandb-data" / "run-token.txt"
    token.parent.mkdir(parents=True)
    token.write_text("of the broken one")
    assert train("run_dir=run", "trainer.max_epochs=1")[0] == 0
    assert not token.exists()
    token.write_text("of this one")
    assert train("run_dir=run", "trainer.max_epochs=2", "ckpt_path=auto")[0] == 0
    assert token.read_text() == "of this one"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["seed=0,1"], "add -m to sweep over them, or brackets for a list: seed=[0,1]"),
        (["seed=0,"], "'seed=0,': it ends with a comma"),
        (["logger=null"], "an empty list means none: logger=[]"),
        (["explainer=[]"], "no explainer is chosen"),
        (["metric=[]"], "no metric is chosen"),
        (["trainer.max_epochs=-3"], "trainer.max_epochs=-3 is no number of epochs"),
        (["trainer.accelerator=gpu"], "needs a GPU, and there is none here"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence_and_leaves_nothing(train, tmp_path, monkeypatch, words, sentence):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    status, said = train(*words)
    assert status == 2 and sentence in said and len(said.strip().splitlines()) == 1, said
    assert not list(tmp_path.iterdir())


def test_an_empty_list_means_none(train, tmp_path):
    assert train("run_dir=run", "logger=[]", "trainer.max_epochs=1")[0] == 0
    assert RunDirectory(tmp_path / "run").read_rows()


def test_early_stopping_is_an_entry_and_the_rows_say_when(train, tmp_path):
    """A loss that would have to fall by 100: the second epoch is the last, and measured as such."""
    words = ["callback=[checkpoint,early_stopping]", "callback.early_stopping.patience=1"]
    assert train("run_dir=run", *words, "callback.early_stopping.min_delta=100", "trainer.max_epochs=9")[0] == 0
    folder = RunDirectory(tmp_path / "run")
    assert {row.epoch for row in folder.read_rows() if row.split == "test"} == {2}
    assert "six_block was stopped early: measured after 6 steps, in epoch 2 of 9." in folder.read_warnings()
