"""Methods that hide regions or look through masks: closed forms of linear networks, enumeration, and the papers' formulas written out."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from explainode.errors import UserError
from explainode.explainers.augmented import Augmented, fused
from explainode.explainers.cam import CAM, EigenCAM, FusedLayerCAM, GradCAM, HiResCAM, LayerCAM
from explainode.explainers.gradient import Saliency
from explainode.explainers.masks import HSIC, RISE, Sobol
from explainode.explainers.regions import LIME, FeatureAblation, KernelSHAP, ShapleySampling, ShapleyValues, grid_of
from explainode.explaining import explain
from explainode.randomness import noise_scope


class Linear(nn.Module):
    """K logits w_k . x."""

    def __init__(self, size=8, classes=3):
        super().__init__()
        self.w = nn.Parameter(
            torch.randn(classes, 3 * size * size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        )

    def forward(self, x):
        return x.flatten(1) @ self.w.t()


class Products(nn.Module):
    """Regions that need each other: products of the means of the quarters, so that shares are no sums of single effects."""

    def forward(self, x):
        parts = nn.functional.adaptive_avg_pool2d(x.mean(1, keepdim=True), (2, 4)).flatten(1)
        f = (
            parts[:, 0] * parts[:, 1]
            + 2 * parts[:, 2] * parts[:, 5] * parts[:, 7]
            + parts[:, 3]
            - parts[:, 6] * parts[:, 4]
        )
        return torch.stack([f, -f], 1)


X = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
TARGET = torch.tensor([0, 2])


def of_regions(values, side):
    """(B, side^2): what lies in each cell of the grid."""
    labels = grid_of(X, side)
    return torch.zeros(len(X), side**2, dtype=values.dtype).scatter_add_(1, labels.flatten(1), values.flatten(1))


def linear_shares(side):
    net = Linear()
    return net, of_regions((net.w[TARGET].view_as(X) * X).sum(1), side)


@pytest.mark.parametrize(
    "explainer",
    [FeatureAblation(side=4), ShapleyValues(side=3), ShapleySampling(side=4, orders=1), KernelSHAP(side=4, samples=64), KernelSHAP(side=3, samples=1024),
     LIME(side=4, samples=60, ridge=0.0)],
    ids=lambda explainer: f"{type(explainer).__name__}-{explainer.side}",
)  # fmt: skip
def test_a_linear_network_is_shared_out_exactly(explainer):
    net, expected = linear_shares(explainer.side)
    heat = explainer(net, X, TARGET)
    assert heat.shape == (2, 1, 8, 8)
    torch.testing.assert_close(of_regions(heat.sum(1), explainer.side), expected, rtol=1e-8, atol=1e-8)


def enumerated(net, x, target, side):
    """Shapley's definition, order by order, on the eight regions of the 2 x 4 pool that the network reads."""
    rows, columns = torch.arange(8) // 4, torch.arange(8) // 2
    labels = (rows[:, None] * 4 + columns).expand(len(x), 8, 8)
    phi = torch.zeros(len(x), 8, dtype=x.dtype)
    value = {}
    for coalition in itertools.product([False, True], repeat=8):
        seen = torch.tensor(coalition)[labels][:, None]
        value[coalition] = net(torch.where(seen, x, torch.zeros_like(x))).gather(1, target[:, None])[:, 0]
    for r in range(8):
        for others in itertools.product([False, True], repeat=7):
            without = (*others[:r], False, *others[r:])
            weight = math.factorial(sum(others)) * math.factorial(7 - sum(others)) / math.factorial(8)
            phi[:, r] += weight * (value[(*others[:r], True, *others[r:])] - value[without])
    return labels, phi


class Eighths(ShapleyValues):
    """The cut of `Products`."""

    def cut(self, x):
        rows, columns = torch.arange(8) // 4, torch.arange(8) // 2
        return (rows[:, None] * 4 + columns).expand(len(x), 8, 8)


class EighthsKernel(KernelSHAP):
    cut = Eighths.cut


class EighthsSampling(ShapleySampling):
    cut = Eighths.cut


def test_eight_players_are_what_enumeration_gives():
    net, target = Products(), torch.tensor([0, 1])
    labels, phi = enumerated(net, X, target, 8)
    for explainer in (Eighths(), EighthsKernel(samples=254)):
        found = torch.zeros_like(phi).scatter_add_(1, labels.flatten(1), explainer(net, X, target).sum(1).flatten(1))
        torch.testing.assert_close(found, phi, rtol=0, atol=1e-10)


