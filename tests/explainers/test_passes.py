from __future__ import annotations

import pytest
import torch
from torch import nn

from explainode.errors import UserError
from explainode.explainers.base import count_passes, gradient, guard, pass_limit, predict, rows_per_pass
from explainode.explainers.cam import GradCAM
from explainode.explainers.controls import CentrePrior, EdgeMap, InvertedMap, RandomMap
from explainode.explainers.gradient import InputXGradient, IntegratedGradients, Saliency
from explainode.explainers.passes import each_copy
from explainode.explainers.perturbation import Occlusion
from explainode.explainers.sampling import GradientSHAP, SmoothGrad
from explainode.randomness import current_scope, noise_scope

PER_IMAGE = [
    (Saliency(), 1, 1),
    (InputXGradient(), 1, 1),
    (IntegratedGradients(50), 50, 50),
    (SmoothGrad(Saliency(), samples=20), 20, 20),
    (SmoothGrad(IntegratedGradients(3), samples=4), 12, 12),
    (GradientSHAP(samples=7), 7, 7),
    (GradCAM(layer="body"), 1, 1),  # the backward stops at the layer
    (Occlusion(window=0.5, stride=0.25), 1 + 9, 0),
    (RandomMap(), 0, 0),
    (CentrePrior(), 0, 0),
    (EdgeMap(), 0, 0),
    (InvertedMap(Saliency()), 1, 1),
]


@pytest.mark.parametrize(("explainer", "forwards", "backwards"), PER_IMAGE)
@pytest.mark.parametrize("limit", [None, 3])
def test_methods_send_exactly_what_their_definition_needs(explainer, forwards, backwards, limit, net, x, target):
    with pass_limit(limit):
        explainer(net, x, target)  # what belongs to the network, not to the images, is looked up once
    seen = []
    net.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    with count_passes() as passes, pass_limit(limit):
        explainer(net, x, target)
    assert (passes.forwards, passes.backwards) == (4 * forwards, 4 * backwards)
    assert sum(seen) == passes.forwards  # counted is what the network saw


def test_gradcam_looks_for_its_layer_once(net, x, target):
    explainer, seen = GradCAM(), []
    net.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    explainer(net, x, target)
    first = sum(seen)
    explainer(net, x, target)
    assert first > sum(seen) - first == 4


def test_finding_the_predicted_class_takes_one_forward(net, x):
    with count_passes() as passes:
        Saliency()(net, x)
    assert (passes.forwards, passes.backwards) == (8, 4)


def test_counters_nest(net, x):
    with count_passes() as outer:
        predict(net, x)
        with count_passes() as inner:
            predict(net, x)
    assert (outer.forwards, inner.forwards) == (8, 4)


def test_a_pass_never_holds_more_rows_than_the_limit(net, x, target):
    seen = []
    net.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    with pass_limit(3):
        assert rows_per_pass() == 3
        for explainer, *_ in PER_IMAGE:
            explainer(net, x, target)
    assert max(seen) <= 3
    assert rows_per_pass() is None


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_row_is_refused(limit):
    with pytest.raises(UserError, match="at least 1 row"), pass_limit(limit):
        pass


def test_gradient_is_autograds(net, x, target):
    pixels = x.clone().requires_grad_()
    score = net(pixels).gather(1, target[:, None])[:, 0]
    score.sum().backward()
    with guard(net) as network:
        grad, value = gradient(network, x, target)
    assert torch.equal(grad, pixels.grad) and torch.equal(value, score.detach())


def test_predict_has_no_graph_and_splits(net, x):
    whole = predict(net, x)
    with pass_limit(3):
        torch.testing.assert_close(
            predict(net, x), whole, rtol=1e-5, atol=1e-6
        )  # convolutions of other batch sizes round differently
    assert not whole.requires_grad


@pytest.mark.parametrize("limit", [1, 4, 9, None])
def test_copies_come_back_in_order_with_their_images_noise(limit):
    x, target = torch.arange(4.0).reshape(4, 1, 1, 1), torch.arange(4)
    ids = torch.tensor([11, 12, 13, 14])
    seen = []

    def evaluate(rows, classes):
        assert torch.equal(rows.flatten() % 10, classes.float())
        seen.extend(current_scope().sample_ids.tolist())
        return (rows,)

    with noise_scope(ids), pass_limit(limit):
        copies = [copy for (copy,) in each_copy(evaluate, (x + 10 * k for k in range(5)), target)]
    assert torch.equal(torch.stack(copies), torch.stack([x + 10 * k for k in range(5)]))
    assert seen == ids.tolist() * 5


def test_copies_are_made_when_needed():
    made = []

    def copies():
        for k in range(6):
            made.append(k)
            yield torch.zeros(2, 1, 1, 1)

    with pass_limit(4):
        iterator = each_copy(lambda rows, classes: (rows,), copies(), torch.zeros(2, dtype=torch.int64))
        next(iterator)
    assert made == [0, 1]


@pytest.mark.parametrize("detach", [lambda y: y.detach(), lambda y: torch.zeros_like(y, requires_grad=True)])
def test_a_score_without_graph_is_an_error_not_a_zero_map(detach, x):
    class Cut(nn.Module):
        def forward(self, x):
            return detach(x.flatten(1)[:, :3])

    with pytest.raises(UserError, match="carries no gradient"):
        Saliency()(Cut(), x, 0)
