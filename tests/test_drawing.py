"""What notebooks show of a record and of results."""

import importlib.util
import sys

import pytest
import torch

import explainode
from explainode.errors import UserError
from explainode.metrics.results import Results, Row


@pytest.fixture(scope="module")
def record():
    torch.manual_seed(0)
    net = explainode.get("model/small_vgg", num_classes=4).eval()
    return explainode.explain("gradcam", net, torch.rand(3, 3, 32, 32))


def test_a_record_shows_pictures_maps_and_a_bar(record):
    figure = record.show(overlay=True, names=["<a>", "b", "c", "d"])
    assert len(figure.axes) == 3 * 3  # picture, map, bar
    assert "probability" in figure.axes[0].get_title()
    assert len(record.show(rows=[2]).axes) == 3
    text = record._repr_html_()
    assert text.startswith("<img") and "3 forward and 3 backward passes" in text


def test_a_map_that_is_zero_says_so(record):
    from dataclasses import replace

    empty = replace(record, attribution=torch.zeros_like(record.attribution), _own={})
    assert [t.get_text() for t in empty.show(rows=[0]).axes[1].texts] == ["zero everywhere"]


def test_a_row_that_is_not_there(record):
    with pytest.raises(UserError, match=r"0\.\.2"):
        record.show(rows=[3])


def test_results_as_a_table_and_a_frame(monkeypatch):
    row = Row(0, "test", "<net>", "ig", "deletion", 0.25, 0.2, 0.3, 24, 0, 1.0, False, "p")
    results = Results(rows=[row] * 70)
    assert "&lt;net&gt;" in results._repr_html_() and "and 10 rows more" in results._repr_html_()
    if importlib.util.find_spec("pandas") is not None:
        frame = results.to_frame()
        assert frame.shape[0] == 70 and frame.loc[0, "value"] == 0.25 and "role" in frame.columns
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas"):
        results.to_frame()
