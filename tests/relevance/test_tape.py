"""The tape: whatever way a network computes, its operations are seen; what cannot be followed is refused by name."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainode.dynamics.noise import Noise
from explainode.dynamics.solver import RungeKutta
from explainode.errors import UserError
from explainode.explainers.guard import guard
from explainode.explainers.relevance import Relevance
from explainode.explainers.targets import Unit
from explainode.models.resnet import six_block_resnet
from explainode.randomness import noise_scope
from explainode.relevance.composites import backpropagation
from explainode.relevance.rules.gradient import Gradient
from explainode.relevance.tape import record

GRADIENT = backpropagation(Gradient())


@pytest.fixture
def x() -> Tensor:
    return torch.rand(3, 3, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(1)) - 0.3


TARGET = torch.tensor([0, 2, 1])


class Net(nn.Module):
    """Convolution, BatchNorm, some `middle` on (B, 8, 4, 4), pooling, linear head."""

    def __init__(self, middle) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.norm.running_mean.normal_(0, 0.2), self.norm.running_var.uniform_(0.5, 1.5)
        self.weight = nn.Parameter(torch.randn(8, 8) / 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.sequence_first = nn.MultiheadAttention(8, 2)
        self.convs = nn.ModuleDict({
            "grouped": nn.Conv2d(8, 8, 3, padding=1, groups=4), "up": nn.ConvTranspose2d(8, 8, 3, 2, 1, 1, groups=2),
            "line": nn.Conv1d(8, 8, 3, padding=1), "dilated": nn.Conv2d(8, 8, 3, padding=2, dilation=2), "to32": nn.Conv2d(8, 32, 1),
        })  # fmt: skip
        self.norms = nn.ModuleDict({
            "layer": nn.LayerNorm(8), "group": nn.GroupNorm(2, 8), "instance": nn.InstanceNorm2d(8, affine=True), "batch": nn.BatchNorm1d(8),
        })  # fmt: skip
        self.linear, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        self.relu = nn.ReLU(inplace=True)
        self.middle = middle
        for p in self.parameters():
            p.data.add_(torch.randn_like(p) * 0.1)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self, self.norm(self.conv(x)))
        return self.head(x if x.dim() == 2 else x.mean((2, 3)))


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def image(t: Tensor) -> Tensor:
    return t.transpose(1, 2).unflatten(2, (4, 4))


def added_in_place(n: Net, x: Tensor) -> Tensor:
    y = x * 2
    y += x.exp()
    y.mul_(0.5).sub_(x)
    return F.relu_(y)


def of_slices(n: Net, x: Tensor) -> Tensor:
    first, *rest = x.split([2, 3, 3], 1)
    a, b = torch.stack([rest[0], rest[1]]).unbind(0)
    return torch.cat([first, a, b.flip(2).roll(1, 3)], 1)[:, :, 1:, [0, 2, 1]]


def collected(n: Net, x: Tensor) -> Tensor:
    """As solvers collect their states."""
    states = torch.zeros(3, *x.shape, dtype=x.dtype)
    states[0] = x
    states[1] = states[0].tanh()
    for row in range(len(x)):
        states[2, row] = states[1, row].exp() + states[0, row]
    return states[2] * states.mean(0)


def gated(n: Net, x: Tensor) -> Tensor:
    gate = torch.sigmoid(F.silu(x.mean((2, 3), keepdim=True)))
    return F.hardswish(x) * gate / (1 + gate)


def read_twice(n: Net, x: Tensor) -> Tensor:
    """What BatchNorm reads is read again after it."""
    z = n.convs["grouped"](x)
    y = F.batch_norm(z, n.norm.running_mean, n.norm.running_var)
    return y.relu() + z


def _writes_into_a_view(n: Net, x: Tensor) -> Tensor:
    y = x + 0
    y[:, 0].mul_(2)
    return y


def _reads_a_stale_view(n: Net, x: Tensor) -> Tensor:
    y = x + 0
    view = y[:, :4]
    y.mul_(2)
    return torch.cat([view, y], 1)[:, :8]


def _copies_into_what_is_explained(n: Net, x: Tensor) -> Tensor:
    y = x + 0
    y[:, 0] = x[:, 1]
    return y


def _adds_to_a_collection(n: Net, x: Tensor) -> Tensor:
    states = torch.zeros(2, *x.shape, dtype=x.dtype)
    states[0] = x
    states[1] += x
    return states.sum(0)


def _writes_twice(n: Net, x: Tensor) -> Tensor:
    y = (x * 2).permute(0, 2, 3, 1)
    first = y[:, :2].clone() * y[:, 2:4].clone()
    y[:, 1:3, :, 0] += 0.5 * y[:, 1:3, :, 1]
    y[..., 2] = 1.0
    y[:, :2].mul_(first)
    return y.permute(0, 3, 1, 2)


def _turns_in_place(n: Net, x: Tensor) -> Tensor:
    y = x + 0
    y.transpose_(2, 3).mul_(2)
    return y


def _uses_a_workspace_twice(n: Net, x: Tensor) -> Tensor:
    workspace = torch.empty_like(x)
    y = torch.mul(x, 2.0, out=workspace).sigmoid()
    return torch.mul(y, 3.0, out=workspace) * y


def _grid(x: Tensor) -> Tensor:
    """Every place, a little to the side."""
    return F.affine_grid(
        torch.tensor([[[0.9, 0.1, 0.05], [-0.1, 0.8, 0.0]]], dtype=x.dtype), [1, *x.shape[1:]], align_corners=False
    ).expand(len(x), -1, -1, -1)


WRITES = (_writes_into_a_view, _reads_a_stale_view, _copies_into_what_is_explained, _adds_to_a_collection, _writes_twice,
          _turns_in_place)  # fmt: skip


MIDDLES = {
    "functional": lambda n, x: F.gelu(F.leaky_relu(F.relu(n.convs["dilated"](x)) - 0.1) + F.elu(x)),
    "module in place, reused": lambda n, x: n.relu(n.convs["grouped"](n.relu(n.convs["up"](n.relu(x))))),
    "a rectifier with learned slopes": lambda n, x: F.prelu(x, torch.linspace(0.1, 0.8, 8, dtype=x.dtype)),
    "unfolded and folded": lambda n, x: F.fold(F.unfold(x, 3, padding=1), x.shape[-2:], 3, padding=1),
    "running sums": lambda n, x: x.cumsum(-1),
    "sampled on a constant grid": lambda n, x: F.grid_sample(x, _grid(x), align_corners=False),
    "nearest, exactly": lambda n, x: F.avg_pool2d(F.interpolate(x, scale_factor=2, mode="nearest-exact"), 2),
    "resized without aliases": lambda n, x: F.interpolate(x, x.shape[-2:], mode="bilinear", antialias=True),
    **{function.__name__.strip("_"): function for function in WRITES},
    "in place on values": added_in_place,
    "slices": of_slices,
    "collected": collected,
    "gate": gated,
    "read twice": read_twice,
    "overlapping max": lambda n, x: F.max_pool2d(x, 3, 1, 1).maximum(x.amax((2, 3), keepdim=True) - 0.5),
    "adaptive max": lambda n, x: F.adaptive_max_pool2d(x, 2),
    "pools": lambda n, x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear") * F.adaptive_avg_pool2d(x, 1),
    "pads": lambda n, x: F.pad(F.pad(x, (1, 1, 1, 1), mode="reflect"), (0, 1, 0, 0), value=0.5),
    "pixels": lambda n, x: F.pixel_shuffle(n.convs["to32"](x), 2),
    "patches": lambda n, x: F.unfold(x, 2, stride=2).unflatten(1, (8, 4)).tanh(),
    "line": lambda n, x: n.convs["line"](x.flatten(2)).unflatten(2, (4, 4)),
    "attention": lambda n, x: image(n.attention(tokens(x), tokens(x), tokens(x))[0]),
    "attention, sequence first": lambda n, x: image(n.sequence_first(*[tokens(x).transpose(0, 1)] * 3)[0].transpose(0, 1)),
    "scaled dot product": lambda n, x: image(F.scaled_dot_product_attention(n.linear(tokens(x)), tokens(x), tokens(x))),
    "einsum": lambda n, x: torch.einsum("bchw,cd,behw->bdhw", x, n.weight, x),
    "matmul": lambda n, x: (n.weight @ x.flatten(2) @ x.flatten(2).mT).unflatten(2, (2, 4)),
    "layer norm": lambda n, x: image(n.norms["layer"](n.linear(tokens(x)))),
    "group norm": lambda n, x: n.norms["group"](x).relu(),
    "instance norm": lambda n, x: n.norms["instance"](x).relu(),
    "norm by hand": lambda n, x: (x - x.mean(1, keepdim=True)) * (x.square().mean(1, keepdim=True) + 0.1).rsqrt(),
    "dense batch norm": lambda n, x: n.norms["batch"](n.linear(x.mean((2, 3)))).relu(),
    "where": lambda n, x: torch.where(x > 0.1, x * 3, x.square()),
    "condition": lambda n, x: x * 2 if bool(x.sum() > 0) else -x,
    "class token": lambda n, x: torch.cat([n.weight[0].expand(len(x), 1, 8), tokens(x)], 1)[:, :2].tanh().sum(1),
}  # fmt: skip


@pytest.mark.parametrize("name", MIDDLES)
def test_the_chain_rule_along_the_tape_is_autograds(name, x, walked, by_autograd):
    net = Net(MIDDLES[name])
    expected = by_autograd(net, x, TARGET)
    assert expected.abs().max() > 1e-4
    found, way = walked(net, x, TARGET, GRADIENT)
    with guard(net), torch.no_grad():
        assert torch.equal(way.tape.output.data, net(x))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


REFUSED = {
    "operation 'cumprod'": (lambda n, x: x.cumprod(1), "use a gradient method"),
    "'sort'": (lambda n, x: x.sort(1).values, "use a gradient method"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(what, x, walked):
    middle, advice = REFUSED[what]
    with pytest.raises(UserError) as error:
        walked(Net(middle), x, TARGET, GRADIENT)
    assert what in str(error.value) and advice in str(error.value)


def test_a_workspace_used_twice_holds_what_it_held(x, walked, by_autograd):
    """Autograd does not know `out=`: the truth is the network that makes new tensors."""
    new = Net(lambda n, x: 3 * (2 * x).sigmoid().square())
    with torch.no_grad():
        torch.testing.assert_close(Net(_uses_a_workspace_twice)(x), new(x))
    found, _ = walked(Net(_uses_a_workspace_twice), x, TARGET, GRADIENT)
    torch.testing.assert_close(found, by_autograd(new, x, TARGET), rtol=1e-12, atol=1e-14)


def test_an_unknown_operation_that_no_relevance_reaches_is_nobodys_business(x, walked, by_autograd):
    def middle(n: Net, x: Tensor) -> Tensor:
        n.seen = x.cumprod(1).sort(1).values.sum()
        return x.relu()

    net = Net(middle)
    assert torch.equal(walked(net, x, TARGET, GRADIENT)[0], walked(Net(lambda n, x: x.relu()), x, TARGET, GRADIENT)[0])
    torch.testing.assert_close(walked(net, x, TARGET, GRADIENT)[0], by_autograd(net, x, TARGET))


def test_logits_that_do_not_depend_on_the_image_are_refused(x):
    net = Net(lambda n, x: torch.zeros(len(x), 8, dtype=x.dtype))
    with pytest.raises(UserError, match="do not depend on the image"):
        record(net, x)


class Shared(nn.Module):
    """Every rectifier is one module, in place, and additions are `+=`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(i, 6, 3, padding=1) for i in (3, 6, 6))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(3))
        for norm in self.norms:
            norm.running_mean.normal_(0, 0.2), norm.running_var.uniform_(0.5, 1.5)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(6, 4)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norms[0](self.convs[0](x)))
        for conv, norm in zip(self.convs[1:], self.norms[1:], strict=True):
            y = norm(conv(x))
            y += x
            x = self.relu(y)
        return self.head(x.mean((2, 3)))


