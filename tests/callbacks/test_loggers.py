"""Loggers: offline W&B read back by W&B itself, next to the CSV files; online only where somebody is logged in."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from explainode.callbacks.artifacts_wandb import source_zip
from explainode.callbacks.evaluation_wandb import log_evaluation
from explainode.callbacks.explanations import ExplanationCallback
from explainode.callbacks.loggers import RunLogger, _say_offline, given_id, group_of, wandb_logger, wandb_mode
from explainode.callbacks.wandb_login import logged_in
from explainode.callbacks.wandb_records import inspect
from explainode.errors import UserError
from explainode.explainers.gradient import InputXGradient, Saliency
from explainode.metrics.faithfulness import Deletion
from explainode.metrics.results import Curve, Maps, Results, Row
from explainode.metrics.smoothness import Smoothness
from explainode.runs.directory import RunDirectory
from explainode.training.checkpoint import latest_checkpoint


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """No login, no mode, and nothing of this process's environment changed afterwards."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DATA_DIR", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.setenv(name, "")  # so that what the code sets is taken back
        monkeypatch.delenv(name)


def records(file):
    """The records of a run's log, as W&B's own reader gives them; `wandb.finish` returns before the last one is on the disk."""
    for _ in range(100):
        with suppress(UserError):  # nothing is there yet
            if inspect(file, file.parents[2]).finished:
                break
        time.sleep(0.1)
    read = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert read.returncode == 0, read.stderr
    return list(map(json.loads, read.stdout.splitlines()))


