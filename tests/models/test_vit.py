"""A small transformer is torchvision's, of another size."""

import pytest
import torch
from torchvision.models.vision_transformer import VisionTransformer

from explainode.errors import UserError
from explainode.models.vit import small_vit


def test_without_a_stem_it_is_torchvisions():
    ours = small_vit(num_classes=5, image_size=24, patch_size=8, width=16, depth=2, heads=2, conv_stem=False).eval()
    theirs = VisionTransformer(24, 8, 2, 2, 16, 64, num_classes=5).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(2, 3, 24, 24)
    assert torch.equal(ours(x), theirs((x - 0.5) / 0.25))
    assert ours.image_size == 24


def test_a_stem_makes_as_many_patches():
    network = small_vit(width=16, depth=1, heads=2).eval()
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 8)
    assert network.conv_proj(torch.rand(1, 3, 32, 32)).shape == (1, 16, 8, 8)
    assert network.heads.head.weight.std() > 0  # at torchvision's zeros no relevance would come back


def test_the_channels_of_a_stem_double_up_to_the_width():
    stem = small_vit(patch_size=8, width=64, depth=1).conv_proj
    channels = [module.out_channels for module in stem.modules() if isinstance(module, torch.nn.Conv2d)]
    assert channels == [16, 32, 64, 64], (
        "three halvings (Xiao et al. 2021), and torchvision's 1x1 convolution to the width"
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"image_size": 30}, "patches of 4 in 30 pixels"),
        ({"heads": 5}, "5 heads in a width of 64"),
        ({"image_size": 36, "patch_size": 6}, r"patch_size must be 2, 4, 8, \.\.\., got 6"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        small_vit(**settings)
