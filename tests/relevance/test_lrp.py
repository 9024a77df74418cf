"""Every rule for linear maps against its equation written out as a matrix, against zennit, and against what it promises."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from explainode.explainers.guard import guard
from explainode.explainers.relevance import Relevance
from explainode.relevance.composite import Assignment, Composite
from explainode.relevance.composites import lrp
from explainode.relevance.operations import Linear
from explainode.relevance.rules.lrp import AlphaBeta, Epsilon, Flat, Gamma, LinearRule, WSquare, ZBox, ZPlus
from explainode.relevance.rules.structure import Split
from explainode.relevance.tape import record
from explainode.relevance.walk import Walk

LAYERS = {
    "convolution": (lambda: nn.Conv2d(4, 6, 3, 2, 1), (4, 5, 6)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 4, 5)),
    "transposed, grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), (4, 3, 4)),
    "folded": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)), (4, 4, 4)),
    "transposed, folded": (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (4, 3, 3)),
    "dense": (lambda: nn.Linear(7, 5), (7,)),
    "dense, folded": (lambda: nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5)), (7,)),
    "average": (lambda: nn.AvgPool2d(3, 2, 1), (2, 6, 6)),
    "bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (2, 3, 3)),
}  # fmt: skip


class Alone(nn.Module):
    """One layer, behind a rectifier or not."""

    def __init__(self, layer: nn.Module, rectified: bool) -> None:
        super().__init__()
        self.layer, self.rectified = layer, rectified

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.relu() if self.rectified else x + 0)


def alone(name: str, rectified: bool):
    """The operation of a layer on two images, a walk, the relevance of its outputs, its matrix A (m, n) and bias b (m)."""
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer = build().double().eval()
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            (
                module.running_mean.normal_(),
                module.running_var.uniform_(0.5, 2),
                module.weight.data.normal_(),
                module.bias.data.normal_(),
            )
    x = torch.randn(2, *shape, dtype=torch.double)
    with guard(Alone(layer, rectified)) as net:
        tape = record(net, x)
    (operation,) = [operation for operation in tape.operations if isinstance(operation, Linear)]
    given = operation.inputs[0].data
    A = torch.autograd.functional.jacobian(layer, given[:1])
    m, n = operation.output.data[0].numel(), given[0].numel()
    A = A.reshape(m, n)
    b = (operation.output.data.reshape(2, m) - given.reshape(2, n) @ A.T)[0]
    b = torch.zeros_like(b) if operation.bias is None else b
    R = torch.randn(2, *operation.output.data.shape[1:], dtype=torch.double)
    return operation, Walk(tape), R, A, b


def contributions(rule: LinearRule, A: Tensor, x: Tensor, z: Tensor) -> list[tuple[float, Tensor]]:
    """The rule's equation: (factor, q (m, n)) for one image x (n)."""
    xa = x * A
    match rule:
        case Epsilon():
            return [(1.0, xa)]
        case ZPlus():
            return [(1.0, xa.clamp(min=0))]
        case AlphaBeta():
            return [(rule.alpha, xa.clamp(min=0)), (-rule.beta, xa.clamp(max=0))]
        case Gamma():
            favored = torch.where(z[:, None] >= 0, xa.clamp(min=0), xa.clamp(max=0))
            return [(1.0, xa + rule.gamma * favored)]
        case WSquare():
            return [(1.0, A.square())]
        case Flat():
            return [(1.0, (A != 0).to(A.dtype))]
    raise AssertionError(rule)


RULES = [
    Epsilon(0.0, bias="drop"), Epsilon(0.1), Epsilon(0.1, relative=True), ZPlus(), ZPlus(bias="absorb"), AlphaBeta(), AlphaBeta(3.0, 2.0),
    Gamma(0.25), Gamma(2.0), Gamma(0.25, bias="absorb"), WSquare(), Flat(),
]  # fmt: skip


