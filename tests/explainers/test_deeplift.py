"""DeepLIFT and DeepSHAP: their sums, captum where captum is right, what they cost, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from explainode.errors import UserError
from explainode.explainers.base import count_passes, guard, pass_limit
from explainode.explainers.baselines import make_baseline
from explainode.explainers.deeplift import DeepLIFT, DeepSHAP
from explainode.explainers.gradient import Saliency
from explainode.models.vit import small_vit
from explainode.randomness import noise_scope


def expected_sum(explainer, net, x, target):
    with guard(net) as network:
        return explainer.expected_sum(network, x, target)


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize(
    "explainer", [DeepLIFT(), DeepLIFT("reveal_cancel", "blur"), DeepSHAP(3), DeepSHAP(2, "reveal_cancel")]
)
def test_maps_add_up_to_the_expected_sum(explainer, noise, noisy_net, x, target):
    net, x = noisy_net.double(), x.double()
    with noise_scope(torch.tensor([4, 2, 9, 1]), seed=1, active=noise):
        expected = expected_sum(explainer, net, x, target)
        assert (explainer(net, x, target).sum((1, 2, 3)) - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_the_linear_rule_is_gradient_times_difference(net, x, target):
    found = DeepLIFT("linear", "gray")(net, x, target)
    torch.testing.assert_close(found, (x - 0.5) * Saliency()(net, x, target))
    assert expected_sum(DeepLIFT("linear"), net, x, target) is None


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.Softplus])
def test_captum_agrees_on_networks_that_it_handles(activation, x, target):
    """Modules of their own, no rectifier in front of max pooling, windows that do not overlap; captum 0.9.0."""
    captum = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), activation(), nn.AvgPool2d(2), nn.Conv2d(6, 6, 3, padding=1), nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3), activation(), nn.Flatten(), nn.Linear(5, 7), activation(), nn.Linear(7, 5),
    )  # fmt: skip
    net[1].running_mean.normal_(), net[1].running_var.uniform_(0.5, 2)
    net, x = net.double().eval(), x.double()
    baseline = make_baseline("blur", x)
    expected = captum.DeepLift(net, eps=1e-12).attribute(x, baseline, target=target).detach()
    found = DeepLIFT("rescale", "blur")(net, x, target)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_deep_shap_is_the_mean_over_its_baselines(net, x, target):
    baselines = torch.rand(3, 3, 12, 12)
    for rule in ("rescale", "reveal_cancel"):
        singles = torch.stack([DeepLIFT(rule, baseline)(net, x, target) for baseline in baselines])
        found = DeepSHAP(baselines, rule)(net, x, target)
        assert (found - singles.mean(0)).abs().max() <= 1e-5 * found.abs().max()


def test_attention_that_puts_the_sequence_first_is_recorded_for_every_image():
    torch.manual_seed(0)
    net = small_vit(num_classes=5, image_size=8, patch_size=4, width=8, depth=1, heads=2).double().eval()
    nn.init.normal_(net.get_submodule("heads.head").weight)
    x, baselines, target = torch.rand(3, 3, 8, 8).double(), torch.rand(2, 3, 8, 8).double(), torch.tensor([0, 4, 2])
    explainer = DeepSHAP(baselines)
    expected = expected_sum(explainer, net, x, target)
    found = explainer(net, x, target)
    assert (found.sum((1, 2, 3)) - expected).abs().max() <= 1e-10 * expected.abs().max()
    singles = torch.cat([explainer(net, x[i : i + 1], target[i : i + 1]) for i in range(3)])
    assert (found - singles).abs().max() <= 1e-10 * found.abs().max()


def test_a_network_that_does_otherwise_with_one_image_gets_baselines_for_all(net, x, target):
    class Otherwise(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x if len(x) > 1 else x * 1)

    explainer = DeepSHAP(torch.rand(2, 3, 12, 12))
    with count_passes() as counted:
        found = explainer(Otherwise(), x, target)
    assert (found - explainer(net, x, target)).abs().max() <= 1e-5 * found.abs().max()
    assert counted.forwards == 4 + 1 + 2 * 4  # one baseline is tried alone


def test_drawn_baselines_are_colors_keyed_by_seed_and_draw(net, x, target):
    references = DeepSHAP(5)._references(x)
    assert references.shape == (5, 3, 12, 12) and (references == references[..., :1, :1]).all()
    assert 0 <= references.min() < 0.3 and 0.7 < references.max() <= 1
    with noise_scope(torch.tensor([8, 3]), draw=0, active=False):  # whoever the images are
        assert torch.equal(DeepSHAP(5)._references(x[:2]), references)
    for scope in ({"draw": 1}, {"seed": 1}):
        with noise_scope(torch.arange(4), active=False, **scope):
            assert not torch.equal(DeepSHAP(5)._references(x), references)
    assert DeepSHAP(5).stochastic and not DeepSHAP(torch.rand(2, 3, 12, 12)).stochastic


def test_passes_are_counted(net, x, target):
    def passes(explainer, limit=None):
        with count_passes() as counted, pass_limit(limit):
            explainer(net, x, target)
        return counted.forwards, counted.backwards

    assert passes(DeepLIFT()) == (8, 4)
    assert passes(DeepLIFT("linear")) == (4, 4)
    assert passes(DeepSHAP(5)) == (4 + 5, 4 * 5)  # the baselines are the same for all images
    assert passes(DeepSHAP(5), limit=2) == (4 + 2 * 5, 4 * 5)
    with noise_scope(torch.arange(4)):  # but not beside four kinds of noise
        assert passes(DeepSHAP(5)) == (4 + 4 * 5, 4 * 5)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: DeepLIFT("rescal"), "no rule of DeepLIFT named 'rescal'; the nearest are.*rescale"),
        (lambda: DeepSHAP(rule="linear"), "the linear rule sees no baseline"),
        (lambda: DeepSHAP(0), "at least 1"),
        (lambda: DeepSHAP(torch.rand(3, 8, 8)), "no batch of images"),
    ],
)
def test_bad_parameters_are_refused(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


def test_baselines_of_another_shape_are_refused(net, x, target):
    for explainer in (DeepLIFT(baseline=torch.zeros(3, 8, 8)), DeepSHAP(torch.zeros(2, 3, 8, 8))):
        with pytest.raises(UserError, match="does not fit images"):
            explainer(net, x, target)
