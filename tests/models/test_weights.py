"""What a weights file may be, and the sentence for each thing that it may not be."""

import os
import pickle
import re
import urllib.error

import pytest
import torch
import torchvision
from torch import nn

from explainode.errors import UserError
from explainode.models.resnet import cifar_resnet, six_block_resnet, torchvision_resnet
from explainode.models.weights import (
    fit_state_dict,
    from_torchvision,
    initialize,
    load_weights,
    read_state_dict,
    to_torchvision,
)


@pytest.fixture(scope="module")
def trained():
    """A network whose every tensor differs from a fresh one's."""
    network = cifar_resnet(20)
    for tensor in network.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) + 1)
    return network


def same(a, b):
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def prefixed(prefix, state):
    return {prefix + k: v for k, v in state.items()}


# --- what loads ---


@pytest.mark.parametrize(
    "pack",
    [
        lambda net: net.state_dict(),
        lambda net: to_torchvision(net),
        lambda net: {"state_dict": net.state_dict(), "best_prec1": 91.8, "epoch": 3},
        lambda net: {"model": net.state_dict(), "args": {"lr": 0.1}},
        lambda net: {"state_dict": prefixed("module.", to_torchvision(net))},
        lambda net: {"state_dict": prefixed("network.", net.state_dict()) | {"accuracy.count": torch.ones(())}},
        lambda net: {"state_dict": prefixed("network._orig_mod.", net.state_dict())},
        lambda net: prefixed("module.network.", net.state_dict()),
        lambda net: {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")},
    ],
    ids=[
        "bare",
        "torchvision",
        "state_dict",
        "model",
        "data parallel",
        "lightning",
        "compiled",
        "both",
        "before counters",
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_every_packing_loads(trained, tmp_path, pack, zipped):
    torch.save(pack(trained), tmp_path / "weights.pt", _use_new_zipfile_serialization=zipped)
    network = cifar_resnet(20)
    load_weights(network, tmp_path / "weights.pt")
    counters = [k for k in network.state_dict() if k.endswith("num_batches_tracked")]
    ours, theirs = network.state_dict(), trained.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours if k not in counters)


def test_a_builder_loads_a_path(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    assert same(cifar_resnet(20, weights=str(tmp_path / "weights.pt")), trained)


def test_names_there_and_back():
    network = torchvision_resnet("resnet18", num_classes=3)
    theirs = torchvision.models.resnet18(num_classes=3).state_dict()
    assert list(from_torchvision(network, theirs)) == list(network.state_dict())
    assert list(to_torchvision(network)) == list(theirs)
    assert list(from_torchvision(network, network.state_dict())) == list(network.state_dict())


def test_the_names_in_torchvisions_densenet_files():
    network = torchvision.models.densenet121(num_classes=3)
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d\.)", r"\1.\2", k): v for k, v in network.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    fit_state_dict(torchvision.models.densenet121(num_classes=3), old)


def test_a_networks_own_child_called_module_is_no_wrapper():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

    a, b = Wrapped(), Wrapped()
    fit_state_dict(a, b.state_dict())
    assert same(a, b)


# --- what does not, and what is said ---


class Malicious:
    def __reduce__(self):
        return os.system, ("echo this must not run",)


def write(path, kind, network):
    """A file of each bad kind."""
    torch.save({"state_dict": network.state_dict()}, path, _use_new_zipfile_serialization="old" not in kind)
    whole = path.read_bytes()
    if "truncated" in kind:
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "flipped bit":
        path.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :])
    elif "code" in kind:
        torch.save({"state_dict": Malicious()}, path, _use_new_zipfile_serialization="old" not in kind)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Malicious()))
    elif kind == "whole module":
        torch.save(network, path)
    elif kind == "text":
        path.write_text("these are not the weights you are looking for")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "no tensors":
        torch.save({"epoch": 3}, path)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("truncated", "is damaged or cut short; copy or download it again"),
        ("truncated old", "is damaged or cut short; copy or download it again"),
        ("flipped bit", "is damaged or cut short; copy or download it again"),
        ("code", "is a pickle that could run code, which is refused"),
        ("code old", "is a pickle that could run code, which is refused"),
        ("pickle", "is a pickle that could run code, which is refused"),
        ("whole module", "is a pickle that could run code, which is refused"),
        ("text", r"is no PyTorch checkpoint \(it begins with b'thes'\)"),
        ("empty", "is empty; copy or download it again"),
        ("list", "holds an object of type list, but weights are a state dict"),
        ("no tensors", "holds a dictionary without tensors, but weights are a state dict"),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_bad_files(trained, tmp_path, kind, sentence, capfd):
    path = tmp_path / "weights.pt"
    write(path, kind, trained)
    with pytest.raises(UserError, match=sentence) as error:
        load_weights(cifar_resnet(20), path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert "must not run" not in capfd.readouterr().out


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"there is no weights file .*missing\.pt; give the path"):
        read_state_dict(tmp_path / "missing.pt")
    with pytest.raises(UserError, match="is a folder, but weights are one file"):
        read_state_dict(tmp_path)


