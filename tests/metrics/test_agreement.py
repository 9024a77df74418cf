"""Measures of agreement against scipy, closed forms, and transcriptions of the MIT benchmark's formulas.

Compared once with scikit-image 0.26's `structural_similarity` (Gaussian window, population moments, border left out) on ten random pairs:
largest difference 2e-16.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from explainode.errors import UserError
from explainode.metrics.agreement import (
    MEASURES,
    agreement_matrix,
    auc_judd,
    dice,
    explainer_agreement,
    kullback_leibler,
    l1_similarity,
    mean_ranks,
    normalized_scanpath_saliency,
    pearson,
    similarity,
    spearman,
    ssim,
)
from explainode.metrics.human_agreement import FixationMapAgreement, FixationPointAgreement
from explainode.metrics.results import Maps

EPS = np.finfo(np.float64).eps


def pairs(n: int = 12, size: tuple[int, int] = (14, 17)):
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(n, *size, generator=generator).double()
    return a, (a + torch.rand(n, *size, generator=generator)) / 2


def fixations(n: int = 12, size: tuple[int, int] = (14, 17)) -> torch.Tensor:
    points = torch.rand(n, *size, generator=torch.Generator().manual_seed(1)) < 0.05
    points[:, 3, 4] = True
    return points


def test_correlations_equal_scipy():
    a, b = (m.round(decimals=1) for m in pairs())  # ties
    for found, reference in ((pearson(a, b), scipy.stats.pearsonr), (spearman(a, b), scipy.stats.spearmanr)):
        expected = [reference(p.flatten(), q.flatten())[0] for p, q in zip(a, b, strict=True)]
        np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_array_equal(mean_ranks(a.flatten(1)), np.stack([scipy.stats.rankdata(p.flatten()) for p in a]))


def mit_similarity(a: np.ndarray, b: np.ndarray) -> float:
    a, b = ((m - m.min()) / (m.max() - m.min()) for m in (a, b))
    return float(np.minimum(a / a.sum(), b / b.sum()).sum())


def mit_divergence(prediction: np.ndarray, truth: np.ndarray) -> float:
    p, q = prediction / prediction.sum(), truth / truth.sum()
    return float((q * np.log(EPS + q / (p + EPS))).sum())


def mit_scanpath(prediction: np.ndarray, points: np.ndarray) -> float:
    return float(((prediction - prediction.mean()) / prediction.std(ddof=1))[points].mean())


def mit_auc_judd(prediction: np.ndarray, points: np.ndarray) -> float:
    """One threshold at each fixation, highest first; straight lines between (0, 0), the thresholds and (1, 1)."""
    at_fixations = np.sort(prediction[points])[::-1]
    count, size = len(at_fixations), prediction.size
    tp, fp = [0.0], [0.0]
    for i, threshold in enumerate(at_fixations, start=1):
        above = (prediction >= threshold).sum()
        tp.append(i / count)
        fp.append((above - i) / (size - count))
    return float(np.trapezoid([*tp, 1.0], [*fp, 1.0]))


def test_fixation_measures_equal_the_benchmarks_formulas():
    """Acceptance check 4."""
    a, b = pairs()
    a[:, :3] = 0  # a map with zeros: what KL punishes
    points = fixations()
    for found, formula, truth in (
        (similarity(a, b), mit_similarity, b),
        (kullback_leibler(a, b), mit_divergence, b),
        (normalized_scanpath_saliency(a, points), mit_scanpath, points),
    ):
        expected = [formula(p.numpy(), t.numpy()) for p, t in zip(a, truth, strict=True)]
        np.testing.assert_allclose(found, expected, atol=1e-9)
    untied, _ = pairs()
    expected = [mit_auc_judd(p.numpy(), t.numpy()) for p, t in zip(untied, points, strict=True)]
    np.testing.assert_allclose(auc_judd(untied, points, benchmark=True), expected, atol=1e-9)


def test_the_benchmarks_jitter_is_answered_by_its_mean():
    """With ties the benchmark jitters the map; our number is the mean over many jitters."""
    generator = np.random.default_rng(0)
    heat, points = pairs(1)[0].mul(4).round().div(4), fixations(1)
    drawn = [
        mit_auc_judd(heat[0].numpy() + 1e-7 * generator.random(heat[0].shape), points[0].numpy()) for _ in range(1500)
    ]
    error = np.std(drawn) / math.sqrt(len(drawn))
    assert auc_judd(heat, points, benchmark=True).item() == pytest.approx(np.mean(drawn), abs=4 * error)
    assert error < 1e-3


def test_auc_judd_is_the_share_of_pairs():
    heat, points = pairs(3)[0].round(decimals=1), fixations(3)
    for found, h, p in zip(auc_judd(heat, points), heat.numpy(), points.numpy(), strict=True):
        above = h[p][:, None] - h[~p]
        assert found.item() == pytest.approx(((above > 0) + 0.5 * (above == 0)).mean(), abs=1e-12)


def test_dice_and_l1_by_hand():
    a, b = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), torch.tensor([[[0.0, 4.0], [0.0, 0.0]]])
    assert dice(a, b).item() == pytest.approx(2 / 3)
    assert l1_similarity(a, b).item() == pytest.approx(3 / 4)
    assert dice(a, 1 - a).item() == 0 and l1_similarity(a, 1 - a).item() == 0


def test_ssim_of_a_hand_made_pair():
    """One window only, weighted moments written out."""
    generator = np.random.default_rng(0)
    a, b = generator.random((2, 11, 11))
    a, b = ((m - m.min()) / (m.max() - m.min()) for m in (a, b))
    d = np.arange(11) - 5
    w = np.exp(-(d[:, None] ** 2 + d**2) / (2 * 1.5**2))
    w /= w.sum()
    ma, mb = (w * a).sum(), (w * b).sum()
    va, vb, c = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
    expected = (2 * ma * mb + 1e-4) * (2 * c + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    assert ssim(torch.tensor(a)[None], torch.tensor(b)[None]).item() == pytest.approx(expected, abs=1e-12)
    assert ssim(torch.rand(1, 10, 30), torch.rand(1, 10, 30)).isnan().all()  # no window fits


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_is_symmetric_and_knows_itself(name):
    a, b = pairs()
    compare = MEASURES[name]
    torch.testing.assert_close(compare(a, b), compare(b, a))
    torch.testing.assert_close(compare(a, a), torch.ones(12, dtype=torch.float64))
    assert (compare(a, b) < 1).all()
    constant = torch.full_like(a, 0.5)
    assert compare(a, constant).isnan().all() and compare(constant, constant).isnan().all()
    broken = a.clone()
    broken[:, 0, 0] = torch.nan
    if name != "dice":  # cut maps have no values left that could be NaN
        assert compare(broken, b).isnan().all()


@pytest.mark.parametrize("name", MEASURES)
def test_a_batch_equals_its_pairs_one_by_one(name):
    a, b = pairs(4)
    whole = MEASURES[name](a, b)
    torch.testing.assert_close(
        whole, torch.cat([MEASURES[name](a[i : i + 1], b[i : i + 1]) for i in range(4)]), rtol=0, atol=1e-12
    )


def test_a_divergence_needs_distributions():
    a, b = pairs(2)
    assert kullback_leibler(a - 0.5, b).isnan().all() and kullback_leibler(torch.zeros_like(a), b).isnan().all()
    assert kullback_leibler(b, b).abs().max() < 1e-12


@pytest.fixture
def measured(record, network, pictures):
    def measure(metric, heat, **fields):
        explanation, _ = record(network(), pictures(len(heat), heat.shape[-1]), heat[:, None], **fields)
        metric.setup(len(heat)).update(explanation)
        return metric

    return measure


def test_a_map_of_the_fixations_agrees_with_them(measured):
    human = torch.rand(6, 16, 16, generator=torch.Generator().manual_seed(0)) ** 4
    found = {
        name: v.item()
        for name, v in measured(FixationMapAgreement(), 3 * human - 1, fixation_map=human).compute().items()
    }
    assert found == pytest.approx(
        {"": 1, "spearman": 1, "similarity": 1, "kl": 0}, abs=1e-3
    )  # scaling moves the lowest pixel to 0
    points = human > human.flatten(1).quantile(0.98, dim=1)[:, None, None]
    found = {
        name: v.item()
        for name, v in measured(FixationPointAgreement(), human, fixation_points=points).compute().items()
    }
    assert found[""] == 1 and found["nss"] > 2
    random = torch.randn(6, 16, 16, generator=torch.Generator().manual_seed(1))
    found = {
        name: v.item() for name, v in measured(FixationMapAgreement(), random, fixation_map=human).compute().items()
    }
    assert abs(found[""]) < 4 / math.sqrt(6 * 256) and found["kl"] > 0.5


def test_kl_leaves_maps_without_negative_values_as_they_are(measured):
    """A map on a pedestal: the benchmark's number, which scaling to [0, 1] would raise; a signed one is scaled."""
    rng = np.random.default_rng(0)
    human = torch.from_numpy(rng.random((6, 16, 16)) ** 4).float()
    raised = torch.from_numpy(0.2 + rng.random((6, 16, 16))).float()
    expected = np.mean([mit_divergence(p, q) for p, q in zip(raised.numpy(), human.numpy(), strict=True)])
    found = measured(FixationMapAgreement(), raised, fixation_map=human).compute()
    assert found["kl"].item() == pytest.approx(expected, rel=1e-5)
    low = raised.amin((1, 2), keepdim=True)
    scaled = (raised - low) / (raised - low).amax((1, 2), keepdim=True)
    signed = measured(FixationMapAgreement(), raised - 0.5, fixation_map=human).compute()["kl"]
    assert signed.item() == pytest.approx(
        measured(FixationMapAgreement(), scaled, fixation_map=human).compute()["kl"].item(), rel=1e-4
    )


