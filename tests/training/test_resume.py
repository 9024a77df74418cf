"""A stopped and resumed run equals the unbroken one bit for bit."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.optim.lr_scheduler import OneCycleLR

from explainode.callbacks.interrupt import Interrupt, TrainingInterrupted
from explainode.callbacks.random_state import RandomState
from explainode.data.augment import Augment
from explainode.errors import UserError
from explainode.training.checkpoint import latest_checkpoint


class StopAt(Callback):
    """Ask for a stop (or fail hard, as if killed) once a given hook is reached for the n-th time."""

    def __init__(self, hook, count, kill=False):
        self.count, self.kill = count, kill
        setattr(self, hook, self.reached)

    def reached(self, trainer, pl_module, *args, **kwargs):
        self.count -= 1
        if self.count == 0:
            if self.kill:
                raise RuntimeError("killed")
            next(c for c in trainer.callbacks if isinstance(c, Interrupt)).request()


class Metrics(Callback):
    """All that was logged at each epoch's end."""

    def __init__(self):
        self.epochs = {}

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.callback_metrics:  # empty at the start of a run
            self.epochs[trainer.current_epoch - 1] = {k: float(v) for k, v in trainer.callback_metrics.items()}

    def on_train_end(self, trainer, pl_module):
        self.epochs[trainer.current_epoch - 1] = {k: float(v) for k, v in trainer.callback_metrics.items()}


def everything(module, optimizer):
    """Weights, running statistics and the optimizer's moments, as one flat list."""
    moments = [v for s in optimizer.state_dict()["state"].values() for v in s.values() if torch.is_tensor(v)]
    return [*module.state_dict().values(), *moments]


@pytest.fixture
def run(classifier, data, trainer):
    def fit(folder, callbacks=(), resume=None, seed=0, ema=False, workers=0, **settings):
        torch.manual_seed(seed)
        module = classifier(
            seed=0 if resume is None else 9, scheduler=partial(OneCycleLR, max_lr=0.02, total_steps=18)
        )  # a resumed run must not need its first weights
        torch.manual_seed(100 + seed)
        metrics = Metrics()
        averaging = [EMAWeightAveraging(decay=0.8)] if ema else []
        one = trainer(folder, [*callbacks, metrics, RandomState(), Interrupt(), *averaging], max_epochs=3, **settings)
        one.fit(module, datamodule=data(augment=Augment(), num_workers=workers), ckpt_path=resume)
        return everything(module, one.optimizers[0]), metrics.epochs

    return fit


def test_the_comparison_can_fail(run, tmp_path):
    """Another random state gives other weights: dropout is really drawn."""
    one, other = run(tmp_path / "a", seed=0)[0], run(tmp_path / "b", seed=1)[0]
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def finished():
    """What an unbroken run ends with, without and with averaged weights; the first test that asks makes it."""
    return {}


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize(
    ("hook", "count", "kill"),
    [
        ("on_train_epoch_start", 2, True),  # killed between epochs: from the checkpoint of the epoch before
        ("on_train_batch_end", 9, True),  # killed in mid epoch: the same
        ("on_train_batch_end", 3, False),  # interrupted in mid epoch, in the first and later
        ("on_train_batch_end", 9, False),
        ("on_train_batch_end", 12, False),  # after an epoch's last batch
        ("on_validation_batch_start", 2, False),  # in the middle of validation
        ("on_validation_batch_start", 4, False),
    ],
)
def test_resumed_equals_unbroken(run, finished, tmp_path, hook, count, kill, ema):
    """Weights, batch-norm statistics, optimizer moments, averaged weights and every epoch's metrics: equal bits."""
    if ema not in finished:
        finished[ema] = run(tmp_path / "unbroken", ema=ema)
    unbroken, metrics = finished[ema]
    with pytest.raises(RuntimeError if kill else TrainingInterrupted):
        run(tmp_path / "broken", [StopAt(hook, count, kill)], ema=ema)
    resumed, rest = run(
        tmp_path / "broken", resume=latest_checkpoint(tmp_path / "broken" / "checkpoints"), seed=5, ema=ema
    )
    assert all(torch.equal(a, b) for a, b in zip(unbroken, resumed, strict=True))
    assert rest and all(metrics[epoch] == values for epoch, values in rest.items())


