"""Faults in long runs, through the verbs: what was finished stays, one sentence, the right exit status; and the run goes on where it was."""

from __future__ import annotations

import errno
import os
import random

import numpy as np
import pytest
from PIL import Image

from explainode.cli.main import main
from explainode.explainers.gradient import Saliency
from explainode.runs.directory import RunDirectory
from explainode.training.checkpoint import latest_checkpoint, load_state

TINY = (
    "model=resnet20",
    "data.size=16",
    "data.train_size=32",
    "data.val_size=16",
    "data.test_size=16",
    "data.batch_size=16",
    "module.scheduler=null",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "explainer=[saliency]",
    "metric=[deletion_fast]",
    "evaluation.images=4",
    "evaluation.panel=2",
    "callback.explanations.images=2",
    "callback.explanations.panel_images=2",
    "callback.explanations.budget=null",
)


@pytest.fixture
def train(tmp_path, monkeypatch):
    """A function that trains a tiny network through the verb and returns the exit status; what the process shares is given back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["explainode"])
    monkeypatch.delenv("EXPLAINODE_RUN_ID", raising=False)

    def run(*words):
        return main(["train", *TINY, f"run_dir={tmp_path / 'run'}", *words])

    return run


def refuse(monkeypatch, name, number, after):
    """From the `after`-th time on, flushing a file whose name holds `name` to the disk fails, as on a disk that is full."""
    real, seen = os.fsync, [0]

    def fsync(descriptor):
        if name in os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")):
            seen[0] += 1
            if seen[0] > after:
                raise OSError(number, os.strerror(number))
        return real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def sentences(capsys):
    """What the verb says of itself on stderr."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("explainode: ")]


def rows(folder):
    return {(r.epoch, r.split, r.explainer, r.metric): r.value for r in RunDirectory(folder).read_results().rows}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "after", "number"),
    # writes of the first epoch: both checkpoints with the folder's manifest for each; maps; the table; the report is written once, at the end
    [
        ("last.ckpt", 1, errno.ENOSPC),
        ("manifest.json", 2, errno.ENOSPC),
        ("metrics.csv", 1, errno.ENOSPC),
        (".npz", 1, errno.ENOSPC),
        ("report.html", 0, errno.ENOSPC),
        ("last.ckpt", 1, errno.EROFS),  # what the number means is said in one place, for every file
    ],
    ids=["checkpoint", "manifest", "table", "maps", "report", "read-only"],
)
def test_a_disk_that_fails_costs_nothing_that_was_finished(train, tmp_path, monkeypatch, capsys, name, after, number):
    refuse(monkeypatch, name, number, after)
    smaller = ("model=six_block", "model.width=8", "model.blocks=1")
    assert train(*smaller) == 2
    (sentence,) = sentences(capsys)
    assert (
        (name in sentence or (name == "manifest.json" and "the checkpoint" in sentence))
        and len(sentence) < 400
        and "Traceback" not in sentence
    )
    kept = rows(tmp_path / "run")
    assert {epoch for epoch, split, *_ in kept if split == "val"} >= {0}
    state = load_state(
        latest_checkpoint(tmp_path / "run" / "checkpoints" / "six_block")
    )  # verified against the manifest
    assert state["epoch"] in (0, 1)
    assert not list((tmp_path / "run").rglob("*.part"))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["explainode"])
    assert train(*smaller, "ckpt_path=auto") == 0
    finished = rows(tmp_path / "run")
    assert {(0, "val"), (1, "val"), (2, "test")} <= {(epoch, split) for epoch, split, *_ in finished}
    assert all(finished[key] == value for key, value in kept.items())
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_loss_that_is_no_number_ends_the_run_in_a_sentence(train, tmp_path, capsys):
    assert train("module.optimizer.lr=1e30", "trainer.max_epochs=3") == 2
    (sentence,) = sentences(capsys)
    assert "the weights were not updated" in sentence and "step" in sentence and "samples" in sentence


@pytest.mark.slow
def test_a_solver_that_blows_up_ends_the_run_in_a_sentence(train, tmp_path, capsys):
    assert train("model=neural_ode", "module.optimizer.lr=1e30", "trainer.max_epochs=3") == 2
    (sentence,) = sentences(capsys)
    assert "NaN" in sentence or "nan" in sentence or "finite" in sentence or "inf" in sentence


@pytest.mark.slow
def test_maps_of_nan_are_counted_and_do_not_end_the_run(train, tmp_path, monkeypatch):
    monkeypatch.setattr(Saliency, "read", lambda self, A, gradient: gradient * float("nan"))
    assert train() == 0
    found = [row for row in RunDirectory(tmp_path / "run").read_results().rows if row.explainer == "saliency"]
    assert found and all(np.isnan(row.value) and row.excluded for row in found if row.metric == "deletion_fast")


@pytest.fixture
def pictures(tmp_path):
    """A function that makes a folder of pictures of two classes, some of them damaged."""

    def make(damaged):
        draw = np.random.default_rng(0)
        for split, count in (("train", 48), ("val", 16), ("test", 16)):
            for k in range(count):
                path = tmp_path / "pictures" / split / "ab"[k % 2] / f"{k:03d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(draw.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
        files = sorted((tmp_path / "pictures" / "train").rglob("*.jpg"))
        for path in random.Random(0).sample(files, damaged):
            path.write_bytes(path.read_bytes()[:100])
        return tmp_path / "pictures"

    return make


FOLDER = ("data=image_folder", "data.size=16", "data.batch_size=16")


def test_a_damaged_picture_is_skipped_and_named(train, tmp_path, pictures, caplog):
    root = pictures(damaged=2)
    words = [word for word in TINY if not word.startswith("data.")]
    assert (
        main(["train", *words, *FOLDER, f"data.root={root}", f"run_dir={tmp_path / 'run'}", "trainer.max_epochs=1"])
        == 0
    )
    skipped = [record.message for record in caplog.records if record.message.startswith("skipped ")]
    log = (tmp_path / "run" / "explainode.log").read_text() if (tmp_path / "run" / "explainode.log").is_file() else ""
    assert len(skipped) == 2 or log.count("skipped ") == 2


def test_a_folder_of_damaged_pictures_is_refused_in_a_sentence(train, tmp_path, pictures, capsys):
    root = pictures(damaged=48)
    words = [word for word in TINY if not word.startswith("data.")]
    assert (
        main(["train", *words, *FOLDER, f"data.root={root}", f"run_dir={tmp_path / 'run'}", "trainer.max_epochs=1"])
        == 2
    )
    (sentence,) = sentences(capsys)
    assert "could not be read" in sentence
