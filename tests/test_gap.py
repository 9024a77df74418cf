"""The gap between a network and its surrogate, against closed forms: linear networks, whose norms and products are known."""

import math

import pytest
import torch
from torch import nn

from explainode.dynamics.solver import RungeKutta
from explainode.errors import UserError
from explainode.evaluation import in_batches
from explainode.explainers.gradient import Saliency
from explainode.gap import bound, map_cosine, measure_gap, refinement, spectral_norm
from explainode.models.neural_ode import NeuralODE
from explainode.models.residual import Residual
from explainode.models.resnet import six_block_resnet


@pytest.fixture
def images():
    return torch.rand(10, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    network = six_block_resnet(width=16, blocks=3).eval()
    network.linear.weight.data *= 20
    return network


@pytest.fixture
def surrogate(teacher):
    return NeuralODE.from_resnet(teacher, RungeKutta("euler", steps=2)).eval()


def test_rows_are_the_means_and_tails_of_what_happened(teacher, surrogate, images):
    results = measure_gap(teacher, surrogate, {"saliency": Saliency()}, in_batches(images, batch_size=4), name="ode")
    rows = {(row.explainer, row.metric): row for row in results.rows}
    with torch.no_grad():
        p, q = teacher(images).softmax(1), surrogate(images).softmax(1)
    distance = (p - q).norm(dim=1).double()
    assert rows["", "kappa"].value == pytest.approx(float(distance.mean()), abs=1e-6)
    assert rows["", "kappa_max"].value == pytest.approx(float(distance.max()), abs=1e-6)
    assert rows["", "kappa_p95"].value == pytest.approx(float(distance.quantile(0.95)), abs=1e-6)
    assert rows["", "agreement"].value == pytest.approx(float((p.argmax(1) == q.argmax(1)).double().mean()))
    target = p.argmax(1)
    expected = torch.cosine_similarity(
        *(Saliency()(network, images, target).flatten(1) for network in (teacher, surrogate))
    )
    assert rows["saliency", "map_cosine"].value == pytest.approx(float(expected.mean()), abs=1e-5)
    assert rows["", "kappa"].n == 10 and math.isnan(rows["", "kappa"].low)  # too few images for an interval of a mean
    assert rows["", "agreement"].low < rows["", "agreement"].high  # but not of a share
    assert set(results.per_image["ode", "", "kappa"]) == set(range(10))


def test_a_network_is_no_distance_from_itself(teacher, images):
    same = NeuralODE.from_resnet(teacher, RungeKutta("euler", steps=1))
    values = {
        row.metric: row.value for row in measure_gap(teacher, same, {"saliency": Saliency()}, in_batches(images)).rows
    }
    assert values["kappa"] == values["kappa_max"] == 0 and values["agreement"] == 1
    assert values["map_cosine"] == pytest.approx(1.0, abs=1e-6)


def test_maps_that_are_zero_have_no_cosine():
    assert math.isnan(map_cosine(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)))
    assert map_cosine(torch.ones(1, 1, 2, 2), -torch.ones(1, 1, 2, 2)) == pytest.approx(-1.0)


def test_refining_shares_parameters_and_takes_so_many_steps(surrogate):
    found = dict(refinement(surrogate, [1, 4]))
    assert {k: next(b.solver.steps for b in ode.modules() if hasattr(b, "solver")) for k, ode in found.items()} == {
        1: 1,
        4: 4,
    }
    assert next(found[4].parameters()) is next(surrogate.parameters())


def test_what_cannot_be_refined_is_refused(teacher):
    class Other:
        solve = None

    with pytest.raises(UserError, match="no setting 'steps'"):
        list(refinement(NeuralODE.from_resnet(teacher, Other()), [2]))


def test_the_spectral_norm_of_a_linear_map():
    torch.manual_seed(0)
    A = torch.randn(5, 7, dtype=torch.float64)
    x = torch.randn(3, 7, dtype=torch.float64)
    assert torch.allclose(spectral_norm(lambda x: x @ A.T, x, 100), torch.linalg.matrix_norm(A, 2).expand(3), rtol=1e-6)


