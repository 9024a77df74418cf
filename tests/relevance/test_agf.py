"""Attribution guided factorization against a second derivation by autograd, loops over pixels, and what it promises of sums."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from explainode.errors import UserError
from explainode.explainers.agf import AGF
from explainode.explainers.guard import guard
from explainode.models.resnet import cifar_resnet
from explainode.registry.build import get
from explainode.relevance.rules.agf import Absolute, Factorization, Streams, agf, nearer, shift, softmax_contrast
from explainode.relevance.rules.roots import EM
from explainode.relevance.tape import record

PARTS = ("activations", "gradients", "attention", "places")
NOTHING = Factorization(**dict.fromkeys(PARTS, False))
TARGET = torch.tensor([0, 3, 1])


@pytest.fixture
def net():
    """(B, 3, 8, 8) -> (B, 4): convolutions, batch normalization, both poolings, two dense layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(20, 7), nn.ReLU(), nn.Linear(7, 4),
        )  # fmt: skip
        (
            nn.init.normal_(net[3].running_mean, 0, 0.3),
            nn.init.uniform_(net[3].running_var, 0.5, 1.5),
            nn.init.normal_(net[3].weight),
        )
    return net.double().eval()


@pytest.fixture
def x():
    return torch.rand(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def contrasted(y, target):
    """p_t of one image's logits (K,), as the paper writes it."""
    of_class = y[target]
    sigma = (y - of_class).abs().max()
    return (of_class * torch.exp(-((y - of_class) ** 2) / (2 * sigma**2))).softmax(0)[target]


def walk_back(net, x, target, rule, observe=None):
    with guard(net) as network:
        tape = record(network, x)
        g = softmax_contrast(tape, target)
        walk = Streams(tape, gradients={id(tape.output): g})
        return walk.back({tape.output: tape.output.data * g}, agf(rule), observe=observe), walk


def by_products(f, x, c):
    """x * d/dx of the sum of f(x) * (c / f(x)), the quotient held constant: LRP of x by a map f without bias."""
    leaf = x.clone().requires_grad_()
    z = f(leaf)
    return leaf.detach() * torch.autograd.grad(z, leaf, torch.where(z == 0, 0, c / z).detach())[0]


def nearer_pixels(x, C):
    """F (pixels,) of one image (channels, pixels), pixel by pixel."""
    H = torch.sigmoid(10 * x / x.max())
    means = C.mean(0)
    V = torch.zeros(len(x), 2, dtype=x.dtype)
    for column, chosen in enumerate((means < 0, means > 0)):
        if chosen.any():
            V[:, column] = H[:, chosen].mean(1)
    inverse = torch.linalg.inv(V.T @ V + torch.eye(2, dtype=x.dtype))
    weights = [(inverse @ V.T @ H[:, pixel]).relu() for pixel in range(H.shape[1])]
    return torch.stack([(w[1] - w[0]).relu() for w in weights])


def reference(net, x, target):
    """AGF of one image (3, 8, 8) by modules and autograd, layer by layer, the batch normalization apart from the convolution."""
    values = [x[None]]
    for module in net:
        values.append(module(values[-1].detach().requires_grad_()))
    g = torch.autograd.functional.jacobian(lambda y: contrasted(y[0], target), values[-1].detach())
    c = None
    for module, value in zip(reversed(net), reversed(values[:-1]), strict=True):
        X = value.detach().requires_grad_()
        g_x = torch.autograd.grad(module(X), X, g)[0]
        X = X.detach()
        if c is None:
            c = X * g_x
        elif isinstance(module, nn.Linear):
            C = by_products(lambda v, m=module: F.linear(v, m.weight.abs()), X.abs(), c)
            M = (
                (X * g_x).reshape(1, 5, 2, 2).mean(1, keepdim=True).relu().expand(1, 5, 2, 2).reshape(1, -1)
                if X.shape[1] == 20
                else None
            )
            c = C if M is None else moved(C, by_largest(M))
        elif isinstance(module, nn.Conv2d) and X.shape[1] == 3:
            low, high, W = X.min(), X.max(), module.weight.detach()
            z = F.conv2d(X, W, padding=1)
            z = (
                z
                - F.conv2d(low.expand_as(X), W.relu(), padding=1)
                - F.conv2d(high.expand_as(X), -(-W).relu(), padding=1)
            )
            back = [F.conv_transpose2d(c / z, w, padding=1) for w in (W, W.relu(), -(-W).relu())]
            c = X * back[0] - low * back[1] - high * back[2]
        elif isinstance(module, nn.Conv2d):
            absolute = lambda v, m=module: F.conv2d(v, m.weight.abs(), padding=1)  # noqa: E731
            C = by_products(absolute, X.abs(), c)
            A = by_products(absolute, torch.ones_like(X), c)
            M = (X * g_x).mean(1, keepdim=True).relu()
            masked = F.conv_transpose2d(g * (c != 0), module.weight.detach(), padding=1)
            F_x, F_g = (
                nearer_pixels(v[0].flatten(1), C[0].flatten(1)).reshape(1, 1, *X.shape[2:]) for v in (X, masked)
            )
            c = moved(C, (F_x + by_largest(M)) / (1 + torch.exp(-C)) + F_g + A)
        elif isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
            c = by_products(module, X, c)
        elif isinstance(module, nn.Flatten):
            c = c.reshape(X.shape)
        g = g_x
    return c[0]


def by_largest(M):
    return M / M.max() if M.max() > 0 else M


def moved(C, r):
    there = C != 0
    result = torch.zeros_like(C)
    r = r.expand_as(C)
    result[there] = C[there] + r[there] - r[there].mean()
    return result


def test_agf_equals_its_second_derivation(net, x):
    expected = torch.stack([reference(net, image, int(target)) for image, target in zip(x, TARGET, strict=True)])
    torch.testing.assert_close(AGF(Factorization())(net, x, TARGET), expected.detach(), rtol=1e-9, atol=1e-12)


def test_without_parts_it_is_relevance_by_absolute_contributions(net, x):
    found, walk = walk_back(net, x, TARGET, NOTHING)
    evidence, _ = walk_back(net, x, TARGET, Absolute())
    torch.testing.assert_close(found, evidence, rtol=1e-12, atol=1e-15)
    full, _ = walk_back(net, x, TARGET, Factorization())
    assert (full - found).abs().max() > 0.1 * full.abs().max()
    assert "spread" not in walk.amounts


@pytest.mark.parametrize("part", PARTS)
def test_every_part_counts(net, x, part):
    full, _ = walk_back(net, x, TARGET, Factorization())
    less, _ = walk_back(net, x, TARGET, replace(Factorization(), **{part: False}))
    assert (full - less).abs().max() > 1e-3 * full.abs().max()


@pytest.mark.parametrize("evidence", [Absolute(), EM(2)])
def test_every_layer_keeps_the_sum_of_each_image(net, x, evidence):
    worst = []

    def observe(operation, relevance, shares):
        if operation.output is tape_output:
            return  # the beginning
        before, after = (sum(v.flatten(1).sum(1) for v in values if v is not None) for values in (relevance, shares))
        scale = sum(v.flatten(1).abs().sum(1) for v in shares if v is not None)
        worst.append(((before - after).abs() / scale).max())

    with guard(net) as network:
        tape = record(network, x)
        tape_output = tape.output
        g = softmax_contrast(tape, TARGET)
        walk = Streams(tape, gradients={id(tape.output): g})
        R = walk.back({tape.output: tape.output.data * g}, agf(Factorization(evidence)), observe=observe)
    last = net[-1]
    start = ((tape.output.data - last.bias) * g).sum(1)  # sum of x * A^T g
    assert len(worst) > 8 and max(worst) < 1e-12
    torch.testing.assert_close(R.flatten(1).sum(1), start.detach(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("gated", [False, True])
def test_the_gradient_beside_the_relevance_is_autograds(net, x, gated):
    class Gated(nn.Module):
        """Channels weighed by a gate: relevance does not go there, the gradient does."""

        def forward(self, x):
            y = net[:2](x)
            return net[2:](y * y.mean((2, 3), keepdim=True).sigmoid())

    model = Gated().eval() if gated else net
    _, walk = walk_back(model, x, TARGET, Factorization())
    leaf = x.clone().requires_grad_()
    p = torch.stack([contrasted(y, t) for y, t in zip(model(leaf), TARGET, strict=True)])
    torch.testing.assert_close(
        walk.gradients[id(walk.tape.input)], torch.autograd.grad(p.sum(), leaf)[0], rtol=1e-9, atol=1e-14
    )


def test_nearer_equals_a_loop_over_pixels():
    draw = torch.Generator().manual_seed(2)
    x, C = (torch.randn(3, 5, 4, 3, dtype=torch.float64, generator=draw) for _ in range(2))
    C[2] = C[2].abs()  # nothing speaks against the class
    expected = torch.stack(
        [nearer_pixels(a.flatten(1), b.flatten(1)).reshape(1, 4, 3) for a, b in zip(x, C, strict=True)]
    )
    torch.testing.assert_close(nearer(x, C), expected)
    assert (expected > 0).any()


def test_shift_moves_relevance_only_where_there_is_some():
    C = torch.tensor([[[1.0, 0.0, 3.0]], [[0.0, 0.0, 0.0]]])
    r = torch.tensor([[[2.0, 5.0, 0.0]], [[1.0, 1.0, 1.0]]])
    torch.testing.assert_close(shift(C, r), torch.tensor([[[2.0, 0.0, 2.0]], [[0.0, 0.0, 0.0]]]))


@pytest.mark.parametrize("name", ["agf", "agf_root"])
def test_images_do_not_see_each_other_and_the_class_matters(net, x, name):
    explainer = get(f"explainer/{name}")
    together = explainer(net, x, TARGET)
    alone = torch.cat([explainer(net, x[i : i + 1], TARGET[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-7, atol=1e-10)
    other = explainer(net, x, (TARGET + 1) % 4)
    assert ((together - other).flatten(1).norm(dim=1) > 0.05 * together.flatten(1).norm(dim=1)).all()


@pytest.mark.parametrize("name", ["agf", "agf_root"])
def test_a_constant_image_and_a_residual_network_give_numbers(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = cifar_resnet(8, num_classes=4).eval()
    x = torch.stack([torch.full((3, 16, 16), 0.5), torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(3))])
    assert torch.isfinite(get(f"explainer/{name}")(net, x, torch.tensor([0, 1]))).all()


def test_equal_logits_give_a_gradient(net, x):
    nn.init.zeros_(net[-1].weight), nn.init.zeros_(net[-1].bias)
    with guard(net) as network:
        g = softmax_contrast(record(network, x), TARGET)
    assert torch.isfinite(g).all()


def test_an_unknown_split_is_refused_at_once():
    with pytest.raises(UserError, match="positive"):
        AGF(Factorization(), residual="positiv")