class Unshared(Shared):
    """The same, with a rectifier each, out of place."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.convs[0](x)))
        for conv, norm in zip(self.convs[1:], self.norms[1:], strict=True):
            x = torch.relu(torch.add(norm(conv(x)), x))
        return self.head(torch.nn.AdaptiveAvgPool2d(1)(x).flatten(1))


RULES = [
    "lrp_0",
    "lrp_epsilon",
    "lrp_gamma",
    "dtd_z_plus",
    "dtd_z_box",
    "dtd_w2",
    "lrp_alpha2_beta1",
    "guided_backprop",
    "deconvnet",
]


@pytest.mark.parametrize("name", RULES)
def test_shared_unshared_and_compiled_networks_have_identical_maps(name, x, composite):
    explainer = Relevance(composite(name))
    expected = explainer(Shared(), x, TARGET)
    assert expected.abs().max() > 0
    assert torch.equal(explainer(Unshared(), x, TARGET), expected)
    assert torch.equal(explainer(torch.compile(Shared(), backend="eager"), x, TARGET), expected)


class Loop(nn.Module):
    """dX/dt = f(X) by a solver that calls one block at every stage."""

    def __init__(self, steps: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.conv, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 4)
        self.solver, self.steps = RungeKutta("midpoint", steps=steps), steps
        self.double().eval()

    def field(self, t: Tensor, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.solver(self.field, self.stem(x))
        return self.head(x.mean((2, 3)))


class Unrolled(Loop):
    """The steps written out, each stage with its own copy of the block."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = nn.ModuleList(copy.deepcopy(self.conv) for _ in range(2 * self.steps))

    def forward(self, x: Tensor) -> Tensor:
        x, h = self.stem(x), 1 / self.steps
        for n in range(self.steps):
            k = F.relu(self.copies[2 * n](x))
            x = x + h * F.relu(self.copies[2 * n + 1](x + h * 0.5 * k))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    "name", ["lrp_gamma", "dtd_z_plus", "dtd_z_box", "dtd_w2", "lrp_flat", "guided_backprop", "lrp_epsilon"]
)
def test_a_solver_loop_and_its_unrolled_copy_have_the_same_map(name, x, composite):
    explainer = Relevance(composite(name))
    expected = explainer(Unrolled(), x, TARGET)
    # the solver scales its stages in another order of multiplications: rounding is all that may differ
    torch.testing.assert_close(
        explainer(Loop(), x, TARGET), expected, rtol=1e-11, atol=1e-13 * expected.abs().max().item()
    )