@pytest.mark.parametrize("rectified", [True, False])
@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("name", LAYERS)
def test_every_rule_is_its_equation(name, rule, rectified):
    operation, walk, R, A, b = alone(name, rectified)
    if name == "bilinear" and isinstance(rule, WSquare | Flat):
        pytest.skip("an interpolation's weights stand for its squares and ones")
    (found,) = rule.propagate(operation, (R,), walk)
    x, y = operation.inputs[0].data.flatten(1), operation.output.data.flatten(1)
    connected = A if name == "bilinear" else (A != 0).to(A.dtype)  # an interpolation hands out by its own weights
    for i in range(2):
        z = A @ x[i]
        expected = torch.zeros_like(x[i])
        for factor, q in contributions(rule, A, x[i], z if rule.bias == "drop" else y[i]):
            total = q.sum(1)
            if rule.bias == "absorb":
                total = total + _bias_share(rule, b, q, y[i])
            if isinstance(rule, Epsilon):
                size = y[i].square().mean().sqrt() if rule.relative else 1.0
                total = total + (1 - 2 * (total < 0).to(total)) * rule.epsilon * size
            weights = q / torch.where(total == 0, 1.0, total)[:, None]
            R_i = R[i].flatten()
            if isinstance(rule, AlphaBeta):  # the side that is there takes all
                against, speaks = (x[i] * A).clamp(max=0).sum(1), (x[i] * A).clamp(min=0).sum(1)
                both = (against != 0) & (speaks != 0)
                factor = torch.where(both, factor, 1.0)
            expected += weights.T @ (factor * R_i)
            empty = (q.sum(1) == 0) & (total == 0)
            if not isinstance(rule, AlphaBeta) and not isinstance(rule, Epsilon):
                expected += (connected / connected.sum(1, keepdim=True)).T @ (R_i * empty)
        if isinstance(rule, AlphaBeta):
            neither = (against == 0) & (speaks == 0)
            expected += (connected / connected.sum(1, keepdim=True)).T @ (R_i * neither)
        torch.testing.assert_close(found[i].flatten(), expected, rtol=1e-9, atol=1e-9)


def _bias_share(rule: LinearRule, b: Tensor, q: Tensor, y: Tensor) -> Tensor:
    match rule:
        case ZPlus():
            return b.clamp(min=0)
        case Gamma():
            return b + rule.gamma * torch.where(y >= 0, b.clamp(min=0), b.clamp(max=0))
    return b


