"""Where elements lie: against networks whose every element says itself which pixel it came from."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explainode.explainers.guard import guard
from explainode.relevance.places import Places
from explainode.relevance.tape import record

HEIGHT, WIDTH = 8, 12


class Net(nn.Module):
    """`middle` returns what is asked about; the pixels of channel 0 hold their own number."""

    def __init__(self, middle) -> None:
        super().__init__()
        self.middle, self.look, self.norm = middle, nn.Identity(), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.look(self.middle(x)).flatten(1).sum(1, keepdim=True) * torch.ones(1, 2)


def windows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B * windows, 16, C), shifted by one as in Swin."""
    x = x.permute(0, 2, 3, 1).roll((1, 1), (1, 2))
    x = x.view(len(x), HEIGHT // 4, 4, WIDTH // 4, 4, -1).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, 16, x.shape[-1])


def with_class_token(x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    return torch.cat([torch.zeros(len(x), 3, tokens.shape[2]), tokens], 1)


def sequence_first(x: Tensor) -> Tensor:
    return x.flatten(2).permute(2, 0, 1)


def attended(x: Tensor) -> Tensor:
    """Attention that hardly looks elsewhere, added to the tokens that it is of."""
    tokens = x.flatten(2).transpose(1, 2)
    heads = tokens.unflatten(2, (2, -1)).transpose(1, 2)
    mixed = (1e-30 * heads @ heads.mT).softmax(-1) @ heads
    return tokens + 0 * mixed.transpose(1, 2).flatten(2)


LAYOUTS = {
    "channels first": lambda x: x * 1,
    "channels last": lambda x: x.permute(0, 2, 3, 1) * 1,
    "rows and columns exchanged": lambda x: x.permute(0, 3, 1, 2) * 1,
    "tokens": lambda x: x.flatten(2).transpose(1, 2) * 1,
    "tokens, channels first": lambda x: x.flatten(2) * 1,
    "heads": lambda x: x.flatten(2).transpose(1, 2).unflatten(2, (2, 2)).transpose(1, 2) * 1,
    "class tokens": with_class_token,
    "class tokens at the end": lambda x: with_class_token(x).flip(1),
    "windows": windows,
    "sequence first": sequence_first,
    "attention": attended,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_element_lies_at_its_pixel(name):
    """Every channel of pixel (i, j) of image b is 1000 b + W i + j: laid out as a map it must count in raster order."""
    numbers = torch.arange(HEIGHT * WIDTH, dtype=torch.float64).view(1, 1, HEIGHT, WIDTH).expand(2, 4, -1, -1)
    x = numbers + 1000 * torch.arange(2).view(2, 1, 1, 1)
    net = Net(LAYOUTS[name])
    with guard(net):
        tape = record(net, x, ["look"])
    value = tape.returned("look")
    layout = Places(tape).layout(value)
    assert layout is not None and layout.size == (HEIGHT, WIDTH)
    torch.testing.assert_close(layout.to_maps(value.data, 2), x)


@pytest.mark.parametrize(
    ("size", "middle", "shape"),
    [
        ((8, 8), lambda x: F.conv2d(x, torch.ones(5, 4, 3, 3), stride=2, padding=1).permute(0, 2, 3, 1) * 1, (4, 4)),
        ((8, 16), lambda x: F.conv2d(x, torch.ones(5, 4, 4, 2), stride=(4, 2)).flatten(2).mT * 1, (2, 8)),
        ((8, 8), lambda x: F.interpolate(F.max_pool2d(x, 2), scale_factor=4).permute(0, 2, 3, 1) * 1, (16, 16)),
        ((8, 8), lambda x: F.pixel_shuffle(x, 2) * 1, (16, 16)),
        ((8, 8), lambda x: F.conv2d(F.pad(x, (0, 1, 0, 1)), torch.ones(3, 4, 2, 2)) * 1, (8, 8)),
        ((8, 8), lambda x: F.conv_transpose2d(x, torch.ones(4, 3, 2, 2), stride=2).mT * 1, (16, 16)),
        ((6, 9), lambda x: F.adaptive_avg_pool2d(x, (3, 3)).flatten(2) * 1, (3, 3)),
    ],
)
def test_kernels_that_move_make_another_grid(size, middle, shape):
    net = Net(middle)
    with guard(net):
        tape = record(net, torch.rand(2, 4, *size), ["look"])
    layout = Places(tape).layout(tape.returned("look"))
    assert layout is not None and layout.size == shape


@pytest.mark.parametrize(
    "middle",
    [
        lambda x: x.flatten(2) @ torch.rand(HEIGHT * WIDTH, HEIGHT * WIDTH),  # mixes all places
        lambda x: x.flatten(1) * 1,
        lambda x: x.flatten(2)[..., :-1] * 1,  # a corner is missing
    ],
)
def test_what_lies_on_no_grid_has_no_layout(middle):
    net = Net(middle)
    with guard(net):
        tape = record(net, torch.rand(2, 4, HEIGHT, WIDTH), ["look"])
    assert Places(tape).layout(tape.returned("look")) is None
