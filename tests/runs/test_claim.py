"""A run directory has one owner at a time."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from explainode.errors import UserError
from explainode.runs.claim import CLAIM, Owner, claimed, owner_of, started_at


@pytest.fixture
def other():
    """Another process of this machine that is alive, as an owner."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield replace(Owner.here(), pid=process.pid, started=started_at(process.pid))
    process.communicate(b"\n")


def left_behind(folder: Path, owner: Owner) -> None:
    folder.mkdir()
    (folder / CLAIM).write_text(json.dumps(asdict(owner)))


def test_a_claim_names_its_process_and_is_released(tmp_path):
    me = Owner.here()
    with claimed(tmp_path / "run", me) as owner:
        said = json.loads((tmp_path / "run" / CLAIM).read_text())
        assert owner == me and said["pid"] == me.pid and said["host"] and said["started"] and said["token"]
        with claimed(tmp_path / "run", Owner.here()) as again:
            assert again == me, "a claim within our own is the same claim"
        assert owner_of(tmp_path / "run") == me
    assert owner_of(tmp_path / "run") is None and not (tmp_path / "run" / CLAIM).exists()


def test_a_living_owner_is_named_and_left_alone(tmp_path, other):
    left_behind(tmp_path / "run", other)
    with (
        pytest.raises(UserError, match=rf"process {other.pid} on {other.host}"),
        claimed(tmp_path / "run", Owner.here()),
    ):
        pass
    assert owner_of(tmp_path / "run") == other


@pytest.mark.parametrize("how", ["no such process", "another process of that number", "a claim cut off"])
def test_a_dead_owner_is_taken_over(tmp_path, how, other):
    dead = {
        "no such process": replace(other, pid=2**22 + 1),
        "another process of that number": replace(other, started="1"),
    }.get(how, other)
    left_behind(tmp_path / "run", dead)
    if how == "a claim cut off":
        (tmp_path / "run" / CLAIM).write_text('{"host": "no')
    me = Owner.here()
    with claimed(tmp_path / "run", me):
        assert owner_of(tmp_path / "run") == me


def test_another_machine_is_believed_unless_our_job_was_started_anew(tmp_path, other):
    away = replace(other, host="elsewhere", pid=2**22 + 1, job="17")
    left_behind(tmp_path / "run", away)
    for stranger in (Owner.here(), Owner.here("18", 1), Owner.here("17", 0)):
        with pytest.raises(UserError, match="elsewhere of job 17"), claimed(tmp_path / "run", stranger):
            pass
    me = Owner.here("17", 1)
    with claimed(tmp_path / "run", me):
        assert owner_of(tmp_path / "run") == me


def hold(folder, everyone, told):
    """Claim when all are ready; hold on until all have tried."""
    everyone.wait()
    try:
        with claimed(folder, Owner.here()):
            told.put("owner")
            everyone.wait()
    except UserError:
        told.put("refused")
        everyone.wait()


@pytest.mark.parametrize("left", [False, True])
def test_of_many_at_once_one_is_the_owner(tmp_path, other, left):
    """Eight processes at once, for a new directory and for one that a dead process left."""
    if left:
        left_behind(tmp_path / "run", replace(other, pid=2**22 + 1))
    context = multiprocessing.get_context("fork")
    everyone, told = context.Barrier(8), context.SimpleQueue()
    processes = [context.Process(target=hold, args=(tmp_path / "run", everyone, told)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted(told.get() for _ in processes) == ["owner"] + 7 * ["refused"]