@pytest.mark.parametrize("normalize", [False, True])
def test_z_box_is_its_equation_in_pixels(normalize):
    """Through a normalization the box is carried along: x a - l a+ - h a- in pixels and in normalized pixels are the same shares."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3).double()

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return conv((x - 0.4) / -0.5 if normalize else x)

    x, R = torch.rand(1, 3, 5, 5, dtype=torch.double), torch.randn(1, 5, 3, 3, dtype=torch.double)
    with guard(Net()) as net:
        tape = record(net, x)
    (operation,) = [operation for operation in tape.operations if operation.kind == "linear"]
    (found,) = ZBox(0.0, 1.0).propagate(operation, (R,), Walk(tape))
    A = torch.autograd.functional.jacobian(Net(), x).reshape(45, 75)  # of the pixels
    q = x.flatten() * A - A.clamp(max=0)  # l = 0, h = 1
    torch.testing.assert_close(found.flatten(), (q / q.sum(1, keepdim=True)).T @ R.flatten(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "rule", [ZPlus(bias="distribute"), Gamma(bias="distribute"), Epsilon(0.0, bias="distribute")], ids=repr
)
def test_a_distributed_bias_loses_nothing(rule):
    operation, walk, R, _, _ = alone("convolution", True)
    (found,) = rule.propagate(operation, (R,), walk)
    torch.testing.assert_close(found.sum((1, 2, 3)), R.sum((1, 2, 3)))


def test_a_dead_unit_spreads_its_relevance_and_says_so():
    conv = nn.Conv2d(1, 1, 3, bias=False).double()
    nn.init.constant_(conv.weight, -1.0)
    with guard(Alone(conv, True)) as net:
        tape = record(net, torch.ones(1, 1, 3, 3, dtype=torch.double))
    walk = Walk(tape)
    (found,) = ZPlus().propagate(tape.operations[-1], (torch.full((1, 1, 1, 1), 9.0, dtype=torch.double),), walk)
    assert torch.equal(found, torch.ones(1, 1, 3, 3, dtype=torch.double))
    assert walk.amounts["spread"].tolist() == [9.0]


def test_gamma_conserves_where_biases_dwarf_what_the_inputs_contribute():
    conv = nn.Conv2d(2, 3, 3).double()
    conv.weight.data.mul_(1e-9), conv.bias.data.fill_(1e6)
    torch.manual_seed(0)
    with guard(Alone(conv, True)) as net:
        tape = record(net, torch.rand(2, 2, 5, 5, dtype=torch.double))
    R = torch.rand(2, 3, 3, 3, dtype=torch.double)
    (found,) = Gamma().propagate(tape.operations[-1], (R,), Walk(tape))
    torch.testing.assert_close(found.sum((1, 2, 3)), R.sum((1, 2, 3)), rtol=1e-12, atol=0)


class Vgg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(12 * 4, 10), nn.ReLU(), nn.Linear(10, 4))
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


TARGET = torch.tensor([0, 3, 1, 2])


@pytest.fixture
def x() -> Tensor:
    return torch.rand(4, 3, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(1))


def zennits(composite, net: nn.Module, x: Tensor, target: Tensor, logit: bool = True) -> Tensor:
    from zennit.attribution import Gradient as Attributor

    seeds = net(x).detach() if logit else torch.ones(len(x), 4, dtype=x.dtype)
    chosen = torch.zeros_like(seeds).scatter_(1, target[:, None], 1.0) * seeds
    with Attributor(model=net, composite=composite) as attributor:
        return attributor(x, chosen)[1]


def pairs():
    """name of our explainer -> the same composite of zennit's."""
    rules, composites = pytest.importorskip("zennit.rules"), pytest.importorskip("zennit.composites")
    types = pytest.importorskip("zennit.types")
    # zennit adds 1e-6 to every denominator; ours adds nothing where nothing is said about it
    quiet = {"zero_params": "bias", "stabilizer": lambda z: torch.where(z == 0, 1.0, z)}

    def layer(rule, pool=rules.Norm(stabilizer=quiet["stabilizer"])):  # noqa: B008
        return composites.LayerMapComposite(
            [(types.Activation, rules.Pass()), (types.AvgPool, pool), (types.Linear, rule)]
        )

    return {
        "dtd_z_plus": layer(rules.ZPlus(**quiet)),
        "lrp_alpha2_beta1": layer(rules.AlphaBeta(2.0, 1.0, **quiet)),
        "lrp_gamma": layer(rules.Gamma(0.25, **quiet)),
        "dtd_w2": layer(rules.WSquare(**quiet), rules.Flat(**quiet)),
        "lrp_flat": layer(rules.Flat(**quiet), rules.Flat(**quiet)),
        "lrp_epsilon": layer(rules.Epsilon(1e-6), rules.Norm()),
    }


@pytest.mark.parametrize("name", ["dtd_z_plus", "lrp_alpha2_beta1", "lrp_gamma", "dtd_w2", "lrp_flat", "lrp_epsilon"])
def test_maps_are_zennits_where_zennit_is_right(name, x, composite):
    theirs = pairs()[name]
    net = Vgg()
    if (
        name == "lrp_gamma"
    ):  # theirs looks at the sign with the bias, which it then drops; we at that of what the inputs contribute
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.zeros_(module.bias)
    expected = zennits(theirs, copy.deepcopy(net), x.clone().requires_grad_(), TARGET)
    found = Relevance(composite(name))(net, x, TARGET)
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()


class Biased(nn.Module):
    """A normalization in single precision, convolutions with biases and BatchNorm before and behind a rectifier, a residual sum, pooling, a dense head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6), nn.MaxPool2d(2)
        )
        self.block = nn.Sequential(
            nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        )
        self.head = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4))
        unsettle(self)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        x = self.stem((x - mean) / std)
        return self.head((x + self.block(x)).relu().mean((2, 3)))


def unsettle(net: nn.Module) -> None:
    """BatchNorm that does something, and biases that are not zero."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            (
                module.running_mean.normal_(0, 0.2),
                module.running_var.uniform_(0.5, 2),
                module.weight.data.uniform_(0.5, 1.5),
            )
        if getattr(module, "bias", None) is not None:
            module.bias.data.normal_(0, 0.2)


