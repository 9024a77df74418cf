"""What `measure` keeps for pictures: the panel, and the images that turn out to be explained worst."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from explainode.data.shapes import ShapesData
from explainode.errors import UserError
from explainode.evaluation import evaluate
from explainode.explainers.gradient import InputXGradient, Saliency
from explainode.jobs.measure import fit_explainers, measure
from explainode.metrics.faithfulness import Deletion
from explainode.registry.build import get
from explainode.report.picks import worst_images
from explainode.runs.directory import RunDirectory

SETTINGS = {
    "evaluation": {
        "split": "test", "images": 20, "batch_size": 8, "chunk_size": "auto", "noise": "off", "seed": 0, "panel": 4, "device": "cpu",
        "channels_last": False,
    },
    "explainer": {
        "saliency": {"_target_": "explainode.explainers.gradient.Saliency"},
        "input_x_gradient": {"_target_": "explainode.explainers.gradient.InputXGradient"},
    },
    "metric": {"deletion": {"_target_": "explainode.metrics.faithfulness.Deletion", "points": 6}},
}  # fmt: skip


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 8)
    ).eval()


def test_the_worst_of_all_measured_images_are_kept_beside_the_panel(tmp_path):
    data, networks = ShapesData(train_size=8, val_size=8, test_size=40, size=16), {"a": network(0), "b": network(1)}
    folder = RunDirectory(tmp_path)
    found = measure(SETTINGS, networks, data, folder, epoch=0)
    panel = [0, 10, 20, 30]
    worst = [sample for sample in worst_images(found) if sample not in panel]
    assert len(worst) >= 4 and len(found.maps) == 4
    read = folder.read_results()
    assert read.per_image == found.per_image and {row.n for row in read.rows} == {20}, "looking again measures nothing"
    everything = data.select_images(40, 20)
    for maps in read.maps:
        assert maps.sample_id.tolist() == [*panel, *worst] and maps.added == len(worst)
        explainer = {"saliency": Saliency(), "input_x_gradient": InputXGradient()}[maps.explainer]
        batches = data.batches("test", everything, 20)
        whole = evaluate(
            networks[maps.model], {"e": explainer}, {"deletion": Deletion(points=6)}, batches, n=40, panel=everything
        ).maps[0]
        rows = [everything.index(sample) for sample in maps.sample_id]
        np.testing.assert_array_equal(maps.image, whole.image[rows])
        np.testing.assert_array_equal(maps.target, whole.target[rows])
        expected = whole.attribution[rows]
        peak = np.abs(expected).max((1, 2, 3), keepdims=True)
        assert (np.abs(maps.attribution - expected) <= 2e-3 * peak).all()  # float16 with a scale of its own


def test_without_a_faithfulness_metric_only_the_panel_is_kept(tmp_path):
    data = ShapesData(train_size=8, val_size=8, test_size=40, size=16)
    settings = SETTINGS | {"metric": {"smoothness": {"_target_": "explainode.metrics.smoothness.Smoothness"}}}
    found = measure(settings, {"a": network(0)}, data, RunDirectory(tmp_path), epoch=0)
    assert all(maps.sample_id.tolist() == [0, 10, 20, 30] and maps.added == 0 for maps in found.maps)


def test_explainers_that_learn_from_data_are_fitted_to_each_network(tmp_path, monkeypatch):
    data = get("data/shapes", train_size=16, val_size=4, test_size=4, size=16)
    network = get("model/six_block", width=8).eval()
    explainers = {"saliency": get("explainer/saliency"), "pattern_net": get("explainer/pattern_net")}
    batch = next(iter(data.batches("test", [0, 1])))
    with pytest.raises(UserError):
        explainers["pattern_net"](network, batch.image)
    settings = {"fit_images": 100, "batch_size": 8}
    fitted = fit_explainers(explainers, network, data, settings, RunDirectory(tmp_path), "net")
    assert fitted["saliency"] is explainers["saliency"]
    assert fitted["pattern_net"](network, batch.image).shape == batch.image.shape

    def again(folder, seen=100):
        settings = {"fit_images": seen, "batch_size": 8}
        return fit_explainers(explainers, network, data, settings, RunDirectory(folder), "net")["pattern_net"]

    with monkeypatch.context() as patch:  # what was learned is not learned twice
        patch.setattr(type(explainers["pattern_net"]), "learn", None)
        assert again(tmp_path).learned.digest == fitted["pattern_net"].learned.digest
    assert again(tmp_path, seen=8).learned.digest != fitted["pattern_net"].learned.digest


def test_another_memory_order_gives_the_same_numbers(tmp_path):
    data = ShapesData(train_size=8, val_size=8, test_size=40, size=16)
    found = {}
    for order in (False, True):
        seen = {"a": network(0)}
        settings = SETTINGS | {"evaluation": SETTINGS["evaluation"] | {"channels_last": order}}
        results = measure(settings, seen, data, RunDirectory(tmp_path / str(order)), epoch=0)
        assert seen["a"][0].weight.is_contiguous(memory_format=torch.channels_last) is order
        found[order] = {(row.explainer, row.metric): (row.value, row.protocol) for row in results.rows}
    assert found[True].keys() == found[False].keys()
    for key, (value, protocol) in found[False].items():
        assert found[True][key] == (pytest.approx(value, abs=1e-5), protocol)
