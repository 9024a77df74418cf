"""`explainode benchmark`: cells that are whole or not there, resumed, never mixed, never silently missing."""

import csv
import errno
import json
import os
import shutil
import signal
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
import yaml
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

import explainode
from explainode import registry
from explainode.cli import main as door
from explainode.cli.benchmark_words import compose_benchmark, with_models
from explainode.data.base import ImageData
from explainode.data.batch import Batch
from explainode.errors import UserError
from explainode.evaluation import evaluate
from explainode.explainers.gradient import Saliency
from explainode.explainers.gradients import unchecked_gradients
from explainode.jobs import grid
from explainode.jobs.cells import Cells
from explainode.jobs.images import correct_images
from explainode.metrics.smoothness import Smoothness
from explainode.registry.composing import compose
from explainode.runs.directory import RunDirectory

SMALL = ["data=shapes", "data.size=16", "data.train_size=8", "data.val_size=8", "data.test_size=40"]
EVALUATION = ["evaluation.images=12", "evaluation.batch_size=5", "evaluation.panel=3", "evaluation.device=cpu"]
GRID = ["explainer=[saliency,input_x_gradient,random_map]", "metric=[deletion_fast,smoothness]"]

MIXING = 3  # rows of the first image, alone and beside itself, by which a network shows whether it mixes the images of a batch


@cache
def pictures_of(split):
    data = explainode.get("data/shapes", size=16, train_size=8, val_size=64, test_size=200)
    return next(iter(data.batches(split, range(len(data.dataset(split))), 200)))


@cache
def network(seed):
    """A network whose answers differ from picture to picture: its logits are centered on pictures that no test measures."""
    torch.manual_seed(seed)
    net = explainode.get("model/six_block", width=8, blocks=1, num_classes=8).eval()
    with torch.no_grad():
        net.linear.weight *= 50
        logits = net(pictures_of("val").image)
        net.linear.bias -= logits.mean(0)
    return net


