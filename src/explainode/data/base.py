"""What every data module shares: loaders that resume in the middle of an epoch, keyed augmentation, picked images, skipped files."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from explainode.data.augment import Augment
from explainode.data.batch import Batch
from explainode.data.sampler import EpochSampler
from explainode.errors import UserError, nearest

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
T = TypeVar("T")


class ImageDataset(Protocol):
    """Images by position; `__getitems__` builds a whole batch at once, which is how a DataLoader calls it.

    Rows that cannot be read are missing from the batch and named in `Batch.skipped`.
    """

    num_classes: int
    class_names: list[str]

    def __len__(self) -> int: ...
    def __getitem__(self, position: int) -> Batch: ...
    def __getitems__(self, positions: list[int]) -> Batch: ...


def identity(batch: T) -> T:
    """The collate function: datasets already yield batches."""
    return batch


class BatchLoader(DataLoader):
    """A DataLoader over batches that reports skipped files to its data module and never hands out an empty batch.

    Lightning asks loaders for `state_dict` to learn whether they can resume in mid epoch. Ours can, but their place is kept by
    `ImageData.state_dict`: it has to be known before workers begin to prefetch, which is earlier than Lightning restores loaders.
    """

    def __init__(self, dataset: ImageDataset, sampler: EpochSampler, data: ImageData, split: str) -> None:
        super().__init__(
            dataset,  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=identity,
            num_workers=data.num_workers,
            persistent_workers=data.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # Without a generator of its own, each start of an iterator draws from torch's global one and shifts everything after it.
            generator=torch.Generator().manual_seed(data.seed),
        )
        self._report = (data, split)

    def __iter__(self) -> Any:
        data, split = self._report
        return _Reported(super().__iter__(), data, split)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to do: see the class."""


class _Reported:
    """An iterator whose batches are seen by `ImageData.note_skipped`; the inner one starts at once, so that workers prefetch as usual."""

    def __init__(self, batches: Iterator[Batch], data: ImageData, split: str) -> None:
        self.batches, self.data, self.split = batches, data, split

    def __iter__(self) -> _Reported:
        return self

    def __next__(self) -> Batch:
        while True:
            batch = next(self.batches)
            self.data.note_skipped(self.split, batch)
            if len(batch):
                return batch


