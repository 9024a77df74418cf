"""Curves are readable SVG that needs nothing from outside."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np

from explainode.metrics.results import Results
from explainode.report.curves import curve_figure, curve_metrics, finite_curves, trend_figure

Build = Callable[..., Results]


def _texts(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter() if node.tag == "text"]


def test_two_models_get_a_plot_per_explainer_with_the_control_beneath(make_results: Build) -> None:
    results = make_results(images=1, side=16, n=6, epochs=1)
    svg = curve_figure(results.curves, "deletion", False, results.controls)
    texts = _texts(svg)
    for name in (
        "saliency",
        "ig",
        "smoothgrad",
        "gradcam",
        "resnet",
        "sde",
        "resnet, random_map (control)",
        "pixels removed",
        "probability",
    ):
        assert name in texts
    assert "centre_prior" not in texts
    lines = [
        node
        for node in ElementTree.fromstring(svg).iter()
        if re.fullmatch(r"curve-deletion-line2d_\d+", node.get("id", ""))
    ]
    assert len(lines) >= 16, "four plots with two models and two controls each"


def test_one_model_gets_one_plot_with_all_explainers(make_results: Build) -> None:
    results = make_results(images=1, side=16, n=6, epochs=1, models=("resnet",))
    texts = _texts(curve_figure(results.curves, "insertion", True, results.controls))
    assert {"saliency", "ig", "smoothgrad", "gradcam", "random_map", "centre_prior"} <= set(texts)


def test_the_curve_itself_is_drawn(make_results: Build) -> None:
    """Read the path back: its points are the curve up to an affine map of each axis."""
    results = make_results(images=1, side=16, n=6, epochs=1, models=("resnet",), explainers=("ig",))
    svg = curve_figure(results.curves, "deletion", controls=results.controls)
    curve = results.curves["resnet", "ig", "deletion"]
    paths = [
        node.get("d", "")
        for node in ElementTree.fromstring(svg).iter()
        if node.tag == "path" and "--series-1" in node.get("style", "")
    ]
    drawn = [np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", path), float) for path in paths]
    line = next(
        points
        for points in drawn
        if len(points) > 10 and not np.allclose(points[0], points[-1]) and (np.diff(points[:, 0]) > 0).all()
    )
    x = (line[:, 0] - line[0, 0]) / (line[-1, 0] - line[0, 0])
    y = np.interp(x, curve.x, curve.mean)
    slope, offset = np.polyfit(line[:, 1], y, 1)
    np.testing.assert_allclose(
        slope * line[:, 1] + offset, y, atol=2e-3
    )  # matplotlib simplifies a path by up to 1/9 pixel
    assert slope < 0, "SVG's y runs downward"


def test_svg_loads_nothing_and_ids_are_unique_on_a_page(make_results: Build) -> None:
    results = make_results(images=1, side=16, n=6, epochs=2)
    page = (
        curve_figure(results.curves, "deletion", controls=results.controls)
        + curve_figure(results.curves, "insertion", controls=results.controls)
        + trend_figure(results)
    )
    assert "http" not in page
    assert "xmlns" not in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert targets
    assert targets <= set(ids)


def test_colors_follow_the_page(make_results: Build) -> None:
    svg = curve_figure(make_results(images=1, side=16, n=6, epochs=1).curves, "deletion")
    assert "currentColor" in svg
    assert "var(--series-1" in svg and "var(--series-2" in svg
    assert "#010203" not in svg and "#040506" not in svg
    assert 'role="img"' in svg and "aria-label=" in svg


def test_names_are_escaped(make_results: Build) -> None:
    results = make_results(images=1, side=16, n=6, epochs=2, models=("<script>$x$", "b&c"), explainers=('"ig"',))
    for svg in (curve_figure(results.curves, "deletion", controls=results.controls), trend_figure(results)):
        assert "<script>" not in svg
        assert "<script>$x$" in _texts(svg)


def test_trend_needs_two_epochs_of_one_split(make_results: Build) -> None:
    results = make_results(images=1, side=16, n=6, epochs=1)
    assert trend_figure(results) == ""
    results.rows += [replace(row, epoch=1, split="test") for row in results.rows]
    assert trend_figure(results) == "", "a line between different splits would compare different images"
    texts = _texts(trend_figure(make_results(images=1, side=16, n=6, epochs=3)))
    assert {"accuracy ↑", "saliency · deletion ↓", "gradcam · max_sensitivity ↓", "epoch", "resnet", "sde"} <= set(
        texts
    )
    assert not any("random_map" in text for text in texts)


def test_no_curves_give_nothing(make_results: Build) -> None:
    assert curve_figure({}, "deletion") == ""
    results = make_results(images=1, side=16, n=6, epochs=1)
    assert curve_metrics(results) == {"deletion": False, "insertion": True}
    key = next(iter(results.curves))
    results.curves[key] = replace(results.curves[key], mean=np.full(41, np.nan))
    assert key not in finite_curves(results)


def test_long_names_of_models_stay_within_the_figure(make_results: Build) -> None:
    """A sweep's models are named after their settings; the legend used to run out of the picture on both sides."""
    models = tuple(f"model.noise.magnitude={m}" for m in (0, 0.05, 0.1, 0.5))
    tall, low = (
        ElementTree.fromstring(
            curve_figure(
                make_results(
                    images=1, side=16, n=6, epochs=1, models=of, explainers=("saliency", "gradcam", "random_map")
                ).curves,
                "deletion",
                controls={"random_map": "random"},
            )
        )
        for of in (models, ("a", "b"))
    )
    assert _box(tall)[0] == _box(low)[0] and _box(tall)[1] > _box(low)[1] + 72, (
        "a row for each name, below axes of the same size"
    )
    legend = [node for node in tall.iter() if node.get("id", "").endswith("legend_1")]
    assert len(legend) == 1
    lines = [
        [float(x) for x in re.findall(r"[ML] ([-\d.]+) ", node.get("d", ""))]
        for node in legend[0].iter()
        if node.tag == "path"
    ]
    starts = [min(line) for line in lines if line]
    assert (
        len(starts) >= 8
        and min(starts) > 0
        and max(starts) + 4.5 * len(f"{models[1]}, random_map (control)") < _box(tall)[0]
    )


def _box(svg: ElementTree.Element) -> tuple[float, float]:
    _, _, width, height = map(float, svg.get("viewBox", "").split())
    return width, height