def words(folder, names=("one", "two")):
    """Two networks of one architecture, with weights of their own."""
    chosen = f"models={{{','.join(f'{name}:six_block' for name in names)}}}"
    own = [
        f"models.{name}.{setting}"
        for name in names
        for setting in ("width=8", "blocks=1", f"weights={folder}/{name}.pt")
    ]
    return [chosen, *own, *SMALL, *EVALUATION]


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """The verb in an empty folder with the weights of two networks: (status, stdout, stderr); the report is left out unless asked for."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("one", "two")):
        torch.save(network(seed).state_dict(), tmp_path / f"{name}.pt")

    def run(*more, report=False, base=None):
        with monkeypatch.context() as patch:
            if not report:
                patch.setattr("explainode.cli.benchmark.finish", lambda folder: None)
            status = door.main(["benchmark", *(words(tmp_path) if base is None else base), *more])
        out = capsys.readouterr()
        return status, out.out, out.err

    return run


@pytest.fixture
def evaluations(monkeypatch):
    """Every call of `evaluate`, as (network, explainers, metrics); `stop_at` interrupts the call of that number."""
    calls = []

    def noted(model, explainers, metrics, *arguments, **options):
        calls.append((options["name"], *explainers, tuple(metrics)))
        if len(calls) == noted.stop_at:
            raise KeyboardInterrupt
        return evaluate(model, explainers, metrics, *arguments, **options)

    noted.calls, noted.stop_at = calls, 0
    monkeypatch.setattr("explainode.jobs.benchmark.evaluate", noted)
    return noted


def contents(folder):
    """Every file of a benchmark, without what depends on clock and folder."""
    found = {}
    for path in sorted(
        p for p in Path(folder).rglob("*") if p.is_file() and p.name not in (".lock", "versions.yaml", "report.html")
    ):
        name, data = str(path.relative_to(folder)), path.read_bytes()
        if path.name == "metrics.csv":
            data = [
                {k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(data.decode().splitlines())
            ]
        elif path.name == "cell.json":
            data = {k: v for k, v in json.loads(data).items() if k != "seconds"}
        elif path.name == "config.yaml":
            data = {k: v for k, v in yaml.safe_load(data).items() if k not in ("run_id", "run_dir", "output_dir")}
        elif path.suffix == ".tex":
            data = data.decode().replace(str(folder), "")
        found[name] = data
    return found


# ---- what the words mean


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["models=[resnet20,resnet32]"], ["+model@models.resnet20=resnet20", "+model@models.resnet32=resnet32"]),
        (["models={mine:resnet20,other:resnet20}"], ["+model@models.mine=resnet20", "+model@models.other=resnet20"]),
        (["models=resnet20", "models.resnet20.depth=32"], ["+model@models.resnet20=resnet20", "models.resnet20.depth=32"]),
        (
            ["experiment=benchmark_cifar10", "models=[resnet44,resnet56]"],
            ["~model@models.resnet20", "~model@models.resnet32", "model@models.resnet44=resnet44", "+model@models.resnet56=resnet56",
             "experiment=benchmark_cifar10"],
        ),
        (["seed=1"], ["seed=1"]),
    ],
    ids=lambda value: value[0],
)  # fmt: skip
def test_networks_are_chosen_by_lists_and_mappings(given, expected):
    assert with_models(given) == expected


def test_an_experiments_networks_are_replaced_by_others():
    config = compose_benchmark(["experiment=benchmark_cifar10", "models=[resnet44,resnet56]", "data.root=x"])
    assert sorted(config.models) == ["resnet44", "resnet56"] and config.models.resnet56.depth == 56
    assert config.data.root == "x" and config.evaluation.only_correct
    assert list(compose_benchmark(["experiment=benchmark_cifar10", "~model@models.resnet44"]).models) == [
        "resnet20",
        "resnet32",
    ]


def test_an_experiment_of_one_network_is_a_benchmark_of_one():
    config = compose_benchmark(["experiment=lei2023_table1"])
    assert list(config.models) == ["model"] and "model" not in config and config.models.model.teacher.depth == 20
    assert list(compose_benchmark(["model=resnet20", "data=cifar10"]).models) == ["resnet20"]


@pytest.mark.parametrize("name", ["benchmark_cifar10", "benchmark_imagenet"])
def test_experiments_hold_explanations_and_controls(name):
    config = compose("benchmark", [f"experiment={name}"])
    controls = {"random_map", "centre_prior", "edge_map", "inverted_map"}
    assert controls < set(config.explainer) and len(set(config.explainer) - controls) >= 12
    for metric in config.metric:
        assert not registry.get(f"metric/{metric}").needs & {"mask", "fixation_map"}


def test_defaults_hold_explanations_and_controls():
    config = compose("benchmark", [])
    assert {"random_map", "centre_prior", "edge_map", "inverted_map"} < set(config.explainer) and len(
        config.explainer
    ) >= 16


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "there is no network to benchmark; name trained runs"),
        (["data=shapes"], "there is no network to benchmark"),
        (["models=[six_block]"], "there is no data to explain; choose some with data="),
        (["models=[six_block]", "data.size=16"], "there is no data to explain"),
        (["models=[six_blok]", "data=shapes"], "no model named 'six_blok'; the nearest are six_block"),
        (["models=[six_block]", "data=shape"], "no data named 'shape'; the nearest are shapes"),
        (["models=[six_block]", "data=shapes", "explainer=[salienci]"], "saliency"),
        (["models=[six_block]", "data=shapes", "models.six_block.weigths=x"], "models.six_block.weights"),
        (["models=[six_block]", "data=shapes", "explainer.ig.steps=3"], "explainer 'ig' is not chosen"),
        (
            ["models=[six_block]", "data=shapes"],
            "models.six_block has no weights, and a network with random ones has nothing to explain",
        ),
        (["models=[six_block]", "data=shapes", "models.six_block.weights=nowhere.pt"], "nowhere.pt"),
        (["models=[six_block,six_block]", "data=shapes"], "names a network twice"),
        (["models={a-b:six_block}", "data=shapes"], "a network cannot be called 'a-b'"),
        (["models={six_block", "data=shapes"], "cannot read 'models={six_block'"),
        (
            ["experiment=cifar10_sde"],
            "experiment/cifar10_sde overrides 'module', which explainode benchmark does not have",
        ),
        (
            ["experiment=lei2023_table1", "model=resnet20"],
            "experiment/lei2023_table1 overrides 'model@model.teacher'",
        ),
        (["runs=[nowhere]"], "nowhere is not a run directory"),
        (["runs=[a/x,a/x]"], "the runs need different names"),
        (["model=neural_ode", "data=shapes"], "models.neural_ode has no weights"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_a_sentence(cli, given, expected):
    status, _, err = cli(base=given)
    assert status == 2 and expected in err, err
    assert "Traceback" not in err and not Path("runs").exists()


def test_a_folder_of_another_run_is_left_alone(cli):
    RunDirectory("other").write_config({"name": "demo"})
    Path("other/metrics.csv").write_text("epoch\n")
    status, _, err = cli(*GRID, "run_dir=other")
    assert status == 2 and "other holds another run" in err
    assert sorted(path.name for path in Path("other").iterdir()) == ["config.yaml", "metrics.csv", "versions.yaml"]


# ---- what is measured


def test_cells_hold_what_evaluate_finds(cli):
    status, out, _ = cli(*GRID, "run_dir=run", report=True)
    assert status == 0 and "report: run/report.html" in out
    found = RunDirectory("run").read_results()
    data = explainode.get("data/shapes", size=16, train_size=8, val_size=8, test_size=40)
    chosen = data.select_images(40, 12)
    explainers = {name: explainode.get(f"explainer/{name}") for name in ("saliency", "input_x_gradient", "random_map")}
    metrics = {name: explainode.get(f"metric/{name}") for name in ("deletion_fast", "smoothness")}
    for seed, name in enumerate(("one", "two")):
        expected = evaluate(
            network(seed),
            explainers,
            metrics,
            data.batches("test", chosen, 5),
            n=40,
            name=name,
            panel=[chosen[0], chosen[4], chosen[8]],
        )
        for key, values in expected.per_image.items():
            assert found.per_image[key] == values, key
        rows = {(r.explainer, r.metric): r for r in found.rows if r.model == name}
        for row in expected.rows:
            mine = rows[row.explainer, row.metric]
            np.testing.assert_equal(  # NaN, where images are too few for an interval, is as it was
                (mine.value, mine.low, mine.high, mine.n, mine.protocol),
                (row.value, row.low, row.high, row.n, row.protocol),
            )
    assert list(dict.fromkeys(row.model for row in found.rows)) == ["one", "two"]
    assert [row.explainer for row in found.rows if row.metric == "smoothness.total_variation"] == [
        *explainers,
        *explainers,
    ]
    assert sum(row.metric == "accuracy" for row in found.rows) == 2, "each network's accuracy stands once"
    assert {(maps.model, maps.explainer) for maps in found.maps} == {(m, e) for m in ("one", "two") for e in explainers}
    worst = {tuple(maps.sample_id[3:]) for maps in found.maps}
    assert len(worst) == 1 and len(next(iter(worst))) == found.maps[0].added > 0, (
        "the worst of all images are drawn, of every cell"
    )


def test_clean_and_baseline_outputs_are_computed_once_for_all_explainers(cli, monkeypatch):
    from explainode.jobs import benchmark

    made = []

    class Counted(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.rows = inner, 0
            made.append(self)

        def forward(self, x):
            self.rows += len(x)
            return self.inner(x)

    original = benchmark.build_network
    monkeypatch.setattr(benchmark, "build_network", lambda settings: Counted(original(settings)))
    more = ["metric=[deletion]", "metric.deletion.points=6", "evaluation.panel=12"]  # nothing to draw beside the panel
    with unchecked_gradients():  # the check looks at each network once more
        assert cli("explainer=[saliency]", *more, "run_dir=a")[0] == 0
        assert cli("explainer=[saliency,input_x_gradient,random_map]", *more, "run_dir=b")[0] == 0
    # clean, explanation, blurred, four points between
    assert [counted.rows for counted in made[:2]] == [MIXING + 12 * (1 + 1 + 1 + 4)] * 2
    assert [counted.rows for counted in made[2:]] == [MIXING + 12 * (7 + (1 + 4) + 4)] * 2


def test_an_explainer_that_learns_is_fitted_once(cli, monkeypatch):
    from explainode.explainers.pattern import PatternNet

    fitted, original = [], PatternNet.fit
    monkeypatch.setattr(
        PatternNet, "fit", lambda self, model, batches: fitted.append(model) or original(self, model, batches)
    )
    assert cli("explainer=[pattern_net]", "metric=[deletion_fast]", "evaluation.fit_images=8", "run_dir=run")[0] == 0
    assert len(fitted) == 2, "once for each network, also where the worst images are drawn"
    status, _, err = cli("explainer=[pattern_net]", "metric=[deletion_fast]", "evaluation.fit_images=4", "run_dir=run")
    assert status == 2 and "explainer.pattern_net.fit_images is 8 there, 4 here" in err


# ---- interrupted, resumed, extended


def test_an_interrupted_benchmark_goes_on_and_equals_an_unbroken_one(cli, evaluations):
    assert cli(*GRID, "run_dir=whole")[0] == 0
    everything = list(evaluations.calls)
    evaluations.calls.clear()
    evaluations.stop_at = 4
    status, _, err = cli(*GRID, "run_dir=broken")
    assert status == 130 and "interrupted: the same command with run_dir=broken goes on" in err
    assert len({row.explainer for row in RunDirectory("broken").read_results().rows if row.explainer}) == 3, (
        "what is whole is reported"
    )
    litter = Path("broken/cells/two/saliency/.x.part")
    litter.mkdir(parents=True)
    (litter / "metrics.csv").write_text("half")
    Path("broken/explanations/.y.part").write_text("half")
    with open("broken/metrics.csv", "a") as file:
        file.write("0,test,two,sal")  # of a process that was killed while it wrote
    evaluations.calls.clear()
    evaluations.stop_at = 0
    assert cli(*GRID, "run_dir=broken")[0] == 0
    assert evaluations.calls[:3] == everything[3:6], "only the missing cells"
    assert all(not metrics for *_, metrics in evaluations.calls[3:]), "and the pictures of the images explained worst"
    assert contents("broken") == contents("whole")
    evaluations.calls.clear()
    assert cli(*GRID, "run_dir=broken")[0] == 0
    assert evaluations.calls == [] and contents("broken") == contents("whole")


def test_a_termination_is_an_interruption(cli, monkeypatch):
    calls, before = [], signal.getsignal(signal.SIGTERM)

    def terminated(*arguments, **options):
        calls.append(options["name"])
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        return evaluate(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("explainode.jobs.benchmark.evaluate", terminated)
        status, _, err = cli("explainer=[saliency]", "metric=[smoothness]", "run_dir=run")
    assert status == 130 and "interrupted" in err and signal.getsignal(signal.SIGTERM) is before
    assert {row.model for row in RunDirectory("run").read_results().rows} == {"one"}
    assert cli("explainer=[saliency]", "metric=[smoothness]", "run_dir=run")[0] == 0


def test_other_networks_mean_other_correct_images(cli, tmp_path):
    more = [
        "explainer=[saliency]",
        "metric=[smoothness]",
        "evaluation.only_correct=true",
        "data.test_size=200",
        "run_dir=run",
    ]
    assert cli(*more)[0] == 0
    status, _, err = cli(*more, base=words(tmp_path, names=("two",)))
    assert status == 2 and "(with only_correct=true other networks mean other images)" in err


@pytest.mark.slow
def test_a_killed_benchmark_goes_on_and_equals_an_unbroken_one(cli, tmp_path):
    more = ["explainer=[saliency,smoothgrad,ig,random_map]", "metric=[deletion,infidelity]", "evaluation.images=40"]
    assert cli(*more, "run_dir=whole", report=True)[0] == 0
    process = warm.Program(["-m", "explainode", "benchmark", *words(tmp_path), *more, "run_dir=broken"], tmp_path)
    end = time.monotonic() + 120
    while time.monotonic() < end and len(list(Path("broken").glob("cells/*/*/0*"))) < 3 and process.poll() is None:
        time.sleep(0.02)
    process.end()
    assert process.wait() == -signal.SIGKILL, "it was still running"
    done = len(list(Path("broken").glob("cells/*/*/0*")))
    assert 3 <= done < 8
    assert cli(*more, "run_dir=broken", report=True)[0] == 0
    assert contents("broken") == contents("whole")


def test_more_explainers_and_metrics_compute_only_what_is_new(cli, evaluations):
    assert cli("explainer=[saliency]", "metric=[smoothness]", "run_dir=run")[0] == 0
    evaluations.calls.clear()
    assert cli("explainer=[input_x_gradient]", "metric=[smoothness]", "run_dir=run")[0] == 0
    assert evaluations.calls == [(model, "input_x_gradient", ("smoothness",)) for model in ("one", "two")]
    evaluations.calls.clear()
    assert cli("explainer=[saliency,input_x_gradient]", "metric=[complexity,smoothness]", "run_dir=run")[0] == 0
    assert evaluations.calls == [
        (m, e, ("complexity",)) for m in ("one", "two") for e in ("saliency", "input_x_gradient")
    ]
    assert list(RunDirectory("run").read_config()["explainer"]) == ["saliency", "input_x_gradient"]
    evaluations.calls.clear()
    assert cli("explainer=[saliency,input_x_gradient]", "metric=[smoothness,complexity]", "run_dir=at_once")[0] == 0
    grown, once = (RunDirectory(name).read_results() for name in ("run", "at_once"))
    assert grown.per_image == once.per_image
    assert {(r.model, r.explainer, r.metric, r.value) for r in grown.rows} == {
        (r.model, r.explainer, r.metric, r.value) for r in once.rows
    }


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (["evaluation.noise=path"], 'evaluation.noise is "off" there, "path" here'),
        (["evaluation.seed=1"], "evaluation.seed is 0 there, 1 here"),
        (["evaluation.images=10"], 'evaluation.images is "12 images'),
        (["evaluation.panel=4"], "evaluation.panel is 3 there, 4 here"),
        (["data.image_seed=5"], "data.image_seed is 0 there, 5 here"),
        (["models.two.noise.magnitude=0.5"], "models.two.noise.magnitude is 0.0 there, 0.5 here"),
        (["models.two.weights=one.pt"], "models.two.weights is"),
        (["explainer.smoothgrad.samples=3"], "explainer.smoothgrad.samples is 2 there, 3 here"),
        (["metric.smoothness.reduction=abs_sum"], 'metric.smoothness.reduction is "sum" there, "abs_sum" here'),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_cells_of_another_protocol_are_not_mixed(cli, change, expected, request):
    base = ["explainer=[smoothgrad]", "metric=[smoothness]", "explainer.smoothgrad.samples=2", "run_dir=run"]
    assert cli(*base)[0] == 0
    before = contents("run")
    status, _, err = cli(*base, *change)
    assert status == 2 and "run holds cells of another protocol" in err and expected in err, err
    there, here = err.split("smoothgrad: ")[1].split(")")[0].split(", ")[:2]
    assert there.removesuffix(" there") != here.removesuffix(" here") and len(there.removesuffix(" there")) == 8
    assert contents("run") == before


def test_settings_that_decide_no_number_may_change(cli, evaluations, tmp_path):
    base = ["explainer=[saliency]", "metric=[smoothness]", "run_dir=run"]
    assert cli(*base)[0] == 0
    evaluations.calls.clear()
    shutil.move(tmp_path / "one.pt", tmp_path / "moved.pt")
    assert (
        cli(*base, "evaluation.batch_size=3", "evaluation.chunk_size=2", "models.one.weights=moved.pt", "seed=4")[0]
        == 0
    )
    assert evaluations.calls == []


def test_two_benchmarks_do_not_write_into_one_folder(tmp_path):
    with (
        Cells(tmp_path / "run" / "cells"),
        pytest.raises(UserError, match="another benchmark is writing"),
        Cells(tmp_path / "run" / "cells"),
    ):
        pass
    with Cells(tmp_path / "run" / "cells"):
        pass


def test_a_cell_that_cannot_be_written_leaves_nothing_and_stops_the_work(cli, monkeypatch, evaluations):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("explainode.jobs.cells.os.rename", full)
        status, _, err = cli("explainer=[saliency]", "metric=[smoothness]", "run_dir=run")
    assert status == 2 and "cannot write" in err and "no space left on device" in err
    assert len(evaluations.calls) == 1, "nothing more is computed that could not be kept"
    assert list(Path("run/cells/one/saliency").iterdir()) == []
    assert cli("explainer=[saliency]", "metric=[smoothness]", "run_dir=run")[0] == 0


def test_a_damaged_cell_is_named(cli):
    base = ["explainer=[saliency]", "metric=[smoothness]", "run_dir=run"]
    assert cli(*base)[0] == 0
    Path("run/cells/two/saliency/000/cell.json").write_text("{")
    status, _, err = cli(*base)
    assert status == 2 and "run/cells/two/saliency/000" in err and "measured again" in err


# ---- missing cells


def rows_of(path):
    with open(path, newline="") as file:
        return [tuple(row.values()) for row in csv.DictReader(file)]


def test_what_does_not_apply_is_named_and_the_rest_is_whole(cli):
    status, _, err = cli(
        "explainer=[saliency,attention_rollout,adjoint_map]", "metric=[smoothness]", "run_dir=run", report=True
    )
    assert status == 0
    missing = rows_of("run/missing.csv")
    assert [row[:4] for row in missing] == [
        (m, e, "", "refused") for m in ("one", "two") for e in ("attention_rollout", "adjoint_map")
    ]
    assert "no attention" in missing[0][4] and "solves no equation" in missing[1][4]
    assert all(err.count(f"one, two x {e} is missing: ") == 1 for e in ("attention_rollout", "adjoint_map"))
    assert {row.explainer for row in RunDirectory("run").read_results().rows} == {"", "saliency"}
    assert any("one, two x attention_rollout is missing" in warning for warning in RunDirectory("run").read_warnings())
    assert "one, two x adjoint_map is missing" in Path("run/report.html").read_text(encoding="utf-8")


def test_an_unexpected_exception_costs_its_cell_and_is_raised_at_the_end(cli, monkeypatch):
    original, calls = Saliency.attribute, []

    def fails_on_the_second_network(self, model, x, target):
        calls.append(len(x))
        if len(calls) > 3:
            raise ZeroDivisionError("no such luck")
        return original(self, model, x, target)

    with monkeypatch.context() as patch:
        patch.setattr(Saliency, "attribute", fails_on_the_second_network)
        status, _, err = cli("explainer=[saliency,random_map]", "metric=[smoothness]", "run_dir=run")
    assert status == 1 and "ZeroDivisionError: no such luck (a fault of ours; --debug shows where)" in err
    assert rows_of("run/missing.csv") == [("two", "saliency", "", "failed", "ZeroDivisionError: no such luck")]
    assert {(r.model, r.explainer) for r in RunDirectory("run").read_results().rows if r.explainer} == {
        ("one", "saliency"), ("one", "random_map"), ("two", "random_map"),
    }  # fmt: skip
    assert cli("explainer=[saliency,random_map]", "metric=[smoothness]", "run_dir=run")[0] == 0
    assert cli("explainer=[saliency,random_map]", "metric=[smoothness]", "run_dir=unbroken")[0] == 0
    assert contents("run") == contents("unbroken"), "mended, the same command measures it; nothing is missing any more"


def test_debug_shows_where_an_exception_came_from(cli, monkeypatch):
    monkeypatch.setattr(Saliency, "attribute", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli("explainer=[saliency,random_map]", "metric=[smoothness]", "run_dir=run", "--debug")


def test_a_metric_that_fails_costs_only_its_own_numbers(cli, monkeypatch, evaluations):
    with monkeypatch.context() as patch:
        patch.setattr(Smoothness, "measure", lambda *_: 1 / 0)
        status, *_ = cli("explainer=[saliency]", "metric=[smoothness,complexity]", "run_dir=run")
    assert status == 1
    assert [row[:4] for row in rows_of("run/missing.csv")] == [
        (m, "saliency", "smoothness", "failed") for m in ("one", "two")
    ]
    assert {r.metric.split(".")[0] for r in RunDirectory("run").read_results().rows} == {"accuracy", "complexity"}
    evaluations.calls.clear()
    assert cli("explainer=[saliency]", "metric=[smoothness,complexity]", "run_dir=run")[0] == 0
    assert evaluations.calls == [(model, "saliency", ("smoothness",)) for model in ("one", "two")]


def test_where_nothing_can_be_measured_the_reason_is_all(cli):
    status, _, err = cli("explainer=[attention_rollout]", "metric=[smoothness]", "run_dir=run")
    assert status == 2 and "nothing could be measured" in err and "no attention" in err
    assert rows_of("run/missing.csv")


@pytest.fixture
def pictures(tmp_path):
    """Pictures without labels, masks or anything."""
    generator = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for k in range(6):
        Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(
            tmp_path / "pictures" / f"{k}.png"
        )
    return [*words(tmp_path)[:7], "models.one.num_classes=8", "models.two.num_classes=8", "data=image_folder", "data.root=pictures",
            "data.size=16", *EVALUATION]  # fmt: skip


def test_metrics_without_what_they_need_are_left_out_and_named(cli, pictures):
    status, _, err = cli(
        "explainer=[saliency]", "metric=[smoothness,pointing_game,guided_pgd]", "run_dir=run", base=pictures
    )
    assert status == 0
    assert [row[:4] for row in rows_of("run/missing.csv")] == [
        ("", "", "pointing_game", "refused"),
        ("", "", "guided_pgd", "refused"),
    ]
    assert "pointing_game is missing: the metric 'pointing_game' needs masks" in err and "needs labels" in err
    assert {r.metric for r in RunDirectory("run").read_results().rows} == {
        "smoothness.total_variation",
        "smoothness.high_frequency",
    }
    status, _, err = cli("explainer=[saliency]", "metric=[pointing_game]", "run_dir=other", base=pictures)
    assert status == 2 and "none of the metrics can be measured on this data" in err and not Path("other").exists()


def test_correct_images_need_labels(cli, pictures):
    status, _, err = cli("explainer=[saliency]", "metric=[smoothness]", "evaluation.only_correct=true", base=pictures)
    assert status == 2 and "only_correct=true asks for labels" in err


# ---- images that all networks classify correctly


class Answers(nn.Module):
    """Says the label where the image's first pixel, the position, is in `right`, and another class elsewhere."""

    def __init__(self, right):
        super().__init__()
        self.right, self.asked = set(right), []

    def forward(self, x):
        positions = (x[:, 0, 0, 0] * 1000).round().long().tolist()
        self.asked += positions
        return torch.eye(2)[[0 if position in self.right else 1 for position in positions]]


