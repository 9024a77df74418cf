from __future__ import annotations

import pytest
import torch
from torch import nn

from explainode.errors import UserError
from explainode.explainers.controls import EdgeMap
from explainode.explainers.gradient import InputXGradient, IntegratedGradients, Saliency
from explainode.explainers.sampling import GradientSHAP, SmoothGrad
from explainode.randomness import input_keys, noise_scope, normal_like, uniform


class Square(nn.Module):
    def forward(self, x):
        score = x.square().sum((1, 2, 3))
        return torch.stack([score, -score], 1)


@pytest.mark.parametrize("inner", [Saliency(), IntegratedGradients(4), InputXGradient(), EdgeMap()])
def test_without_noise_it_is_the_inner_explainer(inner, net, x, target):
    torch.testing.assert_close(
        SmoothGrad(inner, samples=3, sigma=0.0)(net, x, target), inner(net, x, target), rtol=1e-5, atol=1e-8
    )
    variance = SmoothGrad(inner, samples=3, sigma=0.0, statistic="variance")(net, x, target)
    assert variance.abs().max() < 1e-12


def test_mean_and_variance_by_hand(net, x, target):
    spread = 0.2 * (x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True))
    maps = []
    for draw in range(6):
        noisy = (x + spread * normal_like(x, input_keys(x, "smoothgrad", draw))).requires_grad_()
        net(noisy).gather(1, target[:, None]).sum().backward()
        maps.append(noisy.grad.double())
    maps = torch.stack(maps)
    for statistic, expected in (("mean", maps.mean(0)), ("variance", maps.var(0, correction=0))):
        ours = SmoothGrad(Saliency(), 6, 0.2, statistic)(net, x, target)
        torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def test_noise_is_a_share_of_each_images_own_range(target):
    """The gradient of a square is twice the copy, so the variance of the gradient shows the noise that was added."""
    x = torch.stack([torch.linspace(0, 1, 768), torch.linspace(0.4, 0.6, 768)]).reshape(2, 3, 16, 16)
    variance = SmoothGrad(Saliency(), samples=200, sigma=0.15, statistic="variance")(Square(), x, 0)
    # 768 values x 200 draws: the standard error of a variance is below 0.4 %
    torch.testing.assert_close(variance.mean((1, 2, 3)) / 4, torch.tensor([0.15**2, 0.03**2]), rtol=0.02, atol=0)


def test_draws_belong_to_samples_not_rows(net, x, target):
    explainer = SmoothGrad(Saliency(), samples=2)
    with noise_scope(torch.tensor([4, 5, 6, 7]), active=False):
        forward = explainer(net, x, target)
    with noise_scope(torch.tensor([7, 6, 5, 4]), active=False):
        backward = explainer(net, x.flip(0), target.flip(0))
    torch.testing.assert_close(backward.flip(0), forward, rtol=1e-5, atol=1e-7)


def test_it_wraps_itself_and_other_samplers(net, x, target):
    nested = SmoothGrad(GradientSHAP(samples=2), samples=2)
    assert nested.stochastic and nested.class_specific and not SmoothGrad(EdgeMap()).class_specific
    assert nested(net, x, target).shape == x.shape


def test_gradient_shap_is_complete_on_a_linear_network(x, target):
    net = nn.Sequential(nn.Flatten(), nn.Linear(432, 5))
    references = torch.rand(6, 3, 12, 12)
    for explainer in (GradientSHAP(samples=5), GradientSHAP("mean", 3), GradientSHAP(references, 8)):
        expected = explainer.expected_sum(net, x, target)
        torch.testing.assert_close(explainer(net, x, target).sum((1, 2, 3)), expected.detach(), rtol=1e-4, atol=1e-5)
    drawn = torch.stack(
        [uniform(input_keys(x, "gradient_shap", draw), 2)[:, 1] * 6 for draw in range(8)]
    ).long()  # (draw, image)
    by_hand = torch.stack([net(x) - net(references[row]) for row in drawn]).mean(0).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(expected, by_hand.detach(), rtol=1e-4, atol=1e-5)


def test_gradient_shap_has_integrated_gradients_as_its_mean():
    """Of a square with a black reference: each draw is 2 alpha x^2, with mean x^2 and variance x^4 / 3."""
    x = torch.rand(64, 1, 2, 2) + 0.5
    ratio = GradientSHAP(samples=100)(Square(), x, 0) / x.square()
    assert float((ratio - 1).abs().max()) < 5 / (3 * 100) ** 0.5
    assert float(ratio.mean() - 1) == pytest.approx(0, abs=4 / (3 * 100 * 64) ** 0.5)  # one alpha per image and draw


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SmoothGrad(Saliency(), samples=0), "samples must be at least 1"),
        (lambda: SmoothGrad(Saliency(), sigma=-0.1), "sigma"),
        (lambda: SmoothGrad(Saliency(), statistic="varianze"), "nearest are variance"),
        (lambda: GradientSHAP(samples=0), "samples must be at least 1"),
        (
            lambda: GradientSHAP(torch.zeros(2, 3, 5, 5))(Square(), torch.zeros(1, 3, 4, 4), 0),
            r"\(3, 5, 5\) does not fit",
        ),
    ],
)
def test_bad_parameters_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
