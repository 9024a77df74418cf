"""Metrics of metrics: by hand, for a metric of nothing but noise, and for deletion on the planted network (acceptance check 9)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from explainode.errors import UserError
from explainode.metrics.faithfulness import Deletion, Insertion
from explainode.metrics.meta_evaluation import meta_evaluate, ranks


def test_ranks_by_hand():
    table = np.array([[3.0, 1, 2, np.nan], [1.0, 1, 5, 0], [2.0, 0, 2, 1]])
    assert ranks(table)[:, :3].T.tolist() == [[1, 3, 2], [1.5, 1.5, 3], [2.5, 1, 2.5]]


def test_an_ideal_metric():
    scores = np.arange(60.0).reshape(3, 20) ** 1.1
    found = meta_evaluate(scores, np.stack([scores] * 4), np.stack([scores - 50, scores - 100]))
    assert (found.resilience, found.rank_resilience, found.worse) == (1, 1, 1) and found.reactivity > 0.999
    assert found.consistency == (found.resilience + found.rank_resilience + found.reactivity + found.worse) / 4


def test_a_metric_that_is_moved_by_trifles_and_not_by_disruption():
    scores = np.arange(60.0).reshape(3, 20)
    found = meta_evaluate(scores, scores[None] + 1e-3, scores[None])
    assert found.resilience < 0.01 and found.rank_resilience == 1  # always in one direction, but no rank changes
    assert found.reactivity == 0 and found.worse == 0


def test_a_metric_of_noise():
    """No metric: p-values are uniform, half of all scores fall, ranks of three methods stay in one of three cases. Bounds: four standard errors."""
    generator = np.random.default_rng(0)
    scores, shaken, disrupted = (generator.normal(size=(p, 3, 40)) for p in (1, 30, 30))
    found = meta_evaluate(scores[0], shaken, disrupted, resamples=500)
    # perturbations share the unperturbed scores, so 3 methods and not 90 are the independent draws: 4 * sqrt(1 / 12 / 3)
    assert abs(found.resilience - 0.5) < 0.67 and abs(found.reactivity - 0.5) < 0.67
    assert (
        abs(found.worse - 0.5) < 4 * (1 / 12 / 120) ** 0.5
        and abs(found.rank_resilience - 1 / 3) < 4 * (2 / 9 / 40) ** 0.5
    )


def test_excluded_images_count_nowhere():
    scores = np.arange(60.0).reshape(3, 20)
    holed = scores.copy()
    holed[1, 4] = np.nan
    found = meta_evaluate(holed, np.stack([holed]), np.stack([holed - 50]))
    assert (found.resilience, found.rank_resilience, found.worse) == (1, 1, 1)
    with pytest.raises(UserError, match=r"shaken must have shape \(P, 3, 20\), got \(3, 20\)"):
        meta_evaluate(scores, scores, scores[None])


@pytest.mark.parametrize(
    "metric", [Deletion(points=49, baseline="zero"), Insertion(points=49, baseline="zero")], ids=lambda m: m.kind
)
def test_deletion_and_insertion_on_the_planted_network(record, pictures, planted, metric):
    """Small noise changes no ranks of truth, gradient and inverted truth; shuffled maps score worse."""
    net, x = planted(), pictures(32, 12, seed=5) * 0.7 + 0.2
    generator = torch.Generator().manual_seed(0)
    truth = net.contributions(x)[:, None]
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        learned = torch.autograd.grad(net(leaf)[:, 0].sum(), leaf)[0]

    def score(attribution):
        metric.setup(32)
        metric.update(record(net, x, attribution)[0])
        sign = 1 if metric.direction() else -1
        return sign * np.array([metric.per_image()[""][k] for k in range(32)])

    def noisy(m):
        return m + 0.01 * m.std() * torch.randn(m.shape, generator=generator)

    def shuffled(m):
        return m.flatten(2)[:, :, torch.randperm(144, generator=generator)].view_as(m)

    every = [truth, learned, -truth]
    shaken = np.array([[score(noisy(m)) for m in every] for _ in range(3)])
    disrupted = np.array([[score(shuffled(m)) for m in every[:2]] for _ in range(3)])
    clean = np.array([score(m) for m in every])
    assert meta_evaluate(clean, shaken, shaken).rank_resilience > 0.95
    found = meta_evaluate(clean[:2], shaken[:, :2], disrupted)
    assert found.reactivity > 0.99 and found.worse > 0.99