def read_back(folder):
    """{name: {epoch: value}} of an offline run's history, and where its files lie."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    history = {}
    for record in records(file):
        item = record.get("history", {}).get("item", {})
        for name, value in item.items():
            history.setdefault(name, {})[item["epoch"]] = value
    return history, file.parent / "files"


def test_an_offline_run_holds_every_number_and_a_picture(classifier, data, trainer, tmp_path):
    """Scalars equal those of the CSV logger of the same run; the picture is there and shows something, also after the folder was moved."""
    import wandb

    run = tmp_path / "run"
    callback = ExplanationCallback(
        {"saliency": Saliency(), "ixg": InputXGradient()},
        {"smoothness": Smoothness(), "deletion": Deletion(points=5)},
        images=4,
        panel_images=2,
        budget=None,
        model_name="net",
    )
    loggers = [CSVLogger(run / "logs", name="net"), wandb_logger(str(run), name="net")]
    trainer(run, [callback], max_epochs=2, logger=loggers, log_every_n_steps=1).fit(classifier(), datamodule=data())
    wandb.finish()

    moved = tmp_path / "moved"
    shutil.move(run, moved)
    history, files = read_back(moved)
    with open(moved / "logs" / "net" / "version_0" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    logged = {
        (name, int(row["epoch"])): float(value)
        for row in rows
        for name, value in row.items()
        if value and name not in ("epoch", "step")
    }
    assert {name for name, _ in logged} >= {
        "train/loss",
        "val/accuracy",
        "explain/saliency/smoothness.total_variation",
        "explain/ixg/smoothness.total_variation",
    }
    assert {epoch for _, epoch in logged} == {0, 1}
    for (name, epoch), value in logged.items():
        assert history[name][epoch] == pytest.approx(value, rel=1e-6), name
    assert history["trainer/global_step"] == {0: 5, 1: 11}
    for epoch in (0, 1):
        (picture,) = history["explain/panel.filenames"][epoch]
        assert np.asarray(Image.open(files / picture)).std() > 10
        (curves,) = history["explain/curves.filenames"][epoch]
        assert (
            np.asarray(Image.open(files / curves)).std() > 10
            and "deletion" in history["explain/curves.captions"][epoch][0]
        )
        table = json.loads((files / history["explain/table.path"][epoch]).read_text())
        values = {tuple(line[3:5]): line[5] for line in table["data"]}
        assert values["saliency", "smoothness.total_variation"] == pytest.approx(
            history["explain/saliency/smoothness.total_variation"][epoch], rel=1e-6
        )
    assert not list((tmp_path / "home").rglob("*.png"))


def test_a_run_keeps_settings_code_and_the_checkpoint(classifier, data, trainer, tmp_path):
    """All in the run directory, also where it was moved: config, source, the checkpoint bit for bit; every axis is the epoch."""
    import wandb

    run = tmp_path / "run"
    RunDirectory(run).write_config({"name": "study", "model": {"noise": {"magnitude": 0.5}}})
    logger = wandb_logger(str(run), name="net")
    logger.describe({"model": {"noise": {"magnitude": 0.5}}})
    trainer(run, max_epochs=1, logger=logger, log_every_n_steps=1).fit(classifier(), datamodule=data())
    wandb.finish()
    shutil.move(run, tmp_path / "moved")
    (file,) = (tmp_path / "moved").glob("wandb/offline-run-*/run-*.wandb")
    found = records(file)
    config = next(r["run"]["config"]["update"] for r in found if "run" in r)
    assert config["model"] == {"noise": {"magnitude": 0.5}}
    axes = {r["metric"]["glob_name"]: r["metric"]["step_metric"] for r in found if "glob_name" in r.get("metric", {})}
    assert axes == dict.fromkeys(("train/*", "val/*", "test/*", "explain/*"), "epoch") | {"lr-*": "trainer/global_step"}
    kept = {
        r["artifact"]["name"].split("-")[0]: r["artifact"]["manifest"]["contents"] for r in found if "artifact" in r
    }
    assert set(kept) == {"source", "model"}

    def content(entry):
        return (tmp_path / "moved" / "wandb-data" / entry["local_path"].split("/wandb-data/")[1]).read_bytes()

    last = next(entry for entry in kept["model"] if entry["path"] == "last.ckpt")
    assert content(last) == (tmp_path / "moved" / "checkpoints" / "last.ckpt").read_bytes()
    assert content(kept["source"][0]) == source_zip()
    assert (file.parent / "files" / "run" / "config.yaml").read_text() == (
        tmp_path / "moved" / "config.yaml"
    ).read_text()
    assert not list((tmp_path / "home").rglob("*.ckpt"))


def test_the_source_is_whole_and_always_the_same():
    first, second = source_zip(), source_zip()
    assert first == second
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert {"explainode/__init__.py", "explainode/cli/main.py", "explainode.conf/train.yaml"} <= set(
            archive.namelist()
        )


def test_what_is_large_is_left_out_and_said(classifier, data, trainer, tmp_path, caplog):
    import wandb

    logger = wandb_logger(str(tmp_path), name="net", code=False, model_mib=0.001)
    with caplog.at_level(logging.INFO, logger="explainode"):
        trainer(tmp_path, max_epochs=1, logger=logger).fit(classifier(), datamodule=data())
    wandb.finish()
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert not any("artifact" in record for record in records(file)) and "model_mib" in caplog.text


def test_a_resumed_run_goes_on_where_it_was(classifier, data, trainer, tmp_path):
    """Two parts of one id: epochs and W&B's own step only grow."""
    import wandb

    for epochs in (2, 4):
        logger = wandb_logger(str(tmp_path / "run"), name="net", id="same", code=False, model_mib=0)
        trainer(tmp_path / "run", max_epochs=epochs, logger=logger, log_every_n_steps=1).fit(
            classifier(), datamodule=data(), ckpt_path=latest_checkpoint(tmp_path / "run" / "checkpoints")
        )
        wandb.finish()
    parts = sorted((tmp_path / "run").glob("wandb/offline-run-*/run-same.wandb"), key=lambda p: p.stat().st_mtime)
    items = [record["history"]["item"] for part in parts for record in records(part) if "history" in record]
    assert len(parts) == 2 and [item["epoch"] for item in items if "train/loss" in item] == [0, 1, 2, 3]
    for axis in ("epoch", "_step", "trainer/global_step"):
        values = [item[axis] for item in items if axis in item]
        assert values == sorted(values), (axis, values)


