"""Gradients that autograd gets wrong, images that a network mixes: each explained as it is alone, and said."""

import pytest
import torch
from torch import Tensor, nn

from explainode.explainers.base import guard
from explainode.explainers.cam import GradCAM
from explainode.explainers.deeplift import DeepLIFT
from explainode.explainers.gradient import InputXGradient, IntegratedGradients, Saliency
from explainode.explainers.gradients import check_gradient, unchecked_gradients
from explainode.explainers.passes import collect_reports, count_passes, pass_limit, predict
from explainode.explainers.perturbation import Occlusion
from explainode.explaining import explain

X = torch.rand(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Wrong(torch.autograd.Function):
    """The identity, with a backward that is wrong for single images, as torch's kernel for batch normalization was."""

    @staticmethod
    def forward(ctx, h: Tensor) -> Tensor:
        return h.clone()

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return g.flip(-1) if len(g) == 1 else g


class Net(nn.Module):
    def __init__(self, wrong: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wrong = wrong
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(96, 4)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(self.a(x).sigmoid())
        return self.c((Wrong.apply(h) if self.wrong else h).tanh().flatten(1))


@pytest.mark.parametrize(
    "method",
    [Saliency(), InputXGradient(), IntegratedGradients(5), GradCAM("a", relu=False)],
    ids=lambda m: type(m).__name__,
)
def test_a_gradient_that_autograd_gets_wrong_is_the_tapes(method):
    right = method(Net(wrong=False), X, 1)
    net = Net()
    for i in range(len(X)):
        torch.testing.assert_close(method(net, X[i : i + 1], 1), right[i : i + 1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(method(net, X, 1), right, rtol=1e-9, atol=1e-12)


def test_it_is_said_in_the_record_and_can_be_switched_off():
    net = Net()
    with collect_reports(1) as reports:
        right = Saliency()(net, X[:1], 1)
    assert reports.means()["autograd_error"].item() > 0.1
    with unchecked_gradients(), collect_reports(1) as reports:
        assert not torch.allclose(Saliency()(net, X[:1], 1), right)
    assert not reports.said


def test_the_check_is_made_once_and_not_counted():
    net = Net()
    seen = []
    net.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    for rows in (8, 1):  # alone and beside another; the gradient by tape and by autograd, two differences; then none
        with count_passes() as passes:
            Saliency()(net, X[:1], 1)
        assert (passes.forwards, passes.backwards) == (1, 1) and sum(seen) == rows
        seen.clear()


def test_a_network_that_autograd_gets_right_is_believed():
    with guard(Net(wrong=False)) as network:
        for rows in (1, 3):
            verdict = check_gradient(network, X[:rows], torch.ones(rows, dtype=torch.int64))
            assert not verdict.by_tape and verdict.difference < 1e-10


def test_a_straight_through_gradient_is_its_authors_business():
    """Its slope is 0 wherever there is one: no difference speaks for the tape."""

    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Linear(192, 4).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.c((x + ((4 * x).round() / 4 - x).detach()).flatten(1))

    net = Rounded()
    torch.testing.assert_close(Saliency()(net, X[:1], 2).flatten(), net.c.weight[2].detach())


def mixing(kind: str) -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6, track_running_stats=False) if kind == "statistics" else OverTheBatch()
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    ).double()


class OverTheBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().amax(0, keepdim=True)


@pytest.mark.parametrize("kind", ["statistics", "maximum"])
@pytest.mark.parametrize(
    "method",
    [Saliency(), IntegratedGradients(3), GradCAM("0"), DeepLIFT(), Occlusion(0.5, 0.5)],
    ids=lambda m: type(m).__name__,
)
def test_images_that_a_network_mixes_are_explained_alone(kind, method):
    net = mixing(kind)
    images = X * torch.tensor([0.2, 0.6, 1.0], dtype=torch.float64)[:, None, None, None]
    with pytest.warns(UserWarning, match="mixes the images of a batch .* each image is explained alone"):
        together = method(net, images, 1)
    with pass_limit(1):
        alone = torch.cat([method(net, images[i : i + 1], 1) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)


def test_the_record_of_mixed_images_holds_their_own_scores():
    net = mixing("statistics")
    with pytest.warns(UserWarning, match="mixes"):
        record = explain(Saliency(), net, X, 1)
    with guard(net) as network, torch.no_grad():
        torch.testing.assert_close(record.logits, torch.cat([network(X[i : i + 1]) for i in range(3)]))
        assert not torch.allclose(record.logits, network(X)) and predict(network, X[:1]).shape == (1, 4)
