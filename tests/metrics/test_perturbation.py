"""The walk itself: baselines, states, counts, sharing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms.functional import gaussian_blur

from explainode.attribution import rank_pixels
from explainode.blur import gaussian_kernel
from explainode.errors import UserError
from explainode.metrics.baselines import BASELINES, baseline_image, folded_kernel
from explainode.metrics.faithfulness import Deletion, Insertion
from explainode.metrics.perturbation import (
    BUDGET,
    COARSE,
    PerturbationPath,
    curve_logits,
    curve_scores,
    pixel_order,
    target_score,
    walk_images,
)


def test_walk_replaces_exactly_the_first_pixels(pictures):
    start, end = pictures(5, 8), pictures(5, 8, seed=1)
    heat = torch.randn(5, 8, 8, generator=torch.Generator().manual_seed(2))
    order = pixel_order(heat)
    for layout in (torch.contiguous_format, torch.channels_last):
        seen_rows = []

        def forward(x, rows, seen_rows=seen_rows, layout=layout):
            assert x.is_contiguous(memory_format=layout)
            seen_rows.append(rows)
            return x.flatten(1)

        found = walk_images(start.to(memory_format=layout), end, order, [1, 7, 30, 63], forward)
        for k, count in enumerate([1, 7, 30, 63]):
            for b in range(5):
                flat = heat[b].flatten()
                replaced = flat >= flat.sort(descending=True).values[count - 1]
                expected = torch.where(replaced.view(8, 8), end[b], start[b])
                assert torch.equal(found[b, k].view(3, 8, 8), expected)
        assert torch.equal(torch.cat(seen_rows), torch.arange(5).repeat(4))
    assert torch.equal(start, pictures(5, 8))  # the caller's images stay as they were


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_small_batches_travel_together(pictures, batch):
    x, end = pictures(batch, 8), pictures(batch, 8, seed=1)
    sizes = []

    def forward(rows_x, rows):
        sizes.append(len(rows_x))
        return rows_x.flatten(1)

    walk_images(x, end, pixel_order(x.sum(1)), list(range(1, 64)), forward)
    assert sum(sizes) == 63 * batch and max(sizes) <= max(64, batch) and len(sizes) == -(-63 // max(1, 64 // batch))


def test_ties_keep_raster_order_or_its_reverse():
    heat = torch.tensor([[[1.0, 3.0], [3.0, 1.0]]])
    assert pixel_order(heat).tolist() == [[1, 2, 0, 3]]
    assert pixel_order(heat, "reverse").tolist() == [[2, 1, 3, 0]]


@pytest.mark.parametrize("scale", [1.0, 1e-38, 1e38])
def test_orders_are_those_of_a_stable_sort(scale):
    """Signs, zeros of both signs, subnormal and huge values, many ties: the packed integers must order as the floats do."""
    generator = torch.Generator().manual_seed(0)
    heat = (
        torch.randint(-4, 5, (6, 15, 20), generator=generator)
        * torch.rand(6, 15, 20, generator=generator).round(decimals=1)
        * scale
    )
    heat[:, 3, ::2], heat[:, 4, ::3] = 0.0, -0.0
    assert (heat == 0).sum() > 100 and len(heat.unique()) < 300
    assert torch.equal(pixel_order(heat), rank_pixels(heat))
    assert torch.equal(pixel_order(heat.double()), rank_pixels(heat))
    reverse = pixel_order(heat, "reverse")
    assert torch.equal(reverse, pixel_order(heat.double(), "reverse"))
    assert torch.equal(reverse, torch.argsort(heat.flatten(1).flip(1), dim=1, descending=True, stable=True).neg() + 299)


@pytest.mark.parametrize(("size", "points"), [(16, 101), (8, 101), (32, 11)])
def test_forwards_are_exactly_the_floor(record, network, pictures, size, points):
    """The inner points of two curves and the baseline; x is part of the record. Points that coincide on small images cost nothing."""
    x = pictures(6, size)
    explanation, spy = record(network(), x)
    deletion, insertion = Deletion(points=points), Insertion(points=points)
    for metric in (deletion, insertion):
        metric.setup(6)
        metric.update(explanation)
    inner = len({round(k * size * size / (points - 1)) for k in range(1, points - 1)} - {0, size * size})
    assert spy.forwards == 6 * (2 * inner + 1)
    for metric in (Deletion(points=points), Insertion(points=points, score="logit", target="explained")):
        metric.setup(6)
        metric.update(explanation)
    assert spy.forwards == 6 * (2 * inner + 1)  # the pass is shared
    other, other_spy = record(network(), x, -explanation.attribution, shared=explanation.shared)
    metric = Deletion(points=points).setup(6)
    metric.update(other)
    assert other_spy.forwards == 6 * inner  # another explainer: the baseline's output is there already


def test_noise_belongs_to_the_images(record, network, pictures):
    """The record's noise must reach every copy of an image, whatever the batch it travels in."""
    x = pictures(9, 8)
    whole, _ = record(network(), x, x, noise=0.3)
    part, _ = record(network(), x[6:], x[6:], noise=0.3, sample_ids=torch.arange(6, 9))
    walk = PerturbationPath(points=11)
    torch.testing.assert_close(curve_logits(whole, walk)[6:], curve_logits(part, walk), rtol=0, atol=1e-5)


