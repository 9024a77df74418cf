"""Making room, as real signals: one checkpoint, one exception, no handler left behind. (On several ranks: test_several_processes.py.)"""

from __future__ import annotations

import os
import signal

import pytest
import torch
from lightning.pytorch import Callback

from explainode.callbacks import leave
from explainode.callbacks.interrupt import Interrupt, TrainingInterrupted
from explainode.callbacks.leave import SafePoints
from explainode.callbacks.requeue import Requeue
from explainode.signals import PREEMPTIONS, TrainingPreempted, keep, keep_signals, take_signals
from explainode.training.checkpoint import verify


class Send(Callback):
    """Send a signal to ourselves when a hook is reached for the n-th time."""

    def __init__(self, number, hook, count=1):
        self.number, self.count = number, count
        setattr(self, hook, self.reached)

    def reached(self, *args, **kwargs):
        self.count -= 1
        if self.count == 0:
            os.kill(os.getpid(), self.number)


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in PREEMPTIONS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)
    take_signals()


@pytest.mark.parametrize("number", PREEMPTIONS)
def test_the_batch_is_finished_and_everything_saved(classifier, data, trainer, tmp_path, handlers, number):
    """Also for SIGTERM, of which Lightning would make an exit without a checkpoint."""
    with pytest.raises(TrainingPreempted) as left:
        trainer(tmp_path, [Send(number, "on_train_batch_start", 3), Requeue()]).fit(classifier(), datamodule=data())
    assert left.value.signal == number and left.value.checkpoint == tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(verify(left.value.checkpoint), weights_only=True)["global_step"] == 3
    assert {n: signal.getsignal(n) for n in PREEMPTIONS} == handlers


def test_what_came_before_training_is_taken_at_its_beginning(classifier, data, trainer, tmp_path):
    keep_signals()
    os.kill(os.getpid(), signal.SIGUSR1)
    with pytest.raises(TrainingPreempted) as left:
        trainer(tmp_path, [Requeue()]).fit(classifier(), datamodule=data())
    assert left.value.checkpoint is None and not (tmp_path / "checkpoints").exists()  # nothing was learned


def test_before_the_first_batch_sigterm_waits_too(classifier, data, trainer, tmp_path):
    """Trap: from here on Lightning's own handler would stand, which makes a collective call wherever the program is, and ends the sanity check."""
    keep_signals([signal.SIGTERM])
    run = trainer(tmp_path, [Send(signal.SIGTERM, "on_sanity_check_start"), Requeue()], num_sanity_val_steps=2)
    with pytest.raises(TrainingPreempted):
        run.fit(classifier(), datamodule=data())


def test_what_comes_too_late_is_kept_for_what_comes_next(classifier, data, trainer, tmp_path):
    requeue = Requeue()
    run = trainer(tmp_path, [Send(signal.SIGUSR1, "on_validation_epoch_end", 1), requeue], max_epochs=1)
    run.fit(classifier(), datamodule=data())
    assert run.global_step == 6 and not requeue.left
    assert take_signals() == [signal.SIGUSR1]


def test_several_reasons_ask_with_one_voice(classifier, data, trainer, tmp_path, monkeypatch):
    """One agreement per safe point, not one per callback; each reason has its own exception."""
    asked = []
    monkeypatch.setattr(leave, "agree_on_largest", lambda mine, device: asked.append(mine) or mine)
    with pytest.raises(TrainingInterrupted):
        trainer(tmp_path, [Send(signal.SIGINT, "on_train_batch_start", 3), Interrupt(), Requeue()]).fit(
            classifier(), datamodule=data()
        )
    assert asked == [0, 0, 0, 1]  # the beginning and three batches
    trainer(tmp_path / "whole", [Interrupt(), Requeue()], max_epochs=1, checkpoint=False).fit(
        classifier(), datamodule=data()
    )


def test_it_leaves_when_another_rank_was_asked(classifier, data, trainer, tmp_path, monkeypatch):
    answers = iter([0, 0, 2])
    monkeypatch.setattr(leave, "agree_on_largest", lambda mine, device: next(answers))
    with pytest.raises(TrainingPreempted) as left:
        trainer(tmp_path, [Interrupt(), Requeue()]).fit(classifier(), datamodule=data())
    assert left.value.signal is None and left.value.checkpoint is not None


@pytest.mark.parametrize("done", [0, 2, 5])
def test_every_rank_has_as_many_safe_points_however_many_steps_it_has(monkeypatch, done):
    asked = []
    monkeypatch.setattr(leave, "check", asked.append)

    class Run:
        callbacks = [Requeue()]

    points = SafePoints(Run(), 5)
    for _ in range(done):
        points()
    points.finish()
    assert len(asked) == 5
    points()  # never more than planned
    assert len(asked) == 5


def test_without_anybody_to_leave_nobody_is_asked(monkeypatch):
    monkeypatch.setattr(leave, "check", lambda trainer: pytest.fail("asked"))

    class Run:
        callbacks = []

    SafePoints(Run(), 3)()


def test_signals_are_listened_to_in_the_whole_training(classifier, data, trainer, tmp_path):
    """And given back to who kept them before."""
    keep_signals()
    seen = []

    class Look(Callback):
        def on_validation_start(self, *_):
            seen.append(signal.getsignal(signal.SIGUSR1))

    requeue = Requeue()
    trainer(tmp_path, [Look(), requeue], max_epochs=1).fit(classifier(), datamodule=data())
    assert seen == [requeue.handle] and signal.getsignal(signal.SIGUSR1) is keep
