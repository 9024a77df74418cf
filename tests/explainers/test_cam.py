from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from captum.attr import LayerGradCam
from torch import nn

from explainode.errors import UserError
from explainode.explainers.base import guard
from explainode.explainers.cam import GradCAM
from explainode.explainers.layers import activation_and_gradient, find_layer
from explainode.randomness import noise_scope


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=10).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return net


IMAGES = torch.rand(3, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([1, 5, 9])


@pytest.mark.parametrize("layer", ["layer4", "layer2", "layer3.1"])
@pytest.mark.parametrize("relu", [True, False])
def test_it_is_captums(resnet, layer, relu):
    theirs = LayerGradCam(resnet, resnet.get_submodule(layer)).attribute(IMAGES, TARGET, relu_attributions=relu)
    torch.testing.assert_close(GradCAM(layer, relu)(resnet, IMAGES, TARGET), theirs.detach(), rtol=1e-9, atol=1e-12)


def test_the_default_layer_of_a_resnet_is_layer4(resnet):
    assert torch.equal(GradCAM()(resnet, IMAGES, TARGET), GradCAM("layer4")(resnet, IMAGES, TARGET))


def test_an_in_place_relu_after_the_layer_does_not_touch_the_activation(resnet):
    """bn1 is followed by an in-place ReLU; the second derivation splits the network there and goes on with a copy."""
    A = resnet.bn1(resnet.conv1(IMAGES)).detach().requires_grad_()
    y = resnet.maxpool(F.relu(A))
    y = resnet.layer4(resnet.layer3(resnet.layer2(resnet.layer1(y))))
    resnet.fc(resnet.avgpool(y).flatten(1)).gather(1, TARGET[:, None]).sum().backward()
    by_hand = (A.grad.mean((2, 3), keepdim=True) * A.detach()).sum(1, keepdim=True)
    assert (A < 0).any()
    torch.testing.assert_close(GradCAM("bn1", relu=False)(resnet, IMAGES, TARGET), by_hand, rtol=1e-9, atol=1e-12)
    with guard(resnet) as network:
        activation, gradient, _ = activation_and_gradient(network, IMAGES, TARGET, "bn1")
    assert torch.equal(activation, A.detach())
    torch.testing.assert_close(gradient, A.grad)


def test_no_graph_is_recorded_before_the_layer(resnet):
    recorded = {}
    handles = [
        module.register_forward_hook(lambda _, args, output, name=name: recorded.__setitem__(name, output.requires_grad))
        for name, module in resnet.named_children()
    ]
    GradCAM("layer3")(resnet, IMAGES, TARGET)
    for handle in handles:
        handle.remove()
    assert [name for name, graph in recorded.items() if graph] == ["layer4", "avgpool", "fc"]  # our hook runs after those here


class Loop(nn.Module):
    """One vector field called at three steps, as a solver does."""

    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh())
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        for _ in range(3):
            x = x + 0.3 * self.field(x)
        return self.head(x.square().mean((2, 3)))


def test_of_a_layer_that_is_called_several_times_the_last_call_counts(x, target):
    target = target % 4
    net = Loop()
    with torch.no_grad():
        state = x
        for _ in range(2):
            state = state + 0.3 * net.field(state)
        A = net.field(state)
    A.requires_grad_()
    net.head((state + 0.3 * A).square().mean((2, 3))).gather(1, target[:, None]).sum().backward()
    by_hand = (A.grad.mean((2, 3), keepdim=True) * A.detach()).sum(1, keepdim=True)
    torch.testing.assert_close(GradCAM("field", relu=False)(net, x, target), by_hand, rtol=1e-5, atol=1e-8)


# What a person would name: the whole trunk of a chain, the class maps of SqueezeNet, the patches of a ViT (its only map in two dimensions).
LAYERS = {
    "alexnet": "features",
    "densenet121": "features",
    "efficientnet_b0": "features",
    "googlenet": "inception5b",
    "mobilenet_v2": "features",
    "regnet_y_400mf": "trunk_output",
    "resnet50": "layer4",
    "shufflenet_v2_x0_5": "conv5",
    "squeezenet1_1": "classifier.2",
    "swin_t": "permute",
}


@pytest.mark.parametrize("name", LAYERS)
def test_default_layers_of_torchvision(name):
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    net = torchvision.models.get_model(name, num_classes=7, **options).eval()
    images = torch.rand(1, 3, 96, 96)
    with guard(net) as network:
        assert find_layer(network, images) == LAYERS[name]
    assert GradCAM(relu=False)(net, images, 3).shape[:2] == (1, 1)


def test_a_pool_that_only_resizes_is_not_the_last_map():
    """VGG on small images: the trunk shrinks to one position, the adaptive pool repeats it 7 x 7 times."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.MaxPool2d(4),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(7),
        nn.Flatten(),
    )
    net.append(nn.Linear(196, 3))
    with guard(net) as network:
        assert find_layer(network, torch.rand(1, 3, 8, 8)) == "2"
        assert find_layer(network, torch.rand(1, 3, 16, 16)) == "3"  # per image size, on the same network


def test_a_changed_network_is_searched_again(net, x):
    with guard(net) as network:
        assert find_layer(network, x) == "body"
        net.body = nn.Sequential(nn.Conv2d(6, 8, 12), nn.Sigmoid())
        assert find_layer(network, x) == "fuse"  # the body is down to one position


def test_the_search_respects_a_noise_scope(noisy_net, x):
    with guard(noisy_net) as network, noise_scope(torch.arange(4)):
        assert find_layer(network, x) == "body"


def test_names_pass_through_compiled_submodules(net, x, target):
    holder = nn.Sequential(torch.compile(net, backend="eager"))
    assert torch.equal(GradCAM("0.body")(holder, x, target), GradCAM("body")(net, x, target))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("bodi", r"no layer named 'bodi' in SmallNet; the nearest are body"),
        ("head", r"layer 'head' returns \(4, 5\)"),
        ("unused", "took no part"),
    ],
)
def test_layers_that_do_not_serve_are_named(layer, message, net, x):
    net.unused = nn.Conv2d(3, 3, 1)
    with pytest.raises(UserError, match=message):
        GradCAM(layer)(net, x, 0)


def test_a_network_without_maps_is_told_so(x):
    with pytest.raises(UserError, match="no layer of Sequential returns a feature map"):
        GradCAM()(nn.Sequential(nn.Flatten(), nn.Linear(432, 3)), x, 0)


def test_a_constant_head_gives_a_zero_map(net, x):
    nn.init.zeros_(net.head.weight)
    assert torch.equal(GradCAM()(net, x, 0), torch.zeros(4, 1, 6, 6))
