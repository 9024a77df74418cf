"""Maps by the adjoint of a neural ODE, against autograd through the unrolled steps and against Grad-CAM."""

from functools import partial

import pytest
import torch

from explainode.dynamics.diffusion import AdditiveDiffusion
from explainode.dynamics.sde import EulerMaruyama
from explainode.dynamics.solver import RungeKutta
from explainode.errors import UserError
from explainode.explainers.adjoint import AdjointCAM, AdjointMap, ThroughSurrogate, kappa
from explainode.explainers.cam import GradCAM
from explainode.explainers.gradient import Saliency
from explainode.explaining import explain
from explainode.models.neural_ode import NeuralODE, NeuralSDE, neural_ode
from explainode.models.resnet import six_block_resnet

SOLVER = RungeKutta("heun2", steps=4)


@pytest.fixture
def resnet():
    torch.manual_seed(
        0
    )  # width 48: three channels in a group; with one, GroupNorm before the pooling makes every CAM weight exactly 0
    return six_block_resnet(width=48, blocks=3).double().eval()


@pytest.fixture
def ode(resnet):
    return NeuralODE.from_resnet(resnet, SOLVER).eval()


@pytest.fixture
def images():
    return torch.rand(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def classes():
    return torch.tensor([0, 3, 9])


def unrolled(ode, images, classes, depth):
    """The state after `depth` steps of 1/4 block and the score's gradient there, by plain autograd through a hand-written Heun loop."""
    network = ode.network
    x = network.stem(network.normalize(images))
    kept, h = None, 0.25
    for number, block in enumerate(network.blocks):
        for step in range(4):
            if number * 4 + step == depth:
                kept = x = x.detach().requires_grad_()
            k1 = block.field(torch.zeros(()), x)
            k2 = block.field(torch.zeros(()), x + h * k1)
            x = x + h / 2 * (k1 + k2)
    logits = network.linear(network.flatten(network.avgpool(network.relu(network.norm(x)))))
    (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), kept)
    return kept.detach(), gradient


def test_the_state_map_is_eq_24(ode, images, classes):
    X_0, gradient = unrolled(ode, images, classes, 0)
    expected = (gradient.relu() * X_0).sum(1, keepdim=True)
    found = AdjointMap()(ode, images, classes)
    assert found.shape == (3, 1, *X_0.shape[2:])
    assert (found - expected).norm() <= 1e-12 * expected.norm()


def test_without_relu_it_is_the_whole_product(ode, images, classes):
    X_0, gradient = unrolled(ode, images, classes, 0)
    expected = (gradient * X_0).sum(1, keepdim=True)
    assert (AdjointMap(relu=False)(ode, images, classes) - expected).norm() <= 1e-12 * expected.norm()


def test_the_pixel_map_is_the_gradient_through_the_stem_too(ode, images, classes):
    expected = Saliency()(ode, images, classes).relu() * images
    assert torch.equal(AdjointMap("pixel")(ode, images, classes), expected)


@pytest.mark.parametrize("depth", [0, 1, 5, 6, 11])
def test_the_cam_at_any_depth(ode, images, classes, depth):
    state, gradient = unrolled(ode, images, classes, depth)
    expected = (gradient.mean((2, 3), keepdim=True) * state).sum(1, keepdim=True).relu()
    found = AdjointCAM(t=depth / 12)(ode, images, classes)
    assert (found - expected).norm() <= 1e-12 * expected.norm()


def test_at_the_end_it_is_gradcam_bit_for_bit(ode, images, classes):
    assert torch.equal(AdjointCAM(t=1.0)(ode, images, classes), GradCAM(layer="network.blocks.2")(ode, images, classes))


def test_a_depth_between_two_steps_takes_the_nearest(ode, images, classes):
    assert torch.equal(AdjointCAM(t=1.1 / 12)(ode, images, classes), AdjointCAM(t=1 / 12)(ode, images, classes))


@pytest.mark.parametrize("memory", ["step", "stage", "sqrt"])
def test_the_memory_mode_changes_nothing(resnet, images, classes, memory):
    modes = [
        NeuralODE.from_resnet(resnet, RungeKutta("rk4", steps=4, **way))
        for way in ({"memory": memory}, {"gradient": "backprop"})
    ]
    one, two = (AdjointMap()(mode, images, classes) for mode in modes)
    assert (one - two).norm() <= 1e-13 * two.norm()


