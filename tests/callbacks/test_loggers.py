"""Loggers: offline W&B read back by W&B itself, next to the CSV files; online only where somebody is logged in."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from explainode.callbacks.explanations import ExplanationCallback
from explainode.callbacks.loggers import logged_in, wandb_logger, wandb_mode
from explainode.errors import UserError
from explainode.explainers.gradient import InputXGradient, Saliency
from explainode.metrics.smoothness import Smoothness


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """No login, no mode, and nothing of this process's environment changed afterwards."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DATA_DIR", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.setenv(name, "")  # so that what the code sets is taken back
        monkeypatch.delenv(name)


def read_back(folder):
    """{name: {epoch: value}} of an offline run's history, as W&B's own reader gives it, and where its files lie."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    read = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)], capture_output=True, text=True, timeout=120
    )
    assert read.returncode == 0, read.stderr
    history = {}
    for record in map(json.loads, read.stdout.splitlines()):
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
        {"smoothness": Smoothness()},
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
        (name, int(row["epoch"])): float(value) for row in rows for name, value in row.items() if value and name not in ("epoch", "step")
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
        table = json.loads((files / history["explain/table.path"][epoch]).read_text())
        values = {tuple(line[3:5]): line[5] for line in table["data"]}
        assert values["saliency", "smoothness.total_variation"] == pytest.approx(
            history["explain/saliency/smoothness.total_variation"][epoch], rel=1e-6
        )
    assert not list((tmp_path / "home").rglob("*.png"))


def test_each_logger_has_a_run_of_its_own(tmp_path):
    """Two networks trained one after the other."""
    import wandb

    ids = {wandb_logger(str(tmp_path / name), name=name).experiment.id for name in ("one", "two")}
    wandb.finish()
    assert len(ids) == 2 and all(len(list((tmp_path / name / "wandb").glob("offline-run-*"))) == 1 for name in ("one", "two"))


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
    with caplog.at_level(logging.INFO, logger="explainode"):
        assert wandb_mode("auto") == "offline"
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
