from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from captum.attr import LayerGradCam
from torch import nn

from explainode.errors import UserError
from explainode.explainers.base import guard
from explainode.explainers.cam import CAM, GradCAM, GradCAMPlusPlus, LayerCAM, XGradCAM
from explainode.explainers.layers import activation, activation_and_gradient, find_layer
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
        module.register_forward_hook(
            lambda _, args, output, name=name: recorded.__setitem__(name, output.requires_grad)
        )
        for name, module in resnet.named_children()
    ]
    GradCAM("layer3")(resnet, IMAGES, TARGET)
    for handle in handles:
        handle.remove()
    assert [name for name, graph in recorded.items() if graph] == [
        "layer4",
        "avgpool",
        "fc",
    ]  # our hook runs after those here


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


# What a person would name: the whole trunk of a chain, the class maps of SqueezeNet, the last stage of a Swin turned to (B, C, h, w).
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


# Two channels of 2 x 2 and the gradient there, small enough to be worked out on paper.
A = torch.tensor([[[[1.0, 2.0], [0.0, 1.0]], [[2.0, 0.0], [2.0, 0.0]]]])
G = torch.tensor([[[[1.0, 0.0], [-1.0, 2.0]], [[-1.0, 0.5], [0.0, -0.5]]]])


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        (GradCAM, [2 / 4, -1 / 4]),
        (GradCAMPlusPlus, [1 / (2 + 4) + 2 / (2 + 8), 0.5 / (2 + 2)]),  # sums of A: 4 and 4
        (XGradCAM, [(1 + 2) / 4, -2 / 4]),
    ],
)
def test_weights_worked_out_on_paper(method, weights):
    signed = weights[0] * A[:, :1] + weights[1] * A[:, 1:]
    torch.testing.assert_close(method(relu=False).read(A, G), signed)
    torch.testing.assert_close(method().read(A, G), signed.clamp(min=0))


def test_layercam_worked_out_on_paper():
    assert LayerCAM().read(A, G).tolist() == [[[[1.0, 0.0], [0.0, 2.0]]]]
    assert LayerCAM(relu=False).read(-A, G).tolist() == [[[[-1.0, 0.0], [0.0, -2.0]]]]


def test_gradcam_plus_plus_is_its_papers_equation():
    """Eq. (19) and (7) with derivatives of Y = exp(S) by autograd, three deep, for an S that is linear in A: exp(S) times our weights."""
    maps = A[0, 0].double().clone().requires_grad_()
    gradient = G[0, 0].double()
    (first,) = torch.autograd.grad((maps * gradient).sum().exp(), maps, create_graph=True)
    second, third = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    for i in range(2):
        for j in range(2):
            (of_first,) = torch.autograd.grad(first[i, j], maps, create_graph=True)
            second[i, j] = of_first[i, j].detach()
            third[i, j] = torch.autograd.grad(of_first[i, j], maps, retain_graph=True)[0][i, j]
    alpha = torch.where(second == 0, 0, second / (2 * second + maps.detach().sum() * third))
    weight = (alpha * first.detach().relu()).sum()
    ours = GradCAMPlusPlus(relu=False).read(A[:, :1].double(), G[:, :1].double())
    torch.testing.assert_close(ours * (maps * gradient).sum().detach().exp(), weight * A[:, :1].double())