def test_a_schedule_cannot_be_stretched(classifier, data, trainer, tmp_path):
    """One cycle over one epoch, resumed for two: torch would fail in the middle of the second."""
    schedule = partial(OneCycleLR, max_lr=0.02)
    trainer(tmp_path, [RandomState()], max_epochs=1).fit(classifier(scheduler=schedule), datamodule=data())
    with pytest.raises(UserError, match="ends after 6 steps, but the run is now 12 long"):
        trainer(tmp_path, [RandomState()], max_epochs=2).fit(
            classifier(scheduler=schedule), datamodule=data(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt"
        )


def test_resuming_with_workers_reads_the_same_batches(run, tmp_path):
    """Workers prefetch before Lightning has told the sampler which epoch it is."""
    unbroken, _ = run(tmp_path / "unbroken")
    with pytest.raises(TrainingInterrupted):
        run(tmp_path / "broken", [StopAt("on_train_batch_end", 9)], workers=1)
    resumed, _ = run(tmp_path / "broken", resume=tmp_path / "broken" / "checkpoints" / "last.ckpt", workers=1)
    assert all(torch.equal(a, b) for a, b in zip(unbroken, resumed, strict=True))


class OutOfTime(Callback):
    """What Lightning's timer does, after so many batches instead of seconds."""

    def __init__(self, batches):
        self.batches = batches

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches -= 1
        trainer.should_stop = trainer.should_stop or self.batches <= 0


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("every", [1, 3, 4])
@pytest.mark.parametrize("how", ["signal", "time", "steps"])
def test_a_training_that_ends_in_mid_epoch_goes_on_with_the_rest_of_it(run, finished, tmp_path, how, every, ema):
    """Asked to stop after 8 of 18 batches (6 an epoch), also within a window of accumulated gradients, of which the last is short with 4."""
    key = (every, ema)
    if key not in finished:
        finished[key] = run(tmp_path / "unbroken", accumulate_grad_batches=every, ema=ema)
    unbroken, metrics = finished[key]
    if how == "signal":
        with pytest.raises(TrainingInterrupted):
            run(tmp_path / "broken", [StopAt("on_train_batch_end", 8)], accumulate_grad_batches=every, ema=ema)
    elif how == "time":
        run(tmp_path / "broken", [OutOfTime(8)], accumulate_grad_batches=every, ema=ema)
    else:
        steps = {1: 8, 3: 3, 4: 3}[every]
        run(tmp_path / "broken", accumulate_grad_batches=every, ema=ema, max_steps=steps)
    resumed, rest = run(
        tmp_path / "broken",
        resume=latest_checkpoint(tmp_path / "broken" / "checkpoints"),
        accumulate_grad_batches=every,
        ema=ema,
    )
    assert all(torch.equal(a, b) for a, b in zip(unbroken, resumed, strict=True))
    assert rest and all(metrics[epoch] == values for epoch, values in rest.items())


@pytest.mark.parametrize("how", ["time", "steps"])
def test_also_in_the_first_epoch(run, finished, tmp_path, how):
    """Lightning writes a last checkpoint at the end of a training that has saved none."""
    if False not in finished:
        finished[False] = run(tmp_path / "unbroken")
    unbroken, _ = finished[False]
    run(tmp_path / "broken", [OutOfTime(2)] if how == "time" else (), max_steps=2 if how == "steps" else -1)
    resumed, _ = run(tmp_path / "broken", resume=latest_checkpoint(tmp_path / "broken" / "checkpoints"))
    assert all(torch.equal(a, b) for a, b in zip(unbroken, resumed, strict=True))