def test_weights_of_another_network(trained):
    with pytest.raises(
        UserError, match=r"72 are unknown to the network \(first 'layer1.3.branch.conv1.weight'\); choose the model"
    ):
        fit_state_dict(cifar_resnet(20), cifar_resnet(32).state_dict())
    with pytest.raises(UserError, match=r"60 of 188 tensors are missing \(first 'layer1.3.branch.conv1.weight'\)"):
        fit_state_dict(cifar_resnet(32), trained.state_dict())
    theirs = torchvision.models.resnet18().state_dict()
    with pytest.raises(
        UserError,
        match=r"missing .*unknown .*have another shape \(first 'conv1.weight': \(64, 3, 7, 7\), needed \(16, 3, 3, 3\)\)",
    ):
        fit_state_dict(cifar_resnet(20), theirs, "resnet18.pth")


def test_weights_for_another_number_of_classes(trained):
    with pytest.raises(
        UserError,
        match=r"hundred\.pt holds weights for 10 classes, but this network has 100; build it with num_classes=10",
    ):
        fit_state_dict(cifar_resnet(20, num_classes=100), trained.state_dict(), "hundred.pt")


def test_a_refused_network_is_as_it_was(trained):
    network = cifar_resnet(20, num_classes=100)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(UserError):
        fit_state_dict(network, trained.state_dict())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


# --- torchvision's own ---


def test_torchvisions_weights_on_request(monkeypatch):
    network = torchvision.models.resnet18()
    asked = []

    def download(self, *args, **kwargs):
        asked.append(self.name)
        return network.state_dict()

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", download)
    ours = torchvision_resnet("resnet18", weights="torchvision")
    assert all(map(torch.equal, to_torchvision(ours).values(), network.state_dict().values()))
    torchvision_resnet("resnet18", weights="torchvision:IMAGENET1K_V1")
    assert asked == ["IMAGENET1K_V1"] * 2
    with pytest.raises(
        UserError, match="torchvision for resnet18 holds weights for 1000 classes, but this network has 10"
    ):
        torchvision_resnet("resnet18", num_classes=10, weights="torchvision")


def test_torchvision_without_network_or_weights(monkeypatch):
    def fail(self, *args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", fail)
    with pytest.raises(
        UserError, match=r"weights for resnet18 cannot be downloaded .*no route to host.*give the path of a file"
    ):
        torchvision_resnet("resnet18", weights="torchvision")
    with pytest.raises(UserError, match="no weights 'IMAGENET1K_V9' for resnet18; the nearest are IMAGENET1K_V1"):
        torchvision_resnet("resnet18", weights="torchvision:IMAGENET1K_V9")
    with pytest.raises(UserError, match="torchvision has no weights for this network"):
        initialize(cifar_resnet(20), "torchvision")


class TestNetworksWithAPartCalledNetwork:
    """A neural ODE's own names begin with `network.`, which is also what Lightning modules put before all names."""

    @pytest.fixture
    def ode(self):
        from explainode.dynamics.solver import RungeKutta
        from explainode.models.neural_ode import NeuralODE

        torch.manual_seed(0)
        return NeuralODE.from_resnet(six_block_resnet(width=16, blocks=1), RungeKutta("euler", steps=1))

    @pytest.mark.parametrize("prefix", ["", "network.", "module.network."])
    def test_they_load_with_and_without_a_wrappers_prefix(self, ode, tmp_path, prefix):
        state = {prefix + k: v + 1 for k, v in ode.state_dict().items()}
        torch.save({"state_dict": state | ({"val_loss.value": torch.zeros(1)} if prefix else {})}, tmp_path / "w.ckpt")
        before = {k: v.clone() for k, v in ode.state_dict().items()}
        load_weights(ode, tmp_path / "w.ckpt")
        assert all(torch.equal(v, before[k] + 1) for k, v in ode.state_dict().items())

    def test_of_a_distillation_the_weights_that_it_kept_are_taken(self, ode, tmp_path):
        best = {k: v + 2 for k, v in ode.state_dict().items()}
        last = {f"network.{k}": v for k, v in ode.state_dict().items()}
        torch.save({"state_dict": last, "distillation": {"best": best}}, tmp_path / "w.ckpt")
        load_weights(ode, tmp_path / "w.ckpt")
        assert all(torch.equal(v, best[k]) for k, v in ode.state_dict().items())
