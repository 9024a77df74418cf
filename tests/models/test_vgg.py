"""The small VGG: its layers' names, sizes and refusals."""

import pytest
import torch

from explainode.dynamics.noise import Noise
from explainode.errors import UserError
from explainode.models.vgg import small_vgg


def test_layers_and_sizes():
    network = small_vgg(7, widths=(4, 6), depth=3, hidden=5).eval()
    convolutions = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Conv2d)]
    assert convolutions == [f"features.conv{stage}_{layer}" for stage in (1, 2) for layer in (1, 2, 3)]
    x = torch.rand(2, 3, 24, 40)
    assert network.features(network.normalize(x)).shape == (2, 6, 6, 10)
    assert network(x).shape == (2, 7)


@pytest.mark.parametrize(
    "settings", [{"widths": []}, {"widths": [4, 0]}, {"depth": 0}, {"hidden": 0}, {"noise": Noise(0.1)}]
)
def test_what_cannot_be_built_is_refused(settings):
    with pytest.raises(UserError):
        small_vgg(**settings)
