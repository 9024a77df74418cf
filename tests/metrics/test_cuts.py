"""Cuts against brute force.

Compared once with scikit-image 0.26's `threshold_otsu`: the cut is that of its histogram up to the bin in which it lies.
"""

from __future__ import annotations

import pytest
import torch

from explainode.attribution import normalize
from explainode.errors import UserError
from explainode.metrics.cuts import BINS, check_cut, foreground


def test_otsu_has_the_largest_variance_between_the_sides():
    heat = torch.rand(12, 20, 20, generator=torch.Generator().manual_seed(0)) ** torch.arange(1, 13).view(-1, 1, 1)
    marked = foreground(heat, "otsu")
    bins = (normalize(heat).double() * BINS).long().clamp(max=BINS - 1)
    for own, place in zip(marked, bins, strict=True):
        value = (place.double() + 0.5) / BINS

        def between(upper: torch.Tensor, value=value) -> float:
            share = upper.double().mean()
            return float(share * (1 - share) * (value[upper].mean() - value[~upper].mean()) ** 2)

        best = max(between(place > k) for k in range(BINS - 1) if 0 < (place > k).sum() < place.numel())
        assert between(own) == pytest.approx(best, rel=1e-12)


def test_otsu_separates_two_levels():
    heat = torch.full((1, 4, 4), 0.2)
    heat[0, 1:3, 1:3] = torch.tensor([[0.8, 0.9], [0.9, 0.8]])
    assert torch.equal(foreground(heat, "otsu"), heat > 0.5)


def test_means_differ_by_the_mean_itself():
    heat = torch.tensor([[[0.0, 1.0, 2.0]]])
    assert foreground(heat, ">mean").tolist() == [[[False, False, True]]]
    assert foreground(heat, ">=mean").tolist() == [[[False, True, True]]]


def test_top_takes_ties_but_never_the_minimum():
    heat = torch.tensor([[[0.0, 0.0, 0.0, 1.0, 2.0, 2.0, 3.0, 0.0, 0.0, 0.0]]])
    assert foreground(heat, "top:0.1").sum() == 1
    assert foreground(heat, "top:0.2").sum() == 3  # the second and the third are equal
    assert foreground(heat, "top:0.9").sum() == 4  # not the zeros
    assert torch.equal(foreground(heat, "peak:0.5"), heat > 1.5)


def test_a_constant_map_marks_nothing():
    heat = torch.full((2, 5, 5), 0.3)
    assert not any(foreground(heat, rule).any() for rule in (">mean", "otsu", "top:0.5", "peak:0.2"))


def test_signs_and_scales_do_not_matter():
    heat = torch.randn(3, 9, 9, generator=torch.Generator().manual_seed(1))
    for rule in (">mean", "otsu", "top:0.3", "peak:0.4"):
        assert (
            foreground(heat, rule) == foreground(8 * heat - 3, rule)
        ).float().mean() > 0.98  # rounding may move a border pixel


@pytest.mark.parametrize(
    ("rule", "words"),
    [("median", "no cut named 'median'"), ("top:2", "such as top:0.2"), ("peak:", "such as peak:0.2")],
)
def test_an_unknown_cut_is_refused(rule, words):
    with pytest.raises(UserError, match=words):
        check_cut(rule)
