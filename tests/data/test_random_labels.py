"""Random labels: the right share, uniform, keyed, and nowhere but in training."""

from __future__ import annotations

import pytest
import torch

import explainode
from explainode.data.augment import Augment
from explainode.data.random_labels import RandomLabelsData
from explainode.data.shapes import ShapesData
from explainode.errors import UserError


def source(**settings):
    return ShapesData(
        **{"train_size": 2000, "val_size": 16, "test_size": 16, "size": 16, "batch_size": 250, **settings}
    )


def labels(data, split="train"):
    dataset = data.dataset(split)
    return torch.cat(
        [dataset.__getitems__(list(range(i, min(i + 250, len(dataset))))).label for i in range(0, len(dataset), 250)]
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_share_of_labels(share):
    """A redrawn label is the true one in 1 of 8 cases; bounds are four standard errors of a binomial."""
    true, found = labels(source()), labels(RandomLabelsData(source(), share))
    expected = share * 7 / 8
    assert abs((found != true).double().mean() - expected) <= 4 * (expected * (1 - expected) / 2000) ** 0.5
    if share == 1:
        count = torch.bincount(found, minlength=8)
        assert (count - 250).abs().max() < 4 * (250 * 7 / 8) ** 0.5
        table = torch.zeros(8, 8).index_put_((true, found), torch.ones(2000), accumulate=True)
        assert (
            (table - 31.25) ** 2 / 31.25
        ).sum() < 110  # chi-square with 49 degrees of freedom: mean 49, 110 is beyond 1e-6


def test_pictures_order_and_other_splits_stay():
    data, plain = RandomLabelsData(source()), source()
    for split in ("val", "test"):
        assert torch.equal(labels(data, split), labels(plain, split))
    ours, theirs = (d.dataset("train").__getitems__([5, 3, 900]) for d in (data, plain))
    assert (
        torch.equal(ours.image, theirs.image)
        and torch.equal(ours.sample_id, theirs.sample_id)
        and torch.equal(ours.mask, theirs.mask)
    )
    for a, b in zip(data.train_dataloader(), plain.train_dataloader(), strict=True):
        assert torch.equal(a.sample_id, b.sample_id)
        break
    own = Augment(padding=2)
    wrapped = RandomLabelsData(source(augment=own, seed=7))
    assert (
        wrapped.augment is own
        and wrapped.seed == 7
        and wrapped.batch_size == 250
        and wrapped.num_classes == 8
        and wrapped.image_size == 16
    )


def test_a_label_is_a_function_of_its_key():
    data = RandomLabelsData(source(), 0.5).dataset("train")
    together = data.__getitems__([8, 1, 1, 77]).label
    assert together.tolist() == [data[k].label.item() for k in (8, 1, 1, 77)]
    assert torch.equal(labels(RandomLabelsData(source(), 0.5)), labels(RandomLabelsData(source(seed=3), 0.5)))
    assert not torch.equal(
        labels(RandomLabelsData(source(), 0.5)), labels(RandomLabelsData(source(), 0.5, label_seed=1))
    )


def test_from_conf_and_refusals():
    data = explainode.get("data/random_labels", share=0.25)
    assert data.num_classes == 10 and data.share == 0.25 and data.augment is not None
    with pytest.raises(UserError, match=r"a fraction of the training pictures in \[0, 1\], got 1\.5"):
        RandomLabelsData(source(), 1.5)
    with pytest.raises(UserError, match="has 8 classes"):
        RandomLabelsData(source(), num_classes=3)
