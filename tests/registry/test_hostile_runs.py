"""The quick part of scripts/hostile_runs.py: names below the known packages in every slot of a run, none of which runs or writes."""

from __future__ import annotations

import random
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "hostile_runs.py"


@pytest.fixture(scope="module")
def fuzzer():
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def found(fuzzer):
    return list(fuzzer["names"]())


def test_no_name_passes_the_door_that_is_not_registered_there(fuzzer, found, tmp_path):
    assert len(found) > 5000
    chosen = [*found[:8], *random.Random(0).sample(found, 400)]
    assert fuzzer["through_the_door"](chosen, tmp_path.resolve(), fuzzer["Watch"](tmp_path.resolve())) == []


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "count"), [(1, 5), pytest.param(2, 60, marks=pytest.mark.nightly)])
def test_no_verb_runs_or_writes_what_a_run_names(fuzzer, found, tmp_path, seed, count):
    chosen = random.Random(seed).sample(found, count)
    assert fuzzer["through_the_verbs"](chosen, tmp_path.resolve(), fuzzer["Watch"](tmp_path.resolve())) == []


def test_the_watch_hears(fuzzer, tmp_path):
    """A fuzzer that notices nothing would find nothing."""
    watch = fuzzer["Watch"]((tmp_path / "allowed").resolve())
    with watch.listening() as acts:
        (tmp_path / "x").write_text("")
    assert acts == [f"open({tmp_path / 'x'})"]
