"""Which rule where: precedence, and every condition of an assignment on networks whose operations we can count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from explainode import registry
from explainode.errors import UserError
from explainode.explainers.guard import guard
from explainode.explainers.relevance import Relevance
from explainode.relevance.composite import Assignment, Composite
from explainode.relevance.composites import lrp
from explainode.relevance.rules.lrp import Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from explainode.relevance.rules.structure import AffineShare, Gate, Pass, Route, Split
from explainode.relevance.tape import Tape, record

TARGET = torch.tensor([0, 2])


class Chain(nn.Module):
    """(B, 3, 8, 8) -> (B, 4): normalization, three convolutions, the mean over the plane, a dense head: four linear operations and an average."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(6, 4)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem((x - 0.4) / 0.5).relu()).mean((2, 3)))


class Branches(nn.Module):
    """Three convolutions see the pixels, two of them through scales and offsets only; one sees them rectified."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.near, self.far, self.behind, self.joint = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 3, 3, 4))
        self.head = nn.Linear(4, 4)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        y = self.near((x - 0.4) / 0.5) + self.far(2 * x) + self.behind((x - 0.5).relu())
        return self.head(self.joint(y.relu()).mean((2, 3))) * 2 + 1


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 3, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(1))


def taped(net: nn.Module, x: Tensor) -> Tape:
    with guard(net) as network:
        return record(network, x)


def chosen(composite: Composite, tape: Tape, kind: str = "linear") -> dict[str, object]:
    """module -> the rule of its operation."""
    choose = composite.assign(tape)
    return {operation.module: choose(operation) for operation in tape.operations if operation.kind == kind}


def test_the_first_assignment_that_matches_counts(x):
    tape = taped(Chain(), x)
    given = [Assignment(Flat(), module="body.*"), Assignment(WSquare(), op="convolution"), Assignment(ZPlus())]
    assert chosen(Composite(given), tape) == {"stem": WSquare(), "body.0": Flat(), "body.2": Flat(), "head": ZPlus()}
    assert chosen(Composite([given[1], given[0], given[2]]), tape)["body.0"] == WSquare()
    assert set(chosen(Composite([given[2], *given[:2]]), tape).values()) == {ZPlus()}


def test_every_condition_that_is_given_must_hold(x):
    tape = taped(Chain(), x)
    given = [
        Assignment(Flat(), op="convolution", position="first"),
        Assignment(WSquare(), module="body.2", depth=(0.5, 1.0)),
        Assignment(ZPlus()),
    ]
    assert chosen(Composite(given), tape) == {"stem": Flat(), "body.0": ZPlus(), "body.2": WSquare(), "head": ZPlus()}


def test_a_kind_leaves_the_rules_other_kinds_to_others(x):
    tape = taped(Chain(), x)
    composite = Composite([Assignment(ZPlus(), kind="average"), Assignment(Epsilon())])
    assert set(chosen(composite, tape).values()) == {Epsilon()}
    assert set(chosen(composite, tape, "average").values()) == {ZPlus()}


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 7])
def test_thirds_by_depth_cover_every_linear_operation_once(layers, x):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), *(nn.Linear(192 if i == 0 else 6, 6) for i in range(layers))).double()
    low, middle, high = rules = Flat(), WSquare(), ZPlus()
    thirds = [Assignment(rule, depth=(i / 3, (i + 1) / 3)) for i, rule in enumerate(rules)]
    found = list(chosen(Composite(thirds), taped(net, x)).values())
    at = [i / max(1, layers - 1) for i in range(layers)]  # the last is at 1, which belongs to the last interval
    assert found == [low if d < 1 / 3 else middle if d < 2 / 3 else high for d in at]
    backwards = list(chosen(Composite(thirds[::-1]), taped(net, x)).values())
    assert backwards == found  # disjoint: their order does not matter


def test_depth_1_is_only_in_intervals_that_end_there(x):
    tape = taped(Chain(), x)
    composite = Composite([Assignment(Flat(), depth=(0.9, 1.0)), Assignment(ZPlus())])
    assert [module for module, rule in chosen(composite, tape).items() if rule == Flat()] == ["head"]
    composite = Composite([Assignment(Flat(), depth=(0.0, 0.1)), Assignment(ZPlus())])
    assert [module for module, rule in chosen(composite, tape).items() if rule == Flat()] == ["stem"]


def test_an_average_has_no_depth(x):
    composite = Composite([Assignment(Flat(), depth=(0.0, 1.0)), Assignment(ZPlus())])
    assert set(chosen(composite, taped(Chain(), x), "average").values()) == {ZPlus()}


def test_first_are_all_that_see_the_pixels_through_scales_and_offsets(x):
    found = chosen(Composite([Assignment(Flat(), position="first"), Assignment(ZPlus())]), taped(Branches(), x))
    assert found == {"near": Flat(), "far": Flat(), "behind": ZPlus(), "joint": ZPlus(), "head": ZPlus()}


def test_first_are_the_scales_and_offsets_of_the_pixels_too(x):
    tape = taped(Branches(), x)
    choose = Composite(
        [Assignment(Pass(), position="first"), Assignment(AffineShare()), Assignment(ZPlus()), Assignment(Split())]
    ).assign(tape)
    affine = tape.of_kind("affine")
    assert [operation.name for operation in affine if choose(operation) == Pass()] == ["sub", "div", "mul", "sub"]
    assert [operation.name for operation in affine if choose(operation) == AffineShare()] == [
        "mul",
        "add",
    ]  # behind the head


class Padded(nn.Module):
    """A convolution behind normalized pixels, padded by itself or by a layer before it, and read turned round."""

    def __init__(self, before: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pad = nn.ZeroPad2d(1) if before else nn.Identity()
        self.stem = nn.Conv2d(3, 4, 3, padding=0 if before else 1)
        self.head = nn.Linear(4, 4)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(self.pad((x - 0.4) / 0.5)).relu().mean((2, 3)))


@pytest.mark.parametrize("rule", [ZBox(), Flat()], ids=lambda rule: type(rule).__name__)
def test_pixels_are_seen_through_padding(x, rule):
    """A layer of zeros before the first convolution is the same network: the box rule used to be left out there without a word."""
    composite = lrp([Assignment(rule, position="first"), Assignment(ZPlus())])
    R, same = (Relevance(composite)(Padded(before), x, TARGET) for before in (True, False))
    if rule == ZBox():
        torch.testing.assert_close(R, same, rtol=1e-12, atol=1e-14)
    everywhere = Relevance(lrp([Assignment(ZPlus())]))(Padded(True), x, TARGET)
    assert not torch.allclose(R, everywhere, rtol=1e-3)


def test_pixels_are_seen_turned_round(x):
    net = Padded(False)
    composite = lrp([Assignment(ZBox(), position="first"), Assignment(ZPlus())])
    turned = Relevance(composite)(nn.Sequential(Flip(), net), x, TARGET)
    torch.testing.assert_close(turned, Relevance(composite)(net, x.flip(3), TARGET).flip(3), rtol=1e-12, atol=1e-14)


class Flip(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flip(3)


def test_last_is_what_makes_the_logits_seen_through_scales(x):
    found = chosen(Composite([Assignment(Flat(), position="last"), Assignment(ZPlus())]), taped(Branches(), x))
    assert [module for module, rule in found.items() if rule == Flat()] == ["head"]


def test_z_box_takes_every_branch_that_sees_the_pixels(x):
    """A map whose sum is the logit but for what biases absorb: the box rule refuses a layer that does not see the pixels."""
    net = Branches()
    R = Relevance(lrp([Assignment(ZBox(), position="first"), Assignment(ZPlus())]))(net, x, TARGET)
    torch.testing.assert_close(R.sum((1, 2, 3)), net(x).gather(1, TARGET[:, None])[:, 0].detach())
    with pytest.raises(UserError, match=r"'behind'.*does not see them"):
        Relevance(lrp([Assignment(ZBox(), op="convolution", module="[!j]*"), Assignment(ZPlus())]))(net, x, TARGET)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "lineal"}, ["'lineal'", "linear"]),
        ({"op": "convolutions"}, ["'convolutions'", "convolution"]),
        ({"position": "frist"}, ["'frist'", "first", "last"]),
        ({"depth": (0.5, 0.5)}, ["[0.5, 0.5]", "interval"]),
        ({"depth": (0.5, 1.5)}, ["[0.5, 1.5]", "[0, 1]"]),
        ({"depth": (0.5,)}, ["[0.5]", "interval"]),
        ({"kind": "softmax"}, ["ZPlus", "'softmax'", "linear, average"]),
    ],
)
def test_an_assignment_that_cannot_be_meant_is_refused(arguments, words):
    with pytest.raises(UserError) as told:
        Assignment(ZPlus(), **arguments)
    assert all(word in str(told.value) for word in words)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Composite([], seed="logits"), ["'logits'", "logit"]),
        (lambda: lrp([], seed="contrast"), ["'contrast'", "contrastive"]),
        (lambda: lrp([], residual="sign"), ["'sign'", "signed"]),
        (lambda: lrp([], products="gates"), ["products", "'gates'", "gate"]),
        (lambda: lrp([], attention="constants"), ["attention", "'constants'", "constant"]),
        (lambda: lrp([], constants="absorbed"), ["constants", "'absorbed'", "absorb"]),
    ],
)
def test_an_unknown_word_is_refused_with_the_nearest(build, words):
    with pytest.raises(UserError) as told:
        build()
    assert all(word in str(told.value) for word in words)


class Sums(nn.Module):
    """A sum of two explained tensors in the layer `inner`."""

    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu() + x.tanh()

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = self.Inner(), nn.Linear(192, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x).flatten(1))


def test_an_operation_without_a_rule_is_named(x):
    linear_only = Composite([Assignment(ZPlus()), Assignment(Pass()), Assignment(Route()), Assignment(Gate())])
    with pytest.raises(UserError) as told:
        Relevance(linear_only)(Sums(), x, TARGET)
    assert all(word in str(told.value) for word in ("'add'", "'inner'", "'sum'"))
    whole = Composite([*linear_only.assignments, Assignment(Split())])
    assert bool(Relevance(whole)(Sums(), x, TARGET).any())


def test_a_module_that_is_not_there_is_refused_with_the_nearest(x):
    with pytest.raises(UserError) as told:
        Relevance(lrp([Assignment(Gamma(), module="boddy.*"), Assignment(ZPlus())]))(Chain(), x, TARGET)
    assert all(word in str(told.value) for word in ("Gamma", "'boddy.*'", "body"))
    assert "\n" not in str(told.value)


def test_a_module_without_operations_of_the_rule_is_refused_with_what_is_in_it(x):
    with pytest.raises(UserError) as told:
        Relevance(lrp([Assignment(Gamma(), module="body.1"), Assignment(ZPlus())]))(Chain(), x, TARGET)
    assert all(word in str(told.value) for word in ("Gamma", "'body.1'", "relu (activation)"))
    with pytest.raises(UserError, match=r"convolution \(linear\)"):
        Relevance(lrp([Assignment(Gamma(), module="body.0", position="last"), Assignment(ZPlus())]))(Chain(), x, TARGET)


def test_an_assignment_may_be_hidden_by_one_before_it(x):
    """What matches an operation is no mistake, whoever comes first; and conditions other than names may match nothing in one network."""
    hidden = lrp([Assignment(ZPlus()), Assignment(Gamma(), module="body.*"), Assignment(Flat(), op="bmm")])
    assert torch.equal(Relevance(hidden)(Chain(), x, TARGET), Relevance(lrp([Assignment(ZPlus())]))(Chain(), x, TARGET))


MINE = """\
# flat at the pixels, gamma in the body, epsilon elsewhere | a test
_target_: explainode.relevance.composites.lrp
linear:
  - _target_: explainode.relevance.composite.Assignment
    rule: {_target_: explainode.relevance.rules.lrp.Flat, bias: drop}
    position: first
  - _target_: explainode.relevance.composite.Assignment
    rule: {_target_: explainode.relevance.rules.lrp.Gamma, gamma: 0.5, bias: drop}
    module: body.*
  - _target_: explainode.relevance.composite.Assignment
    rule: {_target_: explainode.relevance.rules.lrp.Epsilon, epsilon: 1.0e-3, relative: false, bias: absorb}
