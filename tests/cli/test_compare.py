"""Comparing runs: what is refused and why, sweeps by their settings, and networks at equal accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from explainode.cli import main as door
from explainode.metrics.results import Results, Row
from explainode.runs.directory import RunDirectory

N = 24


def results(
    accuracy: float,
    sensitivity: float = 0.5,
    epoch: int = 0,
    split: str = "test",
    model: str = "net",
    explainers: int = 3,
) -> Results:
    """One model's measurement on N images."""
    found = Results()
    right = (np.arange(N) < round(accuracy * N)).astype(float)
    found.rows.append(
        Row(epoch, split, model, "", "accuracy", right.mean(), 0.0, 1.0, N, 0, 0.0, True, "accuracy[top1]")
    )
    found.per_image[model, "", "accuracy"] = dict(enumerate(right.tolist()))
    for k in range(explainers):
        values = sensitivity + 0.1 * k + np.random.default_rng(k).normal(0, 0.05, N)
        protocol = "max_sensitivity[r0.02,p10]#0a1b2c3d noise=off seed=0"
        row = Row(
            epoch,
            split,
            model,
            f"e{k}",
            "max_sensitivity",
            values.mean(),
            0.1,
            0.9,
            N,
            0,
            0.0,
            False,
            protocol,
            "sensitivity",
        )
        found.rows.append(row)
        found.per_image[model, f"e{k}", "max_sensitivity"] = dict(enumerate(values.tolist()))
    return found


def write(folder: Path, *measurements: Results, config: dict | None = None) -> Path:
    run = RunDirectory(folder)
    run.write_config(config or {})
    for found in measurements:
        run.write_results(found)
    return folder


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        status = door.main(list(words))
        out = capsys.readouterr()
        return status, out.out, out.err

    return call


Cli = Callable[..., tuple[int, str, str]]


def test_two_runs_side_by_side(cli: Cli) -> None:
    write(Path("a"), results(0.9))
    write(Path("b"), results(0.9, 0.2))
    for name in "ab":
        RunDirectory(name).write_class_names(["cat", "dog"])
    status, out, _ = cli("compare", "a", "b", "-o", "both")
    assert status == 0
    assert "b/net: this network has better max_sensitivity than a/net" in out
    assert {"report.html", "table.md", "table.tex", "metrics.csv", "classes.txt"} <= {
        path.name for path in Path("both").iterdir()
    }
    assert cli("compare", "a", "b", "-o", "both")[0] == 2  # never mixed with what is there
    assert cli("compare", "a", "b", "-o", "a")[0] == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("noise=off", "noise=path", "noise: off and path"),
        ("seed=0", "seed=1", "seed: 0 and 1"),
        ("[r0.02,p10]#0a1b2c3d", "[r0.05,p10]#ffff2c3d", "max_sensitivity[r0.02,p10] and max_sensitivity[r0.05,p10]"),
        ("#0a1b2c3d", "#ffff2c3d", "hash: 0a1b2c3d and ffff2c3d, a setting that the short protocol does not name"),
    ],
)
def test_unlike_protocols_are_refused_with_what_differs(cli: Cli, old: str, new: str, said: str) -> None:
    write(Path("a"), results(0.9))
    other = results(0.9)
    other.rows = [replace(row, protocol=row.protocol.replace(old, new)) for row in other.rows]
    write(Path("b"), other)
    status, _, err = cli("compare", "a", "b")
    assert status == 2
    assert said in err
    hashes = {row.protocol.partition("#")[2][:8] for row in (results(0.9).rows[1], other.rows[1])}
    assert all(digest in err for digest in hashes), "both protocols are shown with their hashes"
    assert not Path("runs").exists()


def test_the_setting_behind_another_hash_is_found_in_the_configurations(cli: Cli) -> None:
    write(
        Path("a"), results(0.9), config={"metric": {"max_sensitivity": {"radius": 0.02, "draws": 10, "repetitions": 1}}}
    )
    other = results(0.9)
    other.rows = [replace(row, protocol=row.protocol.replace("#0a1b", "#ffff")) for row in other.rows]
    write(Path("b"), other, config={"metric": {"max_sensitivity": {"radius": 0.02, "draws": 10, "repetitions": 5}}})
    assert "(repetitions: 1 and 5)" in cli("compare", "a", "b")[2]


