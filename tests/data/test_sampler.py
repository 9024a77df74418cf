"""The batch sampler: each image once, equal shares in training, the same order after a resume."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from explainode.data.sampler import EpochSampler

worlds = st.tuples(st.integers(1, 70), st.integers(1, 9), st.integers(1, 12))  # images, batch size, ranks


def ranks(n: int, batch_size: int, world: int, **options) -> list[list[list[int]]]:
    return [list(EpochSampler(n, batch_size, rank=r, world_size=world, **options)) for r in range(world)]


@given(worlds)
def test_evaluation_sees_each_image_exactly_once(case: tuple[int, int, int]) -> None:
    n = case[0]  # odd n and more ranks than images are among them
    seen = [i for batches in ranks(*case) for batch in batches for i in batch]
    assert sorted(seen) == list(range(n))


@given(worlds, st.integers(0, 3), st.integers(0, 50))
def test_training_ranks_have_equal_batches_of_different_images(
    case: tuple[int, int, int], seed: int, epoch: int
) -> None:
    n, batch_size, world = case
    samplers = [EpochSampler(n, batch_size, seed, shuffle=True, rank=r, world_size=world) for r in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    shares = [list(sampler) for sampler in samplers]
    assert len({tuple(len(batch) for batch in batches) for batches in shares}) == 1
    seen = [i for batches in shares for batch in batches for i in batch]
    assert len(set(seen)) == len(seen) and all(0 <= i < n for i in seen)
    # What is left out does not fill a batch on every rank.
    assert n - len(seen) < world * batch_size
    assert bool(seen) == (n >= world)


@given(worlds, st.booleans(), st.integers(0, 4))
def test_len_is_the_number_of_batches(case: tuple[int, int, int], shuffle: bool, start: int) -> None:
    n, batch_size, world = case
    for rank in range(world):
        sampler = EpochSampler(n, batch_size, shuffle=shuffle, rank=rank, world_size=world)
        whole = list(sampler)
        assert len(sampler) == len(whole)
        sampler.resume(0, start)
        assert list(sampler) == whole[start:]
        assert len(sampler) == len(whole)  # Lightning counts on from the batch where it stopped


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = EpochSampler(30, 4, seed, shuffle=True)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4) and order(0, 3) != order(1, 3)
    assert order(0, 0) != [list(range(i, i + 4)) for i in range(0, 28, 4)]


def test_resume_holds_for_its_epoch_only() -> None:
    sampler = EpochSampler(20, 4, shuffle=True)
    sampler.set_epoch(2)
    third = list(sampler)
    sampler = EpochSampler(20, 4, shuffle=True)
    sampler.resume(2, 3)
    sampler.set_epoch(2)  # as Lightning does when the resumed epoch starts
    assert list(sampler) == third[3:] and list(sampler) == third[3:]
    sampler.set_epoch(3)
    assert len(list(sampler)) == 5


def test_lightning_finds_set_epoch() -> None:
    from lightning.fabric.utilities.data import _set_sampler_epoch

    sampler = EpochSampler(10, 2, shuffle=True)
    _set_sampler_epoch(DataLoader(list(range(10)), batch_sampler=sampler), 7)
    assert sampler.epoch == 7


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"batch_size": 2, "rank": 2, "world_size": 2}, {"batch_size": 2, "rank": -1}]
)
def test_bad_arguments(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="got"):
        EpochSampler(4, **options)
