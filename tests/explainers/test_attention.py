"""Maps of attention against hand-written transformers, known attention and other people's networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from explainode.errors import UserError
from explainode.explainers.attention import (
    Attention,
    AttentionRollout,
    GradientRollout,
    IViT,
    RawAttention,
    discard_lowest,
    find_attention,
    fuse,
    roll,
    weighted,
    with_residual,
)
from explainode.explainers.base import count_passes, guard
from explainode.registry.build import get
from explainode.relevance.composite import Composite
from explainode.relevance.tape import record
from explainode.relevance.walk import Walk, one_hot

NAMES = ["raw_attention", "attention_rollout", "gradient_rollout", "i_vit"]


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps what the reference below needs."""
        self.x, self.n1 = x, self.norm1(x)
        self.q, self.k, self.v = self.qkv(self.n1).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        self.A = (self.q @ self.k.mT / self.k.shape[-1] ** 0.5).softmax(-1)
        self.mixed = self.A @ self.v
        self.context = self.mixed.transpose(1, 2).flatten(2)
        self.attended = self.proj(self.context)
        self.mid = x + self.attended
        self.n2 = self.norm2(self.mid)
        self.hidden = F.gelu(self.fc1(self.n2))
        self.grown = self.fc2(self.hidden)
        return self.mid + self.grown


class Transformer(nn.Module):
    """(B, 3, 8, 12) -> (B, 5): 2 x 3 patches of 4 x 4; the head reads the class token, or the mean of the patches."""

    def __init__(self, pool: str = "token", patches: str = "convolution") -> None:
        super().__init__()
        self.pool = pool
        self.patches = nn.Conv2d(3, 12, 4, stride=4) if patches == "convolution" else nn.Linear(48, 12)
        self.token, self.position = nn.Parameter(torch.zeros(1, 1, 12)), nn.Parameter(torch.zeros(1, 7, 12))
        self.blocks = nn.Sequential(Block(12, 3), Block(12, 3))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 5)
        torch.manual_seed(0)
        for name, parameter in self.named_parameters():
            nn.init.normal_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.patches, nn.Linear):
            tokens = self.patches(x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2))
        else:
            tokens = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.position
        self.final = self.norm(self.blocks(x))
        return self.head(self.final[:, 0] if self.pool == "token" else self.final[:, 1:].mean(1))


@pytest.fixture
def net() -> Transformer:
    return Transformer()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def target() -> Tensor:
    return torch.tensor([1, 4])


def attention_of(network: nn.Module, x: Tensor) -> Attention:
    with guard(network):
        return find_attention(network, record(network, x))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max()


# A second derivation: modules written out, gradients by autograd


def linear_back(layer: nn.Linear, x: Tensor, R: Tensor) -> Tensor:
    W = layer.weight
    z = x.clamp(min=0) @ W.clamp(min=0).T + x.clamp(max=0) @ W.clamp(max=0).T
    s = R / z
    return x.clamp(min=0) * (s @ W.clamp(min=0)) + x.clamp(max=0) * (s @ W.clamp(max=0))


