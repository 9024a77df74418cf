"""Deletion and insertion against RISE, against themselves, and on a network whose truth is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from explainode.metrics.faithfulness import Deletion, Insertion
from explainode.metrics.perturbation import PerturbationPath, curve_logits, curve_scores, pixel_order, walk_images
from explainode.metrics.statistics import paired_comparison, paired_sign_flip


def rise_single_run(classifier, image, saliency, step, mode, kernel):
    """RISE's `CausalMetric.single_run` retold: one normalized image (1, 3, H, W), one step after the other.

    Deletion goes to 0 of the normalized space, insertion starts from the zero-padded blur; ties in reverse raster order.
    """
    pixels = image[0, 0].numel()
    blurred = F.conv2d(image, kernel.expand(3, 1, -1, -1), padding=kernel.shape[-1] // 2, groups=3)
    start, finish = (image.clone(), torch.zeros_like(image)) if mode == "del" else (blurred, image.clone())
    winner = int(classifier(image).softmax(1).argmax())
    flat = saliency.reshape(-1).astype(np.float64)
    order = np.argsort(flat, kind="stable")[::-1].copy()
    scores = []
    for i in range(pixels // step + 1):
        scores.append(float(classifier(start).softmax(1)[0, winner]))
        places = order[step * i : step * (i + 1)]
        start.view(3, -1)[:, places] = finish.view(3, -1)[:, places]
    curve = np.array(scores)
    return curve, (curve.sum() - curve[0] / 2 - curve[-1] / 2) / (len(curve) - 1)


@pytest.mark.parametrize("kind", ["del", "ins"])
def test_rise_single_run(record, network, pictures, kind):
    """Acceptance check 1: curve to 1e-5, area to 1e-6, on the same grid (one row of pixels a step)."""
    ndimage = pytest.importorskip("scipy.ndimage", reason="RISE's kernel is made by scipy")
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    kernel = torch.from_numpy(ndimage.gaussian_filter(impulse, 5)).float()[None, None]
    x, net = pictures(6, 32), network(normalized=True)
    saliency = torch.randn(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    saliency[:, :, ::3] = 0.0  # many ties
    explanation, _ = record(net, x, saliency)
    metric = (Deletion if kind == "del" else Insertion)(
        points=33, baseline="network_zero" if kind == "del" else "rise", ties="reverse"
    ).setup(6)
    metric.update(explanation)
    for b in range(6):
        with torch.no_grad():
            curve, area = rise_single_run(net[1:], net[0](x[b : b + 1]), saliency[b].numpy(), 32, kind, kernel)
        assert np.ptp(curve) > 0.01
        np.testing.assert_allclose(metric.curves(explanation)[b].numpy(), curve, rtol=0, atol=1e-5)
        assert metric.per_image()[""][b] == pytest.approx(area, abs=1e-6)


def test_insertion_is_least_relevant_first_deletion_reversed(record, network, pictures):
    """Acceptance check 7, bit for bit: ascending order is the exact reverse of descending, ties included."""
    x = pictures(64, 16)
    attribution = torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # ties
    explanation, spy = record(network(), x, attribution)
    walk = PerturbationPath(points=33)
    inserted = curve_logits(explanation, walk, insert=True)[:, 1:-1]
    least_first = pixel_order(explanation.heatmap("sum")).flip(1)
    counts = walk.counts(256)[1:-1]
    deleted = walk_images(
        x,
        explanation.memo(("baseline", "blur"), None, shared=True),
        least_first,
        counts,
        lambda x, rows: spy.forward(x, rows),
    )
    assert torch.equal(inserted, deleted.flip(1))


@pytest.mark.parametrize("points", [33, "adaptive"])
def test_monotone_rescaling_is_bit_equal(record, network, pictures, points):
    x = pictures(8, 16)
    attribution = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    curves = []
    for scaled in (attribution, torch.expm1(attribution * 0.5) * 40):
        explanation, _ = record(network(), x, scaled)
        target = explanation.logits.argmax(1)
        curves.append(
            [
                curve_scores(explanation, PerturbationPath(points), insert, target, "probability")
                for insert in (False, True)
            ]
        )
    assert all(torch.equal(a, b) for a, b in zip(*curves, strict=True))


def test_inverted_map_swaps_the_directions(record, network, pictures):
    """Deleting the least relevant first is inserting the most relevant, read backwards; so -A trades the two areas: 1e-6 in float32."""
    x = pictures(8, 16)
    attribution = torch.randn(
        8, 1, 16, 16, generator=torch.Generator().manual_seed(0)
    )  # no ties: inversion reverses the order exactly
    area = {}
    for sign in (1, -1):
        explanation, _ = record(network(), x, sign * attribution)
        for metric in (Deletion(points=33), Insertion(points=33)):
            metric.setup(8)
            metric.update(explanation)
            area[metric.kind, sign] = np.array(list(metric.per_image()[""].values()))
    np.testing.assert_allclose(area["deletion", 1], area["insertion", -1], atol=1e-6)
    np.testing.assert_allclose(area["insertion", 1], area["deletion", -1], atol=1e-6)
    assert np.abs(area["deletion", 1] - area["insertion", 1]).max() > 1e-3


def test_batch_size_changes_nothing(record, network, pictures):
    x, ids = pictures(70, 12), torch.arange(70)
    attribution = torch.randn(70, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    tables = []
    for size in (1, 7, 64):
        metric = Deletion(points=9).setup(70)
        for rows in ids.split(size):
            metric.update(record(network(), x[rows], attribution[rows], sample_ids=rows)[0])
        tables.append(np.array(list(metric.per_image()[""].values())))
    for table in tables[1:]:
        np.testing.assert_allclose(table, tables[0], rtol=0, atol=1e-6)


def test_planted_truth_beats_learned_beats_random_beats_inverted(record, pictures, planted):
    """Acceptance check 9, first part: the order that must come out, each step significant in pairs."""
    net = planted()
    x = pictures(48, 12, seed=5) * 0.7 + 0.2
    truth = net.contributions(x)[:, None]
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        learned = torch.autograd.grad(net(leaf)[:, 0].sum(), leaf)[0]
    random = torch.rand(truth.shape, generator=torch.Generator().manual_seed(1))
    assert (net(x).argmax(1) == 0).all()
    areas = {}
    for name, attribution in {"truth": truth, "learned": learned, "random": random, "inverted": -truth}.items():
        explanation, _ = record(net, x, attribution)
        for metric in (Deletion(points=49, baseline="zero"), Insertion(points=49, baseline="zero")):
            metric.setup(48)
            metric.update(explanation)
            areas[metric.kind, name] = metric.per_image()[""]
    order = ["truth", "learned", "random", "inverted"]
    for first, second in itertools.pairwise(order):
        deletion = paired_comparison(areas["deletion", first], areas["deletion", second])
        insertion = paired_comparison(areas["insertion", first], areas["insertion", second])
        assert deletion.high < 0 < insertion.low and max(deletion.p, insertion.p) < 0.01, (first, second)


def test_two_random_explainers_differ_no_more_than_chance(record, planted):
    """Acceptance check 9, second part: 300 comparisons of 30 images without any difference, at most 7 % called significant."""
    net, studies, images = planted(), 300, 30
    x = (0.2 + 0.7 * torch.rand(images, 3, 12, 12, generator=torch.Generator().manual_seed(2))).repeat(studies, 1, 1, 1)
    areas = []
    for seed in (3, 4):
        attribution = torch.rand(len(x), 1, 12, 12, generator=torch.Generator().manual_seed(seed))
        metric = Deletion(points=9, baseline="zero").setup(len(x))
        metric.update(record(net, x, attribution)[0])
        areas.append(np.array(list(metric.per_image()[""].values())).reshape(studies, images))
    p = np.array([paired_sign_flip(row, resamples=2000) for row in areas[0] - areas[1]])
    assert 0.02 <= (p <= 0.05).mean() <= 0.07