@pytest.mark.parametrize("method", [GradCAMPlusPlus, XGradCAM, LayerCAM])
def test_maps_that_sum_to_nothing_stay_finite(method):
    empty = torch.tensor([[[[1.0, -1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[-2.0, 0.0], [0.0, 0.0]]]])
    assert torch.isfinite(method().read(empty, torch.ones(1, 3, 2, 2))).all()  # 2 + g sum(A) is 0 for the last


class Named:
    """The target of pytorch-grad-cam: one class's logit."""

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[self.category]


@pytest.mark.parametrize("layer", ["layer4", "layer2"])
@pytest.mark.parametrize(
    ("name", "method"), [("GradCAMPlusPlus", GradCAMPlusPlus), ("LayerCAM", LayerCAM), ("XGradCAM", XGradCAM)]
)
def test_they_are_pytorch_grad_cams(name, method, layer, resnet):
    """Version 1.5.7, measured: LayerCAM 3e-7 of the maximum, Grad-CAM++ 1e-6, XGrad-CAM within 1e-5 (float32).

    Grad-CAM++ there adds 1e-6 to a denominator of the order of the squared gradient, so the head's weights are enlarged here; with the
    network's own gradients their map differs from the paper's equation by 2 % of its maximum at layer4 and by 20 % at layer2.
    """
    theirs = pytest.importorskip("pytorch_grad_cam", reason="pytorch-grad-cam is an optional package")
    net = copy.deepcopy(resnet).float()
    net.fc.weight.data *= 1e4
    with getattr(theirs, name)(net, [net.get_submodule(layer)]) as peer:
        peer(IMAGES.float(), [Named(int(k)) for k in TARGET])
        activations, gradients = (
            held[0].cpu().numpy()
            for held in (peer.activations_and_grads.activations, peer.activations_and_grads.gradients)
        )
        expected = peer.get_cam_image(IMAGES.float(), net.get_submodule(layer), TARGET, activations, gradients, False)
    expected = torch.as_tensor(expected).relu()
    ours = method(layer)(net, IMAGES.float(), TARGET)[:, 0]
    assert (ours - expected).abs().max() <= 1e-5 * expected.max()


def test_cam_is_grad_cam_times_the_positions_behind_global_pooling(resnet):
    signed = CAM()(resnet, IMAGES, TARGET)
    torch.testing.assert_close(signed, 4 * GradCAM(relu=False)(resnet, IMAGES, TARGET))
    assert torch.equal(CAM(relu=True)(resnet, IMAGES, TARGET), signed.relu())


def test_the_mean_of_a_cam_is_the_logit_without_bias(resnet):
    logits = resnet(IMAGES).detach() - resnet.fc.bias.detach()
    torch.testing.assert_close(CAM()(resnet, IMAGES, TARGET).mean((1, 2, 3)), logits.gather(1, TARGET[:, None])[:, 0])


def test_cam_looks_through_dropout_and_finds_its_layer(net, x, target):
    torch.testing.assert_close(CAM()(net, x, target).mean((1, 2, 3)), net(x).gather(1, target[:, None])[:, 0].detach())


class Dense(nn.Module):
    """The end of a DenseNet: a functional, in-place ReLU between the last map and its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.classifier = nn.Conv2d(3, 4, 3), nn.Linear(4, 7)

    def forward(self, x):
        return self.classifier(F.adaptive_avg_pool2d(F.relu(self.features(x), inplace=True), 1).flatten(1))


def test_cam_of_a_head_that_reads_the_positive_part(x):
    net = Dense()
    by_hand = (net.classifier.weight[3][None, :, None, None] * net.features(x).relu()).sum(1, keepdim=True)
    torch.testing.assert_close(CAM()(net, x, 3), by_hand.detach())


@pytest.mark.parametrize(
    ("head", "named"),
    [
        ([nn.Flatten(), nn.Linear(400, 3)], "'2' of Sequential"),
        ([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 3)], "'4' of Sequential"),
        ([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), nn.Tanh()], "'3' of Sequential"),
        ([nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 3)], "'3' of Sequential"),
        ([nn.AdaptiveAvgPool2d(1), nn.Flatten()], "the head of Sequential"),
    ],
)
def test_cam_refuses_other_heads_by_name(head, named, x):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), *head)
    with pytest.raises(
        UserError, match=f"global average pooling and one linear layer behind '0', but {named} .* use gradcam"
    ):
        CAM()(net, x, 0)


def test_the_activation_is_what_the_layer_returned(resnet):
    with guard(resnet) as network:
        seen, _, _ = activation_and_gradient(network, IMAGES, TARGET, "bn1")
        assert torch.equal(activation(network, IMAGES, "bn1"), seen)


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return torchvision.models.VisionTransformer(32, 8, 3, 2, 24, 48, num_classes=5).eval()


def test_the_default_layer_of_a_vision_transformer_is_the_state_before_the_last_attention(vit):
    """Behind it the logits read the class token alone, so that no place of the image has a gradient."""
    with guard(vit) as network:
        assert find_layer(network, torch.rand(1, 3, 32, 32)) == "encoder.layers.encoder_layer_2.ln_1"


def test_tokens_of_a_named_layer_are_a_map(vit):
    """The second derivation takes the tokens out by hand: the class token is left out, patch (i, j) is token 1 + 4 i + j."""
    images, layer = torch.rand(2, 3, 32, 32), "encoder.layers.encoder_layer_2.ln_1"
    held = {}
    handle = vit.get_submodule(layer).register_forward_hook(lambda module, args, output: held.update(tokens=output))
    (gradient,) = torch.autograd.grad(vit(images)[:, 2].sum(), held["tokens"])
    handle.remove()
    by_hand = torch.zeros(2, 1, 4, 4)
    for i in range(4):
        for j in range(4):
            by_hand[:, 0, i, j] = (gradient[:, 1:].mean(1) * held["tokens"][:, 1 + 4 * i + j]).sum(1).detach()
    torch.testing.assert_close(GradCAM(layer, relu=False)(vit, images, 2), by_hand, rtol=1e-4, atol=1e-7)
