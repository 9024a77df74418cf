"""Maps under attack and attacks guided by maps: identities, floors and ceilings on small networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from explainode.attacks.base import Attack, AttackResult
from explainode.attacks.deepfool import DeepFool
from explainode.attacks.gradient import FGSM, PGD, GuidedPGD
from explainode.attacks.map_attack import CenterAttack, TargetMapAttack, TopPixelsAttack
from explainode.attribution import keep_graph
from explainode.dynamics.noise import Noise, number_noise_blocks
from explainode.errors import UserError
from explainode.explainers.base import predict
from explainode.explainers.cam import GradCAM
from explainode.explainers.gradient import InputXGradient, IntegratedGradients, Saliency
from explainode.explainers.perturbation import Occlusion
from explainode.explainers.sampling import SmoothGrad
from explainode.explaining import explain
from explainode.metrics.robustness import (
    HeatmapGuidedPGD,
    MapUnderAttack,
    MapUnderMapAttack,
    attacked,
    top_intersection,
)
from explainode.randomness import noise_scope


def measured(metric, explanation):
    metric.setup(len(explanation))
    metric.update(explanation)
    return metric


def as_dict(metric):
    return {result.name: result.value for result in metric.summary()}


class Jitter(nn.Module):
    """A block that adds noise."""

    def __init__(self):
        super().__init__()
        self.noise = Noise(0.2)

    def forward(self, x):
        noise = self.noise(x)
        return x if noise is None else x + noise


def noticing(seen):
    """FGSM that writes down how many images it was given."""

    class Noticing(FGSM):
        def __call__(self, model, x, target, allowed=None) -> AttackResult:
            seen.append(len(x))
            return super().__call__(model, x, target, allowed)

    return Noticing()


def test_dice_and_correlation_by_hand(record, network, pictures):
    net, x = network(), pictures(6, 12)
    explanation, spy = record(net, x)
    metric = measured(MapUnderAttack(FGSM(0.03)), explanation)
    result = FGSM(0.03)(net, x, explanation.logits.argmax(1))
    assert spy.explained == 6
    after = explanation.explain(result.x).sum(1).double().numpy()
    before = explanation.attribution.sum(1).double().numpy()
    for i in range(6):
        A, B = before[i] > before[i].mean(), after[i] > after[i].mean()
        assert metric.per_image()[""][i] == pytest.approx(
            2 * (A & B).sum() / (A.sum() + B.sum()), abs=0.02
        )  # a pixel on the cut
        assert metric.per_image()["pearson"][i] == pytest.approx(
            np.corrcoef(before[i].ravel(), after[i].ravel())[0, 1], abs=1e-5
        )
        assert metric.per_image()["success"][i] == float(result.success[i])
    still = measured(MapUnderAttack(FGSM(0.0)), explanation).compute()
    assert still[""] == 1 and still["pearson"] == pytest.approx(1, abs=1e-6) and still["success"] == 0
    assert as_dict(metric)[""] < 1


def test_one_attack_for_all_explainers(record, network, pictures):
    seen = []
    metric, other = (MapUnderAttack(noticing(seen)) for _ in range(2))
    first, _ = record(network(), pictures(4, 12))
    measured(metric, first)
    second, spy = record(network(), first.x, -first.attribution, shared=first.shared)
    other.attack = metric.attack
    measured(other, second)
    assert seen == [4] and spy.explained == 4


def test_maps_of_a_linear_network_do_not_move(record, pictures):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    linear[1].bias.data[0] = 10.0
    explanation, _ = record(linear, pictures(4, 8))
    for attack in (FGSM(0.1), DeepFool(steps=3)):
        values = measured(MapUnderAttack(attack), explanation).compute()
        assert values[""] == 1 and values["pearson"] == pytest.approx(1)


def test_attack_acts_under_the_records_noise(record, network, pictures):
    """The network that is attacked says what the record says: in all three noise modes."""
    net, x, ids = nn.Sequential(Jitter(), network()), pictures(5, 12), torch.tensor([4, 1, 8, 0, 3])
    number_noise_blocks(net)
    seen = {}

    class Looking(Attack):
        def attack(self, forward, x, target, allowed):
            seen["logits"] = forward(x, torch.arange(len(x))).detach()
            return AttackResult(x, target < 0, target)

    for noise, draws in (("off", []), ("path", [0]), ("mean:3", [0, 1, 2])):
        parts = []
        for draw in draws or [0]:
            with noise_scope(ids, 7, draw, active=bool(draws)), torch.no_grad():
                parts.append(predict(net, x))
        explanation, _ = record(net, x, x, sample_ids=ids)
        explanation.noise, explanation.seed = noise, 7
        attacked(explanation, Looking(), torch.tensor([3, 0, 2]))
        torch.testing.assert_close(seen["logits"], torch.stack(parts).mean(0)[[3, 0, 2]], rtol=0, atol=1e-5)


@pytest.fixture
def wrong_about_two(record, network, pictures):
    """12 images whose labels are the predictions, but for two, and one label that is not known."""

    def make(heat=None, **fields):
        x = pictures(12, 12)
        net = network(gain=2.0)
        label = net(x).argmax(1)
        label[[2, 5]] = (label[[2, 5]] + 1) % 5
        label[7] = -1
        return record(net, x, heat, label=label, **fields)

    return make


def test_guided_pgd_adds_up(wrong_about_two):
    """Acceptance check 7: accuracy after = clean accuracy * (1 - ASR), exactly."""
    explanation, _ = wrong_about_two()
    metric = measured(HeatmapGuidedPGD(top=120, epsilon=0.1, alpha=0.02), explanation)
    found = as_dict(metric)
    result = GuidedPGD(0.1, 0.02, top=120)(
        explanation.model, explanation.x, explanation.logits.argmax(1), explanation.attribution
    )
    known = explanation.label >= 0
    right = (explanation.logits.argmax(1) == explanation.label) & known
    assert 0 < result.success[right].sum() < right.sum() == 9  # otherwise nothing is tested
    assert found["asr_all"] == pytest.approx(result.success.double().mean().item())
    assert found[""] == pytest.approx(result.success[right].double().mean().item())
    assert found["step"] == pytest.approx(result.steps[right & result.success].double().mean().item())
    assert found["accuracy"] == pytest.approx((right & ~result.success).sum().item() / 11) and found[
        "clean"
    ] == pytest.approx(9 / 11)
    assert found["accuracy"] == pytest.approx(found["clean"] * (1 - found[""]), abs=1e-12)
    counted = {result.name: (result.n, result.excluded) for result in metric.summary()}
    hits = int(result.success[right].sum())
    assert counted == {"": (9, 3), "asr_all": (12, 0), "step": (hits, 12 - hits), "accuracy": (11, 1), "clean": (11, 1)}
    assert metric.per_image()[""] == {i: float(result.success[i]) for i in range(12) if right[i]}  # for paired tests


def test_full_budget_is_plain_pgd_and_the_gradient_beats_noise(wrong_about_two):
    explanation, _ = wrong_about_two()
    plain = attacked(explanation, PGD(0.1, 0.02), torch.arange(12))
    full = measured(HeatmapGuidedPGD(top=432, epsilon=0.1, alpha=0.02), explanation)
    assert as_dict(full)["asr_all"] == plain.success.double().mean().item()
    rate = {}
    for name, heat in (
        ("gradient", explanation.attribution.abs()),
        ("noise", torch.rand(12, 3, 12, 12, generator=torch.Generator())),
    ):
        other, _ = wrong_about_two(heat)
        rate[name] = as_dict(measured(HeatmapGuidedPGD(top=60, epsilon=0.15, alpha=0.03), other))["asr_all"]
    assert rate["gradient"] > rate["noise"]


def test_constant_and_broken_maps_are_not_attacked(wrong_about_two):
    heat = torch.randn(12, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    heat[1], heat[4, 0, 2, 2], heat[8, 0, 0, 0] = 0.3, torch.nan, torch.inf
    explanation, _ = wrong_about_two(heat)
    metric = measured(HeatmapGuidedPGD(top=50), explanation)
    assert sorted(metric.per_image()["asr_all"]) == [0, 2, 3, 5, 6, 7, 9, 10, 11]
    maps = measured(MapUnderAttack(FGSM()), explanation)
    assert maps.summary()[0].excluded >= 3
    blank, _ = wrong_about_two(torch.zeros(12, 1, 12, 12))
    found = measured(HeatmapGuidedPGD(top=50), blank).summary()
    assert all(result.n == 0 and np.isnan(result.value) for result in found)


def test_bad_settings_are_told_in_a_sentence(wrong_about_two):
    with pytest.raises(UserError, match="'value' or 'pixel'"):
        HeatmapGuidedPGD(unit="patch")
    with pytest.raises(UserError, match="no cut named"):
        MapUnderAttack(FGSM(), cut="median")
    explanation, _ = wrong_about_two()
    explanation.label = None
    with pytest.raises(UserError, match="needs labels"):
        measured(HeatmapGuidedPGD(), explanation)


# ---- attacks on the map itself


MAP_ATTACKS = [TopPixelsAttack, CenterAttack, TargetMapAttack]


@pytest.mark.parametrize("cls", MAP_ATTACKS)
def test_attacked_maps_by_hand(network, pictures, cls):
    """What is reported is what the record's own method says of the attacked image, and lies below random noise of the same radius."""
    net, x = network(gain=3.0), pictures(4, 16)
    explanation = explain(Saliency(), net, x, sample_ids=torch.tensor([5, 1, 0, 9]))
    attack = cls(epsilon=0.05, alpha=0.01)
    metric = MapUnderMapAttack(attack).setup(10)
    metric.update(explanation)
    found = metric.compute()
    assert found[""] < found["noise"] < 1 and found["progress"] > 0 and found["top"] < 1

    def heatmap(x, rows):
        return explanation.explain(x, rows=rows).abs().sum(1)

    with noise_scope(explanation.sample_ids, 0, 0, active=False):
        result = attack(x, heatmap, explanation.forward)
    assert torch.equal(net(result.x).argmax(1), explanation.target)
    before, after = (heatmap(images, torch.arange(4)).double() for images in (x, result.x))
    probability = net(result.x).softmax(1) - net(x).softmax(1)
    for row, sample in enumerate(explanation.sample_ids.tolist()):
        A, B = before[row] > before[row].mean(), after[row] > after[row].mean()
        table = {name: values[sample] for name, values in metric.per_image().items()}
        assert table[""] == pytest.approx(
            2 * (A & B).sum().item() / (A.sum() + B.sum()).item(), abs=0.02
        )  # a pixel on the cut
        assert table["pearson"] == pytest.approx(np.corrcoef(before[row].ravel(), after[row].ravel())[0, 1], abs=1e-5)
        assert table["output"] == pytest.approx(probability[row, explanation.target[row]].abs().item(), abs=1e-5)
        top = [set(m[row].flatten().topk(26).indices.tolist()) for m in (before, after)]
        assert table["top"] == len(top[0] & top[1]) / 26


