"""Which image an element belongs to: every network here mixes no images, so that changing one image says it too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from explainode.explainers.guard import guard
from explainode.relevance.operations import Value
from explainode.relevance.samples import Samples
from explainode.relevance.tape import Tape, record

B = 3


class Net(nn.Module):
    """Patches of (B, 3, 8, 8) as tokens (B, 4, 8), some `middle` that returns a tensor with the batch in front, a dense head."""

    def __init__(self, middle: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.head = nn.Conv2d(3, 8, 4, 4), nn.LazyLinear(4)
        self.sequence_first = nn.MultiheadAttention(8, 2)
        self.batch_first = nn.MultiheadAttention(8, 2, batch_first=True)
        self.dense, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.line = nn.Conv1d(8, 8, 3, padding=1)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self, self.patches(x).flatten(2).transpose(1, 2)).flatten(1))


def batch_first(n: Net, t: Tensor) -> Tensor:
    return n.norm(t + n.batch_first(t, t, t)[0])


def sequence_first(n: Net, t: Tensor) -> Tensor:
    """(L, N, E) between the transposes."""
    t = t.transpose(0, 1)
    t = n.norm(t + n.sequence_first(t, t, t)[0])
    return (n.dense(t).relu() + t).permute(1, 0, 2)


def sequence_first_mean(n: Net, t: Tensor) -> Tensor:
    return n.dense(t.transpose(0, 1)).mean(0)


def windows(n: Net, t: Tensor) -> Tensor:
    """Two windows of two tokens, merged into the batch: (2 B, 2, 8)."""
    w = t.reshape(2 * len(t), 2, 8)
    return n.batch_first(w, w, w)[0].reshape(-1, 4, 8)


def windows_ahead(n: Net, t: Tensor) -> Tensor:
    """The same with the windows slower than the batch: (2, B, 2, 8) -> (2 B, 2, 8)."""
    w = t.unflatten(1, (2, 2)).transpose(0, 1).reshape(2 * len(t), 2, 8)
    return n.batch_first(w, w, w)[0].unflatten(0, (2, -1)).transpose(0, 1).flatten(1, 2)


def heads(n: Net, t: Tensor) -> Tensor:
    """Heads merged into the batch: (2 B, 4, 4)."""
    h = n.dense(t).unflatten(2, (2, 4)).transpose(1, 2).flatten(0, 1)
    return torch.bmm((h @ h.mT).softmax(-1), h).unflatten(0, (-1, 2)).transpose(1, 2).flatten(2)


def heads_ahead(n: Net, t: Tensor) -> Tensor:
    """Heads slower than the batch, as Swin-like code has them: (2, B, 4, 4)."""
    h = n.dense(t).unflatten(2, (2, 4)).permute(2, 0, 1, 3)
    return ((h @ h.mT).softmax(-1) @ h).permute(1, 2, 0, 3).flatten(2)


def cat(n: Net, t: Tensor) -> Tensor:
    first, second = torch.cat([t, n.dense(t)]).relu().chunk(2)
    return first * second


def cat_with_constants(n: Net, t: Tensor) -> Tensor:
    return n.norm(torch.cat([torch.ones(B, 4, 8), t]))[B:] + t


def stack(n: Net, t: Tensor) -> Tensor:
    a, b = n.dense(torch.stack([t, t.tanh()])).unbind(0)
    return a * b


def select(n: Net, t: Tensor) -> Tensor:
    return torch.stack([n.dense(t[i]).relu() for i in range(len(t))])


def roll(n: Net, t: Tensor) -> Tensor:
    return n.dense(t.roll(1, 0)).relu().roll(-1, 0)


def roll_tokens(n: Net, t: Tensor) -> Tensor:
    return n.dense(t.roll(1, 1)).flip(1)


def flip(n: Net, t: Tensor) -> Tensor:
    return n.dense(t.flip(0)).softmax(-1).flip(0)


def index(n: Net, t: Tensor) -> Tensor:
    order = torch.tensor([2, 0, 1])
    return n.dense(t[order]).relu()[order.argsort()]


def images_last(n: Net, t: Tensor) -> Tensor:
    """Products with constants and averages while the images are the columns: (8, 4 B)."""
    columns = (n.dense.weight @ t.reshape(-1, 8).T).relu()
    return columns.T.reshape(-1, 4, 8) + columns.mean(0).reshape(-1, 4, 1)


def convolved(n: Net, t: Tensor) -> Tensor:
    """A convolution over a rolled batch."""
    return n.line(t.roll(1, 0).transpose(1, 2)).relu().transpose(1, 2).roll(-1, 0)


def broadcast(n: Net, t: Tensor) -> Tensor:
    """A sum that makes a smaller operand's batch axis the second: (4, B, 8) + (B, 8)."""
    return (t.transpose(0, 1) + t.mean(1)).transpose(0, 1)


