"""The data module's loaders: resume in mid epoch, picked images, skipped files, no trainer needed."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from torch import nn

from explainode.data.augment import Augment
from explainode.data.base import ImageData
from explainode.data.batch import Batch
from explainode.errors import UserError


class Numbers:
    """Image i is noise from seed i; every `bad`-th file cannot be read."""

    num_classes, class_names = 3, ["a", "b", "c"]

    def __init__(self, n: int, bad: int = 0) -> None:
        self.n, self.bad = n, bad

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        good = [i for i in indices if not self.bad or i % self.bad]
        images = [torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(i)) for i in good]
        ids = torch.tensor(good, dtype=torch.int64)
        image = torch.stack(images) if images else torch.empty(0, 3, 6, 6)
        return Batch(image, ids % 3, ids, skipped={f"{i}.png": "torn" for i in indices if i not in good})


class NumbersData(ImageData):
    num_classes, class_names, image_size = 3, ["a", "b", "c"], 6

    def __init__(self, n: int = 22, bad: int = 0, **options) -> None:
        super().__init__(**options)
        self.n, self.bad = n, bad

    def make_dataset(self, split: str) -> Numbers:
        return Numbers(self.n if split == "train" else 5, self.bad)


class Linear(L.LightningModule):
    """The smallest thing that trains; notes which images it saw in which epoch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(108, 3))
        self.seen: list[tuple[int, list[int]]] = []

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch.sample_id.tolist()))
        return nn.functional.cross_entropy(self.net(batch.image), batch.label)

    def validation_step(self, batch: Batch, index: int) -> None:
        self.net(batch.image)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.05)


class SaveAt(L.Callback):
    """Saves once, in `hook`, when `step` optimizer steps are done, and stops there."""

    def __init__(self, path: Path, hook: str, step: int) -> None:
        self.path, self.hook, self.step, self.rng = path, hook, step, None

    def _save(self, hook: str, trainer: L.Trainer) -> None:
        if hook == self.hook and trainer.global_step == self.step and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)
            self.rng = torch.get_rng_state()
            trainer.should_stop = True

    def on_train_batch_end(self, trainer, *_) -> None:
        self._save("batch", trainer)

    def on_validation_end(self, trainer, *_) -> None:
        self._save("validation", trainer)

    def on_train_epoch_end(self, trainer, *_) -> None:
        self._save("epoch", trainer)


class SetRng(L.Callback):
    """Puts torch's generator where it was at the checkpoint (the classifier's job, stood in for here)."""

    def __init__(self, state: torch.Tensor) -> None:
        self.state = state

    def on_train_start(self, *_) -> None:
        torch.set_rng_state(self.state)


def fit(
    tmp_path: Path,
    callbacks: list[L.Callback] | None = None,
    checkpoint: Path | None = None,
    workers: int = 0,
    epochs: int = 3,
    **data,
):
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        val_check_interval=0.5,
        callbacks=callbacks,
        default_root_dir=tmp_path,
    )
    model = Linear()
    options = {"batch_size": 4, "seed": 7, "augment": Augment(padding=2), "num_workers": workers}
    trainer.fit(model, NumbersData(**{**options, **data}), ckpt_path=checkpoint, weights_only=True)
    return model


# 22 images in batches of 4: 5 batches per epoch, validation after the 2nd, the 4th, and so on in every epoch.
@pytest.mark.parametrize(
    ("hook", "step", "workers"),
    [
        ("batch", 1, 0),
        ("batch", 3, 0),
        ("batch", 7, 0),
        ("batch", 5, 0),  # the last batch of an epoch
        ("batch", 10, 2),
        ("batch", 8, 2),  # workers prefetch before Lightning says which epoch it is
        ("validation", 7, 0),
        ("validation", 4, 2),
        ("epoch", 5, 0),
        ("epoch", 10, 2),
    ],
)
def test_resumed_run_equals_the_unbroken_one(tmp_path: Path, hook: str, step: int, workers: int) -> None:
    unbroken = fit(tmp_path)
    save = SaveAt(tmp_path / "k.ckpt", hook, step)
    broken = fit(tmp_path, [save])
    assert save.rng is not None, "the checkpoint was never written"
    resumed = fit(tmp_path, [SetRng(save.rng)], tmp_path / "k.ckpt", workers)
    assert broken.seen[:step] + resumed.seen == unbroken.seen  # the same images in the same epochs
    for one, other in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_workers_change_nothing(tmp_path: Path) -> None:
    one, other = fit(tmp_path), fit(tmp_path, workers=2)
    assert one.seen == other.seen
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_mid_epoch_resume_refuses_another_batch_size(tmp_path: Path) -> None:
    fit(tmp_path, [SaveAt(tmp_path / "k.ckpt", "batch", 3)])
    with pytest.raises(UserError, match="batch_size 4 then, 5 now"):
        fit(tmp_path, checkpoint=tmp_path / "k.ckpt", batch_size=5)


