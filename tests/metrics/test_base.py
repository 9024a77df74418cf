"""The table: the same numbers for any batching, order or number of processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from matplotlib.figure import Figure
from torch import Tensor

from explainode.attribution import Explanation
from explainode.errors import UserError
from explainode.metrics.base import ExplanationMetric, full_name
from explainode.metrics.faithfulness import Deletion
from explainode.metrics.means import mean_interval


class Brightness(ExplanationMetric):
    """Mean and square of the attribution; NaN for images whose first value is negative."""

    columns = ("", "square")
    higher_is_better = {"": True, "square": None}
    kind = "brightness"

    def __init__(self, power: int = 2) -> None:
        self.power = power
        super().__init__()

    def measure(self, explanation: Explanation) -> Tensor:
        mean = explanation.attribution.flatten(1).mean(1)
        hidden = explanation.attribution.flatten(1)[:, 0] < -1.5
        return torch.where(hidden[:, None], torch.nan, torch.stack((mean, mean**self.power), 1))


class Ratio(Brightness):
    """A result that is a function of means: square over mean."""

    results = ("ratio",)

    def combine(self, means: np.ndarray) -> np.ndarray:
        return means[..., 1:] / means[..., :1]


@pytest.fixture
def parts(record, network, pictures):
    x = pictures(67, 6)
    attribution = torch.randn(67, 1, 6, 6, generator=torch.Generator().manual_seed(1))

    def make(rows) -> Explanation:
        rows = torch.as_tensor(rows)
        return record(network(), x[rows], attribution[rows], sample_ids=rows)[0]

    return make


def filled(metric, parts, batches, n=67):
    metric.setup(n)
    for rows in batches:
        metric.update(parts(rows))
    return metric


def test_batch_size_order_and_duplicates_change_nothing(parts):
    whole = filled(Brightness(), parts, [range(67)])
    for batches in ([[i] for i in range(67)], [range(60, 67), range(60)], [range(67), range(40, 67)]):
        again = filled(Brightness(), parts, batches)
        assert again.table().keys() == whole.table().keys()
        for i, row in whole.table().items():
            np.testing.assert_allclose(again.table()[i], row, rtol=0, atol=1e-6)
        assert again.summary() == whole.summary()


def test_summary_counts_excluded_images_and_bounds_the_mean(parts):
    metric = filled(Brightness(), parts, [range(67)])
    per_image = metric.per_image()[""]
    found = metric.summary()
    assert [result.name for result in found] == ["", "square"]
    head = found[0]
    assert head.excluded > 0 and head.n + head.excluded == 67 == len(metric.table())
    assert head.n == len(per_image) and head.value == pytest.approx(np.mean(list(per_image.values())))
    assert (head.low, head.high) == pytest.approx(mean_interval(list(per_image.values())))
    assert metric.compute()[""].item() == pytest.approx(head.value, rel=1e-6)


def test_results_may_be_functions_of_means(parts):
    metric = filled(Ratio(), parts, [range(67)])
    rows = np.stack([row for row in metric.table().values() if not np.isnan(row[0])])
    (found,) = metric.summary()
    assert found.value == pytest.approx(rows[:, 1].mean() / rows[:, 0].mean())
    assert found.low < found.value < found.high
    assert metric.per_image() == {}
    assert metric.compute().shape == ()


def test_only_the_listed_ids_have_rows(parts):
    metric = filled(Brightness(), parts, [[5, 2], [60]], n=[60, 2, 5])
    assert metric.value.shape == (3, 2)
    assert sorted(metric.table()) == [2, 5, 60]
    with pytest.raises(UserError, match="sample id 7 has no row"):
        metric.update(parts([7]))


def test_unprepared_table_is_refused(parts):
    with pytest.raises(UserError, match="call setup"):
        Brightness().update(parts([0]))


def test_reset_forgets_and_keeps_rows(parts):
    metric = filled(Brightness(), parts, [range(10)])
    metric.reset()
    assert metric.table() == {} and metric.value.shape == (67, 2)
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert torch.isnan(metric.compute()[""])
    (head, _) = metric.summary()
    assert np.isnan(head.value) and np.isnan(head.low) and head.n == 0


def test_inference_mode_leaves_a_usable_table(parts):
    metric = Brightness()
    with torch.inference_mode():
        filled(metric, parts, [range(5)])
        metric.reset()
        metric.update(parts(range(5)))
    metric.update(parts(range(5, 9)))
    assert len(metric.table()) == 9


def test_one_image_has_no_interval(parts):
    metric = filled(Brightness(), parts, [[1]])
    head = metric.summary()[0]
    assert head.n == 1 and np.isnan(head.low) and np.isnan(head.high)


def test_protocol_hash_covers_every_parameter():
    assert Brightness().protocol_hash == Brightness(2).protocol_hash != Brightness(3).protocol_hash
    assert len(Brightness().protocol_hash) == 8 and int(Brightness().protocol_hash, 16) >= 0
    assert Deletion().protocol == "deletion[blur,101,sum,p(predicted),raster]"
    assert Deletion().protocol_hash != Deletion(ties="reverse").protocol_hash


def test_direction_and_names():
    assert Brightness().direction() is True and Brightness().direction("square") is None
    assert Deletion().direction() is False
    assert (full_name("deletion", ""), full_name("cost", "seconds")) == ("deletion", "cost.seconds")


def test_needs_are_named_in_a_sentence(parts):
    class Masked(Brightness):
        needs = frozenset({"mask"})

    with pytest.raises(UserError, match="Masked needs masks, but this data has none"):
        filled(Masked(), parts, [[0]])


def test_curve_is_the_mean_with_students_band(parts):
    metric = filled(Deletion(points=5), parts, [range(30), range(30, 40), range(30, 40)])
    curve = metric.curve()
    rows = metric.curves(parts(range(40))).double().numpy()
    np.testing.assert_allclose(curve.mean, rows.mean(0), atol=1e-6)  # images seen twice count once
    np.testing.assert_allclose(curve.high - curve.mean, 2.022691 * rows.std(0, ddof=1) / np.sqrt(40), atol=1e-5)
    np.testing.assert_allclose(np.trapezoid(curve.mean, curve.x), metric.compute().item(), atol=1e-6)
    assert Brightness().curve() is None


def test_plots_are_figures(parts):
    for metric in (Brightness(), Ratio(), Deletion(points=5)):
        assert isinstance(filled(metric, parts, [range(20)]).plot(), Figure)
    band = filled(Deletion(points=5), parts, [range(20)]).plot().axes[0]
    assert band.collections and band.lines[0].get_xdata()[-1] == 1.0


def test_a_metric_keeps_no_model(parts):
    metric = filled(Deletion(points=5), parts, [range(8)])
    assert list(metric.modules()) == [metric] and not metric.state_dict()


@pytest.mark.ddp
def test_any_number_of_processes_gives_the_same_table(parts, tmp_path):
    """One launch of three processes meets as worlds of 1, 2 and 3, the last with a rank that sees nothing; 67 images do not divide."""
    script = str(Path(__file__).with_name("distributed_worker.py"))
    workers = [
        warm.Program([script, str(rank), str(tmp_path)], tmp_path, output=tmp_path / "out.txt") for rank in range(3)
    ]
    try:
        assert [worker.wait(300) for worker in workers] == [0, 0, 0], (tmp_path / "out.txt").read_text()
    finally:
        for worker in workers:
            worker.end()  # the others wait for one that failed
    reference = np.load(tmp_path / "world1_rank0.npz")
    assert reference["table"].shape == (67, 2) and np.isnan(reference["table"]).any()
    for world in (2, 3):
        for rank in range(world):
            found = np.load(tmp_path / f"world{world}_rank{rank}.npz")
            for name in ("table", "summary", "curve"):
                np.testing.assert_allclose(
                    found[name], reference[name], rtol=0, atol=1e-6, err_msg=f"{name}, world {world}, rank {rank}"
                )