def test_samples_approach_shapley_values():
    net, target = Products(), torch.tensor([0, 1])
    exact = Eighths()(net, X, target)
    for few, many in (
        (EighthsSampling(orders=4), EighthsSampling(orders=400)),
        (EighthsKernel(samples=40), EighthsKernel(samples=252)),
    ):
        errors = [float((explainer(net, X, target) - exact).norm() / exact.norm()) for explainer in (few, many)]
        assert errors[1] < 0.5 * errors[0] and errors[1] < 0.1


def test_shares_add_up_and_the_record_says_so():
    net = Products()
    for explainer in (Eighths(), EighthsSampling(orders=2), EighthsKernel(samples=60)):
        record = explain(explainer, net, X, torch.tensor([0, 1]))
        assert record.completeness_error.abs().max() < 1e-10
    record = explain(LIME(side=3, samples=100), net, X.float(), 0)
    assert record.diagnostics["r_squared"].shape == (2,) and (record.diagnostics["r_squared"] <= 1).all()


def test_draws_belong_to_the_image():
    net = Products()
    for explainer in (
        LIME(side=3, samples=40),
        EighthsSampling(orders=2),
        KernelSHAP(side=4, samples=40),
        RISE(side=3, samples=40),
        HSIC(side=3, samples=40),
        Sobol(side=2, samples=4),
    ):
        with noise_scope(torch.tensor([5, 9]), active=False):
            both = explainer(net, X, 0)
        with noise_scope(torch.tensor([9]), active=False):
            alone = explainer(net, X[1:], 0)
        torch.testing.assert_close(both[1:], alone, rtol=1e-10, atol=1e-12)


def test_rise_is_its_equation():
    net, explainer = Linear(), RISE(side=4, samples=50)
    masks = torch.stack(list(explainer.masks(X)), 1)  # (B, N, 1, H, W)
    assert masks.min() >= 0 and masks.max() <= 1 and abs(float(masks.mean()) - 0.5) < 0.1
    f = torch.stack([net(X * masks[:, n]).gather(1, TARGET[:, None])[:, 0] for n in range(50)], 1)
    expected = (f[:, :, None, None, None] * masks).sum(1) / (50 * 0.5)
    torch.testing.assert_close(explainer(net, X, TARGET), expected)


def test_rise_is_unbiased_on_a_linear_network():
    """With a cell per pixel and no shift, E[f m_p] / share = share sum(w x) + (1 - share) w_p x_p."""

    class Plain(RISE):
        def masks(self, x):
            generator = torch.Generator().manual_seed(0)
            for _ in range(self.samples):
                yield (torch.rand(len(x), 1, 8, 8, generator=generator, dtype=x.dtype) < self.share).to(x.dtype)

    net, explainer = Linear(), Plain(samples=20_000)
    contribution = (net.w[TARGET].view_as(X) * X).sum(1)
    expected = 0.5 * contribution.sum((1, 2))[:, None, None] + 0.5 * contribution
    error = explainer(net, X, TARGET)[:, 0] - expected
    spread = contribution.flatten(1).norm(dim=1) / math.sqrt(20_000)  # of one estimate, about
    assert (error.abs().amax((1, 2)) < 5 * spread).all() and error.mean().abs() < spread.max()


def test_sobol_finds_the_variances_of_a_sum():
    """Of a linear network total indices are a_c^2 / sum(a^2), a_c what lies in the cell."""
    net = Linear()
    a = of_regions((net.w[TARGET].view_as(X) * X).sum(1), 2)
    found = Sobol(side=2, samples=3000)(net, X, TARGET).flatten(1)
    torch.testing.assert_close(found, a**2 / (a**2).sum(1, keepdim=True), rtol=0, atol=0.05)
    assert (Sobol(side=2, samples=4)(nn.Sequential(Linear(), Zero()), X, 0) == 0).all()


class Zero(nn.Module):
    def forward(self, x):
        return 0 * x


