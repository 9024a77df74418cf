"""Points of the perturbation walks: closed forms on linear networks, Chefer's protocol retold, one pass for all metrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from explainode.errors import UserError
from explainode.metrics.confidence import AverageDrop
from explainode.metrics.erasure import AOPC, Comprehensiveness, FlipRate, Sufficiency
from explainode.metrics.faithfulness import Deletion, Insertion
from explainode.metrics.perturbation import PerturbationPath, logits_at, percent_counts
from explainode.metrics.perturbation_accuracy import NegativePerturbation, PositivePerturbation
from explainode.metrics.road import ROAD


def measured(metric, explanation):
    metric.setup(len(explanation))
    metric.update(explanation)
    return metric


def values(metric, explanation, name=""):
    return np.array([measured(metric, explanation).per_image()[name][i] for i in range(len(explanation))])


class Additive(nn.Module):
    """Logit 0 is the sum of known contributions of the pixels (of white images: their weights), logit 1 is 0."""

    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x):
        score = (x.mean(1) * self.weight).flatten(1).sum(1)
        return torch.stack((score, torch.zeros_like(score)), 1)


@pytest.fixture
def additive(record):
    """White 10 x 10 images whose 100 pixels contribute 1, 2, ... 100 thousandths, in a shuffled order; the map is the truth."""
    weight = (torch.randperm(100, generator=torch.Generator().manual_seed(0)).float() + 1).view(10, 10) / 1000
    net = Additive(weight)
    explanation, spy = record(
        net, torch.ones(3, 3, 10, 10), weight.expand(3, 1, 10, 10).clone(), label=torch.tensor([0, 1, 0])
    )
    return explanation, spy


SORTED = np.arange(100, 0, -1) / 1000  # contributions, most relevant first


def test_erasure_on_an_additive_network(additive):
    explanation, _ = additive
    lost = np.cumsum(SORTED)  # by the first k + 1 pixels
    kwargs = {"baseline": "zero", "score": "logit"}
    np.testing.assert_allclose(
        values(Comprehensiveness(**kwargs), explanation), lost[[0, 4, 9, 19, 49]].mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
        values(Sufficiency(**kwargs), explanation), (lost[-1] - lost[[0, 4, 9, 19, 49]]).mean(), rtol=1e-5
    )
    np.testing.assert_allclose(values(AOPC(**kwargs), explanation), np.concatenate(([0], lost)).mean(), rtol=1e-5)
    np.testing.assert_allclose(
        values(AOPC(points=11, **kwargs), explanation), np.concatenate(([0], lost[9::10])).mean(), rtol=1e-5
    )
    deletion = measured(Deletion(**kwargs), explanation)
    clean = explanation.logits[0, 0].item()
    mean_of_curve = deletion.curve().mean.mean()
    np.testing.assert_allclose(
        values(AOPC(**kwargs), explanation), clean - mean_of_curve, rtol=1e-4
    )  # as its docstring says


def test_perturbation_accuracy_by_hand(record):
    """Logits (sum of contributions, 2.5): the clean sum is 5.05, and class 0 wins while more than 2.5 is left."""

    class Bar(Additive):
        def forward(self, x):
            logits = super().forward(x)
            return torch.stack((logits[:, 0], logits[:, 0] * 0 + 2.5), 1)

    weight = (torch.arange(100.0) + 1).view(10, 10) / 1000
    explanation, _ = record(
        Bar(weight), torch.ones(3, 3, 10, 10), weight.expand(3, 1, 10, 10), label=torch.tensor([0, 1, -1])
    )
    most_left = 5.05 - np.cumsum(SORTED)[[0, *range(9, 90, 10)]]
    least_left = 5.05 - np.cumsum(SORTED[::-1])[[0, *range(9, 90, 10)]]
    x = np.array([0.01, *np.arange(0.1, 0.95, 0.1)])
    for cls, left in ((PositivePerturbation, most_left), (NegativePerturbation, least_left)):
        hits = (left > 2.5).astype(float)
        metric = measured(cls(), explanation)
        np.testing.assert_allclose(metric.curves(explanation)[0].numpy(), hits)
        np.testing.assert_allclose(metric.curves(explanation)[1].numpy(), 1 - hits)
        assert metric.per_image()[""][0] == pytest.approx(np.trapezoid(hits, x) / 0.89)
        assert (
            sorted(metric.per_image()[""]) == [0, 1] and metric.summary()[0].excluded == 1
        )  # an unknown label is no miss
        # Chefer: the clean accuracy at 0 %, then 10 % ... 90 %; np.trapz(y, x) * 100
        chefer = measured(cls(percent=list(range(10, 100, 10)), clean=True, normalize=False), explanation)
        expected = 100 * np.trapezoid([1.0, *hits[1:]], np.arange(0, 0.95, 0.1))
        assert chefer.per_image()[""][0] == pytest.approx(expected)
        assert chefer.per_image()[""][1] == pytest.approx(90 - expected)
    assert measured(PositivePerturbation(percent=[30]), explanation).per_image()[""][0] == float(
        5.05 - SORTED[:30].sum() > 2.5
    )


def test_negative_perturbation_is_insertion_read_backwards(record, network, pictures):
    explanation, spy = record(
        network(), pictures(4, 15), label=torch.zeros(4, dtype=torch.int64)
    )  # 225 pixels: percentages are not whole
    inserted = logits_at(explanation, PerturbationPath(101, "zero"), True, percent_counts(range(101), 225))
    before = spy.forwards
    metric = NegativePerturbation(percent=[10, 50, 90])
    assert torch.equal(metric.without_least(explanation), inserted[:, [90, 50, 10]]) and spy.forwards == before


def test_flip_rate_counts_changed_predictions(record):
    weight = torch.zeros(10, 10)
    weight[0, :10] = torch.tensor([0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2])

    class Bar(Additive):
        def forward(self, x):
            logits = super().forward(x)
            return torch.stack((logits[:, 0], logits[:, 0] * 0 + 1), 1)

    heat = torch.stack((weight, -weight, torch.rand(10, 10, generator=torch.Generator().manual_seed(0)), weight * 0))[
        :, None
    ]
    explanation, _ = record(Bar(weight), torch.ones(4, 3, 10, 10), heat)
    metric = measured(FlipRate(baseline="zero"), explanation)
    assert metric.per_image() == {"": {0: 1.0, 1: 0.0, 2: 0.0}, "least": {0: 0.0, 1: 1.0, 2: 0.0}}
    assert metric.summary()[0].excluded == 1  # the constant map


def test_average_drop_by_hand(record):
    """p = sigmoid(score); the score is linear in the image, so the map's picture has the score sum(m w)."""
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    x = torch.ones(5, 3, 6, 6)
    heat = torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    heat[3] = heat[3].mean()
    heat[4, 0, 0, 0] = torch.nan
    explanation, spy = record(Additive(weight), x, heat)
    metric = measured(AverageDrop(), explanation)
    clean = explanation.logits[0].softmax(0).max().item()
    predicted = explanation.logits[0].argmax().item()
    for i in range(3):
        m = (heat[i, 0] - heat[i].min()) / (heat[i].max() - heat[i].min())
        seen = torch.tensor([(m * weight).sum(), 0.0]).softmax(0)[predicted].item()
        assert metric.per_image()[""][i] == pytest.approx(max(0, clean - seen) / clean, abs=1e-6)
        assert metric.per_image()["increase"][i] == float(seen > clean)
    assert metric.summary()[0].excluded == 2 and spy.forwards == 3  # nobody asked for the baseline's output
    before = spy.forwards
    whole = measured(AverageDrop(keep=25), explanation)
    assert spy.forwards - before == 3
    kept = logits_at(explanation, whole.walk, True, [9])[:3, 0].softmax(1)[:, predicted]
    np.testing.assert_allclose(
        [whole.per_image()[""][i] for i in range(3)], ((clean - kept).clamp(min=0) / clean).numpy(), atol=1e-6
    )