def test_other_data_splits_and_images_are_refused(cli: Cli) -> None:
    shapes = {"data": {"_target_": "explainode.data.shapes.Shapes", "size": 36, "root": "/a", "batch_size": 8}}
    write(Path("a"), results(0.9), config=shapes)
    write(Path("b"), results(0.9), config={"data": {"_target_": "explainode.data.cifar10.CIFAR10"}})
    assert "a was measured on Shapes and b on CIFAR10" in cli("compare", "a", "b")[2]
    write(Path("c"), results(0.9, split="val"), config=shapes)
    assert "a was measured on the test split and c on the val split" in cli("compare", "a", "c")[2]
    far = results(0.9)
    far.per_image = {key: {i + 100: v for i, v in values.items()} for key, values in far.per_image.items()}
    write(Path("d"), far, config=shapes)
    assert "different images (24 images, #0 to #23 and 24 images, #100 to #123)" in cli("compare", "a", "d")[2]
    write(Path("e"), results(0.9), config={"data": shapes["data"] | {"size": 48, "root": "/b", "batch_size": 9}})
    status, _, _ = cli("compare", "a", "e", "-o", "out")
    assert status == 0
    said = RunDirectory("out").read_warnings()
    assert (
        said[0]
        == "a and e set their data differently, so equal image numbers may be other pictures: data.size (36 and 48)."
    )


def sweep(folder: Path, points: dict[str, Results | None], common: str = "- experiment=demo\n") -> Path:
    for i, (overrides, found) in enumerate(points.items()):
        (folder / str(i) / "hydra").mkdir(parents=True)
        (folder / str(i) / "hydra" / "overrides.yaml").write_text(
            common + "".join(f"- {word}\n" for word in overrides.split())
        )
        if found is not None:
            write(folder / str(i), found)
    return folder


def test_a_sweep_is_one_table_of_models_named_by_their_settings(cli: Cli) -> None:
    points = {f"model.noise.magnitude={m}": results(0.95 - m, 0.6 - m) for m in (0, 0.1, 0.2)}
    sweep(Path("multirun/x"), points | {"model.noise.magnitude=9": None})
    Path("multirun/x/3/failure.txt").write_text("the loss became NaN\n")
    status, out, _ = cli("compare", "multirun/x", "-o", "out")
    assert status == 0
    found = RunDirectory("out").read_results()
    assert list(dict.fromkeys(row.model for row in found.rows)) == [f"noise.magnitude={m}" for m in (0, 0.1, 0.2)]
    failed = "noise.magnitude=9 (point 3) failed and is left out: the loss became NaN."
    assert failed in found.warnings and failed in out
    page = Path("out/report.html").read_text()
    assert 'id="front"' in page and "On the front" in page


def test_a_point_that_was_killed_while_it_trained_is_left_out(cli: Cli) -> None:
    sweep(Path("x"), {"seed=0": results(0.9), "seed=1": results(0.5, split="val"), "seed=2": results(0.8)})
    status, out, _ = cli("compare", "x", "-o", "out")
    assert status == 0
    assert "seed=1 (point 1) failed and is left out: it was not measured at its end, only on the val split." in out
    assert {row.model for row in RunDirectory("out").read_results().rows} == {"seed=0", "seed=2"}


def test_points_are_named_by_what_differs(cli: Cli) -> None:
    points = {f"model.noise.magnitude={m} seed={s} noise.magnitude=1": results(0.9) for m in (0, 0.1) for s in (0, 1)}
    sweep(Path("x"), points)
    assert cli("compare", "x", "-o", "out")[0] == 0
    models = {row.model for row in RunDirectory("out").read_results().rows}
    assert models == {f"noise.magnitude={m}, seed={s}" for m in (0, 0.1) for s in (0, 1)}
    sweep(Path("same"), {"": results(0.9)})
    write(Path("same/1"), results(0.9))
    (Path("same/1/hydra")).mkdir()
    Path("same/1/hydra/overrides.yaml").write_text("[]\n")
    assert cli("compare", "same", "-o", "out2")[0] == 0
    assert len({row.model for row in RunDirectory("out2").read_results().rows}) == 2


def test_a_sweep_without_results_is_one_sentence(cli: Cli) -> None:
    sweep(Path("x"), {"seed=0": None, "seed=1": None})
    status, _, err = cli("compare", "x")
    assert status == 2 and "none of the 2 points of x has results: seed=0 (point 0) failed" in err
    sweep(Path("y"), {"seed=0": results(0.9)})
    assert "a sweep of two points, got 1" in cli("compare", "y")[2]


