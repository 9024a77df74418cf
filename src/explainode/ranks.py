"""What ranks tell each other: what differs between them and must travel in one checkpoint, and what all must agree on."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def rank_and_size() -> tuple[int, int]:
    """This process's rank and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def gather_ranks(mine: Any) -> list[Any]:
    """Every rank's object, in order of ranks; a collective call where there are several."""
    if rank_and_size()[1] == 1:
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def of_rank(everyone: list[Any]) -> Any | None:
    """This rank's object out of what `gather_ranks` gathered; None if the checkpoint was written by another number of ranks."""
    rank, size = rank_and_size()
    return everyone[rank] if len(everyone) == size else None


def agree_on_largest(mine: int, device: torch.device) -> int:
    """The largest of all ranks' numbers, on every rank; a collective call where there are several, on the device that they talk through."""
    if rank_and_size()[1] == 1:
        return mine
    largest = torch.tensor(mine, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)