def test_hsic_is_its_definition_and_sees_dependence():
    class Corner(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, :, :4, :4].sum((1, 2, 3)), x.sum((1, 2, 3))], 1)

    explainer = HSIC(side=2, samples=200)
    found = explainer(Corner(), X, 0).flatten(1)
    assert (found.argmax(1) == 0).all() and (found[:, 0] > 5 * found[:, 1:].amax(1)).all()
    from explainode.randomness import input_keys, uniform

    m = (uniform(input_keys(X, "hsic", 0), 200 * 4).view(2, 200, 4) < 0.5).double().numpy()
    for image in range(2):
        f = np.array([float((X[image, :, :4, :4] * m[image, n, 0]).sum()) for n in range(200)])
        distance = np.abs(f[:, None] - f[None, :])
        scale = np.sort(distance[np.triu_indices(200, 1)])[(200 * 199 // 2 - 1) // 2]
        L = np.exp(-(distance**2) / (2 * (scale or 1.0) ** 2))
        H = np.eye(200) - 1 / 200
        for c in range(4):
            K = (m[image, :, c][:, None] == m[image, :, c][None, :]).astype(float)
            assert abs(np.trace(K @ H @ L @ H) / 199**2 - float(found[image, c])) < 1e-10


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def test_hirescam_is_cam_where_cam_is_defined():
    torch.manual_seed(0)
    net = Pooled().double().eval()
    hires, plain, grad = (
        HiResCAM("features.3", relu=False)(net, X, 1),
        CAM("features.3")(net, X, 1),
        GradCAM("features.3", relu=False)(net, X, 1),
    )
    torch.testing.assert_close(hires * 64, plain)
    torch.testing.assert_close(hires, grad)


def test_eigencam_is_the_first_singular_vector():
    torch.manual_seed(0)
    net = Pooled().double().eval()
    found = EigenCAM("features.3")(net, X, 1)
    for image, heat in zip(net.features(X).detach().flatten(2).numpy(), found.flatten(1).numpy(), strict=True):
        _, s, v = np.linalg.svd(image)
        expected = s[0] * v[0]
        assert (
            min(np.abs(heat - expected).max(), np.abs(heat + expected).max()) < 1e-10
            and heat[np.abs(heat).argmax()] > 0
        )
    assert torch.equal(found, EigenCAM("features.3")(net, X, 2))


def test_layers_are_fused_by_their_largest():
    torch.manual_seed(0)
    net = Pooled().double().eval()
    maps = [LayerCAM(layer)(net, X, 1) for layer in ("features.1", "features.3")]
    expected = torch.maximum(*(heat / heat.amax((-2, -1), keepdim=True) for heat in maps))
    torch.testing.assert_close(FusedLayerCAM(["features.1", "features.3"])(net, X, 1), expected)
    assert (fused([torch.zeros(1, 1, 2, 2)], (4, 4)) == 0).all()
    with pytest.raises(UserError, match="names of its layers"):
        FusedLayerCAM()(net, X, 1)


def test_views_are_put_back_into_place():
    net = Linear()
    saliency = Saliency()
    expected = (saliency(net, X, TARGET) + saliency(net, X.flip(-1), TARGET).flip(-1)) / 2
    torch.testing.assert_close(Augmented(saliency, factors=[1.0])(net, X, TARGET), expected)
    assert Augmented(saliency, factors=[0.5, 1.0], mirror=False)(net, X, 0).shape == X.shape


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FeatureAblation(regions="squares"), "'grid' or 'superpixels'"),
        (lambda: LIME(side=0), "at least 1 region"),
        (lambda: LIME(samples=1), "samples >= 2"),
        (lambda: KernelSHAP(samples=3), "even number"),
        (lambda: ShapleySampling(orders=0), "at least 1"),
        (lambda: RISE(share=1.0), "share in"),
        (lambda: RISE(side=0), "at least 1 cell"),
        (lambda: Sobol(samples=1), "at least 2"),
        (lambda: HSIC(samples=2), "at least 3"),
        (lambda: Augmented(Saliency(), factors=[]), "positive numbers"),
        (lambda: ShapleyValues(side=5)(Linear(), X, 0), "2\\^25 coalitions"),
    ],
)
def test_bad_settings_are_sentences(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_superpixels_follow_the_picture_or_say_what_they_need(monkeypatch):
    pytest.importorskip("skimage", reason="superpixels need scikit-image")
    x = torch.zeros(1, 3, 24, 24)
    x[:, :, :, 12:] = 1
    labels = FeatureAblation(regions="superpixels", side=3).cut(x)
    assert labels.min() == 0 and labels.max() + 1 == len(labels.unique())
    assert not set(labels[0, :, :12].flatten().tolist()) & set(labels[0, :, 12:].flatten().tolist())
    heat = KernelSHAP(regions="superpixels", side=3, samples=64)(Pooled().eval(), x, 0)
    assert heat.shape == (1, 1, 24, 24)
    monkeypatch.setitem(__import__("sys").modules, "skimage.segmentation", None)
    with pytest.raises(UserError, match=r"explainode\[superpixels\]"):
        FeatureAblation(regions="superpixels").cut(x)
