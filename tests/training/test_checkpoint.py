"""Checkpoint files: whole or not there, verified, and nothing in them is executed."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import tempfile
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

from explainode.errors import UserError
from explainode.training import checkpoint as files
from explainode.training.checkpoint import (
    MANIFEST,
    AtomicCheckpointIO,
    latest_checkpoint,
    load_state,
    resume_path,
    verify,
)
from explainode.training.classifier import Classifier

IO = AtomicCheckpointIO()


def state(value: float = 1.0) -> dict:
    return {"state_dict": {"network.weight": torch.full((64, 64), value)}, "epoch": 3, "global_step": 12}


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_what_is_written_is_read(tmp_path):
    IO.save_checkpoint(state(), tmp_path / "new" / "last.ckpt")
    back = IO.load_checkpoint(tmp_path / "new" / "last.ckpt")
    assert (
        torch.equal(back["state_dict"]["network.weight"], state()["state_dict"]["network.weight"])
        and back["epoch"] == 3
    )
    entry = json.loads((tmp_path / "new" / MANIFEST).read_text())["last.ckpt"]
    assert entry["size"] == (tmp_path / "new" / "last.ckpt").stat().st_size and entry["global_step"] == 12
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["last.ckpt", MANIFEST]


@pytest.mark.parametrize("manifest", [True, False])
def test_every_flipped_bit_is_found(tmp_path, manifest):
    """300 single flips over the whole file: all found by the manifest's sha256. Without it the archive's own checksums cover the tensors."""
    path = tmp_path / "last.ckpt"
    IO.save_checkpoint(state(), path)
    if not manifest:
        (tmp_path / MANIFEST).unlink()
    good = path.read_bytes()
    tensor = good.index(torch.ones(16).numpy().tobytes())
    places = random.Random(0).sample(
        range(len(good) * 8) if manifest else range(tensor * 8, (tensor + 64 * 64 * 4) * 8), 300 if manifest else 50
    )
    for bit in places:
        flip(path, bit)
        with pytest.raises(UserError, match=r"last\.ckpt cannot be used"):
            load_state(path)
        path.write_bytes(good)
    load_state(path)


@pytest.mark.parametrize("manifest", [True, False])
def test_every_truncation_is_found(tmp_path, manifest):
    path = tmp_path / "last.ckpt"
    IO.save_checkpoint(state(), path)
    if not manifest:
        (tmp_path / MANIFEST).unlink()
    good = path.read_bytes()
    for length in range(0, len(good), len(good) // 50):
        path.write_bytes(good[:length])
        with pytest.raises(UserError, match="empty" if length == 0 else "cut off|no checkpoint|bytes"):
            verify(path)


def test_the_message_names_what_to_use_instead(tmp_path):
    IO.save_checkpoint(state(), tmp_path / "epoch002.ckpt")
    IO.save_checkpoint(state(), tmp_path / "last.ckpt")
    flip(tmp_path / "last.ckpt", 5000)
    with pytest.raises(UserError, match=r"use .*epoch002\.ckpt instead"):
        verify(tmp_path / "last.ckpt")
    flip(tmp_path / "epoch002.ckpt", 5000)
    with pytest.raises(UserError, match="no other good checkpoint"):
        verify(tmp_path / "last.ckpt")


class Evil:
    def __reduce__(self):
        return os.mkdir, (str(Evil.target),)


def test_nothing_in_a_file_is_executed(tmp_path):
    Evil.target = tmp_path / "executed"
    torch.save({"state_dict": {}, "x": Evil()}, tmp_path / "torch.ckpt")
    (tmp_path / "pickle.ckpt").write_bytes(pickle.dumps(Evil()))
    torch.save({"x": Evil()}, tmp_path / "legacy.ckpt", _use_new_zipfile_serialization=False)
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    with pytest.raises(UserError, match=r"holds objects \(posix\.mkdir\)"):
        load_state(tmp_path / "torch.ckpt")
    for name in ("pickle", "legacy", "text"):
        with pytest.raises(UserError, match="it is no checkpoint"):
            load_state(tmp_path / f"{name}.ckpt")
    with pytest.raises(UserError, match="no such file"):
        load_state(tmp_path / "absent.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(UserError, match="holds a list"):
        load_state(tmp_path / "list.ckpt")
    assert not Evil.target.exists()


def test_objects_are_refused_when_written_and_the_old_file_stays(tmp_path):
    path = tmp_path / "last.ckpt"
    IO.save_checkpoint(state(1.0), path)
    with pytest.raises(UserError, match=r"would hold objects \(builtins\.dict, functools\.partial\)"):
        IO.save_checkpoint({"hyper_parameters": {"optimizer": partial(dict)}}, path)
    assert load_state(path)["state_dict"]["network.weight"][0, 0] == 1.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", MANIFEST]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("point", range(5))
def test_trouble_with_the_disk_leaves_the_old_file(tmp_path, monkeypatch, number, point):
    """At five points of writing: opening, writing, pushing to the disk, renaming the manifest, renaming the file."""
    path = tmp_path / "last.ckpt"
    IO.save_checkpoint(state(1.0), path)

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    replaced = 0
    real = os.replace

    def replace(source, target):
        nonlocal replaced
        replaced += 1
        return fail() if replaced == point - 2 else real(source, target)

    if point == 0:
        monkeypatch.setattr(tempfile, "NamedTemporaryFile", fail)
    elif point == 1:
        monkeypatch.setattr(files._Hashing, "write", fail)
    elif point == 2:
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(os, "replace", replace)
    expected = {errno.ENOSPC: "the disk is full", errno.EROFS: "cannot be written to", errno.EIO: "check the disk"}[
        number
    ]
    with pytest.raises(UserError, match=expected):
        IO.save_checkpoint(state(2.0), path)
    monkeypatch.undo()
    assert load_state(path)["state_dict"]["network.weight"][0, 0] == 1.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", MANIFEST]
    IO.save_checkpoint(state(3.0), path)
    assert load_state(path)["state_dict"]["network.weight"][0, 0] == 3.0


def test_latest_is_the_newest_good_one(tmp_path):
    assert latest_checkpoint(tmp_path / "absent") is None and latest_checkpoint(tmp_path) is None
    for name in ("epoch000", "epoch001", "best", "last", "hpc_ckpt_1"):
        IO.save_checkpoint(state(), tmp_path / f"{name}.ckpt")
    assert latest_checkpoint(tmp_path).name == "hpc_ckpt_1.ckpt"
    flip(tmp_path / "hpc_ckpt_1.ckpt", 800)
    (tmp_path / "last.ckpt").write_bytes(b"")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert latest_checkpoint(tmp_path).name == "epoch001.ckpt"
    assert "hpc_ckpt_1.ckpt" in str(told[0].message) and "last.ckpt" in str(told[1].message)


def test_auto_resumes_only_what_is_there(tmp_path):
    assert resume_path(None, tmp_path) is None and resume_path("auto", tmp_path) is None
    IO.save_checkpoint(state(), tmp_path / "last.ckpt")
    assert (
        resume_path("auto", tmp_path) == tmp_path / "last.ckpt" == resume_path(str(tmp_path / "last.ckpt"), "elsewhere")
    )
    with pytest.raises(UserError, match="no such file"):
        resume_path(tmp_path / "other.ckpt", tmp_path)


def test_removing_forgets(tmp_path):
    IO.save_checkpoint(state(), tmp_path / "last.ckpt")
    IO.remove_checkpoint(tmp_path / "last.ckpt")
    assert json.loads((tmp_path / MANIFEST).read_text()) == {} and not (tmp_path / "last.ckpt").exists()
    IO.remove_checkpoint(tmp_path / "last.ckpt")


def test_a_broken_manifest_is_named(tmp_path):
    IO.save_checkpoint(state(), tmp_path / "last.ckpt")
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
        verify(tmp_path / "last.ckpt")


def test_a_run_leaves_safe_checkpoints(classifier, data, trainer, tmp_path, network):
    """Plain torch and Lightning load what a fit wrote with weights_only=True; hyperparameters are plain values; no network among them."""
    module = classifier(scheduler=partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.01))
    trainer(tmp_path).fit(module, datamodule=data())
    folder = tmp_path / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["epoch001.ckpt", "last.ckpt", MANIFEST]
    content = torch.load(folder / "last.ckpt", weights_only=True)
    assert set(content["hyper_parameters"]) == {
        "num_classes",
        "interval",
        "label_smoothing",
        "noise_seed",
        "channels_last",
        "compile",
    }
    assert {name for name in content["state_dict"] if not name.startswith("network.")} == set()
    again = Classifier.load_from_checkpoint(
        folder / "last.ckpt",
        network=network(7),
        optimizer=partial(torch.optim.Adam),
        weights_only=True,
        map_location="cpu",
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.network.state_dict().values(), module.network.state_dict().values(), strict=True)
    )


def test_a_full_disk_ends_the_run_with_a_sentence(classifier, data, trainer, tmp_path, monkeypatch):
    trainer(tmp_path, max_epochs=1).fit(classifier(), datamodule=data())
    before = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(self, data):
        raise full

    monkeypatch.setattr(files._Hashing, "write", fail)
    with pytest.raises(UserError, match="the disk is full"):
        trainer(tmp_path, max_epochs=1).fit(classifier(seed=1), datamodule=data())
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == before


def test_the_furthest_trained_counts_whatever_the_clock_says(tmp_path, monkeypatch):
    """A machine whose clock is ten minutes ahead wrote the first epoch's; the order is the same for copies without a manifest."""
    for name, step, clock in (("epoch000.ckpt", 10, 600), ("epoch001.ckpt", 20, 0)):
        with monkeypatch.context() as machine:
            machine.setattr(files.time, "time_ns", lambda clock=clock: clock * 10**9)
            IO.save_checkpoint(state() | {"global_step": step}, tmp_path / name)
        os.utime(tmp_path / name, (clock, clock))
    assert latest_checkpoint(tmp_path) == tmp_path / "epoch001.ckpt"
    (tmp_path / MANIFEST).unlink()
    assert latest_checkpoint(tmp_path) == tmp_path / "epoch001.ckpt"
    (tmp_path / "epoch000.ckpt").write_bytes(b"PK cut off")
    with pytest.warns(UserWarning, match=r"epoch000\.ckpt is passed over"):
        assert latest_checkpoint(tmp_path) == tmp_path / "epoch001.ckpt"


def test_a_link_is_as_good_as_its_file(tmp_path):
    """save_last=link, after a run of which last.ckpt was a file that the manifest still knows."""
    IO.save_checkpoint(state() | {"global_step": 5}, tmp_path / "last.ckpt")
    IO.save_checkpoint(state(2.0), tmp_path / "epoch002.ckpt")
    (tmp_path / "last.ckpt").unlink()
    (tmp_path / "last.ckpt").symlink_to("epoch002.ckpt")
    assert verify(tmp_path / "last.ckpt") == tmp_path / "last.ckpt"
    assert latest_checkpoint(tmp_path).resolve() == tmp_path / "epoch002.ckpt"