def test_what_cannot_be_compared_is_excluded_and_counted(measured):
    human = torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(0))
    heat = torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(1))
    heat[0], heat[1, 0, 0], human[2] = 1, torch.nan, 0
    metric = measured(FixationMapAgreement(), heat, fixation_map=human)
    assert [(r.n, r.excluded) for r in metric.summary()] == [(2, 3)] * 4
    metric = measured(FixationPointAgreement(), heat, fixation_points=human > 0.9)
    assert [(r.n, r.excluded) for r in metric.summary()] == [(2, 3)] * 2


def test_missing_and_misshapen_fixations_are_told_in_a_sentence(measured):
    with pytest.raises(UserError, match="needs fixation maps, but this data has none"):
        measured(FixationMapAgreement(), torch.rand(1, 8, 8))
    with pytest.raises(UserError, match=r"fixation points must have the size of the images, \(8, 8\), got \(4, 4\)"):
        measured(FixationPointAgreement(), torch.rand(1, 8, 8), fixation_points=torch.ones(1, 4, 4, dtype=torch.bool))


def test_the_matrix_compares_all_pairs():
    a, b = pairs(5)
    broken = a.clone()
    broken[0] = 0.3
    matrix = agreement_matrix({"one": a, "two": b, "three": broken}, "pearson")
    assert matrix.explainers == ("one", "two", "three")
    np.testing.assert_array_equal(matrix.mean, matrix.mean.T)
    np.testing.assert_array_equal(matrix.n, [[5, 5, 4], [5, 5, 4], [4, 4, 4]])
    assert matrix.mean[0, 1] == pytest.approx(pearson(a, b).mean().item())
    np.testing.assert_allclose(np.diag(matrix.mean), 1)
    with pytest.raises(UserError, match="same images at the same size"):
        agreement_matrix({"one": a, "two": b[:3]})
    with pytest.raises(UserError, match="no measure of agreement named 'pcc'"):
        agreement_matrix({"one": a}, "pcc")


def panel(explainer: str, attribution: torch.Tensor, first: int = 0) -> Maps:
    n = len(attribution)
    ids = np.arange(first, first + n)
    return Maps("net", explainer, 0, np.zeros((n, 8, 8, 3), np.uint8), attribution.numpy(), ids, ids, ids, np.ones(n))


def test_the_matrix_of_an_evaluations_panel():
    """Channels are summed and small maps brought to the picture's size first."""
    fine, coarse = torch.rand(3, 3, 8, 8), torch.rand(3, 1, 4, 4)
    matrix = explainer_agreement([panel("ig", fine), panel("cam", coarse)], "net", "spearman")
    up = torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear", align_corners=False)[:, 0]
    assert matrix.mean[0, 1] == pytest.approx(spearman(fine.sum(1), up).mean().item(), abs=1e-6)
    with pytest.raises(UserError, match="no maps of a model named 'nett'; the nearest are net"):
        explainer_agreement([panel("ig", fine)], "nett")
    with pytest.raises(UserError, match="different images"):
        explainer_agreement([panel("ig", fine), panel("cam", coarse, first=1)], "net")
