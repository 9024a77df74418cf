"""Ctrl-C, as a real signal: once, twice, and what is left of it afterwards. (What is resumed from it: training/test_resume.py.)"""

from __future__ import annotations

import os
import signal

import pytest
import torch
from lightning.pytorch import Callback

from explainode.callbacks.interrupt import Interrupt, TrainingInterrupted
from explainode.training.checkpoint import verify


class Press(Callback):
    """Press Ctrl-C at one batch."""

    def __init__(self, step, times=1):
        self.step, self.times = step, times
        self.finished = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.finished.append(batch_idx)


@pytest.fixture(autouse=True)
def handler():
    """Lightning ignores the signal for good after a KeyboardInterrupt: not for the rest of the tests."""
    before = signal.getsignal(signal.SIGINT)
    yield before
    signal.signal(signal.SIGINT, before)


def test_once_finishes_the_batch_saves_and_leaves(classifier, data, trainer, tmp_path, handler, capfd):
    press, interrupt = Press(2), Interrupt()
    validated = []
    module = classifier()
    module.on_validation_start = lambda: validated.append(1)
    with pytest.raises(TrainingInterrupted) as left:
        trainer(tmp_path, [press, interrupt]).fit(module, datamodule=data())
    assert press.finished == [0, 1, 2] and not validated
    assert left.value.checkpoint == tmp_path / "checkpoints" / "last.ckpt" and interrupt.left
    content = torch.load(verify(left.value.checkpoint), weights_only=True)
    assert content["global_step"] == 3 and content["epoch"] == 0
    assert "press Ctrl-C again to stop at once" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler


def test_twice_stops_in_the_middle_of_the_batch(classifier, data, trainer, tmp_path):
    press = Press(2, times=2)
    with pytest.raises(SystemExit):  # what Lightning makes of a KeyboardInterrupt
        trainer(tmp_path, [press, Interrupt()]).fit(classifier(), datamodule=data())
    assert press.finished == [0, 1] and not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_an_ordinary_run_gives_the_signal_back(classifier, data, trainer, tmp_path, handler):
    interrupt = Interrupt()
    trainer(tmp_path, [interrupt], max_epochs=1).fit(classifier(), datamodule=data())
    assert signal.getsignal(signal.SIGINT) is handler and not interrupt.left


def test_after_the_very_last_batch_the_run_just_ends(classifier, data, trainer, tmp_path):
    """Nothing is left to go on with: no exception, a complete run."""

    class Late(Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            interrupt.request()

    interrupt = Interrupt()
    run = trainer(tmp_path, [Late(), interrupt], max_epochs=1)
    run.fit(classifier(), datamodule=data())
    assert run.global_step == 6 and not interrupt.left


def test_says_where_without_other_checkpoints(classifier, data, trainer, tmp_path):
    with pytest.raises(TrainingInterrupted) as left:
        trainer(tmp_path, [Press(1), Interrupt(str(tmp_path / "mine"))], checkpoint=False).fit(
            classifier(), datamodule=data()
        )
    assert left.value.checkpoint == tmp_path / "mine" / "last.ckpt" and left.value.checkpoint.is_file()