def test_lrp_0_is_input_times_gradient_where_biases_absorb(x, composite, by_autograd):
    net = Biased()
    expected = x * by_autograd(net, x, TARGET)
    size = expected.abs().amax((1, 2, 3), keepdim=True)
    found = Relevance(composite("lrp_0"))(net, x, TARGET)
    assert bool(((found - expected).abs() <= 1e-10 * size).all())
    # no coincidence: an epsilon bends it, and so does a bias that takes nothing
    for rule in (Epsilon(0.1), Epsilon(0.1, relative=True), Epsilon(0.0, bias="drop")):
        bent = Relevance(lrp([Assignment(rule)], residual="signed", constants="absorb"))(net, x, TARGET)
        assert bool(((bent - expected).abs().amax((1, 2, 3), keepdim=True) > 1e-2 * size).all())


def small_resnet() -> nn.Module:
    resnet = pytest.importorskip("torchvision.models.resnet")
    torch.manual_seed(0)
    net = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=4)
    unsettle(net)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0  # zennit merges it and leaves it in the normalization too
    return net.double().eval()


@pytest.mark.parametrize("name", ["z+", "epsilon plus", "epsilon plus, biases in z"])
def test_residual_networks_are_zennits_on_its_canonized_form(name, x):
    """Theirs merges BatchNorm into the weights and makes modules of sums; ours finds both on the tape of the untouched network."""
    rules, composites = pytest.importorskip("zennit.rules"), pytest.importorskip("zennit.composites")
    types, canonizers = pytest.importorskip("zennit.types"), pytest.importorskip("zennit.torchvision")
    from zennit.layer import Sum

    drop = name != "epsilon plus, biases in z"
    z_plus = rules.ZPlus(stabilizer=quiet, **({"zero_params": "bias"} if drop else {}))
    dense = z_plus if name == "z+" else rules.Epsilon(1e-6)
    layers = [
        (types.Activation, rules.Pass()),
        (Sum, rules.Norm(stabilizer=quiet)),
        (types.AvgPool, rules.Norm(stabilizer=quiet)),
    ]
    theirs = composites.LayerMapComposite(
        [*layers, (types.Convolution, z_plus), (types.Linear, dense)], canonizers=[canonizers.ResNetCanonizer()]
    )
    net, x = small_resnet(), torch.nn.functional.interpolate(x, scale_factor=4)
    expected = zennits(theirs, copy.deepcopy(net), x.clone().requires_grad_(), TARGET)
    ours = ZPlus(bias="drop" if drop else "absorb")
    linear = [
        Assignment(ours, op="convolution"),
        Assignment(ZPlus(), kind="average"),
        Assignment(ours if name == "z+" else Epsilon(1e-6)),
    ]
    found = Relevance(lrp(linear, residual="signed"))(net, x, TARGET)
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


def quiet(z: Tensor) -> Tensor:
    """Zennit's stabilizer adding nothing where there is something to divide by."""
    return torch.where(z == 0, 1.0, z)