def test_nothing_moves_where_the_gradient_does_not(pictures):
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    metric = measured(MapUnderMapAttack(TopPixelsAttack(steps=3)), explain(Saliency(), net, pictures(4, 16))).compute()
    assert metric[""] == metric["top"] == metric["noise"] == 1 and metric["progress"] == metric["output"] == 0


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_class_activation_maps_can_be_attacked_too(network, pictures, mode):
    """The graph leads through activations and gradients of a layer; also where nothing may be differentiated outside."""
    net, x = network(gain=3.0), pictures(3, 16)
    with mode():
        explanation = explain(GradCAM(), net, x)
        found = measured(MapUnderMapAttack(CenterAttack(epsilon=0.1, alpha=0.02)), explanation).compute()
    assert found["progress"] > 0.05 and found["pearson"] < 1
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())


def test_methods_without_gradients_are_refused(network, pictures):
    explanation = explain(Occlusion(), network(), pictures(2, 16))
    with pytest.raises(UserError, match="only methods made of gradients can"):
        measured(MapUnderMapAttack(TopPixelsAttack()), explanation)
    with pytest.raises(UserError, match="top must be a share"):
        MapUnderMapAttack(TopPixelsAttack(), top=0)


def test_top_intersection_by_hand():
    a = torch.tensor([[[9.0, 8, 1], [0, 2, 3], [4, 5, 6]]])
    b = torch.tensor([[[9.0, 0, 8], [0, 2, 3], [4, 5, 7]]])
    assert top_intersection(a, b, 3 / 9).tolist() == [2 / 3] and top_intersection(a, a, 0.5).tolist() == [1]


