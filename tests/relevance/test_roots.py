"""Root inference against the z+ rule, closed forms, autograd and its own promises: sums, boxes, falling losses."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from explainode.errors import UserError
from explainode.explainers.base import guard
from explainode.explaining import explain
from explainode.models.resnet import cifar_resnet
from explainode.models.vgg import small_vgg
from explainode.registry.build import get
from explainode.relevance.composite import Assignment, Composite
from explainode.relevance.composites import lrp
from explainode.relevance.operations import Linear
from explainode.relevance.rule import ratio
from explainode.relevance.rules.lrp import ZBox, ZPlus
from explainode.relevance.rules.roots import (
    EM,
    Inference,
    RootInference,
    Unit,
    dtd_em,
    measure,
    positive_parts,
    root_inference,
)
from explainode.relevance.tape import record
from explainode.relevance.walk import Walk, seed

FREE = Inference(steps=4, init="x", gradient_constrain="none")
LITERAL = Inference(steps=4, init="x", match=False, box=False, gradient_constrain="none")


class Rectified(nn.Module):
    """(B, 3, 8, 8) -> (B, 4): convolutions of inputs that cannot be negative, and a sum of two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.body = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.body((x + self.branch(x)).relu()).mean((2, 3)))


class Transformer(nn.Module):
    """(B, 3, 8, 8) -> (B, 4): inputs of both signs, attention, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc1, self.fc2, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.patches(x).flatten(2).mT
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head((x + self.fc2(F.gelu(self.fc1(self.norm2(x))))).mean(1))


@pytest.fixture(params=[Rectified, Transformer])
def net(request):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = request.param()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, 0, 0.3), nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.double().eval()


@pytest.fixture
def x():
    return torch.rand(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def walk_back(net, x, composite, target=(0, 3, 1), **options):
    with guard(net) as network:
        tape = record(network, x)
        walk = Walk(tape, **options)
        start = seed(tape, torch.tensor(target[: len(x)]), composite.seed)
        return walk.back({tape.output: start}, composite), start, walk


def one_unit(W, x, R, rectify=True, activation=F.relu, kind="auto"):
    """The unit x -> activation(W x), with inputs that cannot be negative if `rectify`; its walk; the relevance of its outputs."""

    class Net(nn.Module):
        def forward(self, x):
            x = x.flatten(1)
            return activation((x.relu() if rectify else 1.0 * x) @ W.T)

    walk = Walk(record(Net(), x[:, :, None, None]))
    (operation,) = walk.tape.of_kind("linear")
    return Unit.of(operation, kind, walk), R, walk


def random_unit(rectify=True, activation=F.relu, inputs=6, outputs=5, kind="auto", images=3):
    g = torch.Generator().manual_seed(3)
    W = torch.randn(outputs, inputs, dtype=torch.float64, generator=g)
    x = torch.randn(images, inputs, dtype=torch.float64, generator=g)
    x = x.abs() if rectify else x
    R = torch.rand(images, outputs, dtype=torch.float64, generator=g) * (activation(x @ W.T) > 0)
    assert (R.sum(1) > 0).all()
    return one_unit(W, x, R, rectify, activation, kind)


# --- root inference ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rectify", [True, False])
def test_at_the_signal_x_it_is_the_z_plus_rule(rectify):
    unit, R, walk = random_unit(rectify)
    signal = Inference(steps=1, init="x", gradient_constrain="none")(unit, R, walk)
    S = unit.operation.inputs[0].data
    of_x = RootInference().share(unit, replace_signal(signal, S, unit), R, walk)
    assert torch.allclose(of_x, ZPlus().propagate(unit.operation, (R,), walk)[0], rtol=1e-12, atol=1e-14)


def replace_signal(signal, S, unit):
    signal.S, signal.z = S, unit.z(S)
    return signal


@pytest.mark.parametrize(
    "composite",
    [
        root_inference(Inference(steps=3)),
        root_inference(FREE, attention="half"),
        root_inference(replace(FREE, step="raw", gamma=0.05)),
        root_inference(replace(FREE, init="zero", gradient_constrain="elementwise"), second_order=False),
        root_inference(replace(FREE, init="zero", gradient_constrain="soft", match=False)),
        root_inference(replace(FREE, init="zero", box=False)),
    ],
    ids=["recommended", "free", "raw", "elementwise", "soft", "no box"],
)
def test_relevance_is_conserved(net, x, composite):
    R, start, _ = walk_back(net, x, composite)
    assert torch.isfinite(R).all()
    assert ((R.flatten(1).sum(1) - start.sum(1)).abs() <= 1e-10 * start.abs().sum(1)).all()


def test_relevance_of_both_signs_is_conserved(net, x):
    for composite in (root_inference(FREE, seed="contrastive"), dtd_em(seed="softmax")):
        R, start, _ = walk_back(net, x, composite)
        assert (R.flatten(1).sum(1).abs() <= 1e-10 * start.abs().sum(1)).all()
        assert R.abs().max() > 0


@pytest.mark.parametrize("make", [lambda: small_vgg(5, (6, 8), 1, 16), lambda: cifar_resnet(8, 5)])
def test_relevance_is_conserved_in_our_networks(make):
    torch.manual_seed(0)
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    R, start, _ = walk_back(make().double().eval(), x, root_inference(Inference(steps=2)))
    assert ((R.flatten(1).sum(1) - start.sum(1)).abs() <= 1e-10 * start.abs().sum(1)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("entry", ["root_inference", "dtd_em"])
def test_relevance_is_conserved_in_known_networks(name, entry):
    torch.manual_seed(0)
    if name.startswith("vit"):
        timm = pytest.importorskip("timm", reason="timm is an optional package")
        net = timm.create_model(name, img_size=32, num_classes=10)
        nn.init.normal_(net.head.weight, 0, 0.02)
    else:
        import torchvision

        net = torchvision.models.get_model(name, num_classes=10)
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    R, start, _ = walk_back(net.double().eval(), x, get(f"composite/{entry}"))
    assert (R.sum() - start.sum()).abs() <= 1e-10 * start.abs().sum()


@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize("constrain", ["none", "backtrack", "elementwise", "soft"])
def test_signal_and_root_lie_between_0_and_x(rectify, constrain):
    unit, R, walk = random_unit(rectify)
    S = Inference(steps=5, gradient_constrain=constrain)(unit, R, walk).S
    x = unit.operation.inputs[0].data
    assert (S.abs() <= x.abs()).all() and (S * x >= 0).all()
    assert S.abs().max() > 0
    assert torch.equal(S + (x - S), x) or (S + (x - S) - x).abs().max() <= 1e-15


def test_what_the_layer_made_is_its_own_signal():
    unit, _, walk = random_unit()
    R = unit.operation.output.data.clamp(min=0)
    for steps in (1, 7):
        signal = replace(FREE, steps=steps)(unit, R, walk)
        assert torch.allclose(signal.S, unit.operation.inputs[0].data, rtol=1e-12)
        found = measure(unit, signal, walk)
        assert found["root_residual"].max() <= 1e-24 and found["root_output"].max() <= 1e-12


def test_the_exact_step_never_raises_the_loss_where_the_unit_is_linear():
    unit, R, walk = random_unit(rectify=False)  # no domain holds it either
    residuals = []
    for steps in range(1, 12):
        signal = Inference(steps=steps, init="x", box=False, gradient_constrain="none")(unit, R, walk)
        residuals.append(measure(unit, signal, walk)["root_residual"])
    assert (torch.stack(residuals).diff(dim=0) <= 1e-12).all()


def test_the_exact_step_is_the_minimum_along_the_gradient():
    unit, R, walk = random_unit(rectify=False, kind="auto")
    x = unit.operation.inputs[0].data
    k = (unit.z(x).sum(1) / R.sum(1))[:, None]

    def loss(T):
        return (unit.z(T) - k * R).square().sum(1)

    T = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss(T).sum(), T)
    S = Inference(steps=1, init="x", box=False, gradient_constrain="none")(unit, R, walk).S
    t = ((x - S) / g).mean(1, keepdim=True)
    assert torch.allclose(x - t * g, S)  # along the gradient
    lengths = torch.linspace(0.9, 1.1, 21, dtype=torch.float64)
    losses = torch.stack([loss(x - s * t * g) for s in lengths])
    assert (losses.argmin(0) == 10).all()


def test_a_single_neuron_by_hand():
    # f = max(3 T1 + 4 T2, 0), x = (1, 1), one more neuron takes all of f: R = (7, 0) of f(x) = (7, 3); R_hat = (10, 0)
    W = torch.tensor([[3.0, 4.0], [0.0, 3.0]], dtype=torch.float64)
    unit, R, walk = one_unit(W, torch.ones(1, 2, dtype=torch.float64), torch.tensor([[7.0, 0.0]], dtype=torch.float64))
    r = torch.tensor([[7.0 - 10, 3.0]], dtype=torch.float64)
    g = 2 * r @ W
    Jg = g @ W.T
    T = (1 - (r * Jg).sum() / Jg.square().sum() * g).clamp(0, 1)
    signal = replace(FREE, steps=1)(unit, R, walk)
    assert torch.allclose(signal.S, T)
    share = RootInference().share(unit, signal, R, walk)
    assert torch.allclose(share, 7 * T * W[0] / (T * W[0]).sum())


def test_backtracking_keeps_the_gradient_near():
    unit, R, walk = random_unit(inputs=20, outputs=30, images=8)

    def difference(inference):
        signal = inference(unit, R, walk)
        x, N = unit.operation.inputs[0].data, unit.operation.inputs[0].data - signal.S
        of_x, of_N = (unit.back(unit.slope(unit.z(v))) for v in (x, N))
        return (of_N - of_x).abs().mean(1) / of_x.abs().mean(1), signal

    free, free_signal = difference(Inference(steps=5, gradient_constrain="none", box=False))
    kept, kept_signal = difference(Inference(steps=5, gradient_constrain="backtrack", box=False))
    assert (free > 0.5).any() and (kept <= 0.5 + 0.25).all() and kept.mean() < free.mean()
    assert (
        measure(unit, kept_signal, walk)["root_gradient_mse"]
        <= measure(unit, free_signal, walk)["root_gradient_mse"] + 1e-12
    ).all()


def test_with_the_constraint_x_is_self_defeating():
    unit, R, walk = random_unit(inputs=20, outputs=30)
    assert torch.equal(Inference(init="x")(unit, R, walk).S, unit.operation.inputs[0].data)


def test_the_second_order_changes_nothing_where_units_are_piecewise_linear(x):
    torch.manual_seed(0)
    net = Rectified().double().eval()
    maps = [walk_back(net, x, root_inference(Inference(steps=3), second_order=on))[0] for on in (True, False)]
    assert torch.equal(*maps)
    transformer = Transformer().double().eval()
    maps = [walk_back(transformer, x, root_inference(Inference(steps=3), second_order=on))[0] for on in (True, False)]
    assert not torch.allclose(*maps)


def test_the_second_order_is_taylors_of_a_gelu_unit():
    unit, _, _ = random_unit(rectify=False, activation=F.gelu)
    z = torch.tensor([[0.3, 1.2, 2.5, -1.0, 0.7]], dtype=torch.float64)
    slope = torch.func.vmap(torch.func.vmap(torch.func.grad(F.gelu)))(z)
    curvature = torch.func.vmap(torch.func.vmap(torch.func.grad(torch.func.grad(F.gelu))))(z)
    assert torch.allclose(unit.slope(z), slope) and torch.allclose(unit.curvature(z), curvature)
    first, second = (RootInference(second_order=on).weight(unit, z) for on in (False, True))
    expected = ((z * slope - z**2 * curvature / 2) / F.gelu(z)).clamp(min=0)
    assert torch.allclose(second[z > 0], expected[z > 0]) and torch.allclose(
        first[z > 0], (z * slope / F.gelu(z))[z > 0]
    )
    assert (second[z <= 0] == 1).all()
    near = torch.tensor([[0.05]], dtype=torch.float64)
    errors = [(RootInference(second_order=on).weight(unit, near) - 1).abs().item() for on in (False, True)]
    assert errors[1] < 0.05 * errors[0]  # the polynomial of higher order is nearer


def test_without_the_positive_constraint_it_is_the_lrp_form_at_the_signal():
    unit, R, walk = random_unit(inputs=20, outputs=6)
    signal = Inference(steps=3)(unit, R, walk)
    S, W = signal.S, unit.operation.map.weight.T
    f = (S @ W.T).clamp(min=0)
    expected = S * (ratio(R, f) @ W)
    expected = expected * (R.sum(1) / expected.sum(1))[:, None]
    assert torch.allclose(RootInference(positive_constrain=False).share(unit, signal, R, walk), expected)


def test_equation_17_as_printed_is_gradient_times_signal():
    unit, R, walk = random_unit()
    signal = LITERAL(unit, R, walk)
    S = signal.S.clone().requires_grad_()
    (g,) = torch.autograd.grad((S @ unit.operation.map.weight).relu().sum(), S)
    assert torch.allclose(RootInference(propagation="gradient").share(unit, signal, R, walk), signal.S * g)


@pytest.mark.parametrize("entry", ["root_inference", "root_inference_literal", "dtd_em"])
def test_an_image_alone_is_an_image_among_others(net, x, entry):
    composite = get(f"composite/{entry}")
    batch, _, walk = walk_back(
        net, x * torch.tensor([1.0, 0.2, 3.0], dtype=torch.float64)[:, None, None, None], composite
    )
    for i, scale in enumerate((1.0, 0.2)):
        alone, _, own = walk_back(net, scale * x[i : i + 1], composite, target=[(0, 3, 1)[i]])
        rounding = (
            1e-5 if entry == "root_inference_literal" else 1e-9
        )  # without a box differences grow from layer to layer
        assert (alone - batch[i]).abs().max() <= rounding * batch[i].abs().max()
        assert all(torch.allclose(number, walk.means()[name][i : i + 1]) for name, number in own.means().items())


def test_what_it_measures_of_a_unit():
    unit, R, walk = random_unit()
    signal = FREE(unit, R, walk)
    x, W = unit.operation.inputs[0].data, unit.operation.map.weight.T
    f, N = lambda T: (T @ W.T).clamp(min=0), x - signal.S
    R_hat = R * (f(x).sum(1) / R.sum(1))[:, None]
    found = measure(unit, signal, walk)
    assert torch.allclose(found["root_residual"], (f(signal.S) - R_hat).square().sum(1) / R_hat.square().sum(1))
    assert torch.allclose(found["root_output"], f(N).sum(1) / f(x).sum(1))
    gradients = [((v @ W.T > 1e-4 * (x @ W.T).abs()).double() @ W) for v in (N, x)]
    assert torch.allclose(found["root_gradient_mse"], (gradients[0] - gradients[1]).square().mean(1))


# --- expectation maximization --------------------------------------------------------------------------------------------------------


def em(steps):
    return lrp(
        [
            Assignment(ZBox(), kind="linear", position="first"),
            Assignment(EM(steps)),
            Assignment(ZPlus(), kind="average"),
        ]
    )


def test_one_step_is_the_z_plus_rule(net, x):
    z_plus = lrp([Assignment(ZBox(), kind="linear", position="first"), Assignment(ZPlus())])
    assert torch.equal(walk_back(net, x, em(1))[0], walk_back(net, x, z_plus)[0])


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_every_step_conserves(net, x, steps):
    R, start, walk = walk_back(net, x, em(steps))
    assert ((R.flatten(1).sum(1) - start.sum(1)).abs() <= 1e-10 * start.abs().sum(1)).all()
    assert R.std() > 0 and not walk.diagnostics


@pytest.mark.parametrize("rectify", [True, False])
def test_the_divergence_never_rises(rectify):
    unit, R, walk = random_unit(rectify, inputs=12, outputs=8)
    operation = unit.operation
    assert isinstance(operation, Linear)
    x = operation.inputs[0].data
    n = [A.transpose(torch.ones_like(R), x) for _, A in positive_parts(operation, x)]
    divergences = []
    for steps in range(1, 8):
        share = EM(steps).propagate(operation, (R,), walk)[0]  # T n after as many steps: R_i = T_i n_i
        parts = positive_parts(operation, x)
        T = [
            torch.where((part != 0) & (n_A != 0), share / torch.where(n_A == 0, 1.0, n_A), 0.0)
            for (part, _), n_A in zip(parts, n, strict=True)
        ]
        if not rectify:
            T = [torch.where(x >= 0, T[0], 0.0), torch.where(x < 0, T[1], 0.0)]
        z = sum(A(T_A) for T_A, (_, A) in zip(T, parts, strict=True))
        divergences.append((torch.special.xlogy(R, R / z) - R + z).sum(1))
    falls = torch.stack(divergences).diff(dim=0)
    assert (falls <= 1e-9).all() and (falls[0] < 0).all()


# --- the door ------------------------------------------------------------------------------------------------------------------------


def test_signals_and_roots_of_layers(x):
    torch.manual_seed(0)
    net, explainer = Rectified().double().eval(), get("explainer/root_inference")
    with guard(net) as network:
        found = explainer.decompose(network, x, torch.tensor([0, 3, 1]), ["body.0", "branch.2"])
        hidden = net.stem(x)
        assert torch.allclose(found["body.0"].signal + found["body.0"].root, (hidden + net.branch(hidden)).relu())
        assert found["branch.2"].signal.shape == hidden.shape and found["branch.2"].signal.min() >= 0
        with pytest.raises(UserError, match=r"body\.0"):
            explainer.decompose(network, x, torch.tensor([0, 3, 1]), ["body.1"])
    numbers = explain(explainer, net, x, torch.tensor([0, 3, 1])).diagnostics
    assert set(numbers) >= {"root_residual", "root_output", "root_gradient_mse"}
    assert all(
        number.shape == (3,) and (number >= 0).all() for name, number in numbers.items() if name.startswith("root")
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Inference(steps=0), "steps"),
        (lambda: Inference(gamma=0.0), "gamma"),
        (lambda: Inference(init="zeros"), "zero"),
        (lambda: Inference(step="exakt"), "exact"),
        (lambda: Inference(gradient_constrain="backtracking"), "backtrack"),
        (lambda: RootInference(propagation="share"), "shares"),
        (lambda: RootInference(unit="relu"), "rectified"),
        (lambda: EM(0), "z\\+"),
        (lambda: root_inference(FREE, low=1.0, high=0.0), "low"),
    ],
)
def test_bad_parameters_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_composites_are_composites():
    assert isinstance(root_inference(FREE), Composite) and isinstance(dtd_em(), Composite)
