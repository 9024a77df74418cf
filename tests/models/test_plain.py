"""Other people's networks keep their layers' names and their outputs."""

import copy
import pickle
import sys

import pytest
import torch
import torchvision

from explainode.dynamics.noise import Noise
from explainode.errors import UserError
from explainode.models.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize
from explainode.models.plain import timm_model, torchvision_model
from explainode.models.weights import fit_state_dict

LIGHT = ["squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "densenet121", "efficientnet_b0", "convnext_tiny"]
HEAVY = [("vgg16", 32), ("vgg16_bn", 32), ("vgg19", 32), ("vgg19_bn", 32), ("vit_b_16", 224)]


@pytest.mark.parametrize(
    ("name", "size"),
    [*((name, 64) for name in LIGHT), *(pytest.param(*row, marks=pytest.mark.nightly) for row in HEAVY)],
)
def test_outputs_and_names_are_torchvisions(name, size):
    theirs = torchvision.models.get_model(name, num_classes=5).eval()
    ours = torchvision_model(name, num_classes=5).eval()
    fit_state_dict(ours, theirs.state_dict())
    x = torch.rand(1, 3, size, size)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(Normalize(IMAGENET_MEAN, IMAGENET_STD)(x)))
    assert [k for k, _ in ours.named_modules() if k != "normalize"] == [k for k, _ in theirs.named_modules()]
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_normalization_survives_copying_pickling_and_layer_hooks():
    network = torchvision_model("squeezenet1_1", num_classes=5, mean=(0.5,) * 3, std=(0.25,) * 3).eval()
    x = torch.rand(1, 3, 64, 64)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(x), network(x))
    seen = []
    network.get_submodule("features.0").register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    network(x)
    assert torch.equal(seen[0], (x - 0.5) / 0.25)


def test_a_weights_file_is_loaded(tmp_path):
    theirs = torchvision.models.squeezenet1_1(num_classes=5)
    torch.save(theirs.state_dict(), tmp_path / "squeezenet.pth")
    ours = torchvision_model("squeezenet1_1", num_classes=5, weights=str(tmp_path / "squeezenet.pth"))
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))


def test_torchvision_names_that_do_not_exist():
    with pytest.raises(UserError, match=r"no torchvision classifier named 'vgg16bn'; the nearest are vgg16_bn"):
        torchvision_model("vgg16bn")
    with pytest.raises(UserError, match="no torchvision classifier named 'inception_v3'"):
        torchvision_model("inception_v3")


def test_noise_is_refused_in_a_sentence():
    torchvision_model("squeezenet1_1", noise=Noise(0.0))
    with pytest.raises(UserError, match="class Residual, and this network has none"):
        torchvision_model("squeezenet1_1", noise=Noise(0.1))


# --- timm ---


def test_timm_models_by_name():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    ours = timm_model("vit_tiny_patch16_224", num_classes=5).eval()
    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=5).eval()
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs((x - 0.5) / 0.5))  # the mean and std that timm records for it
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.image_size == 224
    given = timm_model("resnet10t", num_classes=5, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    assert torch.equal(given.normalize.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))


def test_timm_bad_input(monkeypatch, tmp_path):
    timm = pytest.importorskip("timm")
    with pytest.raises(UserError, match="no timm model named 'resnet51'; the nearest are resnet51q, resnet50"):
        timm_model("resnet51")
    with pytest.raises(UserError, match="there is no weights file"):
        timm_model("resnet10t", weights=str(tmp_path / "missing.pt"))
    with pytest.raises(UserError, match="class Residual, and this network has none"):
        timm_model("resnet10t", noise=Noise(0.1))
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **settings: create(name, **settings))
    with pytest.raises(UserError, match="timm's weights for resnet10t are for 1000 classes, not 10"):
        timm_model("resnet10t", num_classes=10, weights="timm")
    assert timm_model("resnet10t", weights="timm").num_classes == 1000

    def fail(name, **settings):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(UserError, match=r"cannot be downloaded \(no route to host\); give the path of a file"):
        timm_model("resnet10t", weights="timm")


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="one of timm's, which is not installed; pip install timm"):
        timm_model("resnet18")
