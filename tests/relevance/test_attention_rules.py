"""Rules of transformers against sums written out, against gradients with parts held constant, and on whole networks."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from explainode.errors import UserError
from explainode.explainers.base import guard
from explainode.registry.build import get
from explainode.relevance.composite import Assignment, Composite
from explainode.relevance.composites import backpropagation
from explainode.relevance.rule import Rule
from explainode.relevance.rules.attention import (
    ConstantAttention,
    ConstantScale,
    HalfBilinear,
    ShareTotals,
    SoftmaxTaylor,
)
from explainode.relevance.rules.gradient import Gradient
from explainode.relevance.rules.structure import Pass, Route
from explainode.relevance.tape import Tape, record
from explainode.relevance.walk import Walk, one_hot


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def taped(function, x: Tensor) -> Tape:
    return record(Function(function), x)


def shares(rule: Rule, tape: Tape, R: Tensor) -> tuple[Tensor, ...]:
    """What the rule gives each input of the one operation that it knows, which makes the output."""
    (operation,) = (operation for operation in tape.operations if operation.kind in rule.kinds)
    return rule.propagate(operation, (R,), Walk(tape))


@pytest.fixture
def random():
    generator = torch.Generator().manual_seed(3)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("positive", [False, True])
def test_halves_of_a_product_written_out(random, positive):
    x, R = random(2, 3, 4), random(2, 3, 3)
    tape = taped(lambda x: torch.bmm(x, x.exp().sub(1).mT), x)
    a, b = x, (x.exp() - 1).mT
    q = torch.einsum("bik,bkj->bikj", a, b)
    q = q.clamp(min=0) if positive else q
    share = q / q.sum(2, keepdim=True) * R[:, :, None] / 2
    got_a, got_b = shares(HalfBilinear(positive), tape, R)
    torch.testing.assert_close(got_a, share.sum(3))
    torch.testing.assert_close(got_b, share.sum(1))
    torch.testing.assert_close(got_a.sum((1, 2)) + got_b.sum((1, 2)), R.sum((1, 2)))


def test_a_product_without_positive_parts_spreads_evenly():
    x = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64)
    tape = taped(lambda x: torch.bmm(x, -x.mT), x)
    R = torch.tensor([[[6.0]]], dtype=torch.float64)
    (operation,) = tape.of_kind("bilinear")
    walk = Walk(tape)
    a, b = HalfBilinear().propagate(operation, (R,), walk)
    assert a.flatten().tolist() == [1.5, 1.5] and b.flatten().tolist() == [1.5, 1.5]
    assert walk.amounts["spread"].tolist() == [6.0]


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("left", [False, True])
def test_constant_attention_gives_all_to_the_values(random, positive, left):
    """Attention may stand on the right of the values, transposed, as torch sometimes has it."""
    x, R = random(2, 4, 4), random(2, 4, 4)
    tape = taped(lambda x: torch.bmm(x, x.softmax(-1)) if left else torch.bmm(x.softmax(-1), x), x)
    A, V = x.softmax(-1), x.clamp(min=0) if positive else x
    q = torch.einsum("bik,bkj->bikj", V, A) if left else torch.einsum("bik,bkj->bikj", A, V)
    share = q / q.sum(2, keepdim=True) * R[:, :, None]
    one, other = shares(ConstantAttention(positive), tape, R)
    of_attention, of_values = (other, one) if left else (one, other)
    assert of_attention is None
    torch.testing.assert_close(of_values, share.sum(3) if left else share.sum(1))
    torch.testing.assert_close(of_values.sum((1, 2)), R.sum((1, 2)))


def test_a_product_without_attention_is_shared_by_halves(random):
    x, R = random(1, 3, 3), random(1, 3, 3)
    tape = taped(lambda x: torch.bmm(x, x.mT), x)
    for got, expected in zip(
        shares(ConstantAttention(False), tape, R), shares(HalfBilinear(False), tape, R), strict=True
    ):
        assert torch.equal(got, expected)


def test_softmax_taylor_is_input_times_gradient_of_the_normalized_relevance(random):
    x, R = random(2, 3, 5).requires_grad_(), random(2, 3, 5)
    s = x.softmax(-1)
    (gradient,) = torch.autograd.grad(s, x, R / s.detach())  # J^T (R / s), the first-order share at x
    (got,) = shares(SoftmaxTaylor(), taped(lambda x: x.softmax(-1), x.detach()), R)
    torch.testing.assert_close(got, x.detach() * gradient)


def test_masked_scores_take_nothing(random):
    x, R = random(1, 2, 4), random(1, 2, 4)
    mask = torch.zeros(4, dtype=torch.float64)
    mask[1] = -torch.inf
    (got,) = shares(SoftmaxTaylor(), taped(lambda x: (x + mask).softmax(-1), x), R)
    assert torch.isfinite(got).all() and not got[..., 1].any()


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("groups", [None, 1, 3])
def test_norms_with_a_constant_scale(random, groups, affine):
    """Against autograd with the standard deviation detached."""
    x, R = random(2, 6, 4, 5).requires_grad_(), random(2, 6, 4, 5)
    w, b = (random(5), random(5)) if groups is None else (random(6), random(6))
    if not affine:
        w = b = None
    if groups is None:
        run, grouped = (lambda x: F.layer_norm(x, (5,), w, b, 1e-3)), (lambda x: x.reshape(-1, 5))
        shape = (5,)
    else:
        run, grouped = (lambda x: F.group_norm(x, groups, w, b, 1e-3)), (lambda x: x.reshape(2 * groups, -1))
        shape = (6, 1, 1)
    rows = grouped(x)
    sigma = (rows.var(1, correction=0, keepdim=True) + 1e-3).sqrt().detach()
    y = ((rows - rows.mean(1, keepdim=True)) / sigma).view_as(x)
    if affine:
        y = y * w.view(shape) + b.view(shape)
    torch.testing.assert_close(y, run(x))
    (gradient,) = torch.autograd.grad(y, x, R / y.detach())
    (got,) = shares(ConstantScale(epsilon=0.0), taped(run, x.detach()), R)
    torch.testing.assert_close(got, x.detach() * gradient)
    if not affine:
        torch.testing.assert_close(got.sum(), R.sum())  # no bias absorbs


def test_a_norm_by_the_batch_is_refused():
    x = torch.randn(3, 2, 4, 4)
    tape = taped(lambda x: F.batch_norm(x, None, None, training=True), x)
    with pytest.raises(UserError, match="normalizes neither layers nor groups"):
        shares(ConstantScale(), tape, torch.ones(3, 2, 4, 4))


def test_sums_share_by_totals(random):
    x, R = random(3, 2, 4), random(3, 2, 4)
    tape = taped(lambda x: x + 0.5 * x.exp(), x)
    got = shares(ShareTotals(), tape, R)
    for image in range(3):
        a, b = x[image], 0.5 * x[image].exp()
        R_a, R_b, total = a / (a + b) * R[image], b / (a + b) * R[image], R[image].sum()
        size = R_a.sum().abs() + R_b.sum().abs()
        torch.testing.assert_close(got[0][image], R_a * (R_a.sum().abs() / size * total) / R_a.sum())
        torch.testing.assert_close(got[1][image], R_b * (R_b.sum().abs() / size * total) / R_b.sum())
        torch.testing.assert_close(got[0][image].sum() + got[1][image].sum(), total)


def test_sums_whose_shares_vanish_stay_finite():
    tape = taped(lambda x: x - x.abs(), torch.ones(1, 2, dtype=torch.float64))
    for share in shares(ShareTotals(), tape, torch.ones(1, 2, dtype=torch.float64)):
        assert torch.isfinite(share).all()


# Whole networks


class Block(nn.Module):
    """A pre-norm transformer block with attention written out; `hold` detaches what a method of relevance holds constant."""

    def __init__(self, width: int, heads: int, hold: str = "") -> None:
        super().__init__()
        self.heads, self.hold = heads, hold
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(normalized(self.norm1, x, self.hold))
        hidden = self.fc1(normalized(self.norm2, x, self.hold))
        active = F.gelu(hidden)
        if self.hold:
            active = hidden * (active / hidden).detach()
        return x + self.fc2(active)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.hold == "cp":
            q, k = q.detach(), k.detach()
        elif self.hold == "attn":
            q, k, v = (slow(part, by) for part, by in ((q, 4), (k, 4), (v, 2)))
        A = (q @ k.mT / k.shape[-1] ** 0.5).softmax(-1)
        return self.proj((A @ v).transpose(1, 2).flatten(2))


def normalized(norm: nn.LayerNorm, x: Tensor, hold: str) -> Tensor:
    if not hold:
        return norm(x)
    sigma = (x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt().detach()
    return (x - x.mean(-1, keepdim=True)) / sigma * norm.weight + norm.bias


def slow(x: Tensor, by: float) -> Tensor:
    """x, whose gradient is divided."""
    return x / by + (x - x / by).detach()


class Transformer(nn.Module):
    def __init__(self, hold: str = "") -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, stride=4)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 12)), nn.Parameter(torch.randn(1, 10, 12))
        self.blocks = nn.Sequential(*(Block(12, 3, hold) for _ in range(2)))
        self.norm, self.head, self.hold = nn.LayerNorm(12), nn.Linear(12, 5), hold

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(normalized(self.norm, self.blocks(x), self.hold)[:, 0])


def randomized(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        nn.init.normal_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.3)
    return network.double().eval()


@pytest.mark.parametrize(("name", "hold"), [("attn_lrp", "attn"), ("cp_lrp", "cp")])
def test_the_composite_is_input_times_gradient_with_parts_held_constant(name, hold):
    """A second derivation: with every epsilon at 0 the rules are a gradient that some values are detached from (Achtibat et al. 2024, App. B)."""
    x, target = torch.rand(2, 3, 12, 12, dtype=torch.float64), torch.tensor([1, 4])
    explainer = get(f"explainer/{name}")
    network, reference = randomized(Transformer()), randomized(Transformer(hold))
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reference(leaf).gather(1, target[:, None]).sum(), leaf)
    got, expected = explainer(network, x, target), x * gradient
    assert (got - expected).abs().max() <= 1e-3 * expected.abs().max()  # the epsilons

    def exact(rule: Rule) -> Rule:
        return type(rule)(**{**vars(rule), "epsilon": 0.0}) if hasattr(rule, "epsilon") else rule

    composite = explainer.composite
    assignments = [Assignment(**{**vars(a), "rule": exact(a.rule)}) for a in composite.assignments]
    got = type(explainer)(Composite(assignments, composite.seed))(network, x, target)
    assert (got - expected).abs().max() <= 1e-10 * expected.abs().max()


def small_networks() -> dict[str, nn.Module]:
    networks = {
        "torchvision vit": VisionTransformer(24, 8, 2, 2, 16, 32, num_classes=5),
        "swin": SwinTransformer([2, 2], 8, [2, 2], [2, 2], [3, 3], num_classes=5),
        "encoder layers": nn.Sequential(  # the sequence stands first
            nn.Conv2d(3, 8, 8, stride=8), nn.Flatten(2), Function(lambda x: x.permute(2, 0, 1)),
            nn.TransformerEncoderLayer(8, 2, 16, 0.0), Function(lambda x: x.mean(0)), nn.Linear(8, 5),
        ),
    }  # fmt: skip
    return {name: randomized(network) for name, network in networks.items()}


def timm_networks() -> dict[str, nn.Module]:
    timm = pytest.importorskip("timm", reason="timm is an optional package")
    small = {"img_size": 24, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 5}
    networks = {
        "timm vit": timm.models.VisionTransformer(**small),
        "timm registers, mean pooling": timm.models.VisionTransformer(
            **small, global_pool="avg", reg_tokens=2, class_token=False
        ),
    }
    return {name: randomized(network) for name, network in networks.items()}


@pytest.fixture(params=["torchvision vit", "swin", "encoder layers", "timm vit", "timm registers, mean pooling"])
def network(request) -> nn.Module:
    return (timm_networks() if request.param.startswith("timm") else small_networks())[request.param]


def images() -> tuple[Tensor, Tensor]:
    return torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64), torch.tensor(
        [3, 0]
    )


def test_the_gradient_walk_equals_autograd(network):
    check_gradient(network, *images())


def check_gradient(network: nn.Module, x: Tensor, target: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    with guard(network):
        (expected,) = torch.autograd.grad(network(leaf).gather(1, target[:, None]).sum(), leaf)
        tape = record(network, x)
        got = Walk(tape).back({tape.output: one_hot(tape, target)}, backpropagation(Gradient()))
    assert (got - expected).abs().max() <= 1e-10 * expected.abs().max()


CONSERVING = ["dtd_z_plus", "dtd_w2", "dtd_z_box", "lrp_gamma", "lrp_flat"]


@pytest.mark.parametrize("name", CONSERVING)
def test_relevance_is_conserved(network, name):
    check_conservation(network, name, *images())


def check_conservation(network: nn.Module, name: str, x: Tensor, target: Tensor) -> None:
    logit = network(x).gather(1, target[:, None])[:, 0]
    total = get(f"explainer/{name}")(network, x, target).sum((1, 2, 3))
    assert ((total - logit).abs() <= 1e-10 * logit.abs()).all()


@pytest.mark.parametrize("name", ["attn_lrp", "attn_lrp_gamma", "cp_lrp", "cp_lrp_gamma", "dtd_z_plus"])
def test_a_batch_equals_its_images(network, name):
    """Also where torch splits the projection of queries, keys and values into product and bias, which it does for batches only."""
    x, target = images()
    explainer = get(f"explainer/{name}")
    batch = explainer(network, x, target)
    for i in range(2):
        single = explainer(network, x[i : i + 1], target[i : i + 1])
        assert (single - batch[i : i + 1]).abs().max() <= 1e-10 * single.abs().max()


def test_a_bias_belongs_to_its_product_however_the_input_lies():
    linear = randomized(nn.Linear(4, 3))
    x = torch.randn(5, 2, 4, dtype=torch.float64)
    for images in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):
        tape = record(linear, images)
        (operation,) = tape.of_kind("linear")
        assert not tape.of_kind("affine")
        torch.testing.assert_close(operation.bias.flatten(), linear.bias)
        R = torch.randn_like(linear(x))
        expected = torch.einsum("bnj,ji->bni", R, linear.weight)
        torch.testing.assert_close(Walk(tape).back({tape.output: R}, backpropagation(Gradient())), expected)
        torch.testing.assert_close(operation.call(operation.inputs[0].data)[0].flatten(), linear(images).flatten())


def test_what_reads_the_product_itself_keeps_it():
    weight, bias = torch.randn(4, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)

    def run(x: Tensor) -> Tensor:
        product = x @ weight
        return (product + bias) * product

    tape = taped(run, torch.randn(3, 4, dtype=torch.float64))
    assert len(tape.of_kind("affine")) == 1 and tape.of_kind("linear")[0].bias is None


def test_a_composite_may_hold_any_rule_first():
    """What an entry of `linear` assigns comes before the choices for other kinds."""
    composite = get("explainer/attn_lrp").composite
    norms = [a.rule for a in composite.assignments if "norm" in a.rule.kinds]
    assert isinstance(norms[0], ConstantScale) and isinstance(norms[-1], Pass)
    assert any(isinstance(a.rule, Route) and a.rule.constants == "absorb" for a in composite.assignments)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("vit_b_16", marks=pytest.mark.nightly),
        pytest.param("swin_t", marks=pytest.mark.nightly),
        "deit_tiny_patch16_224",
    ],
)
def test_published_architectures(name):
    """Random weights, heads that are not zero, double precision: gradients, conservation, and a batch by itself."""
    if name.startswith("deit"):
        network = pytest.importorskip("timm", reason="timm is an optional package").create_model(name, num_classes=10)
    else:
        network = torchvision.models.get_model(name, num_classes=10)
    torch.manual_seed(0)
    for parameter_name, parameter in network.named_parameters():
        if parameter_name.startswith("head") or parameter_name.endswith("bias"):
            nn.init.normal_(parameter, 0, 0.02)
    network = network.double().eval()
    x, target = torch.rand(1, 3, 224, 224, dtype=torch.float64), torch.tensor([3])
    check_gradient(network, x, target)
    for composite in ("dtd_z_plus", "lrp_gamma"):
        check_conservation(network, composite, x, target)
