from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from explainode.errors import UserError
from explainode.evaluation import evaluate
from explainode.explainers.base import guard, resolve_target
from explainode.explainers.cam import GradCAM
from explainode.explainers.gradient import IntegratedGradients, Saliency
from explainode.explainers.layers import cut_at
from explainode.explainers.perturbation import Occlusion
from explainode.explainers.targets import Unit, check_logits, select_score
from explainode.explaining import explain

LOGITS = torch.tensor([[1.0, 3.0, 2.0], [5.0, 4.0, 6.0]])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (None, [1, 2]),
        (2, [2, 2]),
        ([0, 2], [0, 2]),
        (torch.tensor([2, 1], dtype=torch.int32), [2, 1]),
        (lambda logits: logits.argsort(1)[:, -2], [2, 0]),  # the runner-up
    ],
)
def test_every_form_becomes_one_class_per_row(target, expected):
    resolved = resolve_target(target, LOGITS)
    assert resolved.dtype == torch.int64 and resolved.tolist() == expected


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (5000, r"target 5000 is not a class of this model; choose one of 0\.\.2"),
        ([0, -1], r"target -1 .* 0\.\.2"),
        ([0, 1, 2], r"shape \(2,\), got \(3,\)"),
        (0.5, "class indices"),
        (lambda logits: logits.sum(1), "class indices"),
    ],
)
def test_what_is_no_class_is_refused_in_one_sentence(target, message):
    with pytest.raises(UserError, match=message):
        resolve_target(target, LOGITS)


def test_an_explainer_refuses_a_class_out_of_range(net, x):
    with pytest.raises(UserError, match=r"target 5 .* 0\.\.4"):
        Saliency()(net, x, 5)


def test_score_is_the_logit_of_the_target():
    assert select_score(LOGITS, torch.tensor([2, 0])).tolist() == [2.0, 5.0]


@pytest.mark.parametrize(
    ("output", "message"), [({"out": LOGITS}, "a dict"), (LOGITS[0], r"shape \(3,\)"), (LOGITS[:1], r"shape \(1, 3\)")]
)
def test_outputs_that_are_no_logits_are_named(output, message):
    with pytest.raises(UserError, match=message):
        check_logits(output, 2)


@pytest.mark.parametrize("images", [torch.rand(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)])
def test_inputs_that_are_no_images_are_named(images):
    with pytest.raises(UserError, match=r"expected images \(B, C, H, W\)"):
        Saliency()(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), images, 0)


REDUCE = {
    "max": lambda A: A.amax((1, 2)),
    "sum": lambda A: A.sum((1, 2)),
    (2, 4): lambda A: A[:, 2, 4],
}


@pytest.mark.parametrize("position", REDUCE, ids=str)
def test_the_gradient_of_a_unit_is_autograds(position, net, x):
    pixels = x.clone().requires_grad_()
    A = net.body(net.block(net.stem(pixels)))[:, 5]
    (expected,) = torch.autograd.grad(REDUCE[position](A).sum(), pixels)
    assert expected.any()
    torch.testing.assert_close(Saliency()(net, x, Unit("body", 5, position)), expected)


def test_methods_of_every_family_explain_a_unit(net, x):
    unit = Unit("body", 5)
    ig = explain(IntegratedGradients(200), net, x, unit)
    assert ig.completeness_error.abs().max() <= 2e-2 * ig.score.abs().max()
    assert explain(Occlusion(), net, x, unit).attribution.any()
    assert GradCAM("block")(net, x, unit).shape == (4, 1, 12, 12)


def test_the_record_of_a_unit_holds_the_network_that_ends_there(net, x):
    shared: dict = {}
    of_class = explain(Saliency(), net, x, 3, shared=shared)
    record = explain(Saliency(), net, x, Unit("body", 5), shared=shared)
    A = net.body(net.block(net.stem(x))).detach()
    torch.testing.assert_close(record.logits, A.amax((2, 3)))
    assert record.target.tolist() == [5] * 4 and torch.equal(record.score, record.logits[:, 5])
    assert torch.equal(record.forward(x), record.logits)
    assert torch.equal(explain(Saliency(), net, x, 3, shared=shared).logits, of_class.logits)  # the stores do not mix


def test_a_cut_network_shares_names_and_parts_and_copies_as_one(net, x):
    shell = cut_at(net, Unit("body", 5))
    assert dict(shell.named_parameters()).keys() == dict(net.named_parameters()).keys()
    assert shell.body is net.body and net(x).shape == (4, 5) and shell(x).shape == (4, 8)
    twin = copy.deepcopy(shell)
    nn.init.zeros_(twin.body[0].weight)
    assert not torch.equal(twin(x), shell(x)) and twin.body is not net.body
    with guard(net.train()):
        pass
    assert net.training


def test_a_unit_may_be_a_logit_or_a_channel_of_tokens(net, x):
    assert torch.equal(Saliency()(net, x, Unit("head", 3)), Saliency()(net, x, 3))
    vit = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.layer, self.head = nn.Conv2d(3, 6, 4, 4), vit, nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.layer(self.patches(x).flatten(2).transpose(1, 2)).mean(1))

    network = Tokens().eval()
    pixels = x.clone().requires_grad_()
    tokens = vit(network.patches(pixels).flatten(2).transpose(1, 2))
    (expected,) = torch.autograd.grad(tokens[:, 5, 2].sum(), pixels)  # row 1, column 2 of 3 x 3
    torch.testing.assert_close(Saliency()(network, x, Unit("layer", 2, (1, 2))), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Unit("body", -1), "counts from 0, got -1"),
        (lambda: Unit("body", 0, "mean"), r"'max', 'sum' or a pair \(row, column\).*'mean'"),
        (lambda: Unit("bodi", 0), "no layer named 'bodi' in SmallNet; the nearest are body"),
        (lambda: Unit("", 0), "no layer named ''"),
        (lambda: Unit("body", 8), r"layer 'body' has no channel 8; choose one of 0\.\.7"),
        (lambda: Unit("body", 0, (6, 0)), r"maps of size \(6, 6\), which have no position \(6, 0\)"),
    ],
)
def test_what_is_no_unit_is_refused_in_one_sentence(make, words, net, x):
    with pytest.raises(UserError, match=words):
        Saliency()(net, x, make())


def test_evaluate_measures_classes_only(net):
    with pytest.raises(UserError, match="explain a unit of a layer with explain"):
        evaluate(net, {"saliency": Saliency()}, {}, [], n=4, target=Unit("body", 0))