def test_all_metrics_share_one_pass(record, network, pictures):
    """Two directions of 99 points and the baseline, in whatever order the metrics come; another explainer re-uses the ends."""
    x, label = pictures(5, 16), torch.zeros(5, dtype=torch.int64)

    def metrics():
        kwargs = {"baseline": "blur"}
        return [
            PositivePerturbation(**kwargs),
            Sufficiency(),
            AOPC(points=11),
            Deletion(),
            NegativePerturbation(**kwargs),
            FlipRate(),
            Insertion(),
            Comprehensiveness(),
            AOPC(),
            AverageDrop(baseline="blur", keep=30),
            ROAD(baseline="blur"),
            PositivePerturbation(percent=[33, 66], **kwargs),
        ]

    explanation, spy = record(network(), x, label=label)
    for order in (metrics(), metrics()[::-1]):
        explanation, spy = record(network(), x, explanation.attribution, label=label)
        for metric in order:
            measured(metric, explanation)
        assert spy.forwards == 5 * (2 * 99 + 1) <= 5 * 200
    other, spy = record(network(), x, -explanation.attribution, label=label, shared=explanation.shared)
    for metric in metrics():
        measured(metric, other)
    assert spy.forwards == 5 * 2 * 99


def test_few_points_cost_few_forwards(record, network, pictures):
    explanation, spy = record(network(), pictures(4, 16), label=torch.zeros(4, dtype=torch.int64))
    measured(PositivePerturbation(), explanation)
    assert spy.forwards == 4 * 10  # neither the baseline's output nor the rest of the curve
    measured(Deletion(baseline="zero"), explanation)
    assert spy.forwards == 4 * 100
    before = spy.forwards
    measured(Sufficiency(baseline="zero"), explanation)
    assert spy.forwards == before + 4 * 5


