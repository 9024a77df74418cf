"""The dashboard's specification: the one that was looked at, and keys that runs really have."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from explainode.callbacks import dashboard_wandb
from explainode.callbacks.dashboard_wandb import Shown, build_report, build_workspace, specification
from explainode.cli.main import main
from explainode.errors import UserError
from explainode.metrics.results import Results, Row
from explainode.runs.directory import RunDirectory

GOLDEN = Path(__file__).parent / "dashboard.json"
SHOWN = Shown(
    ("saliency", "random_map"),
    {
        "deletion_fast": "faithfulness",
        "max_sensitivity": "sensitivity",
        "max_sensitivity.floor": "sensitivity",
        "smoothness.total_variation": "complexity",
    },
    {"random_map": "random"},
)


@pytest.fixture
def package():
    return pytest.importorskip(
        "wandb_workspaces", reason="wandb-workspaces is an optional package (the extra `reports`)"
    )


def drawn(spec):
    """Of each section of a specification the panels: kind and what it draws."""
    found = {}
    for section in spec["spec"]["section"]["panel_bank_config"]["sections"]:
        found[section["name"]] = [
            [panel["view_type"], {k: v for k, v in panel["config"].items() if v is not None}]
            for panel in section["panels"]
        ]
    return found


def test_the_specification_is_the_one_that_was_looked_at(package):
    """Compared by sections and panels: the rest is W&B's own layout, which its versions change."""
    spec = specification(build_workspace("p", "e", SHOWN))
    assert drawn(spec) == json.loads(GOLDEN.read_text())
    assert spec["project"] == "p" and spec["entity"] == "e"
    assert json.dumps(spec) == json.dumps(specification(build_workspace("p", "e", SHOWN)))  # ids are not random


def test_every_panel_draws_what_runs_log(package):
    """Keys as `evaluation_wandb`, `panels_wandb` and the classifier write them."""
    text = json.dumps(drawn(specification(build_workspace("p", "e", SHOWN))))
    keys = set(re.findall(r'"(?:summary:)?((?:test|explain|train|val)/[^"]+)"', text))
    assert keys == {
        "test/accuracy", "test/saliency/deletion_fast", "test/saliency/max_sensitivity", "test/panel", "test/curves",
        "explain/saliency/deletion_fast", "explain/random_map/deletion_fast", "explain/panel", "explain/curves",
        "train/accuracy", "val/accuracy", "train/loss", "val/loss",
    }  # fmt: skip
    assert '"config:model.value.noise.magnitude"' in text


def test_a_report_is_built_of_the_same_panels(package):
    report = build_report("p", "e", SHOWN)
    panels = [panel for block in report.blocks if type(block).__name__ == "PanelGrid" for panel in block.panels]
    assert len(panels) == sum(map(len, json.loads(GOLDEN.read_text()).values()))


def test_the_verb_writes_what_a_run_measured(package, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunDirectory(tmp_path / "run")
    run.write_config({"name": "run"})
    run.write_results(
        Results([Row(0, "test", "net", "gradcam", "road", 0.5, 0.4, 0.6, 9, 0, 0.0, True, "road", "faithfulness")])
    )
    assert main(["dashboard", "mine", "--from", "run"]) == 0
    assert capsys.readouterr().out == "specification: runs/dashboard/mine.json\n"
    assert "summary:test/gradcam/road" in (tmp_path / "runs" / "dashboard" / "mine.json").read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["a", "b"], "one project, got a, b"),
        (["--from"], "--from needs a value"),
        (["--sav"], "got --sav"),
        (["--report"], "add --save"),
        (["--from", "nowhere"], "is not a run directory"),
        (["--save"], "nobody is logged in to W&B"),
    ],
)
def test_bad_input_is_one_sentence(package, words, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert main(["dashboard", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_without_the_package_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(UserError, match="pip install 'explainode\\[reports\\]'"):
        dashboard_wandb.build_workspace("p", "e", SHOWN)
