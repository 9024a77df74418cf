"""Which image comes when: a batch sampler whose order is a function of (seed, epoch), so that a resumed run sees the same images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from explainode.randomness import permutation


class EpochSampler(Sampler[list[int]]):
    """Yields one list of indices per batch for one rank of a world.

    Training (`shuffle`): the keyed order of the epoch is dealt to the ranks like cards and cut so that each has the same number of batches
    of the same size; the images that do not fill a batch on every rank are left out, others in each epoch. If a rank's share is smaller
    than one batch, the share is the batch.
    Evaluation: rank r takes images r, r + world, r + 2 world ...: each image exactly once and none twice, so a rank may come out empty.

    Args:
        n: number of images.
        seed: key of the order, with the epoch.
        rank, world_size: this process and how many there are.

    Attributes:
        epoch: set by `set_epoch`; Lightning does it at the start of every epoch.
        start_batch: the batch at which the current epoch begins, set by `resume`, back to 0 with the next epoch. `len` stays that of the
            whole epoch, as Lightning counts on from the batch where it stopped.
    """

    def __init__(
        self, n: int, batch_size: int, seed: int = 0, shuffle: bool = False, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..{world_size - 1}, got {rank}")
        self.n, self.batch_size, self.seed, self.shuffle = n, batch_size, seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.start_batch = 0

    @property
    def sampler(self) -> EpochSampler:
        """Itself: Lightning calls `set_epoch` on `loader.batch_sampler.sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.start_batch = 0
        self.epoch = epoch

    def resume(self, epoch: int, start_batch: int) -> None:
        """Begin `epoch` at batch `start_batch`."""
        self.epoch, self.start_batch = epoch, start_batch

    def indices(self) -> Tensor:
        """(m,) int64: the images of this rank in this epoch, in order."""
        if not self.shuffle:
            return torch.arange(self.n)[self.rank :: self.world_size]
        share = self.n // self.world_size
        if share >= self.batch_size:
            share -= share % self.batch_size
        return permutation(self.n, self.seed, "order", self.epoch)[self.rank :: self.world_size][:share]

    def __len__(self) -> int:
        if self.shuffle:
            share = self.n // self.world_size
            return max(share // self.batch_size, min(share, 1))
        return -(-max(self.n - self.rank, 0) // (self.world_size * self.batch_size))

    def __iter__(self) -> Iterator[list[int]]:
        indices = self.indices().tolist()
        for start in range(self.start_batch * self.batch_size, len(indices), self.batch_size):
            yield indices[start : start + self.batch_size]
