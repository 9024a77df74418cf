"""The command line on two ranks: leaving together, dying together, and each point of a sweep with its own settings on both."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import small

pytestmark = [pytest.mark.ddp, pytest.mark.slow]
RANKS = ["trainer=ddp_sim", "trainer.max_epochs=2"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    small.finish(folder, *RANKS, "run_dir=run")
    return folder / "run"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_both_ranks_leave_when_the_first_is_told(unbroken, tmp_path, number, status):
    """And go on to the same bits and the same table."""
    with small.started(tmp_path, *RANKS, "run_dir=run") as run:
        small.wait_for(lambda: small.reached(tmp_path / "out.txt", r"training batch [1-9]"), 120)
        os.kill(run.pid, number)
        assert run.wait(60) == status, (tmp_path / "out.txt").read_text()[-2000:]
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


@pytest.mark.parametrize("first", [True, False])
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


@pytest.mark.parametrize(("launcher", "plugin"), [("submitit_local", "submitit"), ("joblib", "joblib")])
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
