"""DeepLIFT's rules against hand-computed networks, a naive second derivation, and the sum that they promise."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from explainode.dynamics.diffusion import MultiplicativeDiffusion
from explainode.dynamics.noise import Noise
from explainode.dynamics.sde import EulerMaruyama
from explainode.dynamics.solver import RungeKutta
from explainode.errors import UserError
from explainode.explainers.guard import guard
from explainode.models.neural_ode import NeuralODE, NeuralSDE
from explainode.models.residual import Residual
from explainode.models.resnet import six_block_resnet
from explainode.randomness import noise_scope
from explainode.relevance.comparison import Comparison
from explainode.relevance.composites import backpropagation
from explainode.relevance.rules.deeplift import Rescale, RevealCancel
from explainode.relevance.rules.gradient import Gradient
from explainode.relevance.tape import record
from explainode.relevance.walk import Walk, seed

RULES = [Rescale(), RevealCancel()]


def multipliers(net, x, x0, rule, target=None):
    target = torch.zeros(len(x), dtype=torch.int64) if target is None else target
    with guard(net):  # torch's fused attention off
        tape = record(net, x, noise=True)
        walk = Comparison(tape, record(net, x0, noise=True)) if isinstance(rule, Rescale) else Walk(tape)
    return walk.back({tape.output: seed(tape, target, "one")}, backpropagation(rule))


class SharedReLU(nn.Module):
    """One rectifier in place everywhere, `+=`, a functional one, and max pooling right behind a rectifier, with windows that overlap."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.relu, self.head = nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Linear(6, 4)

    def forward(self, x):
        x = self.relu(self.norm(self.first(x)))
        x = F.max_pool2d(x, 3, 2, 1)
        y = self.relu(self.second(x))
        y += x
        y = self.relu(y - 0.3)
        y = F.max_pool2d(y, 3, 1, 1)
        return self.head(F.relu(y).mean((2, 3)))


class Gate(nn.Module):
    """Squeeze and excitation, hard and soft."""

    def __init__(self):
        super().__init__()
        self.body, self.down, self.up, self.head = (
            nn.Conv2d(3, 6, 3),
            nn.Conv2d(6, 2, 1),
            nn.Conv2d(2, 6, 1),
            nn.Linear(6, 4),
        )

    def forward(self, x):
        x = F.hardswish(self.body(x))
        x = x * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        x = F.silu(x) * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """DenseNet's manner: concatenation, normalization of what was concatenated, average pooling; a constant beside it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 + 2 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(4 + 2 * i, 2, 3, padding=1) for i in range(3))
        self.head = nn.Linear(11, 4)

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 2)
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        return self.head(F.gelu(x.amax((2, 3))))


class ByHand(nn.Module):
    """Normalizations, softmax, quotients, roots and powers written out, instance norm, maxima, and a `where` of each kind."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4)
        self.register_buffer("mask", torch.arange(64).view(8, 8) % 3 == 0)

    def forward(self, x):
        x = F.instance_norm(self.body(x))
        x = x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-3)
        x = F.normalize(x + 0.1, dim=1) + torch.where(self.mask, x, 0.5 * x)
        e = (x - 1).exp()
        x = 2 * x + 3 * e / e.sum(1, keepdim=True) + x.square().sum(1, keepdim=True).sqrt() / (1 + x.abs())
        x = (
            torch.where(x > 0.2 * x.flip(-1), x, 0.2 * x.flip(-1))
            + torch.minimum(x, x.roll(1, 2))
            + torch.maximum(x, -x)
        )
        x = torch.log(1.5 + torch.tanh(x)) + x**3 / 50 + torch.clamp(x, -0.5, 1) + x.max(-1, keepdim=True).values
        return self.head(F.softplus(x).mean((2, 3)) + 1 / (2 + x.amax((1, 2, 3))[:, None].sigmoid()))


def vit():
    net = VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=4
    )
    for parameter in net.parameters():
        nn.init.normal_(parameter, 0, 0.5)
    return net


def ode(method="rk4", steps=1):
    return NeuralODE.from_resnet(six_block_resnet(width=6, blocks=2, num_classes=4), RungeKutta(method, steps=steps))


