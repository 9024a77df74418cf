"""A run directory gives back what was written, whatever happened in between."""

from __future__ import annotations

import errno
import math
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from explainode.errors import UserError
from explainode.files import replacing
from explainode.metrics.results import Maps, Results, Row
from explainode.runs.directory import RunDirectory, final, versions

Build = Callable[..., Results]


def _row(value: float, **changes: object) -> Row:
    row = Row(
        0,
        "test",
        "resnet",
        "ig",
        "deletion",
        value,
        value - 0.1,
        value + 0.1,
        8,
        0,
        0.5,
        False,
        "deletion[a,b]#0 noise=off seed=0",
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def _maps(attribution: np.ndarray, **changes: object) -> Maps:
    n = len(attribution)
    ids = np.arange(n)
    image = np.zeros((n, 4, 4, 3), np.uint8)
    return replace(Maps("resnet", "ig", 0, image, attribution, ids, ids, ids, np.ones(n)), **changes)  # type: ignore[arg-type]


def test_everything_comes_back(tmp_path: Path, make_results: Build) -> None:
    written = make_results(images=3, side=16, n=9, epochs=2)
    written.warnings = ["one, with a comma", "two"]
    run = RunDirectory(tmp_path / "run")
    run.write_results(written)
    read = run.read_results()
    assert read.rows == [replace(row, value=float(row.value), seconds=round(row.seconds, 4)) for row in written.rows]
    assert read.per_image == written.per_image
    assert read.warnings == written.warnings
    assert list(read.curves) == list(written.curves)
    for key, curve in written.curves.items():
        assert read.curves[key].x_label == curve.x_label
        for name in ("x", "mean", "low", "high"):
            np.testing.assert_array_equal(getattr(read.curves[key], name), getattr(curve, name))
    of = {(m.model, m.explainer): m for m in read.maps}
    assert len(of) == len(written.maps)
    for maps in written.maps:
        back = of[maps.model, maps.explainer]
        for name in ("image", "sample_id", "label", "target", "probability", "mask"):
            np.testing.assert_array_equal(getattr(back, name), getattr(maps, name))
        # float16 keeps 11 bits of each value, relative to the value itself unless it is 2^-14 of the map's peak
        np.testing.assert_allclose(
            back.attribution, maps.attribution, rtol=2**-11, atol=np.abs(maps.attribution).max() * 2**-24
        )


@pytest.mark.parametrize("size", [1e-30, 1e-9, 1.0, 1e6, 1e30])
def test_tiny_and_huge_maps_survive_float16(tmp_path: Path, size: float) -> None:
    attribution = np.array([[[[size, -size / 3], [0, size / 500]]]], dtype=np.float32)
    run = RunDirectory(tmp_path)
    run.write_results(Results(rows=[_row(0.5)], maps=[_maps(attribution)]))
    back = run.read_results().maps[0].attribution
    np.testing.assert_allclose(back, attribution, rtol=2**-11)
    assert back[0, 0, 1, 0] == 0


def test_nan_and_infinite_maps_come_back_as_they_were(tmp_path: Path) -> None:
    attribution = np.array([[[[np.nan, 1.0]]], [[[np.inf, -np.inf]]], [[[0.0, 0.0]]]], dtype=np.float32)
    run = RunDirectory(tmp_path)
    run.write_results(Results(rows=[_row(0.5)], maps=[_maps(attribution)]))
    np.testing.assert_array_equal(run.read_results().maps[0].attribution, attribution)


def test_numbers_and_directions_survive_exactly(tmp_path: Path) -> None:
    rows = [
        _row(0.1 + 0.2),
        _row(math.nan, low=math.nan, high=math.nan, metric="a", higher_is_better=None),
        _row(np.float64(1 / 3), metric="b", higher_is_better=True, explainer="", protocol='x "y", z'),
        _row(math.inf, metric="c\nd"),
    ]
    run = RunDirectory(tmp_path)
    run.write_results(Results(rows=rows))
    back = run.read_results().rows
    assert [repr(row.value) for row in back] == ["0.30000000000000004", "nan", repr(1 / 3), "inf"]
    assert [row.higher_is_better for row in back] == [False, None, True, False]
    assert back[2].protocol == 'x "y", z'
    assert back[3].metric == "c d"


def test_a_repeated_epoch_counts_once_and_the_later_lines_win(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    key = ("resnet", "ig", "deletion")
    run.write_results(Results(rows=[_row(0.5)], per_image={key: {0: 0.5, 1: 0.5}}))
    run.write_results(Results(rows=[_row(0.4)], per_image={key: {0: 0.4, 1: 0.4}}))
    read = run.read_results()
    assert [row.value for row in read.rows] == [0.4]
    assert read.per_image == {key: {0: 0.4, 1: 0.4}}


def test_the_run_that_was_just_made_counts_not_the_longest(tmp_path: Path) -> None:
    """Trained for 10 epochs, then again from an early checkpoint for 4: the table shows the 4."""
    run = RunDirectory(tmp_path)
    for epoch, value in ((10, 0.9), (4, 0.2)):
        run.write_results(
            Results(rows=[_row(value, epoch=epoch)], per_image={("resnet", "ig", "deletion"): {0: value}})
        )
    read = run.read_results()
    assert [(row.epoch, row.value) for row in final(read).rows] == [(4, 0.2)]
    assert read.per_image == {("resnet", "ig", "deletion"): {0: 0.2}}


def test_values_belong_to_the_rows_that_final_picks(tmp_path: Path) -> None:
    """A run that went on after its last test: values of the validation split must not be mistaken for those of the test split."""
    run = RunDirectory(tmp_path)
    key = ("resnet", "ig", "deletion")
    one = np.ones((1, 1, 4, 4), np.float32)
    for epoch, split, value in ((0, "val", 0.9), (1, "test", 0.1), (1, "val", 0.8), (2, "val", 0.7)):
        results = Results(
            rows=[_row(value, epoch=epoch, split=split)],
            per_image={key: {0: value}},
            maps=[_maps(one * value, epoch=epoch)],
        )
        run.write_results(results)
    read = run.read_results()
    assert len(read.rows) == 4
    assert [(row.split, row.epoch) for row in final(read).rows] == [("test", 1)]
    assert read.per_image == {key: {0: 0.1}}
    assert [float(m.attribution.max()) for m in read.maps] == pytest.approx([0.1], rel=1e-3)


def test_an_earlier_epoch_can_be_read(tmp_path: Path, make_results: Build) -> None:
    early = make_results(images=2, side=16, n=8, epochs=1, models=("a", "b"))
    late = make_results(images=2, side=16, n=8, epochs=1, models=("a", "b"))
    late.rows = [replace(row, epoch=5) for row in late.rows]
    late.maps = [replace(maps, epoch=5) for maps in late.maps]
    late.per_image = {key: {i: v + 1 for i, v in values.items()} for key, values in late.per_image.items()}
    run = RunDirectory(tmp_path)
    run.write_results(early)
    run.write_results(late)
    read = run.read_results({"a": (0, "val"), "b": (5, "val")})
    assert {(row.model, row.epoch) for row in read.rows} == {("a", 0), ("b", 5)}
    assert read.per_image["a", "ig", "deletion"] == early.per_image["a", "ig", "deletion"]
    assert read.per_image["b", "ig", "deletion"] == late.per_image["b", "ig", "deletion"]
    assert {(maps.model, maps.epoch) for maps in read.maps} == {("a", 0), ("b", 5)}
    assert set(read.curves) == set(early.curves)
    assert run.read_results({"a": (7, "val")}).rows == []


def test_names_with_slashes_and_tags_become_files(tmp_path: Path) -> None:
    model = "run/../<img onerror=x>"
    run = RunDirectory(tmp_path)
    run.write_results(
        Results(
            rows=[_row(0.5, model=model)],
            maps=[_maps(np.ones((1, 1, 4, 4), np.float32), model=model, explainer="a/b[c]*")],
        )
    )
    assert [(m.model, m.explainer) for m in run.read_results().maps] == [(model, "a/b[c]*")]
    assert [path.parent for path in tmp_path.rglob("*.npz")] == [tmp_path / "explanations"]


def test_values_without_a_row_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="values of resnet, but no row"):
        RunDirectory(tmp_path).write_results(Results(per_image={("resnet", "ig", "deletion"): {0: 1.0}}))


def test_a_killed_process_costs_its_last_line_only(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_results(Results(rows=[_row(0.5)]))
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("1,test,resnet,ig,dele")
    assert [row.value for row in run.read_results().rows] == [0.5]
    run.write_results(Results(rows=[_row(0.6, epoch=1)]))
    assert [row.value for row in run.read_results().rows] == [0.5, 0.6]


def test_a_write_that_fails_leaves_the_earlier_results(
    tmp_path: Path, make_results: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fsync in turn fails, so the disk fills at every file of the second write once."""
    first = make_results(images=2, side=16, n=6, epochs=1)
    second = Results(
        rows=[replace(row, epoch=1) for row in first.rows],
        per_image=first.per_image,
        curves=first.curves,
        warnings=["new"],
    )
    real, calls = os.fsync, 0
    for failing in range(1, 40):
        run = RunDirectory(tmp_path / str(failing))
        run.write_results(first)
        before = run.read_results()
        calls = 0

        def fsync(descriptor: int, failing: int = failing) -> None:
            nonlocal calls
            calls += 1
            if calls == failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        try:
            run.write_results(second)
        except UserError as error:
            assert "no space left" in str(error)
        else:
            break
        finally:
            monkeypatch.setattr(os, "fsync", real)
        after = run.read_results()
        assert after.rows == before.rows
        assert after.per_image == before.per_image
        assert after.curves.keys() == before.curves.keys()
    assert failing == 6, (
        "per_image, curves, warnings (a new file and its folder) and metrics are flushed: the fifth failure was the last"
    )


@pytest.mark.parametrize(
    ("name", "damage", "match"),
    [
        (
            "metrics.csv",
            lambda text: text.replace("0.5", "half", 1),
            r"metrics.csv, line 2 is damaged \(could not convert",
        ),
        (
            "metrics.csv",
            lambda text: text.replace(",test", "", 1),
            r"metrics.csv, line 2 is damaged \(14 cells instead of 15\)",
        ),
        (
            "metrics.csv",
            lambda text: text.replace("epoch", "step", 1),
            r"metrics.csv has the columns step,.* written by something else",
        ),
        ("per_image.csv", lambda text: text.replace(",7,", ",seven,", 1), r"per_image.csv, line 2 is damaged"),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, name: str, damage: Callable[[str], str], match: str) -> None:
    run = RunDirectory(tmp_path)
    run.write_results(Results(rows=[_row(0.5)], per_image={("resnet", "ig", "deletion"): {7: 0.25}}))
    path = tmp_path / name
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=match):
        run.read_results()


@pytest.mark.parametrize("keep", [0, 10, 200, -30])
def test_a_truncated_map_file_is_named(tmp_path: Path, keep: int) -> None:
    run = RunDirectory(tmp_path)
    run.write_results(Results(rows=[_row(0.5)], maps=[_maps(np.ones((1, 1, 4, 4), np.float32))]))
    path = next((tmp_path / "explanations").iterdir())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"explainer=ig.npz is damaged"):
        run.read_results()


def test_configuration_comes_back_as_plain_values(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.write_config(
        {
            "name": "demo",
            "seed": 7,
            "nested": {"list": (1, 2.5, None, "off")},
            "path": tmp_path,
            "numpy": np.float64(0.1),
        }
    )
    assert run.read_config() == {
        "name": "demo",
        "seed": 7,
        "nested": {"list": [1, 2.5, None, "off"]},
        "path": str(tmp_path),
        "numpy": 0.1,
    }
    facts = run.read_versions()
    assert facts["seed"] == "7"
    assert {"python", "torch", "lightning", "explainode", "command", "time"} <= facts.keys()


def test_a_configuration_of_objects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="plain values only, got object"):
        RunDirectory(tmp_path).write_config({"model": object()})
    assert not (tmp_path / "config.yaml").exists()


def test_reading_creates_nothing(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "missing")
    assert run.read_results() == Results()
    assert run.read_class_names() == []
    with pytest.raises(UserError, match="is not a run directory"):
        run.read_config()
    assert not run.path.exists()


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: [1")
    with pytest.raises(UserError, match=r"config.yaml is damaged"):
        RunDirectory(tmp_path).read_config()
    (tmp_path / "config.yaml").write_text("just text")
    with pytest.raises(UserError, match="a mapping was expected, not str"):
        RunDirectory(tmp_path).read_config()


def test_warnings_are_kept_once_and_on_one_line(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_warnings(["a\nb", "c"])
    run.write_warnings(["c", "d"])
    assert run.read_warnings() == ["a b", "c", "d"]


def test_class_names_come_back(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_class_names(["cat", "dog\nhouse", "Ünal"])
    assert run.read_class_names() == ["cat", "dog house", "Ünal"]


def test_versions_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/explainode", "train", "data.root=/my data"])
    facts = versions(seed=3)
    assert facts["command"] == "explainode train 'data.root=/my data'"
    assert facts["seed"] == "3"


def _map_file(tmp_path: Path) -> tuple[RunDirectory, Path, dict[str, np.ndarray]]:
    run = RunDirectory(tmp_path)
    run.write_results(Results(rows=[_row(0.5)], maps=[_maps(np.ones((2, 1, 4, 4), np.float32))]))
    (path,) = tmp_path.glob("explanations/*.npz")
    with np.load(path) as file:
        return run, path, dict(file)


def test_maps_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    """Four bytes of a file can stand for a thousand of an array."""
    run, path, _ = _map_file(tmp_path)
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("attribution.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(600):
            member.write(bytes(1 << 20))
    with pytest.raises(UserError, match="would unpack to 600 MiB"):
        run.read_results()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attribution", np.zeros((2, 4), np.float16)),
        ("attribution", np.zeros((3, 1, 4, 4), np.float16)),
        ("image", np.zeros((2, 4, 4), np.uint8)),
        ("label", np.zeros((2, 2), np.int64)),
        ("sample_id", np.array(5)),
        ("target", np.array(["a", "b"])),
        ("exponent", np.zeros(7, np.int32)),
        ("mask", np.zeros((1, 1, 1), np.int8)),
    ],
)
def test_maps_of_another_shape_are_named(tmp_path: Path, name: str, value: np.ndarray) -> None:
    run, path, fields = _map_file(tmp_path)
    np.savez_compressed(path, **{**fields, name: value})
    with pytest.raises(UserError, match="is damaged"):
        run.read_results()


def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_kept(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with replacing(tmp_path / "checkpoints" / "a" / "last.ckpt") as mine:
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        left = Path(mine.name.replace(f"@{os.getpid()}.", f"@{dead.pid}."))
        left.write_bytes(b"half")
        run.write_config({"seed": 0})
        assert not left.exists() and Path(mine.name).exists()
    assert (tmp_path / "checkpoints" / "a" / "last.ckpt").is_file() and not list(tmp_path.rglob("*.part"))
