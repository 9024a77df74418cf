from __future__ import annotations

import pytest
import torch
from torch import nn

from explainode.errors import UserError
from explainode.explainers.base import pass_limit
from explainode.explainers.perturbation import Occlusion
from explainode.randomness import noise_scope


def test_windows_that_tile_the_image_share_the_score_of_a_linear_network(x):
    """Each window loses exactly the weight times input that it covers."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(432, 3))
    shares = (x * net[1].weight[1].detach().reshape(3, 12, 12)).sum(1, keepdim=True)
    windows = nn.functional.avg_pool2d(shares, 3) * 9
    expected = windows.repeat_interleave(3, 2).repeat_interleave(3, 3).expand(4, 3, 12, 12)
    torch.testing.assert_close(Occlusion(0.25, 0.25)(net, x, 1), expected, rtol=1e-4, atol=1e-6)


def test_the_baseline_covers_the_window(x):
    net = nn.Sequential(nn.Flatten(), nn.Linear(432, 3))
    against_itself = Occlusion(1.0, 1.0, baseline="mean")(net, x.mean((2, 3), keepdim=True).expand_as(x), 0)
    assert against_itself.abs().max() < 1e-6


@pytest.mark.parametrize("limit", [None, 1, 6])
def test_copies_of_an_image_share_its_noise(limit, noisy_net, x, target):
    """The whole image under one window: the loss is f(x) - f(black) with the same noise in both."""
    with noise_scope(torch.tensor([8, 2, 9, 1])), pass_limit(limit):
        loss = Occlusion(1.0, 1.0)(noisy_net, x, target)[:, 0, 0, 0]
    with noise_scope(torch.tensor([8, 2, 9, 1])):
        difference = (noisy_net(x) - noisy_net(torch.zeros_like(x))).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(loss, difference.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("window", "stride"), [(0, 0.1), (1.5, 0.1), (0.2, 0.3), (0.2, 0)])
def test_windows_that_leave_pixels_out_are_refused(window, stride):
    with pytest.raises(UserError, match="window"):
        Occlusion(window, stride)