@pytest.mark.parametrize(
    "explainer",
    [Saliency(), InputXGradient(), IntegratedGradients(4), GradCAM(), SmoothGrad(Saliency(), 3)],
    ids=lambda e: type(e).__name__,
)
def test_maps_keep_their_graph_on_request(network, pictures, explainer):
    """The same numbers, now as a function of the image: the slope along a direction is that of differences."""
    net = network().double()
    net[1] = nn.Softplus(3)
    x = pictures(2, 8).double()
    plain = explainer(net, x, 1)
    assert not plain.requires_grad
    with keep_graph() as graph:
        point = x.clone().requires_grad_()
        kept = explainer(net, point, 1)
    assert graph.kept and kept.requires_grad
    torch.testing.assert_close(kept.detach(), plain)
    generator = torch.Generator().manual_seed(0)
    along, weight = (
        torch.randn(x.shape, generator=generator).double(),
        torch.randn(kept.shape, generator=generator).double(),
    )
    slope = (torch.autograd.grad((kept * weight).sum(), point)[0] * along).sum()
    step = 1e-6
    ahead, behind = ((explainer(net, x + sign * step * along, 1) * weight).sum() for sign in (1, -1))
    assert slope.item() == pytest.approx(((ahead - behind) / (2 * step)).item(), rel=1e-4)


@pytest.mark.parametrize("noise", ["path", "mean:2"])
def test_maps_are_attacked_under_the_records_noise(network, pictures, noise):
    """A network with noise blocks is one function per image: the same numbers again, in any batch."""
    net = network(gain=3.0)
    net.insert(1, Jitter())
    number_noise_blocks(net)
    x, ids = pictures(4, 16), torch.tensor([3, 9, 4, 1])
    metric = MapUnderMapAttack(TopPixelsAttack(steps=3))
    tables = []
    for parts in ([slice(0, 4)], [slice(0, 1), slice(1, 4)]):
        metric.setup(10)
        for rows in parts:
            metric.update(explain(Saliency(), net, x[rows], sample_ids=ids[rows], noise=noise, seed=5))
        tables.append(np.array([row for _, row in sorted(metric.table().items())]))
    np.testing.assert_allclose(tables[0], tables[1], rtol=1e-4, atol=1e-5)
    assert (tables[0][:, 4] > 0).all() and np.isfinite(tables[0]).all()