def test_constant_and_broken_maps_are_excluded(record, network, pictures):
    x = pictures(5, 8)
    attribution = x.clone()
    attribution[1] = 0.25
    attribution[3, 0, 2, 2] = torch.nan
    attribution[4, 0, 0, 0] = torch.inf
    for points in (11, "adaptive"):
        explanation, spy = record(network(), x, attribution)
        metric = Deletion(points=points).setup(5)
        metric.update(explanation)
        assert sorted(metric.per_image()[""]) == [0, 2]
        (found,) = metric.summary()
        assert (found.n, found.excluded) == (2, 3)
        assert np.isfinite(metric.curve().mean).all() and spy.forwards <= 5 + 2 * 11


def test_all_maps_excluded(record, network, pictures):
    explanation, _ = record(network(), pictures(2, 8), torch.zeros(2, 1, 8, 8))
    for points in (11, "adaptive"):
        metric = Insertion(points=points).setup(2)
        metric.update(explanation)
        assert metric.summary()[0].excluded == 2 and metric.curve() is None


def test_adaptive_curves_match_the_full_grid(record, planted, pictures):
    """On the steep curves of a network whose evidence is concentrated; maps from the truth to pure noise."""
    net = planted()
    x = pictures(64, 12, seed=3) * 0.7 + 0.2
    truth = net.contributions(x)[:, None]
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)) * truth.std()
    errors = []
    for share in (0.0, 0.5, 1.0):
        explanation, spy = record(net, x, (1 - share) * truth + share * noise)
        target = explanation.logits.argmax(1)
        for insert in (False, True):
            full = curve_scores(explanation, PerturbationPath(baseline="zero"), insert, target, "probability").double()
            before = spy.forwards
            fast = curve_scores(explanation, PerturbationPath("adaptive", "zero"), insert, target, "probability")
            assert 64 * (COARSE - 2) < spy.forwards - before <= 64 * (BUDGET - 2)
            assert (full.amax(1) - full.amin(1)).min() > 0.9  # there is something to approximate
            errors.append((torch.trapezoid(fast, dim=1) - torch.trapezoid(full, dim=1)) / 100)
    error = torch.stack(errors)
    assert abs(error.mean()) <= 1e-3  # no bias over explainers
    assert (
        error.mean(1).abs().max() <= 2.5e-3
    )  # here all images share one curvature, so its trapezoid error does not average out
    assert error.abs().max() <= 0.03  # single images


def test_adaptive_points_are_points_of_the_curve(record, network, pictures):
    """With a score that is linear in the replaced pixels, any points give the exact area."""
    x = torch.ones(3, 3, 10, 10)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(300, 2))
    nn.init.constant_(linear[1].weight, 0.01)
    explanation, _ = record(linear, x, torch.arange(100.0).view(1, 1, 10, 10).expand(3, -1, -1, -1))
    area = {}
    for points in (101, "adaptive"):
        metric = Deletion(points=points, baseline="zero", score="logit").setup(3)
        metric.update(explanation)
        area[points] = metric.compute().item()
    assert area["adaptive"] == pytest.approx(area[101], abs=1e-6)


