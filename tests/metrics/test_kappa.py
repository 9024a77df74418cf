"""Kappa is what the explainer recorded, and nothing where it recorded nothing."""

import math

import torch

from explainode.dynamics.solver import RungeKutta
from explainode.explainers.adjoint import AdjointMap, ThroughSurrogate
from explainode.explainers.gradient import Saliency
from explainode.explaining import explain
from explainode.metrics.kappa import Kappa
from explainode.models.neural_ode import neural_ode
from explainode.models.resnet import six_block_resnet


def test_it_is_the_mean_of_what_was_recorded():
    torch.manual_seed(0)
    network, images = six_block_resnet(width=16, blocks=2).eval(), torch.rand(4, 3, 16, 16)
    network.linear.weight.data *= 20
    explanation = explain(
        ThroughSurrogate(lambda model: neural_ode(model, RungeKutta("euler", steps=2)), AdjointMap()), network, images
    )
    metric = Kappa().setup(4)
    metric.update(explanation)
    (result,) = metric.summary()
    assert (
        result.value == float(explanation.diagnostics["kappa"].double().mean()) and result.value > 0 and result.n == 4
    )


def test_other_methods_are_excluded():
    torch.manual_seed(0)
    explanation = explain(Saliency(), six_block_resnet(width=16, blocks=1).eval(), torch.rand(2, 3, 16, 16))
    metric = Kappa().setup(2)
    metric.update(explanation)
    (result,) = metric.summary()
    assert math.isnan(result.value) and result.n == 0 and result.excluded == 2