"""
EXPLAINER = """\
# @package explainer.mine
# the composite above | a test
defaults:
  - /composite@composite: mine
  - _self_
_target_: explainode.explainers.relevance.Relevance
"""


def test_a_users_composite_is_a_yaml(tmp_path: Path, monkeypatch, x):
    monkeypatch.setattr("explainode.registry.entries._extra_folders", [])
    for group, text in (("composite", MINE), ("explainer", EXPLAINER)):
        (tmp_path / group).mkdir()
        (tmp_path / group / "mine.yaml").write_text(text, encoding="utf-8")
    registry.add_config_folder(tmp_path)
    explainer = registry.get("explainer/mine")
    rules = [Assignment(Flat(), position="first"), Assignment(Gamma(0.5), module="body.*"), Assignment(Epsilon(1e-3))]
    assert chosen(explainer.composite, taped(Chain(), x)) == {
        "stem": Flat(),
        "body.0": Gamma(0.5),
        "body.2": Gamma(0.5),
        "head": Epsilon(1e-3),
    }
    assert torch.equal(explainer(Chain(), x, TARGET), Relevance(lrp(rules))(Chain(), x, TARGET))


def test_the_same_composite_serves_several_networks(x):
    """Nothing of a tape stays in a composite."""
    composite = lrp([Assignment(ZBox(), position="first"), Assignment(ZPlus())])
    alone = Relevance(composite)(Chain(), x, TARGET)
    Relevance(composite)(Branches(), x, TARGET)
    assert torch.equal(Relevance(composite)(Chain(), x, TARGET), alone)


def test_without_conditions_a_rule_takes_all_kinds_that_it_knows(x):
    tape = taped(Chain(), x)
    choose = Composite([Assignment(Pass()), Assignment(ZPlus()), Assignment(Route())]).assign(tape)
    assert {operation.kind for operation in tape.operations if choose(operation) == Pass()} == {"affine", "activation"}
    assert {operation.kind for operation in tape.operations if choose(operation) == ZPlus()} == {"linear", "average"}
