"""Pictures of many maps: aligned by image, nothing mixed up, every fault visible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from explainode.errors import UserError
from explainode.metrics.results import Maps, Results
from explainode.report.board import disagreement, make_board
from explainode.report.colors import fault_tile
from explainode.report.panels import class_name, draw_contour, draw_input, draw_map, legend, panel
from explainode.report.picks import choose_images, unfaithfulness, worst_images

Build = Callable[..., Results]


def _reorder(maps: Maps, rows: list[int]) -> Maps:
    picked = {
        name: getattr(maps, name)[rows]
        for name in ("image", "attribution", "sample_id", "label", "target", "probability", "mask")
    }
    return replace(maps, **picked)


def test_maps_are_aligned_by_sample_id(make_results: Build) -> None:
    maps = make_results(images=4, side=16, epochs=1).maps
    plain = make_board(maps)
    shuffled = make_board([maps[0], *(_reorder(m, [2, 0, 3]) for m in maps[1:])])
    assert plain.sample_id[[0, 2, 3]].tolist() == shuffled.sample_id.tolist()
    np.testing.assert_array_equal(shuffled.image, plain.image[[0, 2, 3]])
    for key, heatmap in plain.heatmap.items():
        np.testing.assert_array_equal(shuffled.heatmap[key], heatmap[[0, 2, 3]])
    np.testing.assert_array_equal(shuffled.target["sde"], plain.target["sde"][[0, 2, 3]])


def test_other_pictures_under_the_same_number_are_refused(make_results: Build) -> None:
    maps = make_results(images=3, side=16, epochs=1).maps
    other = replace(maps[-1], image=255 - maps[-1].image)
    with pytest.raises(UserError, match="resnet and sde were explained on different pictures"):
        make_board([*maps[:-1], other])


def test_no_maps_and_no_common_image_are_refused(make_results: Build) -> None:
    maps = make_results(images=3, side=16, epochs=1).maps
    with pytest.raises(UserError, match="no maps to show"):
        make_board([])
    with pytest.raises(UserError, match="no image in common"):
        make_board([maps[0], replace(maps[1], sample_id=maps[1].sample_id + 1000)])


def test_controls_stand_last_and_kinds_hold_for_all_models(make_results: Build) -> None:
    maps = make_results(images=2, side=16, epochs=1).maps
    board = make_board(sorted(maps, key=lambda m: m.explainer != "random_map"))
    assert [e in board.controls for e in board.explainers] == [False] * 4 + [True] * 2
    assert board.kind["ig"] == "signed"
    assert board.kind["gradcam"] == "magnitude"


def test_disagreement_is_zero_for_equal_and_two_for_opposite_maps(make_results: Build) -> None:
    maps = [m for m in make_results(images=3, side=16, epochs=1).maps if m.explainer == "ig"]
    same = make_board([maps[0], replace(maps[1], attribution=5 * maps[0].attribution)])
    np.testing.assert_allclose(disagreement(same), 0, atol=1e-12)
    opposite = make_board([maps[0], replace(maps[1], attribution=-maps[0].attribution)])
    np.testing.assert_allclose(disagreement(opposite), 2, atol=1e-12)


def test_disagreement_leaves_faults_out(make_results: Build) -> None:
    maps = [m for m in make_results(images=3, side=16, epochs=1).maps if m.explainer == "ig"]
    broken = maps[1].attribution.copy()
    broken[0], broken[1] = 0, np.nan
    values = disagreement(make_board([maps[0], replace(maps[1], attribution=broken)]))
    assert np.isnan(values[:2]).all()
    assert np.isfinite(values[2])


def test_the_panel_shows_maps_faults_and_pictures_where_they_belong(make_results: Build) -> None:
    maps = make_results(images=3, side=32, epochs=1).maps
    broken = maps[1].attribution.copy()
    broken[1] = np.nan
    maps[1] = replace(maps[1], attribution=broken)
    picture = np.asarray(panel(maps, ["disc", "square", "star", "ring"], side=64))
    board = make_board(maps)
    cell = 64
    assert (picture != 255).any(2).mean() > 0.4
    for wanted in (
        draw_input(board, 2, cell),
        draw_map(board, "sde", "gradcam", 0).repeat(2, 0).repeat(2, 1),
        fault_tile("NaN", 32, 32).repeat(2, 0).repeat(2, 1),
    ):
        assert _contains(picture, wanted)
    assert not _contains(picture, fault_tile("zero", 32, 32).repeat(2, 0).repeat(2, 1))


def _contains(picture: np.ndarray, part: np.ndarray) -> bool:
    height, width = part.shape[:2]
    starts = np.argwhere((picture == part[0, 0]).all(2))
    return any(np.array_equal(picture[y : y + height, x : x + width], part) for y, x in starts)


@pytest.mark.parametrize("style", ["map", "overlay"])
@pytest.mark.parametrize("scale", ["per-map", "per-image", "per-model"])
def test_every_style_and_scale_draws(make_results: Build, style: str, scale: str) -> None:
    maps = make_results(images=2, side=16, epochs=1).maps
    picture = panel(maps, style=style, scale=scale, side=32, images=1)
    assert picture.height < panel(maps, style=style, scale=scale, side=32).height
    assert scale in legend(make_board(maps), scale)


def test_one_image_without_mask_label_and_names(make_results: Build) -> None:
    maps = make_results(images=1, side=16, epochs=1, models=("Модель $x$",), explainers=("ig",)).maps
    maps = [replace(maps[0], mask=None, label=np.array([-1]))]
    assert np.asarray(panel(maps, None)).std() > 5


def test_large_pictures_are_reduced(make_results: Build) -> None:
    maps = make_results(images=1, side=224, epochs=1, models=("resnet",), explainers=("ig",)).maps
    assert panel(maps, side=128).width < 500


def test_wrong_words_are_refused(make_results: Build) -> None:
    maps = make_results(images=1, side=16, epochs=1).maps
    with pytest.raises(UserError, match="style must be one of map, overlay"):
        panel(maps, style="cloud")
    with pytest.raises(UserError, match="scale must be one of"):
        panel(maps, scale="log")


def test_contour_lies_on_the_border_of_the_mask() -> None:
    inside = np.zeros((12, 12), bool)
    inside[3:9, 4:10] = True
    drawn = draw_contour(np.full((12, 12, 3), 99, np.uint8), inside)
    changed = (drawn != 99).any(2)
    assert not changed[5:7, 6:8].any(), "the inside stays"
    assert changed[3, 4:10].all() and changed[8, 4:10].all() and changed[3:9, 4].all() and changed[3:9, 9].all()
    assert changed[2, 4:10].all(), "a dark line around it"
    assert not changed[0].any()
    whole = draw_contour(np.full((4, 4, 3), 99, np.uint8), np.ones((4, 4), bool))
    assert (whole[0] != 99).any(), "a mask that fills the picture has a border too"


def test_class_names() -> None:
    assert class_name(["a"], 0) == "a"
    assert class_name(["a"], 5) == "class 5"


def test_images_are_chosen_once_and_for_a_reason(make_results: Build) -> None:
    results = make_results(images=24, side=16, n=48, epochs=1)
    board = make_board(results.maps)
    for model in board.models:
        for explainer in ("saliency", "ig", "smoothgrad", "gradcam"):
            results.per_image[model, explainer, "deletion"][int(board.sample_id[20])] = (
                5.0  # by far the worst: lower is better
            )
    groups = choose_images(results, board)
    assert [group.title for group in groups] == ["Fixed images", "Worst explained", "Most disagreement"]
    assert [pick.row for pick in groups[0].picks] == list(range(8))
    assert groups[1].picks[0].row == 20
    assert groups[1].picks[0].reason == "deletion 5.00"
    rows = [pick.row for group in groups for pick in group.picks]
    assert len(rows) == len(set(rows))
    assert all(len(group.picks) + len(group.elsewhere) <= 8 for group in groups)


def test_the_worst_are_those_of_all_measured_images_where_their_maps_are_there(make_results: Build) -> None:
    """Eight images fixed beforehand and one added afterwards; the worst of 48 is the added one or one without maps."""
    results = make_results(images=9, side=16, n=54, epochs=1)
    added = int(results.maps[0].sample_id[8])
    results.maps = [replace(maps, added=1) for maps in results.maps]
    for key, values in results.per_image.items():
        if key[2] == "deletion":
            results.per_image[key] = {sample: 5.0 if sample == added else 0.1 for sample in values}
    assert worst_images(results, 1) == [added]
    board = make_board(results.maps)
    fixed, worst, other = choose_images(results, board, each=1)
    assert [pick.row for pick in fixed.picks] == [0] and board.fixed == 8
    assert [(pick.row, pick.reason) for pick in worst.picks] == [(8, "deletion 5.00")]
    assert "among all 54 measured images" in worst.note
    assert "among the 9 images whose maps were kept (of 54 measured)" in other.note

    unseen = next(sample for sample in range(54) if sample not in board.sample_id)
    for key, values in results.per_image.items():
        if key[2] == "deletion":
            values[unseen] = 9.0
    assert worst_images(results, 1) == [unseen]
    worst = choose_images(results, board, each=1)[1]
    assert [pick.row for pick in worst.picks] == [8], "the worst that can be shown"
    assert "among the 9 images whose maps were kept (of 54 measured)" in worst.note


def test_no_more_than_half_are_worst(make_results: Build) -> None:
    results = make_results(images=4, side=16, n=8, epochs=1)
    assert len(worst_images(results)) == 4


def test_worst_follows_the_direction(make_results: Build) -> None:
    results = make_results(images=4, side=16, n=8, epochs=1)
    results.rows = [row for row in results.rows if row.metric == "insertion"]
    board = make_board(results.maps)
    for model in board.models:
        for explainer in board.explainers:
            results.per_image[model, explainer, "insertion"].update(
                {int(s): float(i) for i, s in enumerate(board.sample_id)}
            )
    metric, badness = unfaithfulness(results)
    assert metric == "insertion"
    np.testing.assert_allclose(
        [badness[int(s)] for s in board.sample_id], [0, -1, -2, -3]
    )  # higher is better: the first image is the worst
