"""The progress line: never silent, on a terminal and in a log."""

from __future__ import annotations

import io
import itertools
import re
import time

import pytest
from lightning.pytorch import Callback

from explainode.callbacks.progress import Progress, note


class Stream(io.StringIO):
    """Remembers when what was written."""

    def __init__(self, terminal):
        super().__init__()
        self.terminal, self.times = terminal, []

    def isatty(self):
        return self.terminal

    def write(self, text):
        if text.strip():
            self.times.append(time.monotonic())
        return super().write(text)


class Slow(Callback):
    """A training batch and a validation that last longer than the interval between lines."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 2:
            time.sleep(0.5)

    def on_validation_epoch_end(self, trainer, pl_module):
        note(trainer, "explaining 32 images, ig 3/32")
        time.sleep(0.5)
        note(trainer, None)


@pytest.mark.parametrize("terminal", [False, True])
def test_speaks_at_its_interval_also_inside_long_steps(classifier, data, trainer, tmp_path, monkeypatch, terminal):
    stream = Stream(terminal)
    monkeypatch.setattr(Progress, "stream", stream)
    start = time.monotonic()
    trainer(tmp_path, [Slow(), Progress(every=0.2, name="resnet")], max_epochs=2, enable_progress_bar=True).fit(
        classifier(), datamodule=data()
    )
    moments = [start, *stream.times, time.monotonic()]
    assert max(b - a for a, b in itertools.pairwise(moments)) < 0.2 + 0.4  # the machine is shared
    text = stream.getvalue()
    assert re.search(r"resnet \| epoch 1/2 \| training batch 2/6 \| loss \d\.\d{3} \| 0:\d\d left", text)
    assert "resnet | epoch 2/2 | explaining 32 images, ig 3/32" in text
    for epoch in (1, 2):
        assert (
            len(
                re.findall(
                    rf"resnet \| epoch {epoch} done \| train loss \d\.\d+ \| train accuracy 0\.\d+ \| val loss", text
                )
            )
            == 1
        )
    assert ("\r" in text) is terminal


class Lines(Callback):
    """The progress line at the start of each batch that is not trained on."""

    def __init__(self):
        self.seen = []

    def on_validation_batch_start(self, trainer, *args):
        self.seen.append(trainer.progress_bar_callback.line())

    on_test_batch_start = on_validation_batch_start


def test_each_stage_is_called_by_its_name(classifier, data, trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(Progress, "stream", Stream(False))
    lines, module, images = Lines(), classifier(), data()  # two batches each of validation and test images
    callbacks = [Progress(every=60), lines]
    run = trainer(tmp_path, callbacks, max_epochs=1, num_sanity_val_steps=1, enable_progress_bar=True)
    run.fit(module, datamodule=images)
    run.test(module, datamodule=images, verbose=False)
    assert lines.seen == [
        "epoch 1/1 | checking batch 0/1",
        "epoch 1/1 | validating batch 0/2",
        "epoch 1/1 | validating batch 1/2",
        "testing batch 0/2",
        "testing batch 1/2",
    ]


def test_the_thread_ends_with_the_run_also_when_it_fails(classifier, data, trainer, tmp_path, monkeypatch):
    class Fail(Callback):
        def on_train_batch_end(self, *args):
            raise RuntimeError("no")

    stream = Stream(False)
    monkeypatch.setattr(Progress, "stream", stream)
    progress = Progress(every=0.05)
    with pytest.raises(RuntimeError, match="no"):
        trainer(tmp_path, [Fail(), progress], enable_progress_bar=True).fit(classifier(), datamodule=data())
    assert progress._ticker is None
    written = stream.getvalue()
    time.sleep(0.2)
    assert stream.getvalue() == written


def test_can_be_silenced(classifier, data, trainer, tmp_path, monkeypatch):
    stream = Stream(False)
    monkeypatch.setattr(Progress, "stream", stream)
    progress = Progress(every=0.01)
    progress.disable()
    trainer(tmp_path, [progress], max_epochs=1, enable_progress_bar=True).fit(classifier(), datamodule=data())
    assert stream.getvalue() == ""


def test_a_note_without_our_line_is_nothing(trainer, tmp_path):
    note(trainer(tmp_path), "hello")