@pytest.mark.slow
@pytest.mark.parametrize("explainer", ["dtd_z_plus", "lrp_gamma"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "vgg11_bn", "deit_tiny_patch16_224"])
def test_relevance_of_networks_from_the_shelf_is_conserved(name, explainer, composite):
    """Where biases and constants take nothing, the pixels of each image hold its logit: through residual sums, gates, concatenations and tokens."""
    torch.manual_seed(0)
    if name.startswith("deit"):
        net = pytest.importorskip("timm").create_model(name, img_size=64, num_classes=4)
    else:
        net = getattr(pytest.importorskip("torchvision.models"), name)(num_classes=4)
    if name.startswith("vgg"):  # its 120 million weights behind the features are of one kind
        net.classifier[0], net.classifier[3], net.classifier[6] = (
            nn.Linear(25088, 32),
            nn.Linear(32, 32),
            nn.Linear(32, 4),
        )
    unsettle(net)
    net.double().eval()
    x = torch.rand(4, 3, 64, 64, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = net(x).gather(1, TARGET[:, None])[:, 0]
    R = Relevance(composite(explainer))(net, x, TARGET)
    torch.testing.assert_close(R.sum((1, 2, 3)), logits, rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", ["positive", "signed", "half", "rectified"])
@pytest.mark.parametrize("reader", [nn.ReLU(), nn.GELU()])
def test_a_sum_is_split_as_its_equation_says(name, reader):
    """R_a = q_a / (q_a + q_b) R, written out; `rectified` is `positive` before a ReLU and `signed` before anything else."""

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return reader((x - 0.5) + (0.3 - x.square()))

    torch.manual_seed(0)
    x, R = torch.rand(2, 3, 4, 4, dtype=torch.double), torch.randn(2, 3, 4, 4, dtype=torch.double)
    with guard(Net()) as net:
        tape = record(net, x)
    (operation,) = tape.of_kind("sum")
    shares = Split(name).propagate(operation, (R,), Walk(tape))
    a, b = x - 0.5, 0.3 - x.square()
    if name == "positive" or (name == "rectified" and isinstance(reader, nn.ReLU)):
        a, b = a.clamp(min=0), b.clamp(min=0)
        weight = torch.where(a + b > 0, a / (a + b), 0.5)
    else:
        weight = torch.full_like(a, 0.5) if name == "half" else a / (a + b)
    torch.testing.assert_close(shares[0], weight * R, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(shares[0] + shares[1], R, rtol=1e-12, atol=1e-12)


class Transformer(nn.Module):
    """Tokens of 4 x 4 pixels, `depth` blocks of attention and dense layers behind layer normalization, their mean, a head."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.head = nn.Conv2d(3, 16, 4, 4), nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 4))
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2 * depth))
        self.attentions = nn.ModuleList(nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(depth))
        self.denses = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(depth)
        )
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        t = self.patches(x).flatten(2).transpose(1, 2)
        for i, (attention, dense) in enumerate(zip(self.attentions, self.denses, strict=True)):
            n = self.norms[2 * i](t)
            t = t + attention(n, n, n, need_weights=False)[0]
            t = t + dense(self.norms[2 * i + 1](t))
        return self.head(t.mean(1))


def test_the_combination_does_not_explode_where_sums_are_not_rectified(composite):
    """LRP-0 below a positive split divides halves of R by terms that nearly vanish, block by block."""
    net, x = Transformer(16), torch.rand(4, 3, 16, 16, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    ours = composite("lrp_combination")
    with torch.no_grad():
        logits = net(x).gather(1, TARGET[:, None])[:, 0].abs()

    def growth(rules: Composite) -> Tensor:
        return Relevance(rules)(net, x, TARGET).abs().sum((1, 2, 3)) / logits

    linear = [assignment for assignment in ours.assignments if isinstance(assignment.rule, LinearRule)]
    assert growth(ours).max() < 20
    assert (
        growth(lrp(linear)).min() > 1000
    )  # the same rules for linear maps with positive splits, and normalization that passes


def test_how_pixels_are_normalized_does_not_matter_to_the_combination(x, composite):
    """(x - m) / s, and x / s + (-m / s): the box goes through either."""

    class Normalized(nn.Module):
        def __init__(self, net: nn.Module, added: bool) -> None:
            super().__init__()
            self.net, self.added = net, added

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x / 0.2 + (-0.4 / 0.2) if self.added else (x - 0.4) / 0.2)

    subtracted, added = (
        Relevance(composite("lrp_combination"))(Normalized(Vgg(), added), x, TARGET) for added in (False, True)
    )
    torch.testing.assert_close(added, subtracted, rtol=1e-7, atol=1e-12)


def test_the_combination_is_what_it_was_where_sums_are_rectified(x, composite):
    """BatchNorm is folded into convolutions and ReLU reads every sum: splits are positive, and no normalization is left."""
    net, ours = small_resnet(), composite("lrp_combination")
    x = torch.nn.functional.interpolate(x, scale_factor=4)
    linear = [assignment for assignment in ours.assignments if isinstance(assignment.rule, LinearRule)]
    assert torch.equal(Relevance(ours)(net, x, TARGET), Relevance(lrp(linear))(net, x, TARGET))
