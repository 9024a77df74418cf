from __future__ import annotations

import pytest
import torch

from explainode.attribution import reduce_channels, upsample
from explainode.errors import UserError
from explainode.explainers.base import count_passes
from explainode.explainers.cam import GradCAM
from explainode.explainers.controls import BlurredMap, CentrePrior, EdgeMap, InvertedMap, RandomMap, SquaredMap
from explainode.explainers.gradient import IntegratedGradients, Saliency
from explainode.randomness import noise_scope


def test_controls_do_not_ask_the_network(net, x, target):
    for control in (RandomMap(), CentrePrior(), EdgeMap()):
        with count_passes() as passes:
            assert control(net, x, target).shape == (4, 1, 12, 12)
        assert passes.forwards == passes.backwards == 0


def test_a_random_map_is_normal_and_belongs_to_the_sample(net):
    x = torch.zeros(4, 3, 64, 64)
    with noise_scope(torch.tensor([1, 2, 3, 1]), active=False):
        maps = RandomMap()(net, x, 0)
    assert torch.equal(maps[0], maps[3]) and not torch.equal(maps[0], maps[1])
    # 3 x 4096 independent values: standard errors 0.009 and 0.0064
    assert abs(float(maps[:3].mean())) < 0.04 and abs(float(maps[:3].std()) - 1) < 0.03


def test_a_random_map_does_not_depend_on_the_memory_format(net):
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(RandomMap()(net, x.to(memory_format=torch.channels_last), 0), RandomMap()(net, x, 0))


def test_the_centre_prior_is_a_symmetric_bump(net):
    bump = CentrePrior(0.25)(net, torch.rand(1, 3, 33, 17), 0)[0, 0]
    assert float(bump[16, 8]) == bump.max() == 1
    torch.testing.assert_close(bump, bump.flip(0, 1))
    assert float(bump[16, 8 + 4]) == pytest.approx(torch.exp(torch.tensor(-((4 / 17) ** 2) / (2 * 0.25**2))))
    with pytest.raises(UserError, match="sigma"):
        CentrePrior(0)


def test_edges_of_a_step(net):
    """A step of height 1 has half of it on either side; neither the flat parts nor the frame are edges."""
    x = torch.zeros(1, 3, 8, 8)
    x[..., 4:] = 1
    expected = torch.zeros(8, 8)
    expected[:, 3:5] = 0.5
    torch.testing.assert_close(EdgeMap()(net, x, 0)[0, 0], expected)
    torch.testing.assert_close(EdgeMap()(net, x.transpose(2, 3), 0)[0, 0], expected.T)


def test_the_inverted_map_is_minus_the_map_and_its_sum(net, x, target):
    assert torch.equal(InvertedMap(Saliency())(net, x, target), -Saliency()(net, x, target))
    assert InvertedMap(Saliency()).expected_sum(net, x, target) is None
    inner = IntegratedGradients(3)
    assert torch.equal(InvertedMap(inner).expected_sum(net, x, target), -inner.expected_sum(net, x, target))
    assert InvertedMap(RandomMap()).stochastic and not InvertedMap(RandomMap()).class_specific


@pytest.mark.parametrize("inner", [IntegratedGradients(3), GradCAM(relu=False), CentrePrior()])
def test_the_squared_map_ranks_pixels_alike(net, x, target, inner):
    heat = upsample(reduce_channels(inner(net, x, target)), x.shape[-2:]).flatten(1)
    squared = SquaredMap(inner)(net, x, target)
    assert squared.shape == (4, 1, 12, 12)
    squared = squared.flatten(1)
    order = heat.argsort(1)
    assert (squared.gather(1, order).diff(dim=1) >= 0).all()
    assert torch.equal(
        squared.gather(1, order).diff(dim=1) == 0, heat.gather(1, order).diff(dim=1) == 0
    )  # as many ties as before
    torch.testing.assert_close(
        squared / squared.abs().amax(1, keepdim=True), heat.sign() * (heat / heat.abs().amax(1, keepdim=True)) ** 2
    )


def test_the_squared_map_keeps_tiny_values_and_facts(net, x, target):
    class Tiny(CentrePrior):
        def attribute(self, model, x, target):
            return 1e-30 * super().attribute(model, x, target)

    assert SquaredMap(Tiny())(net, x, target).amin() > 0
    assert SquaredMap(RandomMap()).stochastic and not SquaredMap(RandomMap()).class_specific
    assert SquaredMap(Saliency()).expected_sum(net, x, target) is None
    for options in ({"power": 0}, {"reduction": "l1"}):
        with pytest.raises(UserError):
            SquaredMap(Saliency(), **options)


def test_the_blurred_map_has_the_mean_of_the_map_and_less_detail(net, x, target):
    heat = reduce_channels(Saliency()(net, x, target))
    blurred = BlurredMap(Saliency(), sigma=0.1)(net, x, target)
    assert blurred.shape == (4, 1, 12, 12)
    assert (blurred.diff(dim=3).abs().mean((1, 2, 3)) < 0.5 * heat.diff(dim=2).abs().mean((1, 2))).all()
    flat = BlurredMap(CentrePrior(sigma=1e6))(net, x, target)
    torch.testing.assert_close(flat, torch.ones_like(flat))  # a constant map stays as it is, its border too
    assert BlurredMap(RandomMap()).stochastic and not BlurredMap(RandomMap()).class_specific
    for bad in (lambda: BlurredMap(Saliency(), sigma=0), lambda: BlurredMap(Saliency(), reduction="total")):
        with pytest.raises(UserError):
            bad()
