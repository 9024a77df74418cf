"""RAP against closed forms, the authors' formulas written out with matrices, and its own promises: sums, zeros, bounds."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from explainode.errors import UserError
from explainode.explainers.base import guard
from explainode.models.resnet import cifar_resnet
from explainode.models.vgg import small_vgg
from explainode.registry.build import get
from explainode.relevance.rules.lrp import ZBox
from explainode.relevance.rules.rap import ImageBox, RelativeAttribution, rap
from explainode.relevance.tape import record
from explainode.relevance.walk import Walk, seed


class Plain(nn.Module):
    """(B, 3, 6, 6) -> (B, 4), as VGG is built."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, stride=2, padding=1)
        self.fc1, self.fc2, self.fc3 = nn.Linear(45, 12), nn.Linear(12, 9), nn.Linear(9, 4)

    def layers(self):
        return [self.conv1, self.conv2, lambda h: self.fc1(h.flatten(1)), self.fc2, self.fc3]

    def forward(self, x):
        for layer in self.layers()[:-1]:
            x = layer(x).relu()
        return self.fc3(x)


class Transformer(nn.Module):
    """(B, 3, 6, 6) -> (B, 4): inputs of both signs, attention, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, 3, stride=3), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc1, self.fc2, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.patches(x).flatten(2).mT
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head((x + self.fc2(F.gelu(self.fc1(x)))).mean(1))


@pytest.fixture(params=[Plain, Transformer])
def net(request):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return request.param().double().eval()


@pytest.fixture
def x():
    return torch.rand(3, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def walk_back(net, x, composite, target=(0, 3, 1)):
    with guard(net) as network:
        tape = record(network, x)
        walk = Walk(tape)
        start = seed(tape, torch.tensor(target[: len(x)]), composite.seed)
        return walk.back({tape.output: start}, composite), start, walk


def one_layer(W, x, rectify):
    """The operation x -> W x, of inputs known to be nonnegative if `rectify`, and a walk."""

    class Net(nn.Module):
        def forward(self, x):
            x = x.flatten(1)
            return (x.relu() if rectify else 1.0 * x) @ W.T

    walk = Walk(record(Net(), x[:, :, None, None]))
    (operation,) = walk.tape.of_kind("linear")
    return operation, walk


def random_layer(rectify, images=3):
    g = torch.Generator().manual_seed(2)
    W, x, R = (torch.randn(*shape, dtype=torch.float64, generator=g) for shape in ((5, 7), (images, 7), (images, 5)))
    R[:, 1] = 0
    return W, x.relu() if rectify else x, R


def divide(a, b):
    return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))


def relative(W, x, R, negative):
    """The rule of one image with every x_i a_ij written out: (outputs, inputs), (inputs,), (outputs,)."""
    q = W * x
    up, down = q.clamp(min=0), -q.clamp(max=0)
    P, N = up.sum(1, keepdim=True), down.sum(1, keepdim=True)
    C = torch.zeros_like(x)
    for R_j, sign in ((R.clamp(min=0)[:, None], 1), (R.clamp(max=0)[:, None], -1)):
        first = divide(down * R_j, N) if sign < 0 and negative == "against" else divide(up * R_j, P)
        C = C + (first + divide(down * R_j, P + N)).sum(0)
    return torch.where(C == 0, 0.0, C - (C.sum() - R.sum()) / (C != 0).sum())


# --- the rules -----------------------------------------------------------------------------------------------------------------------


def test_a_unit_by_hand():
    # contributions 3, 1, -4 and nothing of an input that is 0; P = N = 4; C = (3, 1, 4 / 2) * 8 / 4, 4 too much, 4 / 3 from each
    W, x = torch.tensor([[3.0, 0.5, -1.0, 5.0]]).double(), torch.tensor([[1.0, 2.0, 4.0, 0.0]]).double()
    operation, walk = one_layer(W, x, rectify=True)
    R = torch.tensor([[8.0]]).double()
    (share,) = RelativeAttribution().propagate(operation, (R,), walk)
    third = 4 / 3
    assert torch.allclose(share, torch.tensor([[6 - third, 2 - third, 4 - third, 0.0]]).double())
    (share,) = RelativeAttribution("against").propagate(operation, (-R,), walk)  # all to the third: -8 - 4, 4 too much
    assert torch.allclose(share, torch.tensor([[0.0, 0.0, -8.0, 0.0]]).double())


def test_small_contributions_turn_negative():
    W, x = torch.tensor([[3.0, 0.1, -2.0]]).double(), torch.ones(1, 3).double()
    operation, walk = one_layer(W, x, rectify=True)
    (share,) = RelativeAttribution().propagate(operation, (torch.ones(1, 1).double(),), walk)
    assert share[0, 1] < 0 < share[0, 0] and torch.allclose(share.sum(), torch.ones(()).double())


@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize("negative", ["same", "against"])
def test_the_rule_with_matrices(rectify, negative):
    W, x, R = random_layer(rectify)
    operation, walk = one_layer(W, x, rectify)
    (share,) = RelativeAttribution(negative).propagate(operation, (R,), walk)
    expected = torch.stack([relative(W, *pair, negative) for pair in zip(x, R, strict=True)])
    assert torch.allclose(share, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize("negative", ["same", "against"])
def test_the_sum_stays_zeros_stay_and_growth_is_bounded(rectify, negative):
    W, x, R = random_layer(rectify, images=50)
    x[::2, :3] = 0
    operation, walk = one_layer(W, x, rectify)
    (share,) = RelativeAttribution(negative).propagate(operation, (R,), walk)
    alive = x.abs().sum(1) > 0
    assert alive.sum() > 40
    assert torch.allclose(share.sum(1), R.sum(1), atol=1e-12)
    assert (share[alive][x[alive] == 0] == 0).all()
    assert (share.abs().sum(1) <= 3 * R.abs().sum(1)).all()
    assert (share.abs().sum(1) > 1.01 * R.abs().sum(1)).any()


def test_where_nothing_speaks_against_it_is_z_plus():
    W, x, R = random_layer(rectify=True)
    W, R = W.abs(), R.abs()
    operation, walk = one_layer(W, x, rectify=True)
    (share,) = RelativeAttribution().propagate(operation, (R,), walk)
    assert torch.allclose(share, x * ((R / (x @ W.T)) @ W), atol=1e-13)


def test_an_image_that_reaches_nothing_is_spread_and_the_others_are_not():
    W, x, R = random_layer(rectify=True)
    x[1] = 0
    operation, walk = one_layer(W, x, rectify=True)
    (share,) = RelativeAttribution().propagate(operation, (R,), walk)
    assert torch.allclose(share[1], (R[1].sum() / 7).expand(7))
    assert torch.allclose(share[0], relative(W, x[0], R[0], "same"))
    noted = walk.amounts["spread"]
    assert torch.equal(noted[[0, 2]], torch.zeros(2).double()) and torch.allclose(noted[1], R[1].abs().sum())


def test_absolute_influence_is_what_the_authors_compute_in_two_steps():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double()
    x = torch.rand(3, 3, 2, 2).double()
    target = (0, 3, 1)
    q = x.flatten(1) * net[1].weight[list(target)]
    f = net(x).gather(1, torch.tensor(target)[:, None])
    R = (
        q * f / q.sum(1, keepdim=True)
    )  # x_i a_ij and the bias's part, positive and negative contributions each by their share of z
    expected = R.abs() * R.sum(1, keepdim=True) / R.abs().sum(1, keepdim=True)
    found, _, _ = walk_back(net, x, rap())
    assert torch.allclose(found.flatten(1), expected, rtol=1e-10)


@pytest.mark.parametrize(("dense", "convolution"), [("same", "against"), ("against", "same")])
def test_a_network_with_matrices(x, dense, convolution):
    torch.manual_seed(0)
    net = Plain().double().eval()
    target = (0, 3, 1)
    found, start, _ = walk_back(net, x, rap(dense, convolution), target)
    for image, R, relevance in zip(x, start, found, strict=True):
        inputs, matrices, h = [], [], image[None]
        for layer in net.layers():
            inputs.append(h.flatten())
            matrices.append(torch.func.jacrev(lambda h, layer=layer: layer(h).flatten())(h).flatten(1).detach())
            h = layer(h).relu()
        q = (matrices[4] * inputs[4]).abs()
        R = (q / q.sum(1, keepdim=True) * R[:, None]).sum(0)
        for number, rule in ((3, dense), (2, dense), (1, convolution)):
            R = relative(matrices[number], inputs[number], R, rule)
        W, low, high = matrices[0], image.min(), image.max()
        q = W * inputs[0] - low * W.clamp(min=0) - high * W.clamp(max=0)
        R = (q / q.sum(1, keepdim=True) * R[:, None]).sum(0)
        assert torch.allclose(relevance.flatten(), R, rtol=1e-9, atol=1e-12)


def test_the_box_of_an_image_is_its_own(x):
    x[:, 0, 0, 0], x[:, 1, 2, 3] = 0.0, 1.0
    net = Plain().double().eval()
    found = []
    for rule in (ImageBox(), ZBox()):
        walk = Walk(record(net, x))
        operation = walk.tape.of_kind("linear")[0]
        found.append(rule.propagate(operation, (operation.output.data,), walk)[0])
    assert torch.allclose(*found, rtol=1e-12)
    narrow = [walk_back(net, 0.2 + 0.3 * x, rap(box=box))[0] for box in ("image", "pixels")]
    assert not torch.allclose(*narrow)


# --- networks ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "composite", [rap(), rap("against", "same", "pixels"), rap(residual="signed"), rap(seed="contrastive")]
)
def test_relevance_is_conserved(net, x, composite):
    R, start, _ = walk_back(net, x, composite)
    assert torch.isfinite(R).all() and R.abs().max() > 0
    assert ((R.flatten(1).sum(1) - start.sum(1)).abs() <= 1e-10 * start.abs().sum(1)).all()


@pytest.mark.parametrize("make", [lambda: small_vgg(5, (6, 8), 1, 16), lambda: cifar_resnet(8, 5)])
def test_relevance_is_conserved_in_our_networks(make):
    torch.manual_seed(0)
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    R, start, _ = walk_back(make().double().eval(), x, rap())
    assert ((R.flatten(1).sum(1) - start.sum(1)).abs() <= 1e-10 * start.abs().sum(1)).all()
    assert ((R > 0).flatten(1).any(1) & (R < 0).flatten(1).any(1)).all()  # bipolar


def test_an_image_alone_is_an_image_among_others(net, x):
    x = x * torch.tensor([1.0, 0.2, 3.0], dtype=torch.float64)[:, None, None, None]
    batch, _, _ = walk_back(net, x, get("composite/rap"))
    for i in range(3):
        alone, _, _ = walk_back(net, x[i : i + 1], get("composite/rap"), target=[(0, 3, 1)[i]])
        assert (alone - batch[i]).abs().max() <= 1e-9 * batch[i].abs().max()


def test_unknown_words_are_refused():
    for make in (lambda: RelativeAttribution("equal"), lambda: rap(box="images"), lambda: rap(dense="again")):
        with pytest.raises(UserError, match="must be one of"):
            make()