class RectifiedODE(nn.Module):
    """The field of a block with its activation behind the sum: max(f, -x), a `where`."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 5, 3), nn.Linear(5, 4)
        self.block = Residual(nn.Sequential(nn.Conv2d(5, 5, 3, padding=1), nn.Tanh()), activation=nn.ReLU())
        self.solver = RungeKutta("heun2", steps=3)

    def forward(self, x):
        return self.head(self.solver(lambda t, y: self.block.field(y), F.relu(self.stem(x))).mean((2, 3)))


NETWORKS = {
    "shared_relu": SharedReLU,
    "gate": Gate,
    "dense": Dense,
    "by_hand": ByHand,
    "vit": vit,
    "six_block": lambda: six_block_resnet(width=8, blocks=2, num_classes=4),
    "ode_rk4": ode,
    "ode_rectified": RectifiedODE,
}


def make(name, size=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = NETWORKS[name]().double().eval()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2), module.running_var.uniform_(0.3, 1)
                module.weight.data.normal_(), module.bias.data.normal_()
        size = 12 if name in ("six_block", "ode_rk4") else 8
        x, x0 = 2 * torch.randn(2, 3, 3, size, size, dtype=torch.float64)
    return net, x, x0


def score(net, x, target):
    return net(x).gather(1, target[:, None])[:, 0]


@pytest.mark.parametrize("rule", RULES, ids=["rescale", "reveal_cancel"])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_parts_add_up_to_the_difference(name, rule):
    net, x, x0 = make(name)
    target = torch.tensor([0, 3, 1])
    difference = score(net, x, target) - score(net, x0, target)
    m = multipliers(net, x, x0, rule, target)
    assert difference.abs().max() > 1e-3
    assert ((m * (x - x0)).sum((1, 2, 3)) - difference).abs().max() <= 1e-11 * difference.abs().max()
    assert m.std() > 0


@pytest.mark.parametrize("rule", RULES, ids=["rescale", "reveal_cancel"])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_close_to_the_baseline_it_is_the_gradient(name, rule):
    """Where nothing is at a kink; the baseline differs by 1e-9, and not at all in one image."""
    net, x, x0 = make(name)
    x0 = x + 1e-9 * (x0 - 0.5)
    x0[0] = x[0]
    expected = multipliers(net, x, x0, Gradient())
    assert (multipliers(net, x, x0, rule) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_single_precision_is_the_same_map(name):
    net, x, x0 = make(name)
    for rule in RULES:
        expected = multipliers(net.double(), x.float().double(), x0.float().double(), rule)
        found = multipliers(net.float(), x.float(), x0.float(), rule)
        assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_a_shared_rectifier_equals_its_own_copies():
    class Own(SharedReLU):
        def forward(self, x):
            x = nn.ReLU()(self.norm(self.first(x)))
            x = nn.MaxPool2d(3, 2, 1)(x)
            y = nn.ReLU()(nn.ReLU()(self.second(x)) + x - 0.3)
            return self.head(nn.ReLU()(nn.MaxPool2d(3, 1, 1)(y)).mean((2, 3)))

    net, x, x0 = make("shared_relu")
    own = Own().double().eval()
    own.load_state_dict(net.state_dict())
    for rule in RULES:
        assert torch.equal(multipliers(own, x, x0, rule), multipliers(net, x, x0, rule))


# --- RevealCancel ----------------------------------------------------------------------------------------------------------------------


class Minimum(nn.Module):
    """min(a, b) = a - relu(a - b) of the two pixels of an image, a - b by a matrix or by a difference."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def forward(self, x):
        a, b = x.flatten(1).split(1, 1)
        t = x.flatten(1) @ x.new_tensor([[1.0], [-1.0]]) if self.matrix else a - b
        return a - F.relu(t)


@pytest.mark.parametrize("matrix", [True, False])
@pytest.mark.parametrize(("pixels", "rescaled"), [((3.0, 2.0), (0.0, 2.0)), ((2.0, 3.0), (2.0, 0.0))])
def test_both_inputs_of_a_minimum_share(pixels, rescaled, matrix):
    """Shrikumar et al. 2017, Fig. 4 and Sec. 3.5.3."""
    x = torch.tensor(pixels, dtype=torch.float64).view(1, 1, 1, 2)
    x0 = torch.zeros_like(x)
    assert (multipliers(Minimum(matrix), x, x0, RevealCancel()) * x).flatten().tolist() == pytest.approx([1, 1])
    assert (multipliers(Minimum(matrix), x, x0, Rescale()) * x).flatten().tolist() == pytest.approx(list(rescaled))