def add_back(a: Tensor, b: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """Chefer et al. 2021, Eq. 9 and 10, for one image."""
    R_a, R_b = a / (a + b) * R, b / (a + b) * R
    size = R_a.sum().abs() + R_b.sum().abs()
    return tuple(part * (part.sum().abs() / size * R.sum()) / part.sum() for part in (R_a, R_b))


def product_back(a: Tensor, b: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    s = R / (a @ b) / 2
    return a * (s @ b.mT), b * (a.mT @ s)


def reference_i_vit(net: Transformer, x: Tensor, target: int) -> Tensor:
    """I.ViT of one image (1, 3, 8, 12)."""
    logits = net(x.requires_grad_())
    gradients = torch.autograd.grad(logits[0, target], [block.A for block in net.blocks])
    with torch.no_grad():
        R = torch.zeros_like(net.final)
        R[:, 0] = linear_back(net.head, net.final[:, 0], F.one_hot(torch.tensor([target]), 5).double())
        steps = []
        for block, gradient in zip(reversed(net.blocks), reversed(gradients), strict=True):
            R_skip, R_mlp = add_back(block.mid, block.grown, R)
            R = R_skip + linear_back(block.fc1, block.n2, linear_back(block.fc2, block.hidden, R_mlp))
            R_skip, R_attention = add_back(block.x, block.attended, R)
            R_mixed = linear_back(block.proj, block.context, R_attention).unflatten(-1, (3, -1)).transpose(1, 2)
            R_A, R_v = product_back(block.A, block.v, R_mixed)
            R_q, R_k = product_back(block.q, block.k.mT, R_A)
            R_qkv = torch.stack([R_q, R_k.mT, R_v]).permute(1, 3, 0, 2, 4).flatten(2)
            R = R_skip + linear_back(block.qkv, block.n1, R_qkv)
            steps.append((gradient * R_A).clamp(min=0).mean(1) + torch.eye(7))
        return (steps[0] @ steps[1])[:, 0, 1:].reshape(1, 1, 2, 3)


def test_i_vit_equals_its_reference(net, x, target):
    expected = torch.cat([reference_i_vit(net, x[i : i + 1].clone(), int(target[i])) for i in range(2)])
    close(get("explainer/i_vit")(net, x, target), expected)


def test_gradient_rollout_equals_its_definition(net, x, target):
    logits = net(x.clone().requires_grad_())
    matrices = [block.A for block in net.blocks]
    gradients = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), matrices)
    first, second = ((g * A).clamp(min=0).mean(1) + torch.eye(7) for g, A in zip(gradients, matrices, strict=True))
    close(GradientRollout()(net, x, target), (second @ first)[:, 0, 1:].reshape(2, 1, 2, 3).detach())
    close(GradientRollout(start_layer=1)(net, x, target), second[:, 0, 1:].reshape(2, 1, 2, 3).detach())


def test_with_relevance_1_i_vit_is_a_rollout_of_positive_gradients(net, x, target):
    logits = net(x.clone().requires_grad_())
    gradients = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), [block.A for block in net.blocks])
    for gradient in gradients:
        close(weighted(gradient, torch.ones_like(gradient)), gradient.clamp(min=0).mean(1))


def test_raw_attention_and_rollout_equal_their_definitions(net, x):
    net(x)
    first, second = (block.A.mean(1).detach() for block in net.blocks)
    close(RawAttention()(net, x), second[:, 0, 1:].reshape(2, 1, 2, 3))
    steps = [(A + torch.eye(7)) / 2 for A in (first, second)]
    close(AttentionRollout()(net, x), (steps[1] @ steps[0])[:, 0, 1:].reshape(2, 1, 2, 3))
    close(AttentionRollout(start_layer=1)(net, x), steps[1][:, 0, 1:].reshape(2, 1, 2, 3))


def test_rows_of_the_rollout_sum_to_one(net, x):
    for heads in ("mean", "max", "min"):
        steps = [with_residual(discard_lowest(fuse(A, heads), 0.6)) for A in attention_of(net, x).matrices()]
        rows = roll(torch.eye(7, dtype=torch.float64).expand(2, 7, 7), steps)
        torch.testing.assert_close(rows.sum(-1), torch.ones(2, 7, dtype=torch.float64))


def test_the_lowest_entries_of_each_image_are_discarded():
    A = torch.tensor([[[4.0, 3.0], [2.0, 1.0]], [[10.0, 20.0], [30.0, 40.0]]])
    assert discard_lowest(A, 0.5).tolist() == [[[4, 3], [0, 0]], [[0, 0], [30, 40]]]
    assert torch.equal(discard_lowest(A, 0.2), A)


# Known truth


