"""Signals before anybody listens: kept, not lost, and not the end of the program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from explainode import signals
from explainode.signals import NOTICES, PREEMPTIONS, TrainingPreempted, at_once, keep, keep_signals, take_signals

# What a program sees that was started with the signal blocked, as scripts/train.sbatch does, and signalled before its first statement.
BLOCKED = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
os.kill(os.getpid(), signal.SIGUSR1)
from explainode.signals import keep_signals, take_signals
keep_signals()
print(take_signals() == [signal.SIGUSR1])
"""

# A program that is signalled while it looks up its verb.
EARLY = """
import os, signal, sys
from explainode.cli import main as door
door.usage = lambda: str(os.kill(os.getpid(), signal.SIGUSR1))
sys.exit(door.main([]))
"""


@pytest.fixture(autouse=True)
def handlers():
    """The handlers of this process as they were, and nothing kept."""
    before = {number: signal.getsignal(number) for number in PREEMPTIONS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    take_signals()


def test_a_signal_is_kept_until_it_is_taken():
    keep_signals()
    for number in NOTICES:
        os.kill(os.getpid(), number)
    assert take_signals() == list(NOTICES) and take_signals() == []


def test_a_handler_of_somebody_else_stays():
    def theirs(number, frame):
        pass

    signal.signal(signal.SIGUSR2, theirs)
    keep_signals()
    assert signal.getsignal(signal.SIGUSR2) is theirs and signal.getsignal(signal.SIGUSR1) is keep


def test_a_blocked_signal_is_let_in():
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "True", done.stderr


def test_the_first_statement_of_main_keeps_them():
    """Trap: SIGUSR1 before its handler exists ends the program."""
    done = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "None"), done.stderr


def test_where_nothing_is_trained_it_leaves_at_once():
    keep_signals()
    with pytest.raises(TrainingPreempted) as left, at_once():
        os.kill(os.getpid(), signal.SIGUSR1)
        raise AssertionError("the signal was not heard")
    assert left.value.signal == signal.SIGUSR1 and left.value.checkpoint is None
    assert signal.getsignal(signal.SIGUSR1) is keep


def test_a_kept_signal_leaves_at_once_too():
    keep_signals()
    os.kill(os.getpid(), signal.SIGUSR2)
    with pytest.raises(TrainingPreempted), at_once():
        raise AssertionError("it began")


def test_the_default_of_sigterm_stays_outside_of_slurm():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    keep_signals()
    with at_once():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_leaving_is_not_a_failure():
    """Whoever catches `Exception` to go on with the next thing must not catch this."""
    assert not issubclass(signals.TrainingLeft, Exception)