def test_networks_are_compared_where_they_are_equally_accurate(cli: Cli) -> None:
    weak = [results(a, 0.5, epoch=e, split="val") for e, a in enumerate((0.25, 0.5, 0.75))]
    strong = [results(a, 0.9 - 0.1 * e, epoch=e, split="val") for e, a in enumerate((0.5, 0.71, 0.92, 1.0))]
    end = results(1.0, 0.1, epoch=4)
    end.rows.append(replace(end.rows[1], metric="local_lipschitz"))
    write(Path("weak"), *weak, results(0.75, 0.5, epoch=3))
    write(Path("strong"), *strong, end)
    Path("strong/checkpoints/net").mkdir(parents=True)
    status, out, _ = cli("compare", "weak", "strong", "--matched", "-o", "out")
    assert status == 0
    found = RunDirectory("out").read_results()
    assert {(row.model, row.epoch) for row in found.rows} == {("weak/net@epoch002", 2), ("strong/net@epoch001", 1)}
    assert (
        found.per_image["strong/net@epoch001", "e0", "max_sensitivity"]
        == strong[1].per_image["net", "e0", "max_sensitivity"]
    )
    first, second = found.warnings[:2]
    assert first == (
        "Matched to the accuracy of weak/net, the weakest, on val images: weak/net after epoch 2 (75.0 % of 24; 75.0 % at its end) and "
        "strong/net after epoch 1 (70.8 % of 24; 100.0 % at its end)."
    )
    assert second.startswith(
        "local_lipschitz of strong/net was not measured after epoch 1: train with callback.checkpoint.save_top_k=-1"
    )
    assert first in out and "not the same training" not in out
    Path("strong/checkpoints/net/epoch001.ckpt").touch()
    assert "explainode evaluate run=strong checkpoint=strong/checkpoints/net/epoch001.ckpt" in cli(
        "compare", "weak", "strong", "--matched", "-o", "out2"
    )[1].replace("\n", " ")


def test_the_later_of_equally_accurate_epochs_counts(cli: Cli) -> None:
    one = [results(a, epoch=e, split="val", model="weak") for e, a in enumerate((0.5, 0.5))]
    two = [results(a, epoch=e, split="val", model="strong") for e, a in enumerate((0.5, 0.5, 0.9))]
    write(Path("both"), *one, *two)  # variants of one run
    assert cli("compare", "both", "--matched", "-o", "out")[0] == 0
    assert {row.model for row in RunDirectory("out").read_results().rows} == {
        "both/weak@epoch001",
        "both/strong@epoch001",
    }


def test_there_must_be_something_to_choose_from(cli: Cli) -> None:
    write(Path("a"), results(0.9))
    write(Path("b"), results(0.5))
    assert "no model was measured after more than one epoch" in cli("compare", "a", "b", "--matched")[2]
    assert "needs two models or more, got 1" in cli("compare", "a", "--matched")[2]
    assert "has no metrics.csv" in cli("compare", "a", "nowhere", "--matched")[2]
    assert "compare has no option --match; the nearest are --matched" in cli("compare", "a", "b", "--match")[2]


def test_unequal_networks_are_told_how_to_be_compared(cli: Cli) -> None:
    write(Path("a"), results(1.0))
    write(Path("b"), results(0.5))
    assert "(explainode compare RUN RUN --matched)" in " ".join(cli("compare", "a", "b", "-o", "out")[1].split())


def test_two_comparisons_of_one_job_do_not_meet(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    write(Path("a"), results(0.9))
    write(Path("b"), results(0.9))
    for folder in ("7", "7-2", "7-3"):
        assert cli("compare", "a", "b")[0] == 0
        assert Path("runs/compare", folder, "report.html").is_file()


def test_a_run_beside_itself_differs_in_nothing(cli: Cli) -> None:
    write(Path("a"), results(0.9))
    status, _, err = cli("compare", "a", "a/../a", "-o", "out")
    assert status == 0, err
    rows = RunDirectory(Path("out")).read_rows()
    assert {row.model for row in rows} == {"a/net", "a (2)/net"}
    one, other = (
        {(r.explainer, r.metric): r.value for r in rows if r.model == model} for model in ("a/net", "a (2)/net")
    )
    assert one == other