def test_what_was_visited_before_does_not_change_the_curve(record, network, pictures):
    """The rest of the pixels arrives in place, whichever points were left out."""
    x = pictures(3, 16)
    whole, _ = record(network(), x)
    parts, _ = record(network(), x, whole.attribution)
    walk = PerturbationPath(101, "mean")
    for percent in ([50, 90], [10], [0, 20, 100]):
        logits_at(parts, walk, False, percent_counts(percent, 256))
    expected = logits_at(whole, walk, False, percent_counts(range(101), 256))
    torch.testing.assert_close(
        logits_at(parts, walk, False, percent_counts(range(101), 256)), expected, rtol=0, atol=1e-5
    )


def test_constant_maps_and_batches(record, network, pictures):
    """Constant and broken maps are excluded; seven images in a batch of seven or one by one give the same table."""
    x, label = pictures(7, 12), torch.arange(7) % 5
    heat = torch.randn(7, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    heat[2], heat[5, 0, 3, 3] = 0.5, torch.inf
    for make in (
        PositivePerturbation,
        NegativePerturbation,
        AOPC,
        Comprehensiveness,
        Sufficiency,
        FlipRate,
        AverageDrop,
        ROAD,
    ):
        whole, single = make().setup(7), make().setup(7)
        whole.update(record(network(), x, heat, label=label)[0])
        for i in range(7):
            rows = slice(i, i + 1)
            single.update(record(network(), x[rows], heat[rows], label=label[rows], sample_ids=torch.tensor([i]))[0])
        assert sorted(whole.per_image()[""]) == [0, 1, 3, 4, 6]
        for i, row in whole.table().items():
            np.testing.assert_allclose(row, single.table()[i], rtol=0, atol=2e-6)
    alone = AOPC().setup(1)
    alone.update(record(network(), x[:1], heat[:1])[0])
    (found,) = alone.summary()
    assert (
        found.n == 1 and np.isfinite(found.value) and np.isnan(found.low) and np.isnan(found.high)
    )  # too few for an interval


def test_bad_settings_are_told_in_a_sentence():
    for make in (PositivePerturbation, ROAD, Comprehensiveness):
        with pytest.raises(UserError, match="ascending numbers"):
            make(percent=[50, 10])
    with pytest.raises(UserError, match="ascending numbers"):
        ROAD(percent=[0, 50])
    with pytest.raises(UserError, match="points must be at least 2, got 0"):
        AOPC(points=0)
    with pytest.raises(UserError, match="keep must be 'map' or a percentage"):
        AverageDrop(keep="half")
    with pytest.raises(UserError, match="no baseline named 'inpain'"):
        FlipRate(baseline="inpain")
    with pytest.raises(UserError, match="'predicted' or 'explained'"):
        Sufficiency(target="label")
    with pytest.raises(UserError, match="whole number with baseline=inpaint"):
        Deletion(points="adaptive", baseline="inpaint")
