"""What a walk records reaches the user: the numbers of a direct walk, in the rows' order, for no further pass."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from explainode.errors import UserError
from explainode.evaluation import evaluate, in_batches
from explainode.explainers.base import Explainer, count_passes, guard, pass_limit
from explainode.explainers.controls import InvertedMap
from explainode.explainers.gradient import Saliency
from explainode.explainers.passes import collect_reports, each_copy, in_passes, join_reports, report
from explainode.explainers.relevance import record_logits, walk_back
from explainode.explainers.sampling import SmoothGrad
from explainode.explaining import explain
from explainode.randomness import noise_scope
from explainode.registry.build import get

LOSSES = {"relevance_absorbed", "relevance_spread"}
ROOTS = {"root_residual", "root_output", "root_gradient_mse"}


@dataclass(frozen=True)
class Telling(Explainer):
    """The image itself; tells each row's mean, in passes."""

    name: str = "mean"

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        def evaluate(x: Tensor) -> tuple[Tensor]:
            model(x)
            report(self.name, x.mean((1, 2, 3)))
            return (x,)

        return in_passes(evaluate, x)[0]


def walked(explainer, net, x, target):
    """relevance_absorbed and relevance_spread by hand, from the map and the walk."""
    with guard(net) as network:
        tape = record_logits(network, x, target)
        R, walk = walk_back(tape, target, explainer.composite)
    score = net(x).detach().gather(1, target[:, None])[:, 0].double()
    spread = walk.amounts.get("spread", torch.zeros(len(x)))
    return {
        "relevance_absorbed": score.sign() - R.double().sum((1, 2, 3)) / score.abs(),
        "relevance_spread": spread / score.abs(),
        **walk.means(),
    }


@pytest.mark.parametrize("chunk_size", [1, 3, 8])
@pytest.mark.parametrize("name", ["lrp_epsilon", "dtd_z_plus", "lrp_epsilon_plus", "root_inference"])
def test_the_record_says_what_a_walk_of_its_own_says(name, chunk_size, net, x, target):
    explainer = get(f"explainer/{name}")
    found = explain(explainer, net, x, target, chunk_size=chunk_size).diagnostics
    expected = walked(explainer, net, x, target)
    assert set(found) == LOSSES | (ROOTS if name == "root_inference" else set()) == set(expected)
    for number, values in found.items():
        torch.testing.assert_close(values, expected[number], rtol=1e-4, atol=1e-5)
    if name == "lrp_epsilon":
        assert found["relevance_absorbed"].abs().min() > 1e-3  # biases take a part, of each image another
    else:
        assert found["relevance_absorbed"].abs().max() < 1e-4


def test_absorbed_is_the_completeness_error_in_parts_of_the_score(net, x, target):
    record = explain(get("explainer/lrp_epsilon"), net, x, target)
    assert record.completeness_error is not None
    torch.testing.assert_close(
        record.diagnostics["relevance_absorbed"].float(), -record.completeness_error / record.score.abs()
    )