class ImageData(LightningDataModule):
    """Base of the data modules: subclasses implement `make_dataset(split)` and set `num_classes`, `class_names`, `image_size`.

    Works with a Trainer (rank and world are its own; use it with `use_distributed_sampler=False`) and without (rank 0 of 1).
    A checkpoint written in the middle of an epoch resumes at the next batch: `state_dict` holds epoch and batch, and the order of an epoch
    is a function of (seed, epoch). Save it at `on_train_batch_end` or during validation: to Lightning an epoch that is left early is done.

    Args:
        batch_size: images per batch and rank.
        num_workers: processes that read ahead; 0 reads in this one.
        seed: key of the order and of the augmentation.
        augment: applied to training batches on the device; None leaves them as they are.

    Attributes:
        image_size: height and width of the images, in pixels.
        skipped: path -> reason of files that could not be read so far, in this process.
    """

    num_classes: int
    class_names: list[str]
    image_size: int

    def __init__(
        self, batch_size: int = 64, num_workers: int = 0, seed: int = 0, augment: Augment | None = None
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"data.batch_size must be at least 1, got {batch_size}")
        if num_workers < 0:
            raise UserError(f"data.num_workers must be 0 or more, got {num_workers}")
        self.batch_size, self.num_workers, self.seed, self.augment = batch_size, num_workers, seed, augment
        self.skipped: dict[str, str] = {}
        self._read: dict[str, np.ndarray] = {}
        self._datasets: dict[str, ImageDataset] = {}
        self._place: dict[str, Any] | None = None

    def make_dataset(self, split: str) -> ImageDataset:
        """The images of "train", "val" or "test"."""
        raise NotImplementedError

    def dataset(self, split: str) -> ImageDataset:
        """The images of a split, made once.

        Raises:
            UserError: if there is no such split or its data is missing.
        """
        if split not in SPLITS:
            raise UserError(f"no split named {split!r}; the nearest are {nearest(split, SPLITS)}")
        if split not in self._datasets:
            self._datasets[split] = self.make_dataset(split)
        return self._datasets[split]

    def train_dataloader(self) -> BatchLoader:
        # `overfit_batches` wants the same batches in each epoch, and Lightning cannot see that our batch sampler shuffles.
        sampler = self._sampler("train", shuffle=not getattr(self.trainer, "overfit_batches", 0))
        if self._place is not None:
            self._check_place(self._place)
            sampler.resume(self._place["epoch"], self._place["batch"])
            self._place = None
        return BatchLoader(self.dataset("train"), sampler, self, "train")

    def val_dataloader(self) -> BatchLoader:
        return BatchLoader(self.dataset("val"), self._sampler("val"), self, "val")

    def test_dataloader(self) -> BatchLoader:
        return BatchLoader(self.dataset("test"), self._sampler("test"), self, "test")

    def predict_dataloader(self) -> BatchLoader:
        return self.test_dataloader()

    def _sampler(self, split: str, shuffle: bool = False) -> EpochSampler:
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        n = len(self.dataset(split))
        if n < world_size:  # Lightning leaves the loop out on a rank without batches, and the others wait there for it
            raise UserError(
                f"{n} {split} images cannot be shared by {world_size} processes; use more images or fewer devices"
            )
        return EpochSampler(n, self.batch_size, self.seed, shuffle, rank, world_size)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Training batches are augmented on the device, keyed by (seed, epoch, sample id)."""
        if self.augment is None or self.trainer is None or not self.trainer.training:
            return batch
        return self.augment.batch(batch, self.seed, self.trainer.current_epoch)

    def batches(self, split: str, positions: Sequence[int], batch_size: int | None = None) -> Iterator[Batch]:
        """The images at `positions` of a split, in this order, without augmentation; a batch of which nothing can be read is left out."""
        dataset, size = self.dataset(split), batch_size or self.batch_size
        for start in range(0, len(positions), size):
            batch = dataset.__getitems__(list(positions[start : start + size]))
            self.note_skipped(split, batch)
            if len(batch):
                yield batch

    def select_images(self, n: int, images: int | str | Sequence[int]) -> list[int]:
        """Positions in a split of n images: a count (evenly spaced), a slice "a:b" (either end may be left out) or a list, as it is.

        Raises:
            UserError: if a position is outside the split, nothing is selected, or the text is no slice.
        """
        if isinstance(images, str):
            match = re.fullmatch(r"\s*(\d*)\s*:\s*(\d*)\s*", images)
            if match is None:
                raise UserError(f"images={images!r} is neither a count, a slice like 0:16, nor a list of positions")
            first, last = int(match[1] or 0), int(match[2] or n)
            if not first < last <= n:
                raise UserError(
                    f"images={images!r} selects nothing or reaches outside the split, whose positions are 0..{n - 1}"
                )
            return list(range(first, last))
        if isinstance(images, int):
            if not 1 <= images <= n:
                raise UserError(f"images={images} was asked for, but the split has {n} images; choose 1..{n}")
            return [i * n // images for i in range(images)]
        if not images:
            raise UserError(f"images is an empty list; choose positions from 0..{n - 1}")
        outside = [i for i in images if not 0 <= i < n]
        if outside:
            raise UserError(f"images: position {outside[0]} is outside the split, whose positions are 0..{n - 1}")
        return list(images)

    def note_skipped(self, split: str, batch: Batch) -> None:
        """Remember what could not be read, and say it once per file."""
        n = len(self.dataset(split))
        self._read.setdefault(split, np.zeros(n, dtype=bool))[batch.sample_id.cpu().numpy()] = True
        for path, reason in batch.skipped.items():
            if path not in self.skipped:
                log.warning("skipped %s: %s", path, reason)
                self.skipped[path] = reason

    def check_skipped(self, limit: float = 0.05) -> None:
        """Refuse to go on where more than `limit` of the files read so far were bad.

        Raises:
            UserError: naming the count and the first files.
        """
        bad = len(self.skipped)
        tried = bad + sum(int(read.sum()) for read in self._read.values())
        if bad > limit * tried:
            some = ", ".join(list(self.skipped)[:3])
            raise UserError(
                f"{bad} of {tried} pictures could not be read, more than the {limit:.0%} that may be skipped; mend or remove them"
                f" ({some}{', ...' if bad > 3 else ''})"
            )

    def state_dict(self) -> dict[str, Any]:
        """Epoch and batch at which training goes on, and what they are counted in; empty outside of `fit`."""
        if (
            self.trainer is None
            or not self.trainer.num_training_batches
            or self.trainer.num_training_batches == float("inf")
        ):
            return {}
        loop = self.trainer.fit_loop
        progress: Any = loop.epoch_progress.current
        batches: Any = loop.epoch_loop.batch_progress.current
        epoch, batch = progress.processed, batches.processed
        if progress.started == epoch:  # between two epochs: the count is that of the finished one
            batch = 0
        elif batch >= self.trainer.num_training_batches:  # after the last batch, before the epoch is closed
            epoch, batch = epoch + 1, 0
        return {"epoch": epoch, "batch": batch, **self._units()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # `validate` and `test` load checkpoints too; a later `fit` must not begin where that one stopped.
        if self.trainer is None or self.trainer.state.fn == "fit":
            self._place = dict(state_dict)

    def _units(self) -> dict[str, int]:
        """What the place in an epoch is counted in: with another of these, batch k is made of other images."""
        world_size = 1 if self.trainer is None else self.trainer.world_size
        return {
            "batch_size": self.batch_size,
            "world_size": world_size,
            "seed": self.seed,
            "train_images": len(self.dataset("train")),
        }

    def _check_place(self, place: dict[str, Any]) -> None:
        changed = [
            f"{name} {place.get(name)} then, {now} now" for name, now in self._units().items() if place.get(name) != now
        ]
        if place["batch"] and changed:
            raise UserError(
                f"the checkpoint is from batch {place['batch']} of epoch {place['epoch']} of another setting ({'; '.join(changed)});"
                " resume with the same setting, or from a checkpoint of the end of an epoch"
            )
