"""A network that knows more classes than the data: its classes in groups, one group for each class of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from explainode.errors import UserError


def members(group: Sequence[int | Sequence[int]]) -> list[int]:
    """The classes of one group: an entry is a class, or [first, last].

    Raises:
        UserError: if an entry is neither, or the group is empty.
    """
    found: list[int] = []
    for entry in group:
        first, last = (entry, entry) if isinstance(entry, int) else tuple(entry) if len(entry) == 2 else (1, 0)
        if first > last:
            raise UserError(f"a group holds classes and ranges [first, last], got {entry!r}")
        found += range(first, last + 1)
    if not found:
        raise UserError("a group without classes has no logit; leave none of groups empty")
    return found


class ClassGroups(nn.Module):
    """The logit of group g is that of the network's likeliest class in it: max over k in group g of f_k(x).

    Explaining a group is then explaining the class that the network itself would name, so that maps are those of the network as it is.

    Args:
        network: pixels to logits of many classes.
        groups: name -> classes of the network (see `members`), in the order of the data's classes.

    Shapes:
        x: (B, C, H, W) pixels in [0, 1] -> logits (B, number of groups).

    Raises:
        UserError: for an empty group, or a class in two; on the first call, if the network has fewer classes than the groups name.

    Source: ours. The sum of the members' probabilities would be the probability of the group, but its gradient mixes the maps of all members.
    """

    def __init__(self, network: nn.Module, groups: Mapping[str, Sequence[int | Sequence[int]]]) -> None:
        super().__init__()
        listed = {name: members(group) for name, group in groups.items()}
        every = sorted(k for group in listed.values() for k in group)
        double = [a for a, b in pairwise(every) if a == b]
        if double:
            raise UserError(
                f"class {double[0]} of the network stands in two groups or twice in one; each class belongs to at most one"
            )
        self.network, self.names, self.needed = network, list(listed), every[-1] + 1
        longest = max(map(len, listed.values()))
        padded = [
            group + group[:1] * (longest - len(group)) for group in listed.values()
        ]  # a member twice changes no maximum
        self.register_buffer("table", torch.tensor(padded), persistent=False)
        self.image_size = getattr(network, "image_size", None)

    table: Tensor

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        if logits.shape[1] < self.needed:
            raise UserError(
                f"groups name class {self.needed - 1}, but the network has {logits.shape[1]} classes; take one of ImageNet's 1000"
            )
        with torch.no_grad():
            likeliest = self.table[torch.arange(len(self.table)), logits.detach()[:, self.table].argmax(2)]
        return logits.gather(1, likeliest)

    def extra_repr(self) -> str:
        return f"groups={len(self.names)}"
