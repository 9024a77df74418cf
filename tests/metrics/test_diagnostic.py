"""A diagnostic is what was recorded under its name, and nothing where nothing was."""

from __future__ import annotations

import math

import pytest
import torch

from explainode.errors import UserError
from explainode.metrics.diagnostic import Diagnostic


@pytest.fixture
def measured(record, network, pictures):
    def measure(metric, **diagnostics):
        explanation, _ = record(network(), pictures(3, 8), torch.rand(3, 1, 8, 8), diagnostics=diagnostics)
        metric.setup(3).update(explanation)
        return {r.name: r for r in metric.summary()}

    return measure


def test_mean_and_mean_size(measured):
    found = measured(
        Diagnostic("absorbed", better="none"), absorbed=torch.tensor([0.5, -0.2, torch.nan]), other=torch.zeros(3)
    )
    assert (found[""].value, found[""].n, found[""].excluded) == (pytest.approx(0.15), 2, 1)
    assert found["absolute"].value == pytest.approx(0.35)


def test_methods_without_the_number_are_excluded(measured):
    found = measured(Diagnostic("absorbed"), other=torch.zeros(3))
    assert math.isnan(found[""].value) and (found[""].n, found[""].excluded) == (0, 3)


def test_direction_and_protocol_follow_the_settings():
    assert [Diagnostic(better=word).direction() for word in ("lower", "higher", "none")] == [False, True, None]
    assert Diagnostic("absorbed").protocol == "diagnostic[absorbed]"
    for options in ({"name": ""}, {"better": "more"}):
        with pytest.raises(UserError):
            Diagnostic(**options)
