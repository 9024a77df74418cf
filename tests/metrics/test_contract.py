"""Every entry of conf/metric keeps the promises of a metric, by itself."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from explainode.annotations import KINDS
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.sanity import layers_from_the_top, randomize

ENTRIES = sorted((Path(__file__).parents[2] / "conf" / "metric").glob("*.yaml"))


def shake(network):
    """Other weights, as from a file."""
    randomize(network, layers_from_the_top(network), seed=1)


def darken(x, sample_ids, removed, seed, draw):
    """What only pictures of one kind of data can be redrawn to."""
    return torch.where(removed[:, None], 0.3 * x, x)


STAND_INS = {"WeightsOf": shake, "ShapesRedraw": darken}


def built(value):
    """A nested `_target_` node as an object."""
    if not isinstance(value, dict) or "_target_" not in value:
        return value
    module, name = value["_target_"].rsplit(".", 1)
    if name in STAND_INS:  # a file that the user names, data that the pictures here are not of
        return STAND_INS[name]
    return getattr(importlib.import_module(module), name)(
        **{key: built(inner) for key, inner in value.items() if key != "_target_"}
    )


def read(path: Path):
    body = yaml.safe_load(path.read_text())
    module, name = body.pop("_target_").rsplit(".", 1)
    return getattr(importlib.import_module(module), name), {key: built(value) for key, value in body.items()}


@pytest.fixture(params=ENTRIES, ids=lambda path: path.stem)
def entry(request):
    return request.param


@pytest.fixture
def explanations(record, network, pictures):
    """Three batches of 5, 1 and 2 images, sample ids out of order, one map with NaN; noise speaks."""
    x = pictures(8, 24)
    ids = torch.tensor([6, 2, 0, 7, 1, 3, 5, 4])
    mask = torch.zeros(8, 24, 24, dtype=torch.int64)
    mask[:, 4:14, 8:20] = 1
    diagnostics = {"kappa"} | {body["name"] for cls, body in map(read, ENTRIES) if cls.kind == "diagnostic"}

    def make(parts=((0, 5), (5, 6), (6, 8))):
        for low, high in parts:
            rows = slice(low, high)
            explanation, _ = record(
                network(normalized=True),
                x[rows],
                sample_ids=ids[rows],
                noise=0.05,
                mask=mask[rows],
                label=torch.zeros(high - low, dtype=torch.int64),
                boxes=[torch.tensor([[8.0, 4.0, 20.0, 14.0]])] * (high - low),
                fixation_map=mask[rows].float(),
                fixation_points=mask[rows].bool(),
                completeness_error=torch.full((high - low,), 0.1),
                diagnostics={name: torch.full((high - low,), 0.1) for name in diagnostics},
            )
            if low <= 3 < high:
                explanation.attribution[3 - low] = explanation.completeness_error[3 - low] = torch.nan
                for number in explanation.diagnostics.values():
                    number[3 - low] = torch.nan
            yield explanation

    return make


def test_yaml_says_everything(entry):
    package, about = entry.read_text().splitlines()[:2]
    assert package == f"# @package metric.{entry.stem}"
    assert about.startswith("# ") and about.count(" | ") == 1 and about.split(" | ")[0].endswith(".")
    cls, body = read(entry)
    parameters = inspect.signature(cls).parameters
    assert set(body) == set(parameters)
    metric = cls(**body)
    assert metric.parameters_used == body


def test_default_presets_are_the_defaults(entry):
    cls, body = read(entry)
    if entry.stem == cls.kind:
        defaults = {
            name: p.default for name, p in inspect.signature(cls).parameters.items() if p.default is not p.empty
        }
        assert {name: body[name] for name in defaults} == {
            name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()
        }


def test_datasheet(entry):
    cls, body = read(entry)
    metric = cls(**body)
    assert isinstance(metric, ExplanationMetric) and cls.__doc__ and cls.kind
    assert metric.needs <= set(KINDS) and cls.full_state_update is False
    assert len(set(cls.columns)) == len(cls.columns) and len(set(cls.results)) == len(cls.results)
    assert all(metric.direction(name) in (True, False, None) for name in cls.results)
    assert metric.protocol.startswith(cls.kind + "[") and len(metric.protocol_hash) == 8
    json.dumps(metric.parameters_used, default=str)


def test_hashes_tell_entries_apart():
    hashes = {path.stem: read(path)[0](**read(path)[1]).protocol_hash for path in ENTRIES}
    assert len(set(hashes.values())) == len(ENTRIES) >= 10


def test_measures_each_image_by_itself(entry, explanations):
    cls, body = read(entry)
    tables = []
    for parts in (((0, 5), (5, 6), (6, 8)), ((0, 8),)):
        metric = cls(**body).setup(8)
        for explanation in explanations(parts):
            before = explanation.x.clone(), explanation.attribution.clone()
            metric.update(explanation)
            assert torch.equal(explanation.x, before[0]) and torch.equal(
                explanation.attribution.nan_to_num(), before[1].nan_to_num()
            )
        tables.append(metric.table())
    assert sorted(tables[0]) == list(range(8))
    for i in range(8):
        np.testing.assert_allclose(tables[0][i], tables[1][i], rtol=1e-5, atol=2e-6)


def test_reports(entry, explanations):
    cls, body = read(entry)
    metric = cls(**body).setup(8)
    for explanation in explanations():
        metric.update(explanation)
    found = metric.summary()
    assert [result.name for result in found] == list(cls.results)
    computed = metric.compute()
    computed = computed if isinstance(computed, dict) else {cls.results[0]: computed}
    for result in found:
        assert result.n + result.excluded == 8 and (
            result.n >= 7 or cls.kind == "guided_pgd"
        )  # whose ASR is over the correctly classified
        assert np.isfinite(result.value) and computed[result.name].item() == pytest.approx(result.value, rel=1e-5)
        # eight images are too few for an interval of a mean, but not of a share
        assert np.isnan([result.low, result.high]).all() or result.low <= result.value <= result.high
    if cls.kind not in ("expansion_ratio", "cost"):  # those are facts about network and passes, whatever the map
        of_all = next(
            result for result in found if result.name == ("asr_all" if cls.kind == "guided_pgd" else found[0].name)
        )
        assert of_all.excluded == 1  # the map with NaN is never a hit
    assert set(metric.per_image()) <= set(cls.results)
    assert metric.plot() is not None and list(metric.modules()) == [metric]
