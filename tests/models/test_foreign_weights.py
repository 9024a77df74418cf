"""Weights as other people's scripts leave them: prefixes, averages, safetensors; and names of classes."""

import json

import pytest
import torch

from explainode.cli.explain import model_words
from explainode.errors import UserError
from explainode.jobs.pictures import read_class_names
from explainode.models import load_weights
from explainode.registry import get


@pytest.fixture
def net():
    torch.manual_seed(0)
    return get("model/small_vgg", num_classes=4)


@pytest.fixture
def other():
    torch.manual_seed(1)
    return get("model/small_vgg", num_classes=4)


def same(a, b):
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


@pytest.mark.parametrize(
    "prefix", ["model.", "net.", "backbone.", "module.", "model.net.", "_orig_mod.model.", "my_classifier."]
)
def test_a_prefix_before_every_key_is_found(net, other, tmp_path, prefix):
    state = {prefix + key: value for key, value in net.state_dict().items()}
    torch.save({"state_dict": state | {"metric.total": torch.zeros(3)}, "epoch": 3}, tmp_path / "a.ckpt")
    load_weights(other, tmp_path / "a.ckpt")
    assert same(net, other)


@pytest.mark.parametrize("container", ["state_dict", "model", "ema", "model_ema"])
def test_a_state_dict_inside_of_a_container(net, other, tmp_path, container):
    torch.save({container: net.state_dict(), "args": {"lr": 1}}, tmp_path / "a.pth")
    load_weights(other, tmp_path / "a.pth")
    assert same(net, other)


def test_two_networks_in_one_file_are_not_guessed(net, other, tmp_path):
    state = {p + k: v for p in ("student.", "teacher.") for k, v in net.state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(UserError, match="several networks of these names, under student, teacher"):
        load_weights(other, tmp_path / "a.pth")


def test_safetensors(net, other, tmp_path, monkeypatch):
    tensors = pytest.importorskip("safetensors.torch", reason="needs safetensors")
    tensors.save_file({f"model.{k}": v.contiguous() for k, v in net.state_dict().items()}, tmp_path / "a.safetensors")
    load_weights(other, tmp_path / "a.safetensors")
    assert same(net, other)
    whole = (tmp_path / "a.safetensors").read_bytes()
    for torn in (whole[: len(whole) // 2], whole[:6], b"\xff" * 100):
        (tmp_path / "b.safetensors").write_bytes(torn)
        with pytest.raises(UserError, match="damaged or cut short"):
            load_weights(other, tmp_path / "b.safetensors")
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(UserError, match="pip install safetensors"):
        load_weights(other, tmp_path / "a.safetensors")


def test_models_go_by_the_names_that_their_makers_gave_them():
    assert model_words("resnet20") == ["model=resnet20"]
    assert model_words("resnet18") == ["model=tv_resnet18"]
    assert model_words("squeezenet1_0") == ["model=torchvision", "model.name=squeezenet1_0"]
    with pytest.raises(
        UserError, match=r"no model named 'squeezenet1_2'; the nearest are .*squeezenet1_[01].*torchvision or timm"
    ):
        model_words("squeezenet1_2")
    pytest.importorskip("timm", reason="timm is an optional package")
    assert model_words("resnet10t") == ["model=timm", "model.name=resnet10t"]


@pytest.mark.parametrize(
    "text",
    [
        "cat\n\n dog \nwolf\n",
        json.dumps(["cat", "dog", "wolf"]),
        json.dumps({"0": "cat", "2": "wolf", "1": "dog"}),
        json.dumps({"id2label": {"0": "cat", "1": "dog", "2": "wolf"}}),
    ],
)
def test_names_of_classes(tmp_path, text):
    (tmp_path / "names").write_text(text)
    assert read_class_names(tmp_path / "names") == ["cat", "dog", "wolf"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no class name"),
        (b"[1,", "damaged JSON"),
        (b'{"a": "b"}', "every index"),
        (b"\xff\xfe\x00", "no text"),
    ],
)
def test_files_that_name_no_classes(tmp_path, content, words):
    (tmp_path / "names").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_class_names(tmp_path / "names")
    with pytest.raises(UserError, match="cannot be read"):
        read_class_names(tmp_path / "nowhere")
