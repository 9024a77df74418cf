"""What a launcher can do and what is refused, in a sentence each; failures of points come back from wherever they were trained."""

from __future__ import annotations

import re
import shutil
import signal
import stat
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from explainode.cli import launch
from explainode.cli.main import main
from explainode.cli.points import Points
from explainode.errors import UserError
from explainode.registry import devices
from explainode.registry.composing import compose, compose_launcher
from explainode.signals import TrainingInterrupted, TrainingPreempted

TINY = [
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=1",
    "trainer.limit_val_batches=1",
    "data.size=32",
    "model.width=16",
]
FAST = [
    *TINY,
    "data.test_size=4",
    "evaluation.images=2",
    "metric=[smoothness]",
    "explainer=[saliency]",
    "~callback.explanations",
    "module.scheduler=null",
]


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"devices": 2}, 2),
        ({"devices": "3"}, 3),
        ({"devices": [0, 1]}, 2),
        ({"devices": "0,1,2"}, 3),
        ({"devices": "auto", "accelerator": "cpu"}, 1),
        ({"devices": -1, "accelerator": "cpu"}, 1),
        ({}, 1),
    ],
)
def test_devices_are_counted_however_they_are_written(settings, count):
    assert devices.count_devices(OmegaConf.create(settings)) == devices.count_devices(settings) == count


def test_all_gpus_are_several_devices(monkeypatch):
    """Trap: `devices: auto` on a machine with several GPUs starts as many processes."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    with pytest.raises(UserError, match="needs a launcher that starts the ranks"):
        launch.check_launcher(compose("train", ["trainer=ddp"]), "basic", sweeps=True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-m", "trainer=ddp_sim", "seed=0,1"], "needs a launcher that starts the ranks"),
        (["-m", "trainer=slurm", "trainer.devices=2", "seed=0,1"], "submitit_local or submitit_slurm"),
        (["hydra/launcher=submitit_local"], "add -m"),
        (["-m", "trainer=ddp", "trainer.devices=auto", "hydra/launcher=submitit_local"], "give a number"),
    ],
)
def test_what_would_train_something_else_is_refused(words, sentence, capsys, tmp_path, monkeypatch):
    """Trap: Lightning repeats the command line for each rank, so each would run a sweep of its own, with exit status 0."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_slurm_without_sbatch_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(launch, "find_spec", lambda name: name)
    assert main(["train", "-m", "hydra/launcher=submitit_slurm"]) == 2
    assert "sbatch, which is not here" in capsys.readouterr().err


def test_a_missing_plugin_is_named(monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"explainode\[sweep\]"):
        launch.check_launcher(compose("train", []), "joblib", sweeps=True)


def test_the_plugins_own_settings_are_not_used():
    """Trap: with them the first notice of a preemption ends a job for good, and tasks are not ranks."""
    assert launch.with_our_launchers(["seed=1", "hydra/launcher=submitit_slurm"]) == ["seed=1", "hydra/launcher=slurm"]
    with pytest.raises(UserError, match="write local"):
        launch.check_launcher(compose("train", []), "submitit_local", sweeps=True)


