"""The command line on two ranks: one run directory, leaving together, dying together, each point of a sweep with its own settings on both."""

from __future__ import annotations

import csv
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import small

pytestmark = [pytest.mark.ddp, pytest.mark.slow]
RANKS = ["trainer=ddp_sim", "trainer.max_epochs=2"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run that starts as a user's does; the others start where everything is imported."""
    folder = tmp_path_factory.mktemp("unbroken")
    ranks = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", *RANKS[1:]]
    done = subprocess.run(
        [sys.executable, *small.command(*ranks, "run_dir=run")],
        cwd=folder,
        env=small.ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


def test_two_ranks_write_one_run(unbroken):
    """Every image is measured once."""
    with open(unbroken / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    names = {"accuracy", "smoothness.total_variation", "smoothness.high_frequency"}
    assert {(row["metric"], row["n"]) for row in rows} == {(name, "7") for name in names}
    assert (unbroken / "report.html").is_file()
    assert [path.name for path in unbroken.parent.iterdir()] == ["run"]


def test_both_ranks_leave_when_the_first_is_told(unbroken, tmp_path):
    """And go on to the same bits and the same table. SIGTERM is the one that Lightning listens to as well; SIGUSR1: callbacks/test_several_processes."""
    with small.started(tmp_path, *RANKS, "run_dir=run") as run:
        small.wait_for(lambda: small.reached(tmp_path / "out.txt", r"training batch [1-9]"), 120)
        os.kill(run.pid, signal.SIGTERM)
        assert run.wait(60) == 128 + signal.SIGTERM, (tmp_path / "out.txt").read_text()[-2000:]
        assert not small.children(run.pid)
    assert small.reached(tmp_path / "out.txt", "asked to make room: everything is in .*last.ckpt")
    small.finish(tmp_path, *RANKS, "run_dir=run", "ckpt_path=auto")
    assert small.same(tmp_path / "run", unbroken)


def test_ctrl_c_leaves_a_report(tmp_path):
    """The second rank ends first, and Lightning must not take it for dead: it would kill the one that writes."""
    with small.started(tmp_path, *RANKS, "run_dir=run") as run:
        small.wait_for(lambda: small.reached(tmp_path / "out.txt", r"epoch 2/2 \| training batch [1-9]"), 120)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does
        assert run.wait(90) == 130, (tmp_path / "out.txt").read_text()[-2000:]
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("first", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_a_dead_rank_ends_the_run(tmp_path, first):
    with small.started(tmp_path, *RANKS, "run_dir=run", "trainer.max_epochs=50") as run:
        small.wait_for(lambda: small.reached(tmp_path / "out.txt", r"training batch [1-9]"), 120)
        (second,) = small.children(run.pid)
        os.kill(run.pid if first else second, signal.SIGKILL)
        if first:
            small.wait_for(lambda: not alive(second), 60)
        assert run.wait(60) != 0


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not waited for does not."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("launcher", "plugin"),
    [("submitit_local", "submitit"), pytest.param("joblib", "joblib", marks=pytest.mark.nightly)],
)
def test_each_point_has_its_own_settings_on_every_rank(unbroken, tmp_path, launcher, plugin):
    """Trap: ranks that repeat the command line of a sweep train with settings of other points, with exit status 0. The second point has the settings
    of the unbroken run, and its bits; the third cannot be trained, is named, and the others are kept."""
    if importlib.util.find_spec(f"hydra_plugins.hydra_{plugin}_launcher") is None:
        pytest.skip(f"hydra-{plugin}-launcher is not installed")
    sweep = ["-m", f"hydra/launcher={launcher}", "model.noise.magnitude=0,0.1,${none}", "hydra.sweep.dir=sweep"]
    done = small.finish(tmp_path, *RANKS, *sweep, status=1)
    assert "sweep/2: " in done.stderr and "none" in done.stderr
    assert small.same(tmp_path / "sweep" / "1", unbroken)
    assert (tmp_path / "sweep" / "0" / "report.html").is_file() and not small.same(tmp_path / "sweep" / "0", unbroken)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]  # one directory
