"""The job that we are, as SLURM's and submitit's environment tells; its way back into the queue, with a queue that writes down what it is asked."""

from __future__ import annotations

import os
import signal
import stat

import pytest

from explainode.errors import UserError
from explainode.jobs import slurm
from explainode.registry.composing import compose, run_id


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    """No SLURM, no submitit, no ranks."""
    for name in os.environ:
        if name.startswith(("SLURM_", "SUBMITIT_")) or name in ("RANK", "LOCAL_RANK", "NODE_RANK", "EXPLAINODE_RUN_ID"):
            monkeypatch.delenv(name)


@pytest.fixture
def environment(monkeypatch):
    def put(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return put


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """squeue says `state`, scontrol notes its words; both as programs."""

    def make(state="RUNNING", status=0):
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, text in (
            ("squeue", f"echo {state}"),
            ("scontrol", f'echo "$@" >>{tmp_path}/asked; echo no such job >&2; exit {status}'),
        ):
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(stat.S_IRWXU)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return tmp_path / "asked"

    return make


def test_a_requeued_job_finds_its_own_directory(environment):
    """Trap: a directory named after the time is another one after requeueing, and may differ between ranks."""
    environment(SLURM_JOB_ID=17)
    assert slurm.slurm_job() == run_id() == "17"
    environment(SLURM_ARRAY_JOB_ID=16, SLURM_ARRAY_TASK_ID=3)
    assert slurm.slurm_job() == run_id() == "16_3"


@pytest.mark.parametrize(("step", "expected"), [(0, "17"), (1, "17.1"), (4294967291, "17")])
def test_later_steps_of_a_job_are_other_runs(environment, step, expected):
    """The batch script, whose number is no step's, and the first step have the job's own name."""
    environment(SLURM_JOB_ID=17, SLURM_STEP_ID=step)
    assert run_id() == expected


@pytest.mark.parametrize("trainer", ["cpu", "gpu", "ddp", "ddp_sim", "slurm", "debug"])
def test_nothing_is_restored_from_the_working_directory(trainer):
    """Trap: Lightning restores any hpc_ckpt_*.ckpt of its default_root_dir, which is the working directory by default."""
    config = compose("train", [f"trainer={trainer}", "output_dir=here"])
    assert config.trainer.default_root_dir == "here"


def test_lightning_does_not_requeue_by_itself(environment):
    """Trap: it saves inside the signal handler, while ranks stand in different collective calls."""
    assert slurm.cluster_plugins() == []
    environment(SLURM_NTASKS=2, SLURM_NTASKS_PER_NODE=2, SLURM_JOB_NAME="train", SLURM_PROCID=0)
    (plugin,) = slurm.cluster_plugins()
    assert plugin.auto_requeue is False
    environment(SLURM_JOB_NAME="bash")
    assert slurm.cluster_plugins() == []


@pytest.mark.parametrize(
    ("found", "devices", "nodes", "words"),
    [
        ({}, 4, 1, None),
        ({"SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 2, "SLURM_STEP_ID": 0}, 2, 1, None),
        ({"SLURM_NTASKS": 4, "SLURM_NTASKS_PER_NODE": 2, "SLURM_STEP_ID": 0}, 2, 2, None),
        ({"SLURM_NTASKS": 1}, 1, 1, None),
        ({"SLURM_NTASKS": 2, "SLURM_JOB_NAME": "bash"}, 1, 1, None),
        ({"SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 2, "SLURM_STEP_ID": 0}, 1, 1, ["2 task", "trainer.devices=2", "--ntasks-per-node=1"]),
        ({"SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 2, "SLURM_STEP_ID": 0, "SLURM_STEP_NUM_TASKS": 2, "SLURM_JOB_NAME": "interactive"}, 1, 1, ["2 task"]),
        ({"SLURM_NTASKS": 2, "SLURM_STEP_ID": 0, "SLURM_STEP_NUM_TASKS": 1, "SLURM_JOB_NAME": "interactive"}, 2, 1, None),
        ({"SLURM_NTASKS": 1, "SLURM_STEP_ID": 0}, 2, 1, ["1 task", "trainer.devices=1", "--ntasks-per-node=2"]),
        ({"SLURM_NTASKS": 4, "SLURM_STEP_NUM_TASKS": 2, "SLURM_NTASKS_PER_NODE": 4, "SLURM_STEP_ID": 0}, 4, 1, ["2 task", "devices=2"]),
        ({"SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 2}, 2, 1, ["srun explainode"]),
        ({"SLURM_NTASKS": 2, "SLURM_STEP_ID": 0}, 2, 1, ["--ntasks-per-node instead", "2 tasks"]),
        ({"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": 5, "SUBMITIT_LOCAL_NTASKS": 3}, 2, 1, ["3 task", "devices=3"]),
        ({"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": 5, "SUBMITIT_LOCAL_NTASKS": 2}, 2, 1, None),
    ],
)  # fmt: skip
def test_ranks_are_the_tasks_that_were_started(environment, found, devices, nodes, words):
    environment(**found)
    if words is None:
        return slurm.check_tasks(devices, nodes)
    with pytest.raises(UserError) as refused:
        slurm.check_tasks(devices, nodes)
    assert all(word in str(refused.value) for word in words), str(refused.value)


@pytest.mark.parametrize(
    ("found", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": 0, "NODE_RANK": 0}, True),
        ({"LOCAL_RANK": 1}, False),
        ({"LOCAL_RANK": 0, "NODE_RANK": 1}, False),
        ({"SLURM_STEP_ID": 0, "SLURM_PROCID": 0, "LOCAL_RANK": 1}, True),
        ({"SLURM_STEP_ID": 0, "SLURM_PROCID": 1}, False),
        ({"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": 5, "SUBMITIT_LOCAL_GLOBALID": 1}, False),
    ],
)
def test_who_is_the_first_rank(environment, found, first):
    environment(**found)
    assert slurm.is_first_rank() is first


def test_a_running_job_goes_back_into_the_queue(environment, queue, tmp_path):
    asked = queue()
    environment(SLURM_JOB_ID=17)
    assert slurm.requeue(tmp_path) and asked.read_text() == "requeue 17\n"


def test_a_cancelled_job_does_not(environment, queue, tmp_path):
    asked = queue("CANCELLED")
    environment(SLURM_JOB_ID=17)
    assert not slurm.requeue(tmp_path) and not asked.exists()


def test_without_a_queue_nothing_happens(tmp_path):
    assert not slurm.requeue(tmp_path)


def test_a_refusal_says_how_to_go_on(environment, queue, tmp_path):
    queue(status=1)
    environment(SLURM_JOB_ID=17)
    with pytest.raises(UserError, match=r"job 17 could not.*no such job.*ckpt_path=auto"):
        slurm.requeue(tmp_path)


def test_a_queue_that_is_not_there_says_how_to_go_on(environment, monkeypatch, tmp_path):
    environment(SLURM_JOB_ID=17)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="ckpt_path=auto"):
        slurm.requeue(tmp_path)


def test_submitit_requeues_its_own_jobs(environment, queue, tmp_path):
    """It has a count of its own, and its handler is the only way for a job without SLURM."""
    called = []

    def checkpoint_and_try_requeue(number, frame):
        called.append(number)
        raise SystemExit(-1)

    asked, before = queue(), signal.signal(signal.SIGUSR2, checkpoint_and_try_requeue)
    try:
        environment(SLURM_JOB_ID=17)
        with pytest.raises(SystemExit):
            slurm.requeue(tmp_path)
        assert called == [signal.SIGUSR2] and not asked.exists() and not slurm.was_requeued(tmp_path)
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_local_job_knows_that_it_has_run_before(environment, tmp_path, monkeypatch):
    environment(SUBMITIT_EXECUTOR="local", SUBMITIT_LOCAL_JOB_ID=99)
    assert not slurm.was_requeued(tmp_path)

    def checkpoint_and_try_requeue(number, frame):
        raise SystemExit(122)

    before = signal.signal(signal.SIGUSR2, checkpoint_and_try_requeue)
    try:
        with pytest.raises(SystemExit):
            slurm.requeue(tmp_path)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert slurm.was_requeued(tmp_path)
    environment(SUBMITIT_LOCAL_JOB_ID=100)  # another job in the same directory is no continuation
    assert not slurm.was_requeued(tmp_path)


def test_only_a_restarted_job_goes_on_by_itself(environment, tmp_path):
    environment(SLURM_JOB_ID=17)
    assert not slurm.was_requeued(tmp_path)
    environment(SLURM_RESTART_COUNT=1)
    assert slurm.was_requeued(tmp_path)
