"""Pixels to what the network was trained on."""

import pytest
import torch

from explainode.errors import UserError
from explainode.models.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize


def test_it_is_torchvisions_normalization():
    from torchvision.transforms.functional import normalize

    x = torch.rand(2, 3, 5, 6)
    assert torch.equal(Normalize(IMAGENET_MEAN, IMAGENET_STD)(x), normalize(x, list(IMAGENET_MEAN), list(IMAGENET_STD)))


def test_imagenets_numbers_are_those_of_the_published_weights():
    from torchvision.models import ResNet50_Weights

    published = ResNet50_Weights.IMAGENET1K_V1.transforms()
    assert tuple(published.mean) == IMAGENET_MEAN
    assert tuple(published.std) == IMAGENET_STD


def test_mean_0_and_std_1_is_the_identity_bit_for_bit():
    x = torch.randn(2, 3, 5, 6)
    assert torch.equal(Normalize()(x), x)


def test_buffers_move_with_the_network_but_are_not_saved():
    normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD).double()
    assert normalize.mean.shape == normalize.std.shape == (3, 1, 1) and normalize.mean.dtype == torch.float64
    assert not normalize.state_dict()


@pytest.mark.parametrize(
    ("mean", "std", "sentence"),
    [
        ((0.5,) * 3, (0.5,), "one number per channel each, got 3 and 1"),
        ((0.5,) * 3, (1.0, 0.0, 1.0), r"positive in every channel, got \[1.0, 0.0"),
    ],
)
def test_bad_statistics(mean, std, sentence):
    with pytest.raises(UserError, match=sentence):
        Normalize(mean, std)