def test_nothing_is_dropped_beside_direct_logging(tmp_path):
    """Somebody who logs without a step moves W&B's own step ahead of the trainer's."""
    import wandb

    logger = wandb_logger(str(tmp_path), code=False)
    for step in range(3):
        logger.experiment.log({"mine": step})
        logger.experiment.log({"mine too": step})
        logger.log_metrics({"loss": float(step), "epoch": step}, step=step)
    wandb.finish()
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    items = [record["history"]["item"] for record in records(file) if "history" in record]
    assert [item["loss"] for item in items if "loss" in item] == [0, 1, 2]
    assert [item["mine"] for item in items if "mine" in item] == [0, 1, 2]


def results():
    """One network, two explainers: numbers, values per image, a curve, maps."""
    draw, x = np.random.default_rng(0), np.linspace(0, 1, 5)
    image, nine = draw.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8), np.arange(2)
    found = Results([Row(3, "test", "net", "", "accuracy", 0.5, 0.1, 0.9, 40, 0, 0.0, True, "accuracy")])
    for explainer in ("saliency", "random_map"):
        values = draw.random(40)
        found.per_image["net", explainer, "max_sensitivity"] = dict(enumerate(values.tolist()))
        found.rows.append(
            Row(3, "test", "net", explainer, "max_sensitivity", float(values.mean()), 0.4, 0.6, 40, 0, 1.0, False, "s")
        )
        found.curves["net", explainer, "deletion"] = Curve(x, 1 - x, 0.9 - x, 1.1 - x, "removed", "probability")
        maps = draw.normal(size=(2, 1, 16, 16)).astype(np.float32)
        found.maps.append(Maps("net", explainer, 3, image, maps, nine, nine, nine, np.full(2, 0.5)))
    return found


def test_an_evaluation_is_a_run_of_its_own(tmp_path):
    folder = RunDirectory(tmp_path / "study" / "7")
    folder.write_config({"name": "study"})
    folder.write_class_names(["a", "b"])
    found = results()
    folder.write_results(found)
    entry = {"save_dir": str(folder.path), "project": "p", "mode": "offline", "id": "same", "code": False}
    log_evaluation(entry, {"name": "study", "model": {"depth": 20}}, "net", folder)
    log_evaluation(entry, {"name": "study"}, "another network", folder)  # of which nothing was measured
    (file,) = folder.path.glob("wandb/offline-run-*/run-same-evaluate.wandb")
    read = records(file)
    run = next(r["run"] for r in read if "run" in r)
    assert (run["display_name"], run["job_type"], run["run_group"]) == ("study/net", "evaluate", "study/7")
    (item,) = (record["history"]["item"] for record in read if "history" in record)
    assert item["test/accuracy"] == 0.5 and item["test/saliency/max_sensitivity"] == pytest.approx(
        found.rows[1].value, rel=1e-6
    )
    assert sum(item["test/sensitivity/saliency/max_sensitivity.values"]) == 40 and item["test/curve_points.nrows"] == 10
    for key in ("panel", "curves"):
        (picture,) = item[f"test/{key}.filenames"]
        assert np.asarray(Image.open(file.parent / "files" / picture)).std() > 10
    kept = next(r["artifact"] for r in read if "artifact" in r and r["artifact"]["name"].startswith("explanations"))
    names = [entry["path"] for entry in kept["manifest"]["contents"]]
    assert {"metrics.csv", "curves.csv", "per_image.csv"} <= set(names) and sum(
        name.endswith(".npz") for name in names
    ) == 2


def test_under_wandbs_sweep_agent_the_run_is_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    assert wandb_logger(str(tmp_path), mode="offline").version == "given"


def test_points_and_variants_under_one_given_id_are_runs_of_their_own(tmp_path, monkeypatch):
    """Two points of a sweep, each of two variants: four ids that begin with the given one, the same at every start."""
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    (tmp_path / "multirun.yaml").touch()
    ids = []
    for point in ("0", "1"):
        RunDirectory(tmp_path / point).write_config({"variants": {"net": {}, "twin": {}}})
        ids += [given_id(tmp_path / point, name) for name in ("train/net", "train/twin")]
    assert len(set(ids)) == 4 and all(one.startswith("given-") for one in ids)
    assert given_id(tmp_path / "0", "train/net") == ids[0]


