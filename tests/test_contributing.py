"""The examples of CONTRIBUTING.md, written into an empty folder and run as they stand."""

import csv
import importlib
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import warm
from torch import nn

from explainode.dynamics import RungeKutta
from explainode.relevance import Assignment, Composite, record
from explainode.relevance.walk import Walk, seed

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = re.findall(r"```(?:python|yaml|toml)\n# (\S+)\n(.*?)```", TEXT, flags=re.S)
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", TEXT, flags=re.S)
    for line in block.splitlines()
    if line.startswith("explainode")
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder that holds the files of the examples, as a package that is installed where it lies."""
    folder = tmp_path_factory.mktemp("mine")
    for name, content in FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    # What `pip install -e .` writes about the package, without an environment to write into: Python finds it beside the package.
    subprocess.run(
        [sys.executable, "-c", "from setuptools import setup; setup()", "-q", "egg_info"],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=120,
    )
    return folder


@pytest.fixture(scope="module")
def said(written):
    """What each command prints, by its words but the first."""
    outputs = {}
    for command in COMMANDS:
        words = shlex.split(command)
        done = warm.run(["-m", *words], written, os.environ | {"WANDB_MODE": "offline"})
        assert done.returncode == 0, done.stderr[-2000:]
        outputs[" ".join(words[1:])] = done.stdout
    return outputs


@pytest.mark.slow
def test_every_example_is_written_down(written):
    kinds = [Path(name).suffix for name, _ in FILES]
    assert (kinds.count(".py"), kinds.count(".yaml"), kinds.count(".toml")) == (10, 10, 1)
    assert {path.name for path in (written / "my_conf").iterdir()} == {
        "explainer", "metric", "model", "data", "composite", "solver", "attack", "callback",
    }  # fmt: skip


@pytest.mark.slow
def test_the_examples_are_trained_explained_and_measured(written, said):
    assert "sensitivity_analysis" in said["list explainer --config-dir my_conf"]
    first, second = (output for words, output in said.items() if words.startswith("train"))
    assert "report:" in first and "gini" in first and "report:" in second
    table = (written / "runs" / "tiny" / "metrics.csv").read_text(encoding="utf-8")
    for explainer in ("sensitivity_analysis", "saliency", "lrp_magnitude"):
        for metric in ("gini", "deletion_fast", "map_under_fade"):
            assert re.search(rf",{explainer},{metric},0\.\d+", table), f"no number of {metric} for {explainer}"


@pytest.mark.slow
def test_the_callback_logs_the_norm_of_the_weights_that_were_saved(written, said):
    (log,) = (written / "runs" / "tiny" / "logs").rglob("metrics.csv")
    with log.open(encoding="utf-8") as rows:
        (logged,) = (float(row["weight_norm"]) for row in csv.DictReader(rows) if row["weight_norm"])
    (saved,) = (written / "runs" / "tiny" / "checkpoints").rglob("last.ckpt")
    state = torch.load(saved, weights_only=True)["state_dict"]
    learned = [value.flatten() for name, value in state.items() if name.endswith((".weight", ".bias"))]
    assert logged == pytest.approx(float(torch.cat(learned).norm()), rel=1e-5)


@pytest.fixture
def mine(written, monkeypatch):
    """The package of the examples, in this process."""
    monkeypatch.syspath_prepend(str(written))
    yield lambda name: importlib.import_module(f"mine.{name}")
    for name in [name for name in sys.modules if name == "mine" or name.startswith("mine.")]:
        del sys.modules[name]


@pytest.mark.slow
def test_the_rule_shares_by_size(mine):
    layer = nn.Linear(3, 2, bias=False).double()
    x = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    tape = record(layer, x)
    composite = Composite([Assignment(mine("magnitude").Magnitude())])
    R = Walk(tape).back({tape.output: seed(tape, torch.tensor([1]), "logit")}, composite)
    sizes = (x[0] * layer.weight[1]).abs()
    torch.testing.assert_close(R[0], sizes / sizes.sum() * layer(x)[0, 1])


@pytest.mark.slow
def test_the_solver_is_of_order_three(mine):
    x0 = torch.ones(1, dtype=torch.float64)
    tableau = mine("ssprk3").ssprk3()
    coarse, fine = (RungeKutta(tableau, steps=n)(lambda t, x: t * x, x0) - math.exp(0.5) for n in (16, 32))
    assert math.log2(coarse / fine) == pytest.approx(3, abs=0.1)


@pytest.mark.slow
def test_the_attack_finds_the_first_step_that_is_enough(mine):
    class Lightness(nn.Module):
        """Class 1 where the image is lighter than 0.7."""

        def forward(self, x):
            return torch.stack([torch.full((len(x),), 0.7), x.mean((1, 2, 3))], 1)

    x = torch.stack([torch.full((3, 4, 4), value) for value in (1.0, 0.8, 0.1)])
    found = mine("fade").Fade(steps=9)(Lightness(), x, torch.tensor([1, 1, 0]))
    # 1 - k / 20 < 0.7 first at k = 7; 0.8 - 0.03 k at k = 4; the dark one stays dark
    assert found.steps.tolist() == [7, 4, 9] and found.success.tolist() == [True, True, False]
    assert found.x.amax((1, 2, 3)).tolist() == pytest.approx([0.65, 0.68, 0.46])


@pytest.mark.slow
def test_the_section_stands_in_the_report(written, said):
    page = (written / "runs" / "tiny" / "report.html").read_text(encoding="utf-8")
    _, _, section = page.partition('<section id="added-slowest"><h2>The slowest explainers</h2>')
    seconds = [float(number) for number in re.findall(r"([\d.]+) s</td>", section.partition("</section>")[0])]
    assert len(seconds) == 3 and seconds == sorted(seconds, reverse=True)


@pytest.mark.slow
def test_the_verb_answers_and_is_listed(said):
    name, value = said["best deletion_fast runs/tiny"].split()
    assert name in ("sensitivity_analysis", "saliency", "lrp_magnitude") and 0 < float(value) < 1
    assert re.search(r"^  best +of the package mine$", said["--help"], flags=re.M)
