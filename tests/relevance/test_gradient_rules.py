"""Guided backpropagation, deconvnet, guided Grad-CAM and FullGrad, against captum's and against sums that must come out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from captum.attr import Deconvolution, GuidedBackprop, GuidedGradCam
from torch import Tensor, nn

from explainode.explainers.full_grad import FullGrad, keeping_sum
from explainode.explainers.guard import guard
from explainode.registry.build import get

TARGET = torch.tensor([0, 3, 1])


class Net(nn.Module):
    def __init__(self, rectify=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, 2, 1)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.hidden, self.head = nn.Linear(8 * 16, 12), nn.Linear(12, 4)
        self.norm.running_mean.normal_(0, 0.2), self.norm.running_var.uniform_(0.5, 1.5)
        self.rectify = rectify
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = (self.rectify,) * 3 if self.rectify else (self.relu1, self.relu2, self.relu3)
        x = b(self.conv2(a(self.norm(self.conv1(x)))))
        return self.head(c(self.hidden(x.flatten(1))))


@pytest.fixture
def x() -> Tensor:
    return torch.rand(3, 3, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "theirs"), [("guided_backprop", GuidedBackprop), ("deconvnet", Deconvolution)])
def test_bent_gradients_are_captums_on_modules_and_stay_so_on_functions(name, theirs, x):
    expected = theirs(Net()).attribute(x.clone().requires_grad_(), target=TARGET)
    found = get(f"explainer/{name}")(Net(), x, TARGET)
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert torch.equal(get(f"explainer/{name}")(Net(F.relu), x, TARGET), found)  # captum: the plain gradient


def test_smooth_rectifiers_are_guided_too(x):
    plain, guided = (get(f"explainer/{name}")(Net(F.gelu), x, TARGET) for name in ("saliency", "guided_backprop"))
    assert not torch.allclose(plain.abs(), guided.abs())


def test_guided_gradcam_is_captums_up_to_grad_cams_relu_and_the_way_of_upsampling(x):
    net = Net()
    expected = GuidedGradCam(net, net.relu2).attribute(
        x.clone().requires_grad_(), target=TARGET, interpolate_mode="bilinear"
    )
    found = get("explainer/guided_gradcam", layer="relu2")(net, x, TARGET)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "rectify", [F.relu, F.gelu, F.hardswish, torch.sigmoid, lambda x: x.softmax(1) * 3 + x * x.sin()]
)
def test_full_grad_adds_up_to_the_logit(rectify, x):
    net = Net(rectify)
    with guard(net), torch.no_grad():
        logit = net(x).gather(1, TARGET[:, None])[:, 0]
    found = FullGrad()(net, x, TARGET)
    assert found.shape == (3, 1, 8, 8)
    assert ((found.sum((1, 2, 3)) - logit) / logit).abs().max() <= 1e-10


def test_full_grad_of_one_layer_by_hand(x):
    """f = sum over the map of a convolution: input * gradient, and b at every place of the map."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 2, 3, padding=1).double()

    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return conv(x).sum((2, 3))

    target = torch.tensor([0, 1, 0])
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(Sum()(leaf).gather(1, target[:, None]).sum(), leaf)
    expected = (gradient * x).sum(1, keepdim=True) + conv.bias.detach()[target][:, None, None, None]
    torch.testing.assert_close(FullGrad()(Sum(), x, target), expected)


def test_absolute_terms_do_not_cancel(x):
    found = FullGrad(absolute=True)(Net(), x, TARGET)
    assert (found >= 0).all() and (found.sum((1, 2, 3)) > FullGrad()(Net(), x, TARGET).sum((1, 2, 3)).abs()).all()


@pytest.mark.parametrize(("small", "large"), [((3, 5), (8, 8)), ((4, 4), (8, 8)), ((7, 7), (32, 30)), ((8, 8), (8, 8))])
def test_upsampling_keeps_each_values_sum(small, large):
    for place in range(small[0] * small[1]):
        one = torch.zeros(1, 1, *small, dtype=torch.double)
        one.view(-1)[place] = 1
        torch.testing.assert_close(keeping_sum(one, torch.Size(large)).sum(), torch.ones((), dtype=torch.double))