@pytest.mark.parametrize(("sweep", "expected"), [(False, "7/3"), (True, "study/7")])
def test_points_of_a_sweep_share_a_group(tmp_path, sweep, expected):
    folder = tmp_path / "study" / "7" / "3"
    folder.mkdir(parents=True)
    if sweep:
        (folder.parent / "multirun.yaml").touch()
    assert group_of(folder) == expected


@pytest.mark.parametrize("error", ["CommError", "AuthenticationError"])
def test_a_server_that_refuses_costs_a_warning(tmp_path, monkeypatch, error):
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    real = wandb.init

    def init(**settings):
        if settings["mode"] == "online":
            raise getattr(wandb.errors, error)("returned error 401: invalid API key\nmore")
        return real(**settings)

    monkeypatch.setattr(wandb, "init", init)
    logger = wandb_logger(str(tmp_path), mode="online", code=False)
    with pytest.warns(
        UserWarning, match=r"W&B cannot be used \(returned error 401: invalid API key\): the run is recorded offline"
    ):
        logger.log_metrics({"val/loss": 1.0, "epoch": 0}, step=1)
    wandb.finish()
    assert read_back(tmp_path)[0]["val/loss"] == {0: 1.0}


def test_no_run_waits_for_a_server_for_long():
    """W&B's own limits are 90 s at the start and none at the end."""
    settings = RunLogger(folder=Path("nowhere"))._wandb_init["settings"]
    assert settings.init_timeout <= 30 and 0 < settings.finish_timeout <= 120


def test_disabled_records_nothing(tmp_path, classifier, data, trainer):
    logger = wandb_logger(str(tmp_path / "run"), mode="disabled")
    trainer(tmp_path, max_epochs=1, logger=logger).fit(classifier(), datamodule=data())
    assert not list(tmp_path.rglob("*.wandb")) and not list(tmp_path.rglob("source.zip"))


def test_each_logger_has_a_run_of_its_own(tmp_path):
    """Two networks trained one after the other."""
    import wandb

    ids = {wandb_logger(str(tmp_path / name), name=name).experiment.id for name in ("one", "two")}
    wandb.finish()
    assert len(ids) == 2 and all(
        len(list((tmp_path / name / "wandb").glob("offline-run-*"))) == 1 for name in ("one", "two")
    )


@pytest.mark.parametrize(
    ("environment", "netrc", "expected"),
    [
        ({}, None, False),
        ({"WANDB_API_KEY": "x"}, None, True),
        ({}, "machine api.wandb.ai login user password x", True),
        ({}, "machine example.org login user password x", False),
        ({"WANDB_BASE_URL": "https://example.org"}, "machine example.org login user password x", True),
        ({}, "not a netrc file", False),
    ],
)
def test_who_is_logged_in(tmp_path, monkeypatch, environment, netrc, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if netrc is not None:
        path = tmp_path / "home" / ".netrc"
        path.write_text(netrc)
        path.chmod(0o600)
    assert logged_in() is expected


def test_offline_is_said_once_and_online_without_login_is_refused(monkeypatch, caplog):
    _say_offline.cache_clear()
    with caplog.at_level(logging.INFO, logger="explainode"):
        assert wandb_mode("auto") == wandb_mode("auto") == "offline"
    assert [record.levelname for record in caplog.records] == ["INFO"] and "recorded offline" in caplog.text
    with pytest.raises(UserError, match="nobody is logged in"):
        wandb_mode("online")
    with pytest.raises(UserError, match="must be one of"):
        wandb_mode("sometimes")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode("auto") == "disabled"
    monkeypatch.setenv("WANDB_API_KEY", "x")
    monkeypatch.delenv("WANDB_MODE")
    assert wandb_mode("auto") == "online" and wandb_mode("offline") == "offline"


def test_everything_is_recorded_inside_the_folder(tmp_path):
    logger = wandb_logger(str(tmp_path / "run"), group="g", id="abc")
    assert os.environ["WANDB_DATA_DIR"] == str(tmp_path / "run" / "wandb-data")
    assert logger.save_dir == str(tmp_path / "run") and logger.version == "abc" and logger._offline