def test_a_resnet_has_no_adjoint(resnet, images, classes):
    for explainer in (AdjointMap(), AdjointCAM()):
        with pytest.raises(UserError, match=r"solves no equation.*surrogate"):
            explainer(resnet, images, classes)


def test_bad_settings():
    with pytest.raises(UserError, match="state or pixel"):
        AdjointMap(at="pixels")
    with pytest.raises(UserError, match=r"got at=3"):
        AdjointMap(at=3)
    for t in (1.5, -0.1, float("nan"), "a", None):
        with pytest.raises(UserError, match=r"depth in \[0, 1\], got"):
            AdjointCAM(t=t)


class TestSurrogate:
    def test_it_explains_through_the_stand_in_and_says_kappa(self, resnet, ode, images, classes):
        explainer = ThroughSurrogate(convert=lambda model: neural_ode(model, SOLVER), explainer=AdjointMap())
        explanation = explain(explainer, resnet, images, classes, chunk_size=2)
        assert torch.equal(explanation.attribution, AdjointMap()(ode, images, classes))
        expected = (resnet(images).softmax(1) - ode(images).softmax(1)).norm(dim=1)
        assert torch.allclose(explanation.diagnostics["kappa"].double(), expected, atol=1e-6) and (expected > 0).all()

    def test_with_one_euler_step_kappa_is_zero(self, resnet, images):
        explainer = ThroughSurrogate(
            convert=lambda model: neural_ode(model, RungeKutta("euler", steps=1)), explainer=AdjointMap()
        )
        assert (explain(explainer, resnet, images).diagnostics["kappa"] == 0).all()

    def test_methods_without_diagnostics_have_none(self, resnet, images):
        assert explain(Saliency(), resnet, images).diagnostics == {}


def test_kappa_is_a_distance_of_probabilities():
    logits = torch.tensor([[50.0, 0.0], [0.0, 0.0]])
    assert torch.allclose(kappa(logits, -logits), torch.tensor([2.0**0.5, 0.0]))


def test_the_state_map_of_a_stochastic_block_needs_no_grid(resnet, images, classes):
    sde = NeuralSDE.from_resnet(resnet, EulerMaruyama(steps=2), diffusion=AdditiveDiffusion(0.1)).eval()
    noisy = explain(AdjointMap(), sde, images, classes, noise="path").attribution
    assert torch.isfinite(noisy).all() and not torch.equal(noisy, AdjointMap()(sde, images, classes))
    with pytest.raises(UserError, match="noise=off"):
        explain(AdjointCAM(t=0.5 / 3), sde, images, classes, noise="path")


def test_a_map_solves_each_block_once(ode, images, classes, monkeypatch):
    AdjointMap()(ode, images, classes)  # what belongs to the network, not to the images, is looked up once
    calls = []
    solve = RungeKutta.solve
    monkeypatch.setattr(
        RungeKutta, "solve", lambda self, *args, **settings: calls.append(1) or solve(self, *args, **settings)
    )
    AdjointMap()(ode, images, classes)
    assert len(calls) == 3
    AdjointCAM(t=0.5)(ode, images, classes)
    assert len(calls) == 3 + 4  # one block in two parts


def test_a_surrogate_is_made_once_and_again_when_the_network_has_changed(resnet, images, classes):
    made = []

    def convert(model):
        made.append(neural_ode(model, SOLVER))
        return made[-1]

    explainer = ThroughSurrogate(convert, AdjointMap())
    first = explain(explainer, resnet, images, classes).attribution
    explainer(resnet, images, classes)
    assert len(made) == 1
    with torch.no_grad():
        resnet.linear.weight.mul_(2)
    assert not torch.equal(explainer(resnet, images, classes), first) and len(made) == 2


def test_an_untrained_tied_surrogate_is_refused():
    with pytest.raises(UserError, match="distil it first"):
        ThroughSurrogate(partial(neural_ode, solver=SOLVER, tied=True), AdjointMap())