def test_jobs_are_made_of_the_trainer():
    """Tasks, nodes and GPUs follow the devices; a job survives twenty time limits; dead ranks end it, early notices wait."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module

    from explainode.registry.composing import CONFIG_MODULE, register_resolvers

    register_resolvers()
    words = [
        "hydra/launcher=slurm",
        "trainer=slurm",
        "trainer.accelerator=gpu",
        "trainer.devices=4",
        "trainer.num_nodes=2",
        "name=x",
    ]
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        job = hydra_compose("train", words, return_hydra_config=True).hydra.launcher
    assert (job.tasks_per_node, job.nodes, job.gpus_per_node, job.name) == (4, 2, 4, "x")
    assert job.max_num_timeout == 20 and job.additional_parameters.requeue is True
    assert job.srun_args[:3] == ["--kill-on-bad-exit=1", "env", "--block-signal=USR1"]
    assert devices.gpus_of("cpu", 4) is None and devices.gpus_of("auto", 4) is None


@pytest.mark.parametrize("asked", ["auto", -1, "0,1", True])
def test_a_job_needs_a_number_of_tasks(asked):
    with pytest.raises(UserError, match="give a number"):
        devices.ranks_of(asked)


def test_the_launcher_may_come_from_anywhere():
    assert compose_launcher("train", ["hydra/launcher=slurm", "name=x", "run_id=y", "seed=0,1"]) == (
        "slurm",
        "multirun/x/y",
    )
    assert compose_launcher("train", [])[0] == "basic"


def test_the_first_reason_of_a_failure_is_kept(tmp_path):
    """A rank that fails takes the others with it, whose complaint is only that it has gone."""
    launch.note_failure(tmp_path / "1", UserError("no such\nfile"))
    launch.note_failure(tmp_path / "1", RuntimeError("connection closed by peer"))
    launch.note_failure(tmp_path / "deep" / "2", RuntimeError("x"))
    assert launch.failures(tmp_path) == {
        str(tmp_path / "1"): "no such file",
        str(tmp_path / "deep/2"): "RuntimeError: x",
    }
    launch.forget_failures(tmp_path)
    assert launch.failures(tmp_path) == {}


def test_a_sweep_over_the_number_of_devices_is_refused_where_it_matters(tmp_path, capsys):
    points = Points(sweeps=True, launcher="basic", config_folders=[])
    points.train(compose("train", ["trainer=ddp_sim", f"output_dir={tmp_path}/1"]))
    assert "needs a launcher that starts the ranks" in (tmp_path / "1" / "failure.txt").read_text()
    assert points.status(tmp_path) == 1 and f"{tmp_path}/1: a sweep of runs" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_the_status_names_the_signal(tmp_path, number):
    points = Points(sweeps=False, launcher="basic", config_folders=[])
    points.left = TrainingPreempted()
    points.left.signal = number
    assert points.status(tmp_path) == 128 + number


def test_who_stops_a_point_means_the_sweep(tmp_path):
    points = Points(sweeps=True, launcher="basic", config_folders=[])
    points.left = TrainingInterrupted()
    points.train(compose("train", [f"output_dir={tmp_path}/1"]))
    assert not (tmp_path / "1").exists() and points.status(tmp_path) == 130


@pytest.mark.slow
def test_a_failing_point_is_listed_and_the_others_are_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sweep = "data.image_seed=0,none,2"
    assert main(["train", "-m", *FAST, sweep, "hydra.sweep.dir=sweep"]) == 1
    error = capsys.readouterr().err
    assert "sweep/1" in error and "image_seed" in error and "Traceback" not in error
    assert [(tmp_path / "sweep" / str(point) / "report.html").is_file() for point in range(3)] == [True, False, True]
    assert "image_seed" in (tmp_path / "sweep" / "1" / "failure.txt").read_text()


@pytest.mark.slow
def test_a_run_directory_of_other_settings_is_refused(tmp_path, monkeypatch, capsys):
    """And one of the same settings goes on, also for longer and on another place's data."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", *FAST, "run_dir=run"]) == 0
    assert main(["train", *FAST, "run_dir=run", "ckpt_path=auto", "trainer.max_epochs=2", "data.num_workers=0"]) == 0
    before = {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "run").rglob("*")
        if path.is_file() and "hydra" not in path.parts
    }
    assert main(["train", *FAST, "run_dir=run", "ckpt_path=auto", "module.label_smoothing=0.2"]) == 2
    assert "holds a run with module.label_smoothing=" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_hydra_is_pinned_beside_its_plugins():
    """Trap: without it pip takes a release candidate of Hydra and OmegaConf, which the launchers allow."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    for needs in (
        re.search(r"^dependencies = \[(.*?)^\]", text, re.M | re.S)[1],
        re.search(r"^sweep = \[(.*)\]", text, re.M)[1],
    ):
        assert re.search(r'"hydra-core[^"]*<1\.4"', needs)


def test_the_batch_script_is_right_about_the_trap():
    """The tasks begin with the signals blocked; the shell around them cannot do it."""
    script = Path(__file__).parents[2] / "scripts" / "train.sbatch"
    text = script.read_text()
    assert script.stat().st_mode & stat.S_IXUSR
    assert (
        "--signal=USR1@" in text and "--signal=B:" not in text and "--requeue" in text and "--open-mode=append" in text
    )
    assert "env --block-signal=USR1" in text and "--kill-on-bad-exit=1" in text