def naive_reveal_cancel(weights, biases, x, x0):
    """Dense layers with ReLU between them, unit by unit, with the paper's four sums."""

    def relu(t):
        return max(t, 0.0)

    states, states0, parts = [x], [x0], []
    for W, b in zip(weights, biases, strict=True):
        before, before0 = states[-1], states0[-1]
        t0 = [sum(w * v for w, v in zip(row, before0, strict=True)) + c for row, c in zip(W, b, strict=True)]
        plus = [sum(max(w * (v - u), 0.0) for w, v, u in zip(row, before, before0, strict=True)) for row in W]
        minus = [sum(min(w * (v - u), 0.0) for w, v, u in zip(row, before, before0, strict=True)) for row in W]
        parts.append((t0, plus, minus))
        last = len(parts) == len(weights)
        states0.append(t0 if last else [relu(t) for t in t0])
        t = [a + p + n for a, p, n in zip(t0, plus, minus, strict=True)]
        states.append(t if last else [relu(v) for v in t])
    m_plus = m_minus = [1.0]
    for layer in reversed(range(len(weights))):
        W, before, before0 = weights[layer], states[layer], states0[layer]
        m = []
        for i, (v, u) in enumerate(zip(before, before0, strict=True)):
            total = 0.0
            for j, row in enumerate(W):
                contribution = row[i] * (v - u)
                half = (m_plus[j] + m_minus[j]) / 2
                total += row[i] * (m_plus[j] if contribution > 0 else m_minus[j] if contribution < 0 else half)
            m.append(total)
        if layer == 0:
            return m
        t0, plus, minus = parts[layer - 1]
        dy_plus = [
            0.5 * (relu(a + p) - relu(a)) + 0.5 * (relu(a + n + p) - relu(a + n))
            for a, p, n in zip(t0, plus, minus, strict=True)
        ]
        dy_minus = [
            0.5 * (relu(a + n) - relu(a)) + 0.5 * (relu(a + n + p) - relu(a + p))
            for a, p, n in zip(t0, plus, minus, strict=True)
        ]
        slopes = [
            ((a > 0) + (a + p + n > 0)) / 2 for a, p, n in zip(t0, plus, minus, strict=True)
        ]  # of a part that is not there
        m_plus = [mi * (d / p if p else s) for mi, d, p, s in zip(m, dy_plus, plus, slopes, strict=True)]
        m_minus = [mi * (d / n if n else s) for mi, d, n, s in zip(m, dy_minus, minus, slopes, strict=True)]


def test_dense_layers_equal_the_paper_unit_by_unit():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(12, 7),
        nn.ReLU(),
        nn.Linear(7, 6),
        nn.ReLU(),
        nn.Linear(6, 5),
        nn.ReLU(),
        nn.Linear(5, 1),
    ).double()
    layers = [module for module in net if isinstance(module, nn.Linear)]
    x, x0 = torch.randn(2, 3, 3, 2, 2, dtype=torch.float64)
    found = multipliers(net, x, x0, RevealCancel()).flatten(1)
    for row in range(3):
        expected = naive_reveal_cancel(
            [layer.weight.tolist() for layer in layers],
            [layer.bias.tolist() for layer in layers],
            x[row].flatten().tolist(),
            x0[row].flatten().tolist(),
        )
        assert found[row].tolist() == pytest.approx(expected, rel=1e-9)
    assert (found - multipliers(net, x, x0, Rescale()).flatten(1)).abs().max() > 0.1 * found.abs().max()