class Positions:
    """A split of n images of label 0 that know their positions; those in `unreadable` are skipped."""

    def __init__(self, n, unreadable=(), label=0):
        self.n, self.unreadable, self.label = n, set(unreadable), label

    def dataset(self, split):
        return range(self.n)

    def select_images(self, n, images):
        return ImageData.select_images(self, n, images)

    def batches(self, split, indices, batch_size):
        for first in range(0, len(indices), batch_size):
            ids = [i for i in indices[first : first + batch_size] if i not in self.unreadable]
            if ids:
                image = torch.tensor(ids).view(-1, 1, 1, 1).float().div(1000).expand(-1, 3, 4, 4).contiguous()
                yield Batch(image, torch.full((len(ids),), self.label), torch.tensor(ids))


def chosen(images, right, n=100, data=None, batch_size=7):
    settings = {
        "split": "test",
        "images": images,
        "batch_size": batch_size,
        "noise": "off",
        "seed": 0,
        "chunk_size": "auto",
    }
    networks = {str(k): Answers(positions) for k, positions in enumerate(right)}
    return *correct_images(settings, networks, data or Positions(n), torch.device("cpu")), networks


def test_where_all_is_right_correct_images_are_the_evenly_spaced_ones():
    indices, accuracy, networks = chosen(10, [range(100), range(100)])
    assert indices == list(range(0, 100, 10))
    assert accuracy == {name: dict.fromkeys(indices, 1.0) for name in networks}
    assert networks["0"].asked[MIXING:] == indices, "and no other image is looked at"


