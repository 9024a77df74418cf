from __future__ import annotations

import math

import pytest
import torch
from captum.attr import InputXGradient as CaptumInputXGradient
from captum.attr import IntegratedGradients as CaptumIG
from captum.attr import Saliency as CaptumSaliency
from captum.metrics import infidelity, sensitivity_max
from torch import nn
from torchvision.models import resnet18

from explainode.errors import UserError
from explainode.explainers.base import count_passes
from explainode.explainers.baselines import make_baseline
from explainode.explainers.gradient import AdaptiveIntegratedGradients, InputXGradient, IntegratedGradients, Saliency
from explainode.explainers.quadrature import Partition, quadrature
from explainode.explainers.sampling import GradientSHAP, SmoothGrad

GRADIENT_METHODS = [
    Saliency(),
    InputXGradient(),
    IntegratedGradients(5),
    AdaptiveIntegratedGradients(),
    SmoothGrad(Saliency(), 3),
    GradientSHAP(),
]


class Polynomial(nn.Module):
    """Two classes over 48 values: sum of a x^3 + b x^2 + c x, and minus that."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a, self.b, self.c = (
            nn.Parameter(torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)) for _ in range(3)
        )

    def forward(self, x):
        score = (self.a * x**3 + self.b * x**2 + self.c * x).sum((1, 2, 3))
        return torch.stack([score, -score], 1)


class Wave(nn.Module):
    """A smooth function whose path integral no finite rule finds exactly."""

    def forward(self, x):
        score = torch.sin(3 * x).sum((1, 2, 3)) * torch.cos(x.mean((1, 2, 3)))
        return torch.stack([score, -score], 1)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    net = resnet18(num_classes=10).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return net


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 48, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


TARGET = torch.tensor([1, 7])


def captum_agrees(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-9) -> None:
    """The same sum in float64, in another order; relative to the largest value."""
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=tolerance * float(theirs.detach().abs().max()))


def test_saliency_is_captums_without_abs(network, images):
    captum_agrees(
        Saliency()(network, images, TARGET),
        CaptumSaliency(network).attribute(images.clone().requires_grad_(), target=TARGET, abs=False),
    )


def test_input_x_gradient_is_captums(network, images):
    captum_agrees(
        InputXGradient()(network, images, TARGET),
        CaptumInputXGradient(network).attribute(images.clone().requires_grad_(), target=TARGET),
    )


def test_ig_is_captums_gauss_legendre(network, images):
    """From a baseline that is not black; from black: `test_ig_of_a_polynomial_in_closed_form`."""
    theirs = CaptumIG(network).attribute(images, baselines=0.3, target=TARGET, n_steps=20, method="gausslegendre")
    captum_agrees(
        IntegratedGradients(20, baseline=0.3)(network, images, TARGET), theirs, tolerance=1e-7
    )  # its weights are float32


@pytest.mark.parametrize("rule", ["gauss_legendre", "midpoint", "trapezoid"])
def test_ig_of_a_polynomial_in_closed_form(rule):
    """With a black baseline the attribution of a x^3 + b x^2 + c x is the term itself; two Gauss-Legendre nodes integrate x^3 exactly."""
    net, x = Polynomial(), torch.rand(2, 3, 4, 4, dtype=torch.float64)
    exact = (net.a * x**3 + net.b * x**2 + net.c * x).detach()
    steps, tolerance = {"gauss_legendre": (2, 1e-12), "midpoint": (200, 1e-4), "trapezoid": (200, 1e-4)}[
        rule
    ]  # 1 / steps^2
    torch.testing.assert_close(IntegratedGradients(steps, rule)(net, x, 0), exact, rtol=0, atol=tolerance)
    torch.testing.assert_close(IntegratedGradients(steps, rule)(net, x, 1), -exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("rule", "order"), [("midpoint", 2), ("trapezoid", 2)])
def test_completeness_error_falls_at_the_rules_order(rule, order):
    net, x = Wave(), torch.rand(1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors = []
    for pieces in (8, 64):
        explainer = IntegratedGradients(pieces + (rule == "trapezoid"), rule)
        errors.append(float((explainer(net, x, 0).sum() - explainer.expected_sum(net, x, torch.tensor([0]))).abs()))
    assert math.log(errors[0] / errors[1]) / math.log(8) == pytest.approx(order, abs=0.1)


def test_gauss_legendre_reaches_rounding_on_a_smooth_function():
    net, x, explainer = Wave(), torch.rand(1, 3, 4, 4, dtype=torch.float64), IntegratedGradients(16)
    assert float((explainer(net, x, 0).sum() - explainer.expected_sum(net, x, torch.tensor([0]))).abs()) < 1e-10


@pytest.mark.parametrize("baseline", ["black", "white", "gray", "mean", "blur", 0.25, torch.full((3, 12, 12), 0.1)])
def test_adaptive_ig_keeps_its_tolerance_for_every_image(net, x, target, baseline):
    explainer = AdaptiveIntegratedGradients(tolerance=0.005, first_steps=2, max_steps=400, baseline=baseline)
    expected = explainer.expected_sum(net, x, target)
    error = (explainer(net, x, target).sum((1, 2, 3)) - expected).abs()
    # float32 sums of 432 terms of both signs: the score differences are known to about 1e-6
    assert (error <= 0.005 * expected.abs() + 2e-6).all()


def test_adaptive_ig_spends_passes_where_they_are_needed(net, x, target):
    def evaluations(tolerance: float, images: torch.Tensor, classes: torch.Tensor) -> int:
        with count_passes() as passes:
            AdaptiveIntegratedGradients(tolerance, first_steps=1, max_steps=1000)(net, images, classes)
        assert passes.forwards == passes.backwards
        return passes.backwards

    loose, tight = evaluations(0.1, x, target), evaluations(0.001, x, target)
    assert 2 * len(x) <= loose < tight
    singles = [evaluations(0.001, x[i : i + 1], target[i : i + 1]) for i in range(len(x))]
    assert sum(singles) == tight and len(set(singles)) > 1  # each image pays for itself


def test_adaptive_ig_stops_at_max_steps(net, x, target):
    with count_passes() as passes:
        attribution = AdaptiveIntegratedGradients(1e-9, first_steps=2, max_steps=7)(net, x, target)
    assert passes.backwards == 7 * len(x) and torch.isfinite(attribution).all()


def test_adaptive_ig_without_refinement_is_the_trapezoidal_rule(x, target, net):
    ours = AdaptiveIntegratedGradients(0.999, first_steps=10)(net, x, target)
    torch.testing.assert_close(ours, IntegratedGradients(11, "trapezoid")(net, x, target), rtol=1e-4, atol=1e-7)


def test_adaptive_ig_approaches_ig(net, x, target):
    exact = IntegratedGradients(2000, "midpoint")(net, x, target)
    errors = [
        float((AdaptiveIntegratedGradients(t, 8, 2000)(net, x, target) - exact).norm() / exact.norm())
        for t in (0.1, 0.0001)
    ]
    assert errors[1] < 0.05 and errors[1] < errors[0]


@pytest.mark.parametrize("name", ["gauss_legendre", "midpoint", "trapezoid"])
@pytest.mark.parametrize("steps", [2, 3, 50])
def test_rules_integrate_powers_to_their_degree(name, steps):
    rule = quadrature(name, steps)
    for power in range(2 * steps if name == "gauss_legendre" else 2):
        assert sum(w * a**power for w, a in zip(rule.weights, rule.nodes, strict=True)) == pytest.approx(
            1 / (power + 1), abs=1e-9
        )


def test_a_wrong_tableau_cannot_be_built():
    from explainode.explainers.quadrature import Quadrature

    with pytest.raises(AssertionError):
        Quadrature((0.0, 1.0), (0.5, 0.6))


def test_a_partition_stays_a_rule_whatever_is_split():
    nodes = torch.linspace(0, 1, 4, dtype=torch.float64)
    path = Partition.uniform(torch.sin(5 * nodes).expand(2, 4), 5 * torch.cos(5 * nodes).expand(2, 4))
    generator = torch.Generator().manual_seed(0)
    before = path.errors().sum(1).abs().max()
    for _ in range(40):
        interval = torch.randint(path.left.shape[1], (2,), generator=generator)
        start, end = (path.alpha.gather(1, ends.gather(1, interval[:, None]))[:, 0] for ends in (path.left, path.right))
        alpha = (start + end) / 2
        path = path.split(interval, alpha, torch.sin(5 * alpha), 5 * torch.cos(5 * alpha))
        weights = path.weights()
        torch.testing.assert_close(weights.sum(1), torch.ones(2, dtype=torch.float64))
        torch.testing.assert_close(path.errors().sum(1), path.total() - (weights * path.slope).sum(1))
        torch.testing.assert_close(path.total(), torch.full((2,), math.sin(5), dtype=torch.float64))
        assert (path.length() > 0).all()
        # the weights are those of the trapezoidal rule on the sorted nodes
        order = path.alpha.argsort(1)
        nodes, sorted_weights = path.alpha.gather(1, order), weights.gather(1, order)
        integral = torch.trapezoid(path.slope.gather(1, order), nodes)
        torch.testing.assert_close((sorted_weights * path.slope.gather(1, order)).sum(1), integral)
    assert path.errors().sum(1).abs().max() < before / 4


def test_the_worst_interval_has_the_sign_of_the_whole_error():
    """F = alpha on [0, 1/2] with a kink in the first half: only there the trapezoid is wrong."""
    value = torch.tensor([[0.0, 0.1, 1.1]], dtype=torch.float64)
    slope = torch.tensor([[0.0, 2.0, 2.0]], dtype=torch.float64)
    interval, middle = Partition.uniform(value, slope).worst()
    assert interval.tolist() == [0] and middle.tolist() == [0.25]


@pytest.mark.parametrize("explainer", GRADIENT_METHODS)
def test_a_constant_model_gets_a_zero_map(explainer, x):
    net = nn.Sequential(nn.Flatten(), nn.Linear(432, 3))
    nn.init.zeros_(net[1].weight)
    assert torch.equal(explainer(net, x, 1), torch.zeros_like(x))


@pytest.mark.parametrize(
    "explainer", [InputXGradient(), IntegratedGradients(3), AdaptiveIntegratedGradients(), GradientSHAP()]
)
def test_on_a_linear_network_all_agree_with_weight_times_input(explainer, x):
    net = nn.Sequential(nn.Flatten(), nn.Linear(432, 3))
    exact = x * net[1].weight[2].detach().reshape(3, 12, 12)
    torch.testing.assert_close(explainer(net, x, 2), exact, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IntegratedGradients(0), "cannot integrate with 0 steps"),
        (lambda: IntegratedGradients(1, "trapezoid"), "take 2 or more"),
        (lambda: IntegratedGradients(5, "gaus_legendre"), "nearest: gauss_legendre"),
        (lambda: AdaptiveIntegratedGradients(tolerance=0), "tolerance"),
        (lambda: AdaptiveIntegratedGradients(first_steps=10, max_steps=10), "first_steps"),
        (lambda: make_baseline("blak", torch.zeros(1, 3, 8, 8)), "nearest are black"),
        (lambda: make_baseline(torch.zeros(3, 4, 4), torch.zeros(1, 3, 8, 8)), r"\(3, 4, 4\) does not fit"),
    ],
)
def test_bad_parameters_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_baselines(x):
    assert torch.equal(make_baseline("white", x), torch.ones_like(x))
    assert torch.equal(make_baseline(0.25, x), torch.full_like(x, 0.25))
    torch.testing.assert_close(make_baseline("mean", x)[2, :, 5, 5], x[2].mean((1, 2)))
    blur = make_baseline("blur", x)
    torch.testing.assert_close(
        make_baseline("blur", torch.full_like(x, 0.3)), torch.full_like(x, 0.3)
    )  # a kernel of sum 1
    assert (blur.std((2, 3)) < x.std((2, 3))).all()


def test_captums_metrics_accept_a_bound_explainer(net, x, target):
    bound = Saliency().bind(net)
    torch.manual_seed(0)
    assert sensitivity_max(bound.attribute, x, perturb_radius=0.02, n_perturb_samples=2, target=target).shape == (4,)

    def perturb(inputs, baselines=None):
        noise = torch.randn_like(inputs) * 0.01
        return noise, inputs - noise

    assert infidelity(net, perturb, x, bound.attribute(x, target=target), target=target).shape == (4,)
    with pytest.raises(UserError, match="2 input tensors"):
        bound.attribute((x, x), target=target)