def test_the_spectral_norm_is_each_samples_own():
    x = torch.tensor([[1.0, 2.0], [3.0, -5.0]], dtype=torch.float64)
    assert torch.allclose(spectral_norm(lambda x: x**2 / 2, x, 200), torch.tensor([2.0, 5.0], dtype=torch.float64))


class Flatten(nn.Module):
    """(B, C, 1, 1) -> (B, C)."""

    def forward(self, x):
        return x.flatten(1)


def test_the_bound_of_a_linear_network():
    """x + a x twice, half steps: the defect is (a/2)^2 |x| in each block, and the pieces' norms are known."""
    a = 0.4

    def block():
        branch = nn.Conv2d(2, 2, 1, bias=False)
        nn.init.zeros_(branch.weight)
        branch.weight.data[:, :, 0, 0] = a * torch.eye(2)
        return Residual(branch)

    teacher = nn.Sequential(block(), block(), Flatten()).double().eval()
    surrogate = NeuralODE.from_resnet(teacher, RungeKutta("euler", steps=2))
    x = torch.tensor([[0.3, -0.2]], dtype=torch.float64).view(1, 2, 1, 1)
    found = bound(teacher, surrogate, x, iterations=100)
    size = float(x.norm())
    defect = (1 + a / 2) ** 2 - (1 + a)
    assert torch.allclose(found.defects, torch.tensor([[defect * size, defect * (1 + a) * size]], dtype=torch.float64))
    p = teacher(x).softmax(1)[0]
    head = torch.linalg.matrix_norm(torch.diag(p) - torch.outer(p, p), 2)
    assert torch.allclose(found.tail[0, 1], head, rtol=1e-6)
    assert torch.allclose(found.product[0], torch.stack([(1 + a / 2) ** 2 * head, head]), rtol=1e-6)
    assert torch.allclose(found.lipschitz, torch.tensor([a], dtype=torch.float64)) and torch.allclose(
        found.speed, torch.tensor([a * (1 + a) * size], dtype=torch.float64)
    )
    q = a * a * size  # |f_2(x_1) - f_1(x_0)| = a |x_1 - x_0|
    a_priori = head.detach().item() * (q / a + a * (1 + a) * size) * math.expm1(2 * a)
    assert float(found.a_priori) == pytest.approx(a_priori, rel=1e-6)
    # this network is smooth: to first order the estimate is above what was observed, and of its size
    assert found.observed <= 1.05 * found.estimate and found.estimate <= 5 * found.observed


def test_the_bound_of_constant_fields_is_the_limit_of_eq_9():
    """Branches that are a bias alone: k = 0, p and q are sizes of biases, and (q/k + p) T/N (exp(k T) - 1) tends to q T."""
    biases = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)

    def block(bias):
        branch = nn.Conv2d(2, 2, 1).double()
        nn.init.zeros_(branch.weight)
        branch.bias.data.copy_(bias)
        return Residual(branch)

    teacher = nn.Sequential(*map(block, biases), Flatten()).eval()
    surrogate = NeuralODE.from_resnet(teacher, RungeKutta("euler", steps=2))
    found = bound(teacher, surrogate, torch.tensor([[0.3, -0.2]], dtype=torch.float64).view(1, 2, 1, 1))
    assert (
        float(found.lipschitz) == 0
        and float(found.speed) == pytest.approx(4.0)
        and float(found.acceleration) == pytest.approx(5.0)
    )
    assert float(found.a_priori) == pytest.approx(float(found.tail[0, -1]) * 5.0 * 2)


def test_no_images_no_gap(teacher, surrogate):
    with pytest.raises(UserError, match="none came"):
        measure_gap(teacher, surrogate, {}, [])


def test_the_bound_answers_for_every_image(teacher, surrogate, images):
    found = bound(teacher, surrogate, images[:3], iterations=3)
    assert found.defects.shape == found.tail.shape == found.product.shape == (3, 3)
    assert torch.isfinite(found.estimate).all() and (found.estimate > 0).all() and found.observed.shape == (3,)
