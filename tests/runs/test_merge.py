"""Runs side by side keep their values apart, and unlike measurements apart from each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from explainode.errors import UserError
from explainode.metrics.results import Results
from explainode.runs.directory import RunDirectory
from explainode.runs.merge import merge_runs

Build = Callable[..., Results]


def test_runs_are_merged_under_their_names(tmp_path: Path, make_results: Build) -> None:
    results = make_results(images=2, side=16, n=8, epochs=2, models=("resnet",))
    results.warnings = ["w"]
    for name in ("a", "b"):
        RunDirectory(tmp_path / name).write_results(results)
    merged = merge_runs([tmp_path / "a", tmp_path / "b"])
    assert {row.model for row in merged.rows} == {"a/resnet", "b/resnet"}
    assert {row.epoch for row in merged.rows} == {1}
    assert merged.per_image["a/resnet", "ig", "deletion"] == merged.per_image["b/resnet", "ig", "deletion"]
    assert merged.warnings == ["a: w", "b: w"]
    RunDirectory(tmp_path / "both").write_results(merged)
    assert len(RunDirectory(tmp_path / "both").read_results().maps) == 2 * len(results.maps)


def test_unlike_protocols_and_empty_folders_are_refused(tmp_path: Path, make_results: Build) -> None:
    results = make_results(images=1, side=16, n=8, epochs=1, models=("resnet",))
    RunDirectory(tmp_path / "a").write_results(results)
    results.rows = [replace(row, protocol="other") if row.metric == "deletion" else row for row in results.rows]
    RunDirectory(tmp_path / "b").write_results(results)
    with pytest.raises(
        UserError,
        match=r"deletion of saliency is 'deletion\[.*' in a and 'other' in b \(noise: off and not said; .*\); measure both the same way",
    ):
        merge_runs([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(UserError, match=r"has no metrics.csv"):
        merge_runs([tmp_path / "a", tmp_path / "missing"])
