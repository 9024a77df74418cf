"""What lies at the edge of a network: detached values, weights that are no parameters, pixels behind concatenations, biases of rules without x."""

import pytest
import torch
from torch import nn

from explainode import get
from explainode.explainers.cam import XGradCAM
from explainode.explainers.deeplift import DeepLIFT
from explainode.explainers.relevance import Relevance
from explainode.relevance.composite import Assignment, Composite
from explainode.relevance.composites import lrp
from explainode.relevance.rules.lrp import WSquare

X = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, before=lambda x: x, middle=torch.relu, channels=3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.middle = before, middle
        self.a, self.c = nn.Conv2d(channels, 6, 3), nn.Linear(216, 4)
        self.double()

    def forward(self, x):
        return self.c(self.middle(self.a(self.before(x))).flatten(1))


# ---- detach


def test_what_is_detached_passes_relevance_and_stops_gradients():
    detached, plain = Net(middle=lambda h: h + (h.sigmoid()).detach()), Net(middle=lambda h: h + h.sigmoid())
    for name in ("dtd_z_plus", "lrp_epsilon", "deep_lift", "deep_lift_reveal_cancel"):
        explainer = get(f"explainer/{name}")
        torch.testing.assert_close(explainer(detached, X, 0), explainer(plain, X, 0), rtol=1e-12, atol=1e-15, msg=name)
    guided, saliency = (get(f"explainer/{name}")(detached, X, 0) for name in ("guided_backprop", "saliency"))
    torch.testing.assert_close(guided, saliency, rtol=1e-10, atol=1e-14)  # there is no rectifier


def test_deep_lift_is_complete_where_something_is_detached():
    net = Net(middle=lambda h: h + (h.tanh() - h).detach())
    with torch.no_grad():
        difference = (net(X) - net(0 * X))[:, 2]
    torch.testing.assert_close(DeepLIFT(baseline="black")(net, X, 2).sum((1, 2, 3)), difference)


# ---- weights


@pytest.mark.parametrize(
    "name", ["guided_backprop", "deconvnet", "dtd_z_plus", "lrp_gamma", "deep_lift", "full_grad", "rap", "agf"]
)
def test_weights_that_are_no_parameters_are_weights(name):
    class Wrapper(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.held = [net]

        def forward(self, x):
            return self.held[0](x)

    net, explainer = Net(), get(f"explainer/{name}")
    found = explainer(Wrapper(net), X, 0)
    assert not found.requires_grad
    torch.testing.assert_close(found, explainer(net, X, 0))


# ---- pixels

SCALE, SHIFT = torch.tensor([0.5, 2.0, 1.5]).double(), torch.tensor([0.1, -0.3, 0.0]).double()
AFFINE = {
    "cat of scaled channels": lambda x: torch.cat([x[:, i : i + 1] * SCALE[i] + SHIFT[i] for i in range(3)], 1),
    "stack of scaled channels": lambda x: torch.stack([x[:, i] * SCALE[i] + SHIFT[i] for i in range(3)], 1),
    "a sum of parts": lambda x: (0.5 * x + 0.5 * x) * SCALE.view(3, 1, 1) + SHIFT.view(3, 1, 1),
    "written channel by channel": lambda x: _written(x),
}


def _written(x):
    y = torch.empty_like(x)
    for i in range(3):
        y[:, i] = x[:, i] * SCALE[i] + SHIFT[i]
    return y


@pytest.mark.parametrize("how", AFFINE)
@pytest.mark.parametrize("name", ["dtd_z_box", "lrp_epsilon_gamma_box", "root_inference", "dtd_em"])
def test_pixels_are_followed_through_everything_affine(how, name):
    plain = Net(before=lambda x: x * SCALE.view(3, 1, 1) + SHIFT.view(3, 1, 1))
    explainer = get(f"explainer/{name}")
    expected = explainer(plain, X, 1)
    assert not torch.allclose(expected, get("explainer/dtd_z_plus")(plain, X, 1))
    torch.testing.assert_close(explainer(Net(before=AFFINE[how]), X, 1), expected, rtol=1e-9, atol=1e-12)


def test_gray_pixels_as_three_are_pixels():
    """The network reads the mean three times; folding the mean into the weights is the second derivation's first layer, up to who gets what."""
    gray = Net(before=lambda x: x.mean(1, keepdim=True).expand(-1, 3, -1, -1))
    box, plus = (get(f"explainer/{name}")(gray, X, 1) for name in ("dtd_z_box", "dtd_z_plus"))
    assert not torch.allclose(box, plus)
    torch.testing.assert_close(box.sum((1, 2, 3)), gray(X)[:, 1].detach())


def test_a_first_rule_that_is_used_nowhere_says_so():
    with pytest.warns(UserWarning, match="no linear layer of this network sees the pixels"):
        get("explainer/dtd_z_box")(Net(before=torch.sigmoid), X, 1)


# ---- rules


def test_w_square_lets_a_bias_keep_its_share():
    """R_i = w_i^2 / (sum w^2 + b^2) R, by hand."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).double()
    (w, b), composite = net[1].parameters(), lrp([Assignment(WSquare(bias="absorb"))])
    share = w[2].square() / (w[2].square().sum() + b[2].square()) * net(X)[:, 2:3]
    assert isinstance(composite, Composite)
    torch.testing.assert_close(Relevance(composite)(net, X, 2).flatten(1), share.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_xgradcam_does_not_divide_by_rounding(dtype):
    """Every map of an instance normalization sums to 0, so that none counts."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    found = XGradCAM("1", relu=False)(net.to(dtype), torch.rand(3, 3, 16, 16, dtype=dtype), 1)
    assert torch.equal(found, torch.zeros_like(found))
