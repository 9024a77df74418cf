"""Our residual networks against the counts of the papers, torchvision's own modules and the published weights."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from explainode.dynamics.noise import Noise
from explainode.errors import UserError
from explainode.models.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize
from explainode.models.resnet import LAYOUTS, PadShortcut, cifar_resnet, six_block_resnet, torchvision_resnet
from explainode.models.weights import fit_state_dict, to_torchvision
from explainode.randomness import noise_scope

DATA = Path(os.environ.get("EXPLAINODE_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
IDENTITY = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
SMALL = ["resnet18", "resnet50", "resnext50_32x4d"]
LARGE = ["resnet34", "resnet101", "wide_resnet101_2", "resnext101_32x8d"]


def count(network):
    return sum(p.numel() for p in network.parameters())


# --- the six-block net ---


def test_six_block_counts_of_lei_2023():
    """0.58 M in Table 2; per part: stem 133,248 (three channels), block 73,984, head 778."""
    network = six_block_resnet()
    assert count(network) == 577_930
    assert count(network.stem) == 133_248
    assert [count(block) for block in network.blocks] == [73_984] * 6
    assert count(network.norm) + count(network.linear) == 778
    assert count(six_block_resnet(1, mean=(0.0,), std=(1.0,))) == 576_778


def test_six_block_state_is_64x7x7():
    network = six_block_resnet()
    assert network.stem(torch.rand(2, 3, 32, 32)).shape == (2, 64, 7, 7)
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_six_block_can_be_smaller():
    network = six_block_resnet(num_classes=8, width=24, blocks=2)
    assert network(torch.rand(2, 3, 48, 48)).shape == (2, 8) and len(network.blocks) == 2


def test_channels_need_their_statistics():
    with pytest.raises(UserError, match="each of the 1 input channels, got 3"):
        six_block_resnet(in_channels=1)


# --- ResNets for CIFAR ---


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_cifar_counts_of_the_paper(depth, millions):
    """He et al. 2016, Table 6."""
    network = cifar_resnet(depth)
    assert count(network) / 1e6 == pytest.approx(millions, abs=0.05 if depth == 110 else 0.005)
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in network.modules()) == depth
    assert network.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 10)


def test_option_a_shortcut():
    x = torch.randn(2, 16, 8, 8)
    y = PadShortcut(16, 32, 2)(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert torch.count_nonzero(y[:, :8]) == torch.count_nonzero(y[:, 24:]) == 0


@pytest.mark.parametrize("depth", [2, 18, 21, -4])
def test_depths_that_do_not_exist(depth):
    with pytest.raises(UserError, match=rf"6n \+ 2 layers, got depth={depth}"):
        cifar_resnet(depth)


@pytest.mark.parametrize(
    ("depth", "file", "accuracy"), [(20, "12fca82f", 0.910), (32, "d509ac18", 0.932), (44, "014dd654", 0.930)]
)
def test_published_weights_reach_their_accuracy(depth, file, accuracy):
    weights, picture = (
        DATA / "cifar10_resnets" / f"resnet{depth}-{file}.th",
        DATA / "cifar10" / "lossless_test_0000_0499.png",
    )
    labels = DATA / "cifar10" / "cifar10_index.npz"
    if not (weights.exists() and picture.exists() and labels.exists()):
        pytest.skip("needs the sets cifar10_resnets and cifar10")
    pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(500, 32, 32, 3)  # one image per row of the picture
    images = torch.tensor(pixels).permute(0, 3, 1, 2) / 255
    with np.load(labels) as index:
        targets = torch.tensor(index["labels_test"][:500].astype(int))
    network = cifar_resnet(depth, weights=str(weights)).eval()
    with torch.inference_mode():
        predicted = torch.cat([network(part).argmax(1) for part in images.split(100)])
    assert (predicted == targets).double().mean().item() == pytest.approx(accuracy, abs=1e-9)


# --- torchvision's ResNets ---


def randomize_statistics(network):
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -1, 1),
                (module.running_var, 0.5, 2),
                (module.weight, 0.5, 1.5),
                (module.bias, -1, 1),
            ):
                with torch.no_grad():
                    tensor.uniform_(low, high, generator=generator)
    return network


def output_and_gradients(network, x, weight):
    x = x.clone().requires_grad_()
    network.zero_grad()
    logits = network(x)
    (logits * weight).sum().backward()
    return [logits, x.grad, *(p.grad for p in network.parameters())]


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_outputs_and_gradients_are_torchvisions_bit_for_bit(name):
    theirs = randomize_statistics(torchvision.models.get_model(name, num_classes=7))
    ours = torchvision_resnet(name, num_classes=7, **IDENTITY)
    fit_state_dict(ours, theirs.state_dict())
    x, weight = torch.rand(2, 3, 64, 64), torch.randn(2, 7)
    for training in (True, False):
        expected = output_and_gradients(theirs.train(training), x, weight)
        got = output_and_gradients(ours.train(training), x, weight)
        assert len(got) == len(expected) and all(map(torch.equal, got, expected))
    saved = to_torchvision(ours)
    assert list(saved) == list(theirs.state_dict()) and all(
        map(torch.equal, saved.values(), theirs.state_dict().values())
    )
    theirs.load_state_dict(saved)


def test_normalization_comes_first():
    theirs = torchvision.models.resnet18(num_classes=7).eval()
    ours = torchvision_resnet("resnet18", num_classes=7).eval()
    fit_state_dict(ours, theirs.state_dict())
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(ours(x), theirs(Normalize(IMAGENET_MEAN, IMAGENET_STD)(x)))


def test_the_same_seed_gives_torchvisions_initial_weights():
    torch.manual_seed(5)
    theirs = torchvision.models.resnet50(num_classes=7).state_dict()
    torch.manual_seed(5)
    ours = to_torchvision(torchvision_resnet("resnet50", num_classes=7))
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_has_torchvisions_parameters(name):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name).state_dict()
        ours = to_torchvision(torchvision_resnet(name))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_a_name_that_does_not_exist():
    with pytest.raises(UserError, match="no torchvision ResNet named 'resnet51'; the nearest are resnet50"):
        torchvision_resnet("resnet51")


@pytest.mark.parametrize(("build", "size"), [(six_block_resnet, 32), (cifar_resnet, 32), (torchvision_resnet, 224)])
def test_a_network_knows_the_size_it_was_designed_for(build, size):
    with torch.device("meta"):
        assert build().image_size == size


# --- twins ---


@pytest.mark.parametrize(
    ("build", "blocks", "size"),
    [
        (six_block_resnet, 6, 32),
        (cifar_resnet, 9, 32),
        (torchvision_resnet, 8, 64),
        (lambda **settings: torchvision_resnet("resnext50_32x4d", **settings), 16, 64),
    ],
    ids=["six_block", "cifar", "resnet18", "resnext50"],
)
def test_twins_differ_by_the_noise_alone(build, blocks, size):
    torch.manual_seed(0)
    plain = build(num_classes=5, noise=Noise(0.0)).eval()
    torch.manual_seed(0)
    twin = build(num_classes=5, noise=Noise(0.5)).eval()
    x = torch.rand(2, 3, size, size)
    assert torch.equal(twin(x), plain(x))
    assert not any(isinstance(m, Noise) for m in plain.modules())
    assert [m.block for m in twin.modules() if isinstance(m, Noise)] == list(range(blocks))
    with noise_scope(torch.arange(2)):
        assert torch.equal(twin(x), twin(x)) and not torch.allclose(twin(x), plain(x))
    assert not torch.equal(twin.train()(x), twin(x))
