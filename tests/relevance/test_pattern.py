"""Patterns against the covariance written out, a known signal under distractors, and their own identity w^T a = 1."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from explainode.errors import UserError
from explainode.evaluation import in_batches
from explainode.explainers.pattern import PatternAttribution, PatternNet
from explainode.registry.build import get
from explainode.relevance.rules.pattern import Neurons, linear_operations
from explainode.relevance.tape import record


class Small(nn.Module):
    """(B, 3, 8, 8) -> (B, 4): strides, groups, BatchNorm, a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.ReLU())
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


@pytest.fixture
def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Small().eval()


@pytest.fixture
def x():
    return torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def learned(net, x, batch_size=16):
    return PatternNet().fit(net, in_batches(x, batch_size=batch_size)).patterns


def dot(a, operation):
    """w^T a per neuron."""
    product = a * operation.map.weight
    return product.sum(0) if product.dim() == 2 else product.flatten(1).sum(1)


def test_the_pattern_is_the_covariance_of_input_and_output_where_the_neuron_is_active(net, x):
    stem, body, head = learned(net, x)
    with torch.no_grad():
        norm, convolution = net.stem[1], net.stem[0]
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight = (convolution.weight * scale[:, None, None, None]).double()
        patches = F.unfold(x.double(), 3, padding=1).mT.flatten(0, 1)
        for j in range(4):
            y = patches @ weight[j].flatten()
            P, y = patches[y > 0], y[y > 0]
            a = ((P * y[:, None]).mean(0) - P.mean(0) * y.mean()) / (y.square().mean() - y.mean() ** 2)
            assert torch.allclose(stem[j].flatten(), a, rtol=1e-4, atol=1e-5)
        pooled = net.body(net.stem(x)).mean((2, 3)).double()
        y = pooled @ net.head.weight.T.double()
        for j in range(4):
            P, v = pooled[y[:, j] > 0], y[y[:, j] > 0, j]
            if len(v):
                centered = P - P.mean(0)
                a = (centered * (v - v.mean())[:, None]).sum(0) / (v - v.mean()).square().sum()
                assert torch.allclose(head[:, j], a, rtol=1e-4, atol=1e-5)
    assert body.shape == net.body[0].weight.shape


def test_weights_times_pattern_is_one(net, x):
    patterns, operations = learned(net.double(), x.double()), linear_operations(record(net, x.double()))
    for a, operation in zip(patterns, operations, strict=True):
        neurons = Neurons.of(operation)
        neurons.add(operation)
        varied = neurons.n > 1
        assert varied.any()
        assert torch.allclose(dot(a, operation)[varied], torch.ones(int(varied.sum()), dtype=torch.float64), atol=1e-9)
        assert (dot(a, operation)[neurons.n == 0] == 0).all()


def test_how_the_images_are_batched_does_not_matter(net, x):
    for a, b in zip(learned(net.double(), x.double(), 40), learned(net, x.double(), 7), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_the_pattern_is_the_signal_and_not_what_cancels_the_distractor():
    """x = s d + n e: the neuron w = d - (d.e) e .. reads s and has to be blind to e; its pattern is d all the same. Kindermans et al. 2018, Sec. 2."""
    g = torch.Generator().manual_seed(3)
    s = 1 + torch.rand(4000, 1, dtype=torch.float64, generator=g)
    n = torch.randn(4000, 1, dtype=torch.float64, generator=g)
    signal, distractor = (
        torch.tensor([[1.0, 0.0]], dtype=torch.float64),
        torch.tensor([[1.0, 1.0]], dtype=torch.float64),
    )

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 2, bias=False, dtype=torch.float64)
            self.head.weight.data = torch.tensor([[1.0, -1.0], [0.5, 0.5]], dtype=torch.float64)

        def forward(self, x):
            return self.head(x.flatten(1))

    x = (s * signal + n * distractor)[:, :, None, None]
    fitted = PatternNet().fit(Reader(), in_batches(x, batch_size=1000))
    assert torch.allclose(fitted.patterns[0][:, 0], signal[0], atol=0.15)  # the weights are (1, -1)
    assert torch.allclose(fitted(Reader(), x[:3], 0)[:, :, 0, 0], fitted.patterns[0][:, 0].expand(3, 2))


@pytest.mark.parametrize("method", [PatternNet, PatternAttribution])
def test_it_is_the_chain_rule_with_patterns_for_weights(net, x, method):
    fitted = method().fit(net, in_batches(x))
    stem, body, head = (pattern.float() for pattern in fitted.patterns)
    if method is PatternAttribution:
        stem, body, head = (
            a * o.map.weight for a, o in zip((stem, body, head), linear_operations(record(net, x)), strict=True)
        )
    target = torch.tensor([0, 3, 1])
    with torch.no_grad():
        first = net.stem(x[:3])
        second = net.body(first)
        R = head.T[target][:, :, None, None].expand_as(second) / (second.shape[2] * second.shape[3]) * (second > 0)
        R = F.conv_transpose2d(R, body, stride=2, groups=2, output_padding=1) * (first > 0)
        expected = F.conv_transpose2d(R, stem, padding=1)
    assert torch.allclose(fitted(net, x[:3], target), expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["pattern_net", "pattern_attribution"])
def test_what_cannot_be_explained_is_refused(net, x, name):
    explainer = get(f"explainer/{name}")
    with pytest.raises(UserError, match="fit"):
        explainer(net, x[:2], 0)
    with pytest.raises(UserError, match="images"):
        explainer.fit(net, [])
    fitted = explainer.fit(net, in_batches(x))
    assert explainer.learned is None and len(fitted.patterns) == 3
    other = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))
    with pytest.raises(UserError, match="another network"):
        fitted(other, x[:2], 0)
    with pytest.raises(UserError, match="convolutions and dense"):
        PatternNet().fit(
            nn.Sequential(nn.ConvTranspose2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), in_batches(x)
        )
