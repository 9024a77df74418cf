"""One process or two: the same tables, every rank's random state in the checkpoint, and nobody waits for ever."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from explainode.callbacks import explanations
from explainode.callbacks.explanations import ExplanationCallback
from explainode.callbacks.finite import Finite
from explainode.callbacks.interrupt import Interrupt
from explainode.callbacks.progress import Progress
from explainode.callbacks.random_state import RandomState
from explainode.callbacks.requeue import Requeue
from explainode.data.shapes import ShapesData
from explainode.explainers.gradient import Saliency
from explainode.metrics.faithfulness import Deletion
from explainode.runs.directory import RunDirectory
from explainode.signals import TrainingPreempted
from explainode.training.checkpoint import AtomicCheckpointIO, load_state
from explainode.training.classifier import Classifier


def fit(folder: Path, devices: int, epochs: int, budget: float | None, resume: Path | None) -> None:
    """Weights that stand still, so that what is measured must not depend on who measures; 17 images, so that ranks differ in length."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 8),
    )
    callback = ExplanationCallback(
        {"saliency": Saliency()},
        {"deletion": Deletion(points=5)},
        images=5,
        panel_images=3,
        batch_size=1,
        run_directory=str(folder),
        budget=budget,
    )
    checkpoint = ModelCheckpoint(
        folder / "checkpoints",
        "epoch{epoch:03d}",
        save_last=True,
        auto_insert_metric_name=False,
        save_on_train_epoch_end=True,
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=epochs,
        logger=False,
        callbacks=[callback, RandomState(), Finite(), Interrupt(), Requeue(), Progress(), checkpoint],
        plugins=[AtomicCheckpointIO()],
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    data = ShapesData(train_size=48, val_size=17, test_size=16, size=16, batch_size=8)
    trainer.fit(Classifier(network, partial(torch.optim.SGD, lr=0.0), 8), datamodule=data, ckpt_path=resume)


def tell(trainer: Trainer, text: str | None) -> None:
    """The second rank is told to make room when it has explained its last image of the second epoch, and the first one has another."""
    if trainer.global_rank == 1 and trainer.current_epoch == 1 and text is not None and text.endswith("2/2"):
        os.kill(os.getpid(), signal.SIGUSR1)


def scenario(folder: Path, devices: int) -> None:
    """A whole run; a run by budget, and its continuation; a run that is left in the middle of an explanation pass, and its continuation."""
    fit(folder / "whole", devices, 2, None, None)
    fit(folder / "budget", devices, 1, 0.5, None)
    fit(folder / "budget", devices, 2, 0.5, folder / "budget" / "checkpoints" / "last.ckpt")
    note, explanations.note = explanations.note, tell
    try:
        fit(folder / "left", devices, 2, None, None)
    except TrainingPreempted as left:
        assert left.checkpoint is not None and not (folder / "left" / "metrics.csv").read_text().count(
            "\n1,"
        )  # nothing of this epoch yet
        explanations.note = note
        fit(folder / "left", devices, 2, None, left.checkpoint)
    else:
        raise AssertionError("nobody left")


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:explaining:UserWarning")  # the clock's complaint: this machine is shared
def test_two_ranks_do_what_one_does(tmp_path):
    import warm  # here, since this file is a program of its own too

    output = tmp_path / "out.txt"
    run = warm.Program([__file__, str(tmp_path / "two")], tmp_path, output=output)
    try:
        fit(tmp_path / "one", 1, 2, None, None)
        assert run.wait(180) == 0, output.read_text()[-3000:]
    finally:
        run.end()

    one, two = (RunDirectory(folder).read_results() for folder in (tmp_path / "one", tmp_path / "two" / "whole"))
    assert [(r.epoch, r.explainer, r.metric, r.n) for r in one.rows] == [
        (r.epoch, r.explainer, r.metric, r.n) for r in two.rows
    ]
    for a, b in zip(one.rows, two.rows, strict=True):
        assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), abs=1e-6, nan_ok=True)
    assert [m.sample_id.tolist() for m in one.maps] == [m.sample_id.tolist() for m in two.maps]
    assert len(load_state(tmp_path / "two" / "whole" / "checkpoints" / "last.ckpt")["random_state"]) == 2
    left = RunDirectory(tmp_path / "two" / "left")
    assert len((left.path / "metrics.csv").read_text().splitlines()) == 1 + len(two.rows)
    assert [(r.epoch, r.metric, r.value) for r in left.read_results().rows] == [
        (r.epoch, r.metric, r.value) for r in two.rows
    ]
    counts = {
        row.epoch: row.n for row in RunDirectory(tmp_path / "two" / "budget").read_results().rows if row.explainer
    }
    assert set(counts) == {0, 1} and counts[0] == counts[1]


if __name__ == "__main__":
    scenario(Path(sys.argv[1]), 2)