def test_a_wrong_image_is_replaced_by_the_next_right_one():
    right = [set(range(100)) - {20, 21, 22}, set(range(100)) - {20, 23, 70}]
    indices, accuracy, _ = chosen(10, right)
    assert indices == [0, 10, 24, 30, 40, 50, 60, 71, 80, 90], "24 is the first after 20 that both classify correctly"
    assert accuracy["0"] == {k: float(k != 20) for k in range(0, 100, 10)}
    assert sum(accuracy["1"].values()) == 8


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("images", [3, 10, 40, 100, 150])
def test_as_many_correct_images_as_there_are(seed, images):
    generator = np.random.default_rng(seed)
    right = [set(np.flatnonzero(generator.random(100) < 0.4)) - set(range(30, 60)) for _ in range(2)]
    both = right[0] & right[1]
    if not both:
        pytest.skip("no image is right")
    indices, _, _ = chosen(images, right, batch_size=13)
    assert set(indices) <= both and indices == sorted(set(indices))
    assert len(indices) == min(images, len(both))


def test_a_slice_and_a_list_are_searched_as_they_are():
    right = [set(range(0, 100, 2))]
    assert chosen("10:16", right)[0] == [10, 12, 14]
    indices, accuracy, _ = chosen([8, 5, 2, 4], right)
    assert indices == [8, 2, 4] and accuracy["0"] == {8: 1.0, 5: 0.0, 2: 1.0, 4: 1.0}