@pytest.mark.parametrize("patches", ["convolution", "linear"])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 2), (1, 1)])
@pytest.mark.parametrize("name", NAMES)
def test_the_map_lies_where_the_attended_patch_lies(name, row, column, patches):
    """The first feature is a patch's brightness, keys are that feature, values carry it to the class: so the bright patch is attended and counts."""
    net = Transformer(patches=patches)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        for norm in (module for module in net.modules() if isinstance(module, nn.LayerNorm)):
            norm.weight.fill_(1.0)
        net.patches.weight[0] = 1 / 48
        for block in net.blocks:
            block.qkv.bias[:12] = 2.0  # queries
            block.qkv.weight[12:24, 0] = 1.0  # keys
            block.qkv.weight[24:, 0] = 1.0  # values
            block.fc1.bias.fill_(0.1)
        net.blocks[1].proj.weight[0] = 1.0  # after the first block that mixes, all tokens look alike
        net.head.weight[2, 0] = 1.0
    image = torch.full((1, 3, 8, 12), 0.01, dtype=torch.float64)
    image[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 1.0
    heat = get(f"explainer/{name}")(net, image, torch.tensor([2]))
    assert heat.shape == ((1, 1, 2, 3) if patches == "convolution" else (1, 1, 8, 12))
    inside = heat[..., row, column] if patches == "convolution" else heat[..., 4 * row, 4 * column]
    assert inside == heat.max()
    assert heat.amin() < heat.max() / 2


def test_what_the_logits_read_is_found(net, x):
    assert torch.equal(attention_of(net, x).readout(), torch.eye(7, dtype=torch.float64)[:1].expand(2, 7))
    pooled = attention_of(Transformer("mean"), x).readout()
    torch.testing.assert_close(pooled, torch.tensor([[0.0] + [1 / 6] * 6] * 2, dtype=torch.float64))


def test_a_map_of_mean_pooling_is_the_mean_over_tokens(x):
    net = Transformer("mean")
    net(x)
    A = net.blocks[1].A.mean(1).detach()
    close(RawAttention()(net, x), A[:, 1:, 1:].mean(1).reshape(2, 1, 2, 3))


# Networks of others


def other(name: str) -> nn.Module:
    timm = pytest.importorskip("timm", reason="timm is an optional package").models
    small = {"img_size": 24, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 5}
    network = {
        "torchvision": lambda: VisionTransformer(24, 8, 2, 2, 16, 32, num_classes=5),
        "timm": lambda: timm.VisionTransformer(**small),
        "distilled": lambda: timm.VisionTransformerDistilled(**small),
        "registers": lambda: timm.VisionTransformer(**small, reg_tokens=3),
        "mean": lambda: timm.VisionTransformer(**small, global_pool="avg", class_token=False),
        "attention pooling": lambda: timm.VisionTransformer(**small, global_pool="map", class_token=False),
        "sequence first": SequenceFirst,
    }[name]()
    torch.manual_seed(0)
    for parameter_name, parameter in network.named_parameters():
        nn.init.normal_(parameter, 1.0 if "norm" in parameter_name and parameter_name.endswith("weight") else 0.0, 0.3)
    return network.double().eval()


class SequenceFirst(nn.Module):
    """Tokens (n, B, C) all the way."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, stride=8)
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 16, 0.0, norm_first=True) for _ in range(2)))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).permute(2, 0, 1)).mean(0))


OTHERS = ["torchvision", "timm", "distilled", "registers", "mean", "attention pooling", "sequence first"]


@pytest.fixture
def square() -> Tensor:
    return torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("network", OTHERS)
def test_networks_of_others(network, name, square):
    net, explainer, target = other(network), get(f"explainer/{name}"), torch.tensor([0, 3])
    before = {key: value.clone() for key, value in net.state_dict().items()}
    heat = explainer(net, square, target)
    assert heat.shape == (2, 1, 3, 3) and (heat >= 0).all() and heat.std() > 0
    if explainer.class_specific:
        assert not torch.equal(explainer(net, square, target + 1), heat)
    close(explainer(net, square[1:], target[1:]), heat[1:])
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize(
    ("network", "tokens", "read"), [("distilled", 11, [0, 1]), ("registers", 13, [0]), ("mean", 9, range(9))]
)
def test_prefix_tokens_are_told_apart(network, tokens, read, square):
    w = attention_of(other(network), square).readout()
    expected = torch.zeros(2, tokens, dtype=torch.float64)
    expected[:, list(read)] = 1 / len(read)
    torch.testing.assert_close(w, expected)


def test_attention_pooling_reads_tokens_by_its_own_attention(square):
    w = attention_of(other("attention pooling"), square).readout()
    assert w.shape == (2, 9) and (w > 0).all() and w.std() > 0
    torch.testing.assert_close(w.sum(1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("name", [*NAMES, "attn_lrp", "cp_lrp"])
def test_fused_attention_changes_no_map(name, square):
    net = other("timm")
    explainer, target = get(f"explainer/{name}"), torch.tensor([0, 3])
    fused = explainer(net, square, target)
    assert all(block.attn.fused_attn for block in net.blocks)
    for block in net.blocks:
        block.attn.fused_attn = False
    close(explainer(net, square, target), fused)


def test_sums_of_tokens_are_conserved_at_linear_layers(net, x, target):
    tape = attention_of(net, x).tape
    walk = Walk(tape)
    linear = [operation for operation in tape.of_kind("linear") if operation.name != "convolution"]
    values = [value for operation in linear for value in (operation.inputs[0], operation.output)]
    walk.back({tape.output: one_hot(tape, target)}, get("explainer/i_vit").composite, values)
    assert len(linear) == 9
    for operation in linear:
        before, after = (walk.kept[id(value)].sum(-1) for value in (operation.inputs[0], operation.output))
        torch.testing.assert_close(before, after)


@pytest.mark.parametrize(
    ("name", "backwards"), [("raw_attention", 0), ("attention_rollout", 0), ("gradient_rollout", 1), ("i_vit", 2)]
)
def test_passes(name, backwards, net, x, target):
    with count_passes() as passes:
        get(f"explainer/{name}")(net, x, target)
    assert (passes.forwards, passes.backwards) == (2, 2 * backwards)


def test_another_composite_plugs_in(net, x, target):
    """Any rule for the linear maps gives a map of its own, as root inference does in root inference (anonymous), Table 3."""
    maps = [IViT(composite=get(f"explainer/{name}").composite)(net, x, target) for name in ("i_vit", "attn_lrp")]
    assert maps[0].shape == maps[1].shape and not torch.equal(*maps)


# Bad input


def test_networks_without_attention_among_all_tokens_are_refused():
    x = torch.rand(1, 3, 32, 32)
    with pytest.raises(UserError, match=r"ResNet has no attention.*gradcam or an lrp_ entry"):
        AttentionRollout()(resnet18(), x)
    swin = SwinTransformer([2, 2], 16, [2, 2], [2, 2], [4, 4], num_classes=5)
    with pytest.raises(UserError, match=r"SwinTransformer is 16 x 16 \(windows.*attn_lrp or cp_lrp"):
        get("explainer/i_vit")(swin, x)


def test_bad_settings_are_refused(net, x, target):
    with pytest.raises(UserError, match="start_layer must be one of 0 to 1"):
        AttentionRollout(start_layer=2)(net, x, target)
    with pytest.raises(UserError, match="heads must be one of mean, max, min"):
        AttentionRollout(heads="median")
    with pytest.raises(UserError, match=r"share in \[0, 1\)"):
        AttentionRollout(discard=1.0)
    with pytest.raises(UserError, match="no relevance reaches the attention"):
        IViT(composite=get("explainer/cp_lrp").composite)(net, x, target)
    with pytest.raises(UserError, match="no rule for"):
        IViT(composite=Composite([]))(net, x, target)