def test_spread_is_counted_where_units_have_no_share(x):
    """Every weight of the convolution is negative, so z+ has nothing to go by, and hands out all of the logit evenly."""
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 100, 5))
    with torch.no_grad():
        net[0].weight.fill_(-1.0)
        net[2].weight.fill_(-1.0)
        net[0].bias.zero_(), net[2].bias.zero_()
    found = explain(get("explainer/dtd_z_plus"), net, x, 2).diagnostics
    torch.testing.assert_close(found["relevance_spread"], torch.ones(4, dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(found["relevance_absorbed"], torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("noise", ["path", "mean:3"])
def test_a_batch_of_four_equals_four_singles(noise, noisy_net, x, target):
    ids, explainer = torch.tensor([7, 3, 100, 4]), get("explainer/lrp_epsilon")
    whole = explain(explainer, noisy_net, x, target, noise=noise, sample_ids=ids, chunk_size=3).diagnostics[
        "relevance_absorbed"
    ]
    for i in range(4):
        one = explain(explainer, noisy_net, x[i : i + 1], target[i : i + 1], noise=noise, sample_ids=ids[i : i + 1])
        torch.testing.assert_close(one.diagnostics["relevance_absorbed"], whole[i : i + 1], rtol=1e-4, atol=1e-5)


def test_numbers_are_averaged_over_noise_draws(noisy_net, x, target):
    explainer = get("explainer/lrp_epsilon")
    record = explain(explainer, noisy_net, x, target, noise="mean:3", seed=2)
    draws = []
    for draw in range(3):
        with noise_scope(torch.arange(4), 2, draw), collect_reports(4) as reports:
            explainer(noisy_net, x, target)
        draws.append(reports.means()["relevance_absorbed"])
    assert not torch.allclose(draws[0], draws[1])
    torch.testing.assert_close(record.diagnostics["relevance_absorbed"], torch.stack(draws).mean(0))


@pytest.mark.parametrize("limit", [1, 3, 8, None])
def test_passes_keep_the_order_of_the_rows(limit, net, x, target):
    with pass_limit(limit), collect_reports(4) as reports:
        Telling()(net, x, target)
    assert torch.equal(reports.means()["mean"], x.mean((1, 2, 3)))


def test_it_costs_no_pass(net, x, target):
    seen = []
    net.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    for name in ("lrp_epsilon", "root_inference"):
        explainer, shared = get(f"explainer/{name}"), {}
        explainer(net, x, target)  # what belongs to the network, not to the images, is looked up once
        seen.clear()
        record = explain(explainer, net, x, target, shared=shared)
        with count_passes() as passes:
            explainer(net, x, target)
        assert (record.forwards, record.backwards) == (passes.forwards, passes.backwards) == (4, 4)
        assert sum(seen) == 4 * 4  # the logits, the walk, the promised sum; and the walk of the second call


def test_copies_are_other_images(net, x, target):
    """Each chunk of each_copy may hold as many rows as the batch; what is said of it still is no number about the batch."""
    for limit in (1, 4, 8, None):
        assert explain(SmoothGrad(Telling(), samples=3), net, x, target, chunk_size=limit or "auto").diagnostics == {}
        with pass_limit(limit), collect_reports(4) as reports:
            SmoothGrad(get("explainer/lrp_epsilon"), samples=2)(net, x, target)
            list(each_copy(lambda rows, classes: (report("copy", rows[:, 0, 0, 0]), rows)[1:], [x, x], target))
            report("after", target)
        assert set(reports.means()) == {"after"}


def test_a_method_around_a_method_says_what_it_says(net, x, target):
    inner, outer = (explain(explainer, net, x, target).diagnostics for explainer in (Telling(), InvertedMap(Telling())))
    assert torch.equal(inner["mean"], outer["mean"])


def test_only_numbers_about_the_rows_are_heard():
    with collect_reports(3) as outer:
        report("other rows", torch.zeros(6))
        report("twice", torch.tensor([0.0, 1.0, 2.0]))
        with collect_reports(3) as inner:
            report("inside", torch.zeros(3))
        report("twice", torch.tensor([2.0, 1.0, 0.0]))
    report("outside", torch.zeros(3))
    assert set(outer.means()) == {"twice"} and set(inner.means()) == {"inside"}
    assert torch.equal(outer.means()["twice"], torch.ones(3))
    with pytest.raises(UserError, match="one number per row"):
        report("map", torch.zeros(3, 2))


def test_rows_of_which_nothing_was_said_are_nan():
    with collect_reports(1) as silent:
        pass
    with collect_reports(2) as telling:
        report("number", torch.tensor([1.0, 2.0]))
    found = join_reports([silent, telling, silent])
    torch.testing.assert_close(found["number"], torch.tensor([torch.nan, 1.0, 2.0, torch.nan]), equal_nan=True)


def test_a_chunk_that_ran_out_of_memory_is_not_heard_twice(net, x, target, monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    calls = []

    @dataclass(frozen=True)
    class Hungry(Telling):
        def attribute(self, model, x, target):
            attribution = super().attribute(model, x, target)
            calls.append(len(x))
            if len(x) > 1 and len(calls) != 2:  # 2 rows fit once, in between
                raise torch.OutOfMemoryError("CUDA out of memory")
            return attribution

    record = explain(Hungry(), net, x, target, chunk_size=4)
    assert calls == [4, 2, 2, 1, 1]
    assert torch.equal(record.diagnostics["mean"], x.mean((1, 2, 3)))


def test_methods_without_a_sum_or_a_walk_report_nothing(net, x, target):
    for explainer in (Saliency(), get("explainer/guided_backprop"), get("explainer/lrp_contrastive")):
        assert explain(explainer, net, x, target).diagnostics == {}


def test_the_table_shows_them(net, x):
    metrics = {name: get(f"metric/{name}") for name in ("relevance_absorbed", "relevance_spread", "completeness_error")}
    results = evaluate(
        net, {"lrp": get("explainer/lrp_epsilon"), "saliency": Saliency()}, metrics, in_batches(x, batch_size=3), n=4
    )
    rows = {(row.explainer, row.metric): row for row in results.rows}
    expected = explain(get("explainer/lrp_epsilon"), net, x).diagnostics["relevance_absorbed"]
    assert rows["lrp", "relevance_absorbed"].value == pytest.approx(float(expected.mean()), rel=1e-4)
    assert rows["lrp", "relevance_absorbed.absolute"].value == pytest.approx(float(expected.abs().mean()), rel=1e-4)
    assert (rows["saliency", "relevance_absorbed"].n, rows["saliency", "relevance_absorbed"].excluded) == (0, 4)