def test_end_of_epoch_resume_takes_another_batch_size(tmp_path: Path) -> None:
    fit(tmp_path, [SaveAt(tmp_path / "k.ckpt", "epoch", 5)])
    resumed = fit(tmp_path, checkpoint=tmp_path / "k.ckpt", batch_size=11)
    assert [epoch for epoch, _ in resumed.seen] == [1, 1, 2, 2]


def test_place_loaded_for_validation_is_not_used_by_a_later_fit(tmp_path: Path) -> None:
    fit(tmp_path, [SaveAt(tmp_path / "k.ckpt", "batch", 3)])
    data = NumbersData(batch_size=4)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    model = Linear()
    trainer.validate(model, data, ckpt_path=tmp_path / "k.ckpt", verbose=False, weights_only=True)
    trainer.fit(model, data)
    assert len(model.seen) == 5


def test_training_batches_are_augmented_and_validation_is_not(tmp_path: Path) -> None:
    seen: dict[str, list[Batch]] = {"train": [], "val": []}

    class Watch(Linear):
        def training_step(self, batch, index):
            seen["train"].append(copy.deepcopy(batch))
            return super().training_step(batch, index)

        def validation_step(self, batch, index):
            seen["val"].append(copy.deepcopy(batch))

    data = NumbersData(batch_size=4, augment=Augment(padding=2), seed=3)
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Watch(), data)
    for split, batches in seen.items():
        assert batches
        for batch in batches:
            clean = data.dataset(split).__getitems__(batch.sample_id.tolist()).image
            assert torch.equal(batch.image, clean) == (split == "val")
    last = seen["train"][-1]
    clean = data.dataset("train").__getitems__(last.sample_id.tolist()).image
    assert torch.equal(last.image, data.augment(clean, last.sample_id, seed=3, epoch=1))


def test_overfit_batches_repeat(tmp_path: Path) -> None:
    trainer = L.Trainer(
        max_epochs=3,
        overfit_batches=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    model = Linear()
    trainer.fit(model, NumbersData(batch_size=4))
    assert [ids for _, ids in model.seen] == [[0, 1, 2, 3], [4, 5, 6, 7]] * 3


def test_without_a_trainer() -> None:
    data = NumbersData(batch_size=4)
    assert data.state_dict() == {}
    seen = torch.cat([batch.sample_id for batch in data.train_dataloader()])
    assert len(seen) == 20 and len(seen.unique()) == 20
    assert torch.cat([batch.sample_id for batch in data.val_dataloader()]).tolist() == [0, 1, 2, 3, 4]
    picked = list(data.batches("train", [5, 3, 20], batch_size=2))
    assert [batch.sample_id.tolist() for batch in picked] == [[5, 3], [20]]


def test_fewer_images_than_processes(tmp_path: Path) -> None:
    class SixRanks:
        global_rank, world_size, overfit_batches = 3, 6, 0

    data = NumbersData(batch_size=4)
    data.trainer = SixRanks()
    assert [len(batch) for batch in data.train_dataloader()] == [3]
    with pytest.raises(UserError, match="5 val images cannot be shared by 6 processes"):
        data.val_dataloader()


@pytest.mark.ddp
def test_two_processes_share_and_resume(tmp_path: Path) -> None:
    """Each rank trains on its own images, evaluation covers all once, and a resume in mid epoch ends at the same weights."""
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES.format(test_file=str(Path(__file__)), folder=str(tmp_path)))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = {rank: torch.load(tmp_path / f"seen{rank}.pt") for rank in (0, 1)}
    unbroken = [[ids for _, ids in seen[rank]["unbroken"]] for rank in (0, 1)]
    assert [len(batches) for batches in unbroken] == [4, 4]  # 22 images, 11 a rank, 2 batches of 4 in each of 2 epochs
    for one, other in zip(*unbroken, strict=True):
        assert not set(one) & set(other)
    assert sorted(seen[0]["val"] + seen[1]["val"]) == [0, 1, 2, 3, 4]
    for rank in (0, 1):
        assert seen[rank]["resumed"] == seen[rank]["unbroken"][3:]
        assert seen[rank]["equal"]