def test_parts_pass_batch_norm_sums_and_views():
    """A unit that is relu(s (A x + B x) + c), written as one linear map and as several operations: the parts are the same."""
    torch.manual_seed(0)
    A, B = torch.randn(2, 6, 12, dtype=torch.float64)
    A[0], B[0] = (
        A[0].abs(),
        B[0].abs(),
    )  # several operations see the contributions of A and of B apart: let them agree in sign
    B = B.abs() * A.sign()
    s, c = torch.randn(2, 6, dtype=torch.float64)

    class One(nn.Module):
        def forward(self, x):
            return F.relu(x.flatten(1) @ (s[:, None] * (A + B)).T + c).sum(1, keepdim=True)

    class Several(nn.Module):
        def forward(self, x):
            t = (x.flatten(1) @ A.T).view(-1, 2, 3) - (x.flatten(1) @ -B.T).view(-1, 2, 3)
            t = s * torch.cat(t.unbind(1), 1) + c
            return F.relu(t[:, None].transpose(1, 2)).squeeze(2).sum(1, keepdim=True)

    x, x0 = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(
        multipliers(Several(), x, x0, RevealCancel()), multipliers(One(), x, x0, RevealCancel()), rtol=1e-10, atol=1e-12
    )


def test_without_anything_to_cancel_it_is_rescale():
    """W >= 0 and delta x >= 0."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(64, 2)
    ).double()
    for name, parameter in net.named_parameters():
        if "weight" in name:
            parameter.data.abs_()
    x0 = torch.rand(2, 3, 8, 8, dtype=torch.float64) - 0.5
    x = x0 + torch.rand_like(x0)
    torch.testing.assert_close(
        multipliers(net, x, x0, RevealCancel()), multipliers(net, x, x0, Rescale()), rtol=1e-9, atol=1e-12
    )


def test_networks_deeper_than_pythons_stack():
    class Deep(nn.Module):
        def forward(self, x):
            for _ in range(550):
                x = 0.999 * x + 1e-4
            return F.relu(x.flatten(1) - 0.1).sum(1, keepdim=True)

    x = torch.rand(1, 1, 2, 2)
    for rule in RULES:
        assert torch.isfinite(multipliers(Deep(), x, torch.zeros_like(x), rule)).all()


# --- single operations -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [*RULES, Gradient()], ids=["rescale", "reveal_cancel", "gradient"])
def test_linear_networks_have_their_weights_as_multipliers(rule):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 2)).double()
    x, x0 = torch.rand(2, 2, 3, 8, 8, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(multipliers(net, x, x0, rule), torch.autograd.grad(net(leaf)[:, 0].sum(), leaf)[0])


def test_pooling_adds_up_where_windows_share_a_winner():
    """One bright pixel wins all four windows of 3x3 with stride 1; the baseline is flat but for its own bright pixel."""

    class Pool(nn.Module):
        def forward(self, x):
            return F.max_pool2d(x, 3, 1).flatten(1).sum(1, keepdim=True)

    x, x0 = torch.zeros(2, 1, 1, 4, 4, dtype=torch.float64)
    x[..., 1, 1], x0[..., 2, 2] = 5.0, 2.0
    m = multipliers(Pool(), x, x0, Rescale())
    assert (
        m[0, 0, 1, 1] == pytest.approx(4 * (5 - 2) / 5) and m[0, 0].count_nonzero() == 1
    )  # 0 -> 5, while the maxima go 2 -> 5
    m = multipliers(Pool(), x0, x, Rescale())
    assert m[0, 0, 1, 1] == pytest.approx(4 * (5 - 2) / 5) and m[0, 0].count_nonzero() == 1


@pytest.mark.parametrize(
    "pool", [lambda x: F.max_pool2d(x, 3, 2, 1), lambda x: x.amax((1, 3)), lambda x: x.max(2).values]
)
def test_multipliers_of_maxima_lie_between_0_and_their_number(pool):
    class Pool(nn.Module):
        def forward(self, x):
            return pool(x).flatten(1).sum(1, keepdim=True)

    x, x0 = torch.randn(2, 5, 3, 7, 7, dtype=torch.float64)
    m = multipliers(Pool(), x, x0, Rescale())
    assert (m >= 0).all() and m.max() <= 49
    difference = pool(x).flatten(1).sum(1) - pool(x0).flatten(1).sum(1)
    torch.testing.assert_close((m * (x - x0)).sum((1, 2, 3)), difference)


class Softmax(nn.Module):
    def forward(self, x):
        return x.flatten(1).softmax(1)


def test_softmax_that_has_not_moved_gives_little():
    """All scores rise by 30: e / sum e by midpoints would give multipliers of the order of exp(30)."""
    x0 = torch.randn(1, 1, 1, 6, dtype=torch.float64)
    m = multipliers(Softmax(), x0 + 30, x0, Rescale())
    assert m.abs().max() <= 1 and m.sum().abs() <= 1e-12
    leaf = x0.clone().requires_grad_()
    torch.testing.assert_close(m, torch.autograd.grad(Softmax()(leaf)[0, 0], leaf)[0])


def test_softmax_of_scores_that_lie_hundreds_apart():
    x = torch.tensor([[[[500.0, -300.0, 20.0, 0.0]]]])
    x0 = torch.tensor([[[[-200.0, 400.0, 20.0, 1.0]]]])
    m = multipliers(Softmax(), x, x0, Rescale())
    assert torch.isfinite(m).all() and m.abs().max() <= 1
    assert (m * (x - x0)).sum().item() == pytest.approx(1, abs=1e-5)


def test_masked_scores_get_nothing():
    class Masked(nn.Module):
        def forward(self, x):
            return x.flatten(1).masked_fill(torch.tensor([False, True, False, False]), -math.inf).softmax(1)

    x, x0 = torch.randn(2, 2, 1, 1, 4, dtype=torch.float64)
    m = multipliers(Masked(), x, x0, Rescale())
    assert torch.isfinite(m).all() and (m[..., 1] == 0).all()
    torch.testing.assert_close((m * (x - x0)).sum((1, 2, 3)), Masked()(x)[:, 0] - Masked()(x0)[:, 0])


@pytest.mark.parametrize("rule", RULES, ids=["rescale", "reveal_cancel"])
@torch.no_grad()
def test_normalization_of_a_flat_baseline_does_not_explode(rule):
    """Its deviations are nearly 0: with 1 / sigma0 as a multiplier fifteen normalizations give 1e14, and no sum.

    Against the network's own difference in the same precision: normalization of a flat image makes rounding large in the network itself.
    """
    torch.manual_seed(0)
    net = six_block_resnet(width=8, blocks=6, num_classes=4).eval()
    x = torch.rand(2, 3, 20, 20)
    x0 = torch.full_like(x, 0.5)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        net, x, x0 = net.to(dtype), x.to(dtype), x0.to(dtype)
        m = multipliers(net, x, x0, rule)
        difference = net(x)[:, 0] - net(x0)[:, 0]
        assert ((m * (x - x0)).sum((1, 2, 3)) - difference).abs().max() <= tolerance * difference.abs().max()
        assert m.abs().max() <= 3 * multipliers(net, x, x0, Gradient()).abs().max()


def test_quotients_by_hand():
    class Quotient(nn.Module):
        def forward(self, x):
            a, b = x.flatten(1).split(1, 1)
            return a / b

    for pixels, pixels0 in (((3.0, 5.0), (1.0, 2.0)), ((3.0, -5.0), (1.0, 2.0)), ((3.0, 1.0), (1.0, 1e-6))):
        x, x0 = (torch.tensor([[[values]]], dtype=torch.float64) for values in (pixels, pixels0))
        m = multipliers(Quotient(), x, x0, Rescale())
        assert (m * (x - x0)).sum().item() == pytest.approx(pixels[0] / pixels[1] - pixels0[0] / pixels0[1])
    assert m[..., 0].item() == pytest.approx(1, abs=1e-5)  # 1 / the larger b, where the mean of 1 / b is 5e5


def test_a_product_is_shared_by_its_shapley_value():
    class Product(nn.Module):
        def forward(self, x):
            a, b = x.flatten(1).split(1, 1)
            return a * b

    x, x0 = torch.tensor([[[[3.0, 5.0]]]]), torch.tensor([[[[1.0, 2.0]]]])
    share = (multipliers(Product(), x, x0, Rescale()) * (x - x0)).flatten().tolist()
    assert share == pytest.approx([((3 - 1) * 2 + (3 - 1) * 5) / 2, ((5 - 2) * 1 + (5 - 2) * 3) / 2])


def test_pixels_as_in_the_baseline_get_nothing():
    net, x, x0 = make("shared_relu")
    x0[:, :, :4] = x[:, :, :4]
    for rule in RULES:
        attribution = multipliers(net, x, x0, rule) * (x - x0)
        assert (attribution[:, :, :4] == 0).all() and (attribution[:, :, 4:] != 0).any()


@pytest.mark.parametrize("name", ["shared_relu", "gate", "dense", "six_block", "ode_rk4", "ode_rectified"])
@torch.no_grad()
def test_one_baseline_for_all_images_may_be_recorded_alone(name):
    net, x, x0 = make(name)
    one = x0[:1]
    for rule in RULES:
        expected = multipliers(net, x, one.expand_as(x), rule)
        torch.testing.assert_close(
            multipliers(net, x, one, rule), expected, rtol=1e-8, atol=1e-10 * expected.abs().max().item()
        )


# --- what is refused -------------------------------------------------------------------------------------------------------------------


class Chosen(nn.Module):
    """A network of one free function of the pixels."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x).flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda x: torch.where(x > 0.5, 2 * x, x - 1), "'where'.*neither the maximum nor the minimum"),
        (lambda x: x.sin() if x.mean() > 0.4 else x.cos(), "computes the image in other operations than the baseline"),
        (lambda x: x * float(x.max()), "another constant on the baseline"),
        (
            lambda x: x[:, :, x.sum((0, 1, 3)).argsort()] * torch.arange(1, 4)[:, None],
            "another constant on the baseline",
        ),
        (lambda x: torch.cumprod(x, 2), "'cumprod'.*not covered"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(function, sentence):
    x = torch.linspace(0.1, 0.9, 9).view(1, 1, 3, 3)
    for rule in RULES:
        with pytest.raises(UserError, match=sentence):
            multipliers(Chosen(function), x, x.flip(2) / 2, rule)


def test_an_adaptive_solver_is_refused():
    net = NeuralODE.from_resnet(
        six_block_resnet(width=6, blocks=2, num_classes=4), RungeKutta("dopri5", rtol=1e-5, atol=1e-5)
    ).eval()
    with pytest.raises(UserError, match="fixed steps"):
        multipliers(net, torch.rand(1, 3, 12, 12), torch.zeros(1, 3, 12, 12), Rescale())


# --- noise -----------------------------------------------------------------------------------------------------------------------------

KINDS = {
    "normalized": Noise(0.5),
    "absolute": Noise(0.3, normalize=False),
    "multiplicative": Noise(0.5, "multiplicative"),
    "dropout": Noise(0.3, "dropout"),
    "jump": Noise(0.5, "jump", rate=0.3),
}


@pytest.mark.parametrize("rule", RULES, ids=["rescale", "reveal_cancel"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_image_and_baseline_share_one_noise_path(kind, rule):
    """Noise is drawn once per image, and what it makes of the image and of the baseline belongs to the difference."""
    torch.manual_seed(2)
    net = six_block_resnet(width=6, blocks=2, num_classes=4, noise=KINDS[kind]).double().eval()
    x, x0 = 2 * torch.randn(2, 2, 3, 12, 12, dtype=torch.float64)
    target = torch.tensor([1, 3])
    with noise_scope(torch.tensor([5, 9]), seed=3):
        difference = score(net, x, target) - score(net, x0, target)
        m = multipliers(net, x, x0, rule, target)
    assert ((m * (x - x0)).sum((1, 2, 3)) - difference).abs().max() <= 1e-11 * difference.abs().max()
    assert (difference - (score(net, x, target) - score(net, x0, target))).abs().max() > 1e-2 * difference.abs().max()


def test_a_stochastic_network_is_complete_too():
    torch.manual_seed(2)
    net = NeuralSDE.from_resnet(
        six_block_resnet(width=6, blocks=2, num_classes=4),
        EulerMaruyama(steps=2),
        diffusion=MultiplicativeDiffusion(0.3),
    )
    net = net.double().eval()
    x, x0 = 2 * torch.randn(2, 2, 3, 12, 12, dtype=torch.float64)
    with torch.no_grad(), noise_scope(torch.tensor([5, 9]), seed=3):
        difference = net(x)[:, 0] - net(x0)[:, 0]
        for rule in RULES:
            m = multipliers(net, x, x0, rule)
            assert ((m * (x - x0)).sum((1, 2, 3)) - difference).abs().max() <= 1e-11 * difference.abs().max()
