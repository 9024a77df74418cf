"""The profile: time is booked where it is spent, scaled from the timed steps to the epoch, and the advice names settings that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from explainode.callbacks.explanations import ExplanationCallback
from explainode.explainers.gradient import Saliency
from explainode.metrics.smoothness import Smoothness
from explainode.registry.build import instantiate
from explainode.registry.composing import compose
from explainode.training import profile
from explainode.training.profile import ORDER, REST, StepProfiler


@pytest.fixture
def played(tmp_path, monkeypatch):
    """A function that plays an epoch of Lightning's actions with given seconds on a clock of its own; the profiler that heard it."""

    def play(
        steps=12,
        reading=1.0,
        augmenting=0.5,
        forward=2.0,
        backward=3.0,
        stepping=0.25,
        hook=0.125,
        explaining=6.0,
        saving=2.0,
    ):
        profiler = StepProfiler(tmp_path / "profile.txt", steps=4, skip=1)
        clock = [0.0]
        monkeypatch.setattr(profiler, "_now", lambda: clock[0])

        def spend(name, seconds, *inside):
            profiler.start(name)
            clock[0] += seconds
            for action in inside:
                spend(*action)
            profiler.stop(name)

        spend("[Callback]progress.on_fit_start", 100.0)  # before the epoch: nobody's business
        profiler.start("run_training_epoch")
        for step in range(steps):
            slow = 7.0 if step == 0 else 1.0  # the first step, which fills caches, must not count
            spend("[_TrainingEpochLoop].train_dataloader_next", reading * slow)
            spend(
                "[Strategy]X.batch_to_device",
                0.0,
                ("[LightningDataModule]Y.on_after_batch_transfer", augmenting * slow),
            )
            closure = (
                ("[Strategy]X.training_step", forward * slow),
                ("[Strategy]X.backward", backward * slow, ("[Callback]finite.on_after_backward", hook)),
            )
            spend("run_training_batch", 0.0, ("[LightningModule]Z.optimizer_step", stepping * slow, *closure))
        spend("[LightningModule]Z.on_validation_start", 0.0)
        spend("[Strategy]X.validation_step", 4.0)
        spend("[Callback]explanations.on_validation_epoch_end", explaining)
        spend("[Strategy]X.on_validation_end", 0.0)
        profiler.stop("run_training_epoch")
        spend("[Callback]ModelCheckpoint{'monitor': None}.on_train_epoch_end", saving)
        profiler.start("run_training_epoch")  # the second epoch ends the first
        return profiler

    return play


def test_time_is_booked_where_it_is_spent(played):
    profiler = played()
    seconds = {part: value for part, (value, _) in profiler.shares().items()}
    assert profiler.timed == 4 and profiler.batches == 12
    expected = {
        "reading data": 12.0,
        "to the device, augmentation": 6.0,
        "forward": 24.0,
        "backward": 36.0,
        "optimizer": 3.0,
        "callbacks": 1.5,
        "validation": 4.0,
        "explanations": 6.0,
        "checkpoints": 2.0,
        REST: 0.0,
    }
    assert seconds == pytest.approx(expected) and set(seconds) == set(ORDER)
    assert sum(share for _, share in profiler.shares().values()) == pytest.approx(1)


def test_the_table_is_printed_and_kept(played, capsys):
    profiler = played()
    text = profiler.path.read_text()
    assert text in capsys.readouterr().err
    assert re.search(r"backward +3000\.00 +38\.1%", text) and "12 steps of 6875.0 ms (4 were timed)" in text
    profiler.teardown()
    assert capsys.readouterr().err == ""  # once


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "nothing stands out"),
        ({"reading": 5.0}, "data.num_workers (now 2)"),
        ({"augmenting": 5.0}, "data.augment=null"),
        ({"explaining": 60.0}, "callback.explanations.budget"),
        ({"saving": 60.0}, "callback.checkpoint.every_n_epochs"),
        ({"stepping": 4.0}, "module.optimizer.fused=true"),
        ({"hook": 4.0}, "trainer.log_every_n_steps"),
    ],
)
def test_advice_fits_what_takes_the_time(played, changes, words):
    profiler = played(**({"reading": 0.1, "augmenting": 0.1} | changes))
    profiler.describe_settings(workers=2, precision="32-true", accelerator="cpu", channels_last=False)
    assert any(words in sentence for sentence in profiler.advice()), profiler.advice()
    assert len(profiler.advice()) == 1


def test_gpu_advice(played, monkeypatch):
    profiler = played()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    profiler.describe_settings(workers=2, precision="32-true", accelerator="gpu", channels_last=False)
    assert {"bf16-mixed", "channels_last"} <= set(re.findall(r"bf16-mixed|channels_last", " ".join(profiler.advice())))


def test_every_setting_that_advice_names_exists():
    source = Path(profile.__file__).read_text(encoding="utf-8")
    names = set(re.findall(r"\b(?:data|trainer|module|callback)\.[\w.]*\w", source.split("def advice")[1]))
    optional = {"data.val_size", "module.optimizer.fused"}  # of some entries; of torch's optimizers
    config = compose("train", [])
    for name in sorted(names - optional):
        place, _, key = name.rpartition(".")
        assert key in OmegaConf.select(config, place), name
    fused = compose("train", ["+module.optimizer.fused=true", "module.scheduler=null"])
    module = instantiate(
        OmegaConf.to_container(fused.module, resolve=False) | {"num_classes": 8, "noise_seed": 0},
        network=torch.nn.Linear(2, 2),
    )
    assert module.configure_optimizers().defaults["fused"] is True


def test_a_real_epoch(classifier, data, trainer, tmp_path):
    """Explanations, steps and operators are found, and training does not notice."""
    weights = []
    for profiler in (None, StepProfiler(tmp_path / "profile.txt", steps=2, skip=1)):
        torch.manual_seed(0)
        module = classifier()
        explaining = ExplanationCallback({"saliency": Saliency()}, {"smoothness": Smoothness()}, images=2, budget=None)
        trainer(tmp_path / str(len(weights)), [explaining], max_epochs=1, profiler=profiler).fit(
            module, datamodule=data()
        )
        weights.append(list(module.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    shares = profiler.shares()
    assert all(shares[part][0] > 0 for part in ORDER if part != "callbacks"), shares
    assert "aten::" in (tmp_path / "profile.txt").read_text()