def test_unreadable_files_are_not_correct():
    assert chosen(4, [range(8)], data=Positions(8, unreadable=[2]))[0] == [0, 3, 4, 6]


def test_no_correct_image_is_a_sentence():
    with pytest.raises(UserError, match="none of 100 images is classified correctly by 0, 1"):
        chosen(10, [{1}, {2}])
    with pytest.raises(UserError, match="asks for labels"):
        chosen(10, [range(100)], data=Positions(100, label=-1))


def test_only_correct_images_are_measured_and_accuracy_stays_fair(cli):
    more = [
        "explainer=[saliency]",
        "metric=[smoothness]",
        "evaluation.only_correct=true",
        "data.test_size=200",
        "evaluation.images=30",
    ]
    assert cli(*more, "run_dir=run")[0] == 0
    found = RunDirectory("run").read_results()
    batch = pictures_of("test")
    with torch.no_grad():
        right = [(network(seed)(batch.image).argmax(1) == batch.label).tolist() for seed in (0, 1)]
    both = {k for k in range(200) if right[0][k] and right[1][k]}
    measured = set(found.per_image["one", "saliency", "smoothness.total_variation"])
    assert (
        measured == set(found.per_image["two", "saliency", "smoothness.total_variation"])
        and measured <= both
        and len(measured) == min(30, len(both))
    )
    spaced = [k * 200 // 30 for k in range(30)]
    rows = {row.model: row for row in found.rows if row.metric == "accuracy"}
    for seed, name in enumerate(("one", "two")):
        assert (rows[name].value, rows[name].n) == (pytest.approx(np.mean([right[seed][k] for k in spaced])), 30)


def test_evaluate_measures_only_correct_images_too(cli, tmp_path):
    words_of_one = [
        "model=six_block",
        "model.width=8",
        "model.blocks=1",
        f"model.weights={tmp_path}/one.pt",
        *SMALL,
        *EVALUATION,
    ]
    more = [
        "explainer=[saliency]",
        "metric=[smoothness]",
        "evaluation.only_correct=true",
        "data.test_size=200",
        "evaluation.images=10",
    ]
    assert door.main(["evaluate", *words_of_one, *more, "run_dir=run"]) == 0
    found = RunDirectory("run").read_results()
    batch = pictures_of("test")
    with torch.no_grad():
        right = (network(0)(batch.image).argmax(1) == batch.label).tolist()
    measured = sorted(found.per_image["model", "saliency", "smoothness.total_variation"])
    assert len(measured) == 10 and all(right[k] for k in measured)
    accuracy = next(row for row in found.rows if row.metric == "accuracy")
    assert accuracy.value == pytest.approx(np.mean([right[k] for k in range(0, 200, 20)])) and accuracy.value < 1


# ---- trained runs


def trained_run(folder, seed, **data):
    """A run directory as `explainode train` leaves it, with two variants."""
    for offset, variant in enumerate(("plain", "twin")):
        (folder / "checkpoints" / variant).mkdir(parents=True)
        state = {f"network.{k}": t for k, t in network(seed + offset).state_dict().items()}
        torch.save({"state_dict": state}, folder / "checkpoints" / variant / "last.ckpt")
    model = OmegaConf.to_container(registry.load("model/six_block"), resolve=False) | {
        "width": 8,
        "blocks": 1,
        "num_classes": 8,
    }
    shapes = {
        "_target_": "explainode.data.shapes.ShapesData",
        "size": 16,
        "train_size": 8,
        "val_size": 8,
        "test_size": 40,
        "num_classes": 8,
        **data,
    }
    config = {
        "name": "train",
        "model": model,
        "data": shapes,
        "variant": "six_block",
        "variants": {"plain": {}, "twin": {}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_trained_runs_bring_their_variants_and_their_data(cli, tmp_path):
    first, second = trained_run(tmp_path / "first", 0), trained_run(tmp_path / "second", 2, batch_size=3)
    more = [f"runs=[{first},{second}]", "explainer=[saliency]", "metric=[smoothness]", *EVALUATION, "run_dir=run"]
    assert cli(base=more)[0] == 0
    found = RunDirectory("run").read_results()
    names = ["first/plain", "first/twin", "second/plain", "second/twin"]
    assert list(dict.fromkeys(row.model for row in found.rows)) == names
    data = explainode.get("data/shapes", size=16, train_size=8, val_size=8, test_size=40)
    for seed, name in enumerate(names):
        batches = data.batches("test", data.select_images(40, 12), 5)
        expected = evaluate(
            network(seed), {"saliency": Saliency()}, {"smoothness": Smoothness()}, batches, n=40, name=name
        )
        assert (
            found.per_image[name, "saliency", "smoothness.total_variation"]
            == expected.per_image[name, "saliency", "smoothness.total_variation"]
        )
    assert cli(base=[*more, "data.test_size=20"])[0] == 2, "another split is another protocol"
    assert cli(base=[*more[:-1], "data.test_size=20", "run_dir=shorter"])[0] == 0
    status, _, err = cli(base=[*more, "data.test_sice=20"])
    assert status == 2 and "data.test_sice=20: the run's data has no such setting" in err


def test_runs_and_networks_stand_side_by_side(cli, tmp_path):
    run = trained_run(tmp_path / "first", 0)
    more = [
        f"runs={run}",
        "models={one:six_block}",
        "models.one.width=8",
        "models.one.blocks=1",
        f"models.one.weights={tmp_path}/one.pt",
    ]
    assert cli(base=[*more, "explainer=[saliency]", "metric=[smoothness]", *EVALUATION, "run_dir=run"])[0] == 0
    found = RunDirectory("run").read_results()
    values = [
        found.per_image[name, "saliency", "smoothness.total_variation"] for name in ("one", "first/plain", "first/twin")
    ]
    assert values[0] == values[1] != values[2], "one.pt holds the weights of first/plain"


def test_runs_of_different_data_ask_which(cli, tmp_path):
    first, second = trained_run(tmp_path / "first", 0), trained_run(tmp_path / "second", 2, image_seed=3)
    status, _, err = cli(base=[f"runs=[{first},{second}]"])
    assert status == 2 and "first and second were trained on different data (data.image_seed)" in err
    RunDirectory(tmp_path / "third").write_config({"name": "compare"})
    status, _, err = cli(base=[f"runs=[{tmp_path / 'third'}]"])
    assert status == 2 and "does not say what data" in err
    status, _, err = cli(base=[f"runs=[{tmp_path / 'third'}]", *SMALL])
    assert status == 2 and "is no run of explainode train" in err


# ---- what is shown meanwhile


def test_remaining_time_follows_from_the_finished_cells(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(grid.time, "monotonic", lambda: clock[0])
    shown = grid.Grid(["a", "b"], ["quick", "slow"])
    assert shown.remaining() is None and shown.line() == "0 of 4 cells"
    for key, seconds in ((("a", "quick"), 2.0), (("a", "slow"), 10.0)):
        shown.start(key)
        if key[1] == "quick":
            clock[0] += 1
            shown("quick", 10, 40)
            assert shown.remaining() == 3 + 3 * 4, "nothing is finished: all cells like the running one, at its pace"
            clock[0] -= 1
        clock[0] += seconds
        assert shown.finish("done") == seconds
    assert shown.remaining() == 12, "each explainer as long as on the other network"
    shown.start(("b", "quick"))
    clock[0] += 0.5
    assert shown.remaining() == pytest.approx(1.5 + 10), "before the first images: what is left of the expected"
    shown("quick", 5, 20)
    assert shown.remaining() == pytest.approx(0.5 * 15 / 5 + 10), "afterwards: at its own pace"
    assert shown.line() == "2 of 4 cells, b x quick, 5/20 images (0 s), about 12 s left"
    shown.finish("missing")
    assert shown.remaining() == 10 and shown.line() == "3 of 4 cells"


def test_the_table_shows_every_cell():
    from rich.console import Console

    shown = grid.Grid(["net[0]"], ["done", "kept", "gone", "runs", "waits"])
    shown.keep(("net[0]", "kept"), 200.0)
    for name, state in (("done", "done"), ("gone", "missing")):
        shown.start(("net[0]", name))
        shown.finish(state)
    shown.start(("net[0]", "runs"))
    shown("runs", 3, 8)
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(shown)
    text = console.export_text()
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines()[2:] if line.strip()}
    assert "net[0]" in text.splitlines()[1] and text.startswith("3 of 5 cells, net[0] x runs, 3/8 images")
    assert lines == {"done": ["0", "s"], "kept": ["3", "min"], "gone": ["missing"], "runs": ["3/8"], "waits": ["·"]}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (5300, "88 min"), (5500, "1 h 32 min")]
)
def test_durations_read_well(seconds, text):
    assert grid.duration(seconds) == text