TWO_PROCESSES = """
import importlib.util, sys, torch
import lightning.pytorch as L
spec = importlib.util.spec_from_file_location("test_base", {test_file!r})
tests = importlib.util.module_from_spec(spec)
sys.modules["test_base"] = tests
spec.loader.exec_module(tests)

class Plain(tests.Linear):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(108, 3))  # no dropout: no generator to restore
        self.checked = []
    def validation_step(self, batch, index):
        self.checked += batch.sample_id.tolist()

def fit(checkpoint=None, callbacks=None):
    torch.manual_seed(0)
    model = Plain()
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", devices=2, strategy="ddp_fork", use_distributed_sampler=False,
                        num_sanity_val_steps=0, callbacks=callbacks, **quiet)
    class Keep(L.Callback):
        def on_fit_end(self, trainer, module):
            torch.save([module.seen, module.checked[-5:], module.state_dict()], f"kept{{trainer.global_rank}}.pt")
    trainer.callbacks.append(Keep())
    trainer.fit(model, tests.NumbersData(batch_size=4, seed=7, augment=tests.Augment(padding=2)), ckpt_path=checkpoint, weights_only=True)
    return [torch.load(f"kept{{rank}}.pt") for rank in (0, 1)]

if __name__ == "__main__":
    unbroken = fit()
    fit(callbacks=[tests.SaveAt({folder!r} + "/k.ckpt", "batch", 3)])
    resumed = fit({folder!r} + "/k.ckpt")
    for rank in (0, 1):
        equal = all(torch.equal(a, b) for a, b in zip(unbroken[rank][2].values(), resumed[rank][2].values()))
        val = unbroken[rank][1]
        torch.save(dict(unbroken=unbroken[rank][0], resumed=resumed[rank][0], val=sorted(set(val)), equal=equal), f"seen{{rank}}.pt")
"""


def test_loading_leaves_the_global_generator_alone() -> None:
    data, before = NumbersData(), torch.get_rng_state()
    list(data.train_dataloader())
    assert torch.equal(before, torch.get_rng_state())


def test_no_such_split() -> None:
    with pytest.raises(UserError, match=r"'tset'.*test"):
        NumbersData().dataset("tset")


@pytest.mark.parametrize(
    ("images", "picked"),
    [
        (4, [0, 5, 11, 16]),
        ("3:6", [3, 4, 5]),
        (":2", [0, 1]),
        ("20:", [20, 21]),
        ([7, 7, 1], [7, 7, 1]),
        (22, list(range(22))),
    ],
)
def test_select_images(images, picked: list[int]) -> None:
    assert NumbersData().select_images(22, images) == picked


@pytest.mark.parametrize("images", [0, -1, 23, "5:5", "9:3", "0:23", "a:b", "7", "-3:2", [22], [-1], []])
def test_select_images_refuses(images) -> None:
    with pytest.raises(UserError):
        NumbersData().select_images(22, images)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"num_workers": -1}])
def test_bad_options(options: dict[str, int]) -> None:
    with pytest.raises(UserError):
        NumbersData(**options)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_files_are_named_once_and_counted(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    data = NumbersData(n=40, bad=10, batch_size=1, num_workers=workers)
    for _ in range(2):
        batches = list(data.train_dataloader())
        assert len(batches) == 36 and all(len(batch) == 1 for batch in batches)  # batches of nothing are left out
    assert data.skipped == {f"{i}.png": "torn" for i in (0, 10, 20, 30)}
    assert [record.getMessage() for record in caplog.records if "10.png" in record.getMessage()] == [
        "skipped 10.png: torn"
    ]
    data.check_skipped(limit=0.1)  # 4 of 40 is not more than 10 %
    with pytest.raises(UserError, match="4 of 40 pictures could not be read, more than the 5%"):
        data.check_skipped()