def test_noise_is_a_constant(x, composite):
    """The map is that of a network which adds the same numbers as a constant."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.noise, self.head = nn.Conv2d(3, 6, 3, padding=1), Noise(0.5), nn.Linear(6, 4)
            self.noise.block = 0
            self.constant: Tensor | None = None
            self.double().eval()

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            drawn = self.noise(x) if self.constant is None else self.constant
            return self.head(F.relu(x + drawn).mean((2, 3)))

    net, explainer = Noisy(), Relevance(composite("dtd_z_plus"))
    with noise_scope(torch.arange(3), seed=1):
        noisy = explainer(net, x, TARGET)
        net.constant = net.noise(net.conv(x)).detach()
        assert torch.equal(noisy, explainer(net, x, TARGET))
    net.constant = torch.zeros(())
    assert not torch.equal(noisy, explainer(net, x, TARGET))


def _hooks(net: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in net.modules())


def test_nothing_is_left_behind_also_after_an_error(x, composite):
    state = {"fail": False}

    def middle(n: Net, x: Tensor) -> Tensor:
        if state["fail"]:
            raise RuntimeError("no")
        return x.relu()

    net, explainer, before = Net(middle), Relevance(composite("dtd_z_plus")), x.clone()
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    first = explainer(net, x, TARGET)
    state["fail"] = True
    with pytest.raises(RuntimeError, match="no"):
        explainer(net, x, TARGET)
    state["fail"] = False
    assert _hooks(net) == 0
    assert torch.equal(explainer(net, x, TARGET), first)
    assert torch.equal(x, before) and not x.requires_grad and x.grad is None
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_a_network_may_explain_another_while_it_is_recorded(x, composite):
    explainer, inner = Relevance(composite("dtd_z_plus")), Shared()
    expected = explainer(inner, x, TARGET)
    found = []

    def middle(n: Net, y: Tensor) -> Tensor:
        with guard(inner):
            found.append(explainer(inner, x, TARGET))
        return y.relu()

    outer = explainer(Net(middle), x, TARGET)
    assert torch.equal(found[0], expected)
    assert torch.equal(outer, explainer(Net(lambda n, y: y.relu()), x, TARGET))


def test_inference_mode_and_inference_tensors(x, composite):
    explainer, net = Relevance(composite("lrp_gamma")), Shared()
    expected = explainer(net, x, TARGET)
    with torch.inference_mode():
        assert torch.equal(explainer(net, x.clone(), TARGET), expected)


def test_a_network_that_changes_its_input_leaves_the_callers_alone(x, composite):
    class Centers(Shared):
        def forward(self, x: Tensor) -> Tensor:
            x.sub_(0.5)
            return super().forward(x)

    before = x.clone()
    assert Relevance(composite("dtd_z_plus"))(Centers(), x, TARGET).abs().max() > 0
    assert torch.equal(x, before)


def test_the_tape_does_not_hold_what_batch_normalization_has_read(x):
    with guard(Shared()) as net:
        tape = record(net, x)
        gc.collect()
    assert not any(operation.name.startswith("native_batch_norm") for operation in tape.operations)
    assert tape.returned("convs.1").data.numel() == 0
    with guard(net):
        asked = record(net, x, keep=["convs.1"]).returned("convs.1").data
    assert asked.shape == (3, 6, 8, 8)


def test_a_walk_that_nobody_follows_lets_go_and_changes_nothing(x, composite):
    rules = composite("dtd_z_plus")
    explainer = Relevance(rules)
    with guard(Shared()) as net:
        tape = record(net, x)
    from explainode.relevance.walk import Walk, seed

    start = {tape.output: seed(tape, TARGET, "logit")}
    again = [Walk(tape).back(start, rules) for _ in range(2)]
    last = Walk(tape).back(start, rules, last=True)
    assert torch.equal(*again) and torch.equal(again[0], last)
    assert torch.equal(explainer(net, x, TARGET), last)
    held = [value for operation in tape.operations for value in operation.outputs if value is not tape.output]
    assert not any(value.data.numel() for value in held)


def test_a_unit_of_a_layer_is_explained_from_there(x, composite):
    """The relevance of a unit is that of a network which ends there."""
    net, explainer = Shared(), Relevance(composite("dtd_z_plus"))
    with guard(net), torch.no_grad():
        activation = net.norms[0](net.convs[0](x))
    for position, expected in (
        ((2, 3), activation[:, 4, 2, 3]),
        ("sum", activation[:, 4].sum((1, 2))),
        ("max", activation[:, 4].amax((1, 2))),
    ):
        R = explainer(net, x, Unit("norms.0", 4, position))
        torch.testing.assert_close(R.sum((1, 2, 3)), expected, rtol=1e-10, atol=1e-12)


def test_layers_hold_the_relevance_between(x, composite):
    net, target = Shared(), TARGET
    explainer = Relevance(composite("dtd_z_plus"))
    with guard(net) as network:
        maps = explainer.layers(network, x, target, ["convs.0", "norms.1", "head"])
        score = network(x).gather(1, target[:, None])[:, 0].detach()
    assert maps["convs.0"].shape == (3, 6, 8, 8) and maps["head"].shape == (3, 4)
    torch.testing.assert_close(maps["convs.0"].sum((1, 2, 3)), score)
    torch.testing.assert_close(maps["head"].sum(1), score)
    with guard(net) as network, pytest.raises(UserError, match="'convs'"):
        explainer.layers(network, x, target, ["convs"])


@pytest.mark.parametrize(
    "solver",
    ["euler", "heun2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rk4", "dopri5", "torchdiffeq"))],
)
def test_neural_odes_conserve_under_every_kind_of_solver(solver, walked, composite):
    import explainode
    from explainode.models.neural_ode import NeuralODE

    torch.manual_seed(0)
    settings = {"rtol": 1e-1, "atol": 1e-1} if solver in ("dopri5", "torchdiffeq") else {"steps": 2}
    net = (
        NeuralODE.from_resnet(six_block_resnet(width=8, blocks=2), explainode.get(f"solver/{solver}", **settings))
        .double()
        .eval()
    )
    x = torch.rand(2, 3, 16, 16, dtype=torch.double)
    target = torch.tensor([1, 4])
    R, way = walked(net, x, target, composite("dtd_z_plus"))
    score = way.tape.output.data.gather(1, target[:, None])[:, 0]
    assert ((R.sum((1, 2, 3)) - score) / score).abs().max() <= 1e-10