MIDDLES = [
    batch_first, sequence_first, sequence_first_mean, windows, windows_ahead, heads, heads_ahead, cat, cat_with_constants, stack, select, roll,
    roll_tokens, flip, index, images_last, convolved, broadcast,
]  # fmt: skip


@pytest.fixture(params=MIDDLES, ids=lambda middle: middle.__name__)
def tape(request) -> Tape:
    x = torch.rand(B, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    net = Net(request.param)
    net(x)
    with guard(net) as network:
        return record(network, x)


def owners(tape: Tape) -> dict[int, Tensor]:
    """id of a value -> the image on which each element depends, -1 for none: what changes if one image changes, the tape computed again."""
    found = {id(tape.input): torch.arange(B).view(-1, 1, 1, 1).expand(tape.input.data.shape)}
    changed: dict[int, list[Tensor]] = {id(tape.input): []}
    for i in range(B):
        other = tape.input.data.clone()
        other[i] = other[i].flip(0, 1, 2) + 0.37
        changed[id(tape.input)].append(other)
    for operation in tape.operations:
        again = [operation.call(*(changed[id(value)][i] for value in operation.inputs)) for i in range(B)]
        for at, value in enumerate(operation.outputs):
            changed[id(value)] = [outputs[at] for outputs in again]
            differs = torch.stack([~torch.isclose(new, value.data, rtol=0, atol=1e-7) for new in changed[id(value)]])
            assert int(differs.sum(0).max()) <= 1, "the network mixes images"
            found[id(value)] = torch.where(differs.any(0), differs.int().argmax(0), -1)
    return found


def values(tape: Tape) -> list[Value]:
    return [tape.input, *(value for operation in tape.operations for value in operation.outputs)]


def test_every_element_belongs_to_the_image_on_which_it_depends(tape):
    samples, truth = Samples(B), owners(tape)
    for value in values(tape):
        ids, owner = samples.ids(value), truth[id(value)]
        assert ids.shape == value.data.shape
        assert bool((owner >= 0).any())
        assert torch.equal(ids[owner >= 0].long(), owner[owner >= 0]), value.producer


def test_sums_are_those_of_each_image(tape):
    """Not of numbers that follow a pattern: random ones."""
    samples = Samples(B)
    for value in values(tape):
        numbers = torch.randn(value.data.shape, generator=torch.Generator().manual_seed(2))
        ids = samples.ids(value).long()
        expected = torch.stack([numbers[ids == i].double().sum() for i in range(B)])
        torch.testing.assert_close(samples.sum(value, numbers), expected, rtol=1e-12, atol=1e-12)


def test_scalars_arrive_at_their_image(tape):
    samples, scalars, truth = Samples(B), torch.tensor([0.3, -7.0, 2.0]), owners(tape)
    for value in values(tape):
        spread, owner = samples.spread(value, scalars), truth[id(value)]
        assert spread.dtype == value.data.dtype
        spread = spread.expand(value.data.shape)
        assert torch.equal(spread[owner >= 0], scalars[owner[owner >= 0]])
        counts = samples.sum(value, torch.ones_like(value.data))
        torch.testing.assert_close(samples.sum(value, spread), scalars.double() * counts, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("middle", "leading"),
    [(heads, True), (roll_tokens, True), (batch_first, False), (sequence_first, False), (roll, False)],
)
def test_the_cheap_way_is_taken_where_the_batch_leads(middle, leading):
    """Torch's attention layer puts the sequence first inside, whatever it is given."""
    x = torch.rand(B, 3, 8, 8)
    net = Net(middle)
    net(x)
    with guard(net) as network:
        tape = record(network, x)
    samples = Samples(B)
    assert all(samples.leading(value) for value in values(tape)) == leading
    assert samples.leading(tape.output)


def test_sums_are_in_double_precision():
    """1 beside 2^25 is lost in single precision."""
    x = torch.full((2, 3, 4, 4), 1.0)
    x[:, 0, 0, 0] = 2.0**25
    assert Samples(2).sum(Value(x), x).tolist() == [2.0**25 + 47] * 2
