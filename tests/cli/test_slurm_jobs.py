"""Real jobs on a real SLURM: `scripts/slurm_dev.sh up`, then `eval "$(scripts/slurm_dev.sh env)"`."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import small

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.sbatch"
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.ddp,
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True).returncode != 0,
        reason="no SLURM answers here; scripts/slurm_dev.sh up starts one",
    ),
]


def ask(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, env=small.ENVIRONMENT).stdout.strip()


def state(job: str, name: str = "JobState") -> str:
    return re.search(rf"\b{name}=(\S+)", ask("scontrol", "show", "job", job))[1]


def over(job: str) -> bool:
    return state(job) not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")


@pytest.fixture
def submit(tmp_path):
    """Submit a run of two ranks; what is still there at the end of the test is cancelled."""
    jobs = []

    def sbatch(*words: str, tasks: int = 2) -> str:
        options = [
            "--parsable",
            f"--ntasks-per-node={tasks}",
            "--time=30",
            f"--chdir={tmp_path}",
            f"--output={tmp_path}/out.txt",
        ]
        environment = small.ENVIRONMENT | {"EXPLAINODE": str(Path(sys.executable).with_name("explainode"))}
        done = subprocess.run(
            ["sbatch", *options, str(SCRIPT), *small.SETTINGS, *words], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        jobs.append(done.stdout.strip())
        return jobs[-1]

    yield sbatch
    for job in jobs:
        if not over(job):
            subprocess.run(["scancel", "--signal=KILL", job], capture_output=True)
            subprocess.run(["scancel", job], capture_output=True)


def test_a_preempted_job_goes_on(submit, tmp_path):
    """Signalled in the middle of the first epoch: requeued with nothing lost, goes on, equals a run that was left alone."""
    small.finish(tmp_path, "trainer=ddp_sim", "run_dir=unbroken")
    job = submit("trainer=ddp_sim")
    small.wait_for(lambda: small.reached(tmp_path / "out.txt", r"training batch [1-9]"), 180)
    ask("scancel", "--signal=USR1", job)
    small.wait_for(lambda: state(job, "Restarts") == "1" and state(job) == "PENDING", 60)
    ask("scontrol", "update", f"jobid={job}", "starttime=now")
    small.wait_for(lambda: over(job), 180)
    assert state(job) == "COMPLETED", (tmp_path / "out.txt").read_text()[-2000:]
    assert small.same(tmp_path / "runs" / "train" / job, tmp_path / "unbroken")


def test_a_cancelled_job_does_not_come_back(submit, tmp_path):
    job = submit("trainer=ddp_sim", "trainer.max_epochs=50")
    small.wait_for(lambda: small.reached(tmp_path / "out.txt", r"training batch [1-9]"), 180)
    ask("scancel", job)
    small.wait_for(lambda: over(job), 60)
    assert state(job) == "CANCELLED" and state(job, "Restarts") == "0"
    assert (tmp_path / "runs" / "train" / job / "checkpoints" / "six_block" / "last.ckpt").is_file()


def test_a_dead_rank_ends_the_job(submit, tmp_path):
    job = submit("trainer=ddp_sim", "trainer.max_epochs=50")
    small.wait_for(lambda: small.reached(tmp_path / "out.txt", r"training batch [1-9]"), 180)
    tasks = [line.split() for line in ask("scontrol", "listpids", job).splitlines()]
    (second,) = [pid for pid, _, step, local, _ in tasks if step == "0" and local == "1"]
    ask("kill", "-KILL", second)
    small.wait_for(lambda: over(job), 60)
    assert state(job) == "FAILED"


def test_ranks_that_are_not_the_tasks_are_refused(submit, tmp_path):
    """Trap: two tasks of one rank each would train the same run twice into one directory."""
    output = tmp_path / "out2.txt"
    words = " ".join(
        [
            str(Path(sys.executable).with_name("explainode")),
            "train",
            *(f"'{word}'" for word in small.SETTINGS),
            "trainer.devices=1",
        ]
    )
    job = ask(
        "sbatch",
        "--parsable",
        "--ntasks-per-node=2",
        f"--chdir={tmp_path}",
        f"--output={output}",
        f"--wrap=srun {words}",
    )
    small.wait_for(lambda: over(job), 120)
    assert state(job) == "FAILED" and "set trainer.devices=2 or --ntasks-per-node=1" in output.read_text()
    job = ask(
        "sbatch", "--parsable", "--ntasks-per-node=2", f"--chdir={tmp_path}", f"--output={output}", f"--wrap={words}"
    )
    small.wait_for(lambda: over(job), 120)
    assert "srun explainode train" in output.read_text()


@pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is None,
    reason="hydra-submitit-launcher is not installed",
)
def test_a_sweep_with_a_preemption_in_the_middle(tmp_path):
    """Trap: with submitit's own settings the first notice of a preemption ends a job for good."""
    words = [
        "trainer=ddp_sim",
        "-m",
        "hydra/launcher=submitit_slurm",
        "model.noise.magnitude=0,0.1",
        "hydra.sweep.dir=sweep",
    ]
    with small.started(tmp_path, *words) as sweep:
        log = tmp_path / "sweep" / ".submitit"
        small.wait_for(
            lambda: any(small.reached(path, r"training batch [1-9]") for path in log.glob("*_0/*_0_0_log.err")), 180
        )
        job = f"{next(log.glob('*_0')).name}"
        ask(
            "scancel", "--signal=USR2", state(job, "JobId")
        )  # by its number: scancel repeats itself where ARRAY_TASK is already being requeued
        small.wait_for(lambda: state(job, "Restarts") == "1" and state(job) == "PENDING", 60)
        ask("scontrol", "update", f"jobid={job}", "starttime=now")
        assert sweep.wait(300) == 0, (tmp_path / "out.txt").read_text()[-3000:]
    small.finish(tmp_path, "trainer=ddp_sim", "model.noise.magnitude=0", "run_dir=alone")
    assert small.same(tmp_path / "sweep" / "0", tmp_path / "alone")
    assert (tmp_path / "sweep" / "1" / "report.html").is_file()
