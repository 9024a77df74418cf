"""Several maps from one pass are those of separate passes, bit for bit; and what was sent is counted once."""

from __future__ import annotations

import pytest
import torch

from explainode.data.batch import Batch
from explainode.evaluation import evaluate
from explainode.explainers.base import Explainer
from explainode.explainers.cam import GradCAM, GradCAMPlusPlus, LayerCAM, XGradCAM
from explainode.explainers.controls import RandomMap
from explainode.explainers.gradient import InputXGradient, IntegratedGradients, Saliency
from explainode.explainers.sampling import SmoothGrad
from explainode.explaining import explain, explain_many
from explainode.metrics.cost import Cost

FIVE = [Saliency(), InputXGradient(), GradCAM(), GradCAMPlusPlus("stem"), LayerCAM("block")]
LAYERS_ONLY = [LayerCAM("body"), XGradCAM("stem.0"), GradCAM("block", relu=False), GradCAM("body.0")]
MIXED = [RandomMap(), Saliency(), IntegratedGradients(3), GradCAM(), SmoothGrad(Saliency(), 2), LayerCAM("stem")]


@pytest.mark.parametrize("explainers", [FIVE, LAYERS_ONLY, MIXED, FIVE[::-1], [GradCAM()] * 3, FIVE[:1]])
@pytest.mark.parametrize("noise", ["off", "path", "mean:2"])
@pytest.mark.parametrize("chunk_size", ["auto", 3])
def test_maps_are_those_of_separate_calls(explainers, noise, chunk_size, noisy_net, x):
    options = {"noise": noise, "seed": 3, "chunk_size": chunk_size, "sample_ids": torch.tensor([7, 3, 100, 4])}
    for explainer, record in zip(explainers, explain_many(explainers, noisy_net, x, **options), strict=True):
        alone = explain(explainer, noisy_net, x, **options)
        assert torch.equal(record.attribution, alone.attribution)
        assert torch.equal(record.score, alone.score) and torch.equal(record.target, alone.target)
        assert record.stochastic == alone.stochastic and record.attribution.dtype == alone.attribution.dtype
        assert torch.equal(record.explain(x, draw=1), alone.explain(x, draw=1))


def test_the_pass_is_sent_and_counted_once(net, x, target):
    explain_many(FIVE, net, x, target)  # default layers are found in the first call
    shared: dict = {}
    explain(RandomMap(), net, x, target, shared=shared)  # the clean forward
    seen = []
    net.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    records = explain_many(FIVE, net, x, target, shared=shared)
    assert sum(seen) == 4
    assert [(record.forwards, record.backwards) for record in records] == [(4, 4)] + [(0, 0)] * 4
    assert len({record.seconds for record in records}) == 1


def test_a_metric_of_cost_asks_each_method_alone(net, x, target):
    explainers: dict[str, Explainer] = {str(number): explainer for number, explainer in enumerate(FIVE)}
    batches = [Batch(x, target, torch.arange(4))]
    evaluate(net, explainers, {}, batches, n=4)
    results = evaluate(net, explainers, {"cost": Cost()}, batches, n=4)
    values = {(row.explainer, row.metric): row.value for row in results.rows}
    assert all(values[name, f"cost.{what}"] == 1 for name in explainers for what in ("forwards", "backwards"))


def test_evaluate_sends_one_pass_for_all_of_them(net, x, target):
    explainers: dict[str, Explainer] = {str(number): explainer for number, explainer in enumerate(FIVE)}
    batches = [Batch(x, target, torch.arange(4))]
    evaluate(net, explainers, {}, batches, n=4)
    seen = []
    net.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    results = evaluate(net, explainers, {}, batches, n=4, panel=range(4))
    assert sum(seen) == 2 * 4  # the clean forward and the pass
    for maps, explainer in zip(results.maps, FIVE, strict=True):
        assert torch.equal(torch.as_tensor(maps.attribution), explain(explainer, net, x).attribution)
