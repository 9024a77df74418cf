from __future__ import annotations

import math

import torch
from torch import nn

from explainode.explainers.base import count_passes
from explainode.explainers.fem import FEM, rare_features


def test_two_by_two_worked_out_on_paper():
    """Channel 0: mean 1, deviation sqrt(3), threshold 2.73: the 4. Channel 1: mean 2, deviation 1, threshold 3: both threes (the rule is >=)."""
    A = torch.tensor([[[[0.0, 0.0], [0.0, 4.0]], [[1.0, 3.0], [1.0, 3.0]]]])
    assert rare_features(A, 1.0).tolist() == [[[[0.0, 2.0], [0.0, 1.0 + 2.0]]]]
    assert rare_features(A, math.sqrt(3) + 0.01).tolist() == [[[[0.0, 0.0], [0.0, 0.0]]]]
    assert rare_features(A, 0.0).tolist() == [[[[0.0, 2.0], [0.0, 3.0]]]]


def test_a_constant_map_is_nowhere_strong():
    A = torch.full((1, 1, 7, 7), 0.1)  # its mean in floating point is not 0.1, and its deviation not 0
    assert torch.equal(rare_features(A, 1.0), torch.zeros(1, 1, 7, 7))


def test_a_scaled_channel_scales_its_share():
    A = torch.rand(3, 2, 5, 5, dtype=torch.float64)
    scaled = A * torch.tensor([7.0, 1.0], dtype=torch.float64)[None, :, None, None]
    share = rare_features(A[:, :1], 1.0)
    torch.testing.assert_close(rare_features(scaled, 1.0), rare_features(A, 1.0) + 6 * share)


def test_it_sees_the_layer_after_its_relu_in_one_forward(net, x):
    held = {}
    handle = net.body.register_forward_hook(lambda module, args, output: held.update(A=output.detach()))
    FEM()(net, x, 0)
    handle.remove()
    with count_passes() as passes:
        found = FEM()(net, x, 0)
    assert (passes.forwards, passes.backwards) == (4, 0)
    by_hand = torch.zeros(4, 1, 6, 6)
    for image in range(4):
        for channel in held["A"][image]:
            if channel.max() > channel.min():
                mean = channel.mean()
                by_hand[image, 0] += mean * (channel >= mean + ((channel - mean) ** 2).mean().sqrt())
    torch.testing.assert_close(found, by_hand)


def test_it_asks_for_no_gradient(x):
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).detach().mean((2, 3))

    assert FEM()(Cut(), x, 0).shape == (4, 1, 10, 10)