def test_groupcams_blur_equals_torchvision(record, network, pictures):
    explanation, _ = record(network(), pictures(1, 60))
    torch.testing.assert_close(
        baseline_image(explanation, "groupcam"),
        gaussian_blur(explanation.x, [51, 51], [50.0, 50.0]),
        rtol=0,
        atol=3e-6,  # rounding of sums in another order
    )


def test_folded_kernel_is_rises():
    kernel = folded_kernel(11, 5.0)
    window = kernel[:, None] * kernel
    assert kernel.sum() == pytest.approx(1.0, abs=1e-9)
    assert float(window[5, 5] / window[0, 0]) == pytest.approx(1.14, abs=0.005)  # measured on RISE's gkern(11, 5)
    cut = gaussian_kernel(11, 5.0)[:, None] * gaussian_kernel(11, 5.0)
    assert float(cut[5, 5] / cut[0, 0]) == pytest.approx(2.72, abs=0.005)
    ndimage = pytest.importorskip("scipy.ndimage", reason="scipy is the oracle of the folded kernel")
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    np.testing.assert_allclose(window.numpy(), ndimage.gaussian_filter(impulse, 5), atol=1e-12)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_belong_to_single_images(record, network, pictures, name):
    x = pictures(4, 56)
    whole, _ = record(network(normalized=True), x)
    alone, _ = record(network(normalized=True), x[2:3], sample_ids=torch.tensor([2]))
    image = baseline_image(whole, name)
    assert image.shape == x.shape and image.min() >= 0 and image.max() <= 1 and not torch.equal(image, x)
    torch.testing.assert_close(baseline_image(alone, name), image[2:3], rtol=0, atol=1e-6)


def test_flat_baselines_are_what_they_say(record, network, pictures):
    explanation, _ = record(network(normalized=True), pictures(3, 8))
    x = explanation.x
    assert not baseline_image(explanation, "zero").any()
    assert torch.equal(baseline_image(explanation, "min")[1], torch.full_like(x[1], x[1].min().item()))
    torch.testing.assert_close(baseline_image(explanation, "mean")[2, :, 3, 3], x[2].mean((1, 2)))
    mean = torch.tensor([0.48, 0.45, 0.40])
    assert torch.equal(baseline_image(explanation, "network_zero")[0, :, 5, 5], mean)


def test_bad_settings_are_told_in_a_sentence(record, network, pictures):
    with pytest.raises(UserError, match="no baseline named 'blurr'; the nearest are blur"):
        Deletion(baseline="blurr")
    with pytest.raises(UserError, match="at least 2, got 1"):
        Deletion(points=1)
    with pytest.raises(UserError, match="reduction named 'max'"):
        Deletion(reduction="max")
    with pytest.raises(UserError, match="'predicted' or 'explained'"):
        Deletion(target="label")
    with pytest.raises(UserError, match="'raster' or 'reverse'"):
        Insertion(ties="random")
    with pytest.raises(UserError, match="probability, logit, margin"):
        Insertion(score="loss")
    explanation, _ = record(network(), pictures(1, 16))
    with pytest.raises(UserError, match="needs images larger than 25, got a side of 16"):
        baseline_image(explanation, "groupcam")


def test_the_margin_is_the_logit_less_the_runner_up():
    logits = torch.tensor([[3.0, 1.0, 2.5], [0.0, 4.0, -1.0]])
    target = torch.tensor([0, 2])
    torch.testing.assert_close(target_score(logits, target, "margin"), torch.tensor([0.5, -5.0]))
    steps = torch.stack((logits, logits + 1), 1)  # (B, P, K): a constant moves logits, and no margin
    torch.testing.assert_close(target_score(steps, target, "margin"), torch.tensor([[0.5, 0.5], [-5.0, -5.0]]))
    with pytest.raises(UserError, match="score=margin needs two classes"):
        target_score(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64), "margin")
    assert Deletion(score="margin").settings()[3] == "margin(predicted)"
    with pytest.raises(UserError, match="score must be one of probability, logit, margin, got 'loss'"):
        Deletion(score="loss")
