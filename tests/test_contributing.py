"""The examples of CONTRIBUTING.md, written into an empty folder and run as they stand."""

import os
import re
import shlex
from pathlib import Path

import pytest
import warm

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", TEXT, flags=re.S)
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, flags=re.S) for line in block.splitlines()]


@pytest.mark.slow
def test_the_four_examples_work(tmp_path):
    assert len(FILES) == 8, "four Python files and four yaml files"
    for name, content in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    outputs = []
    for command in COMMANDS:
        words = shlex.split(command)
        assert words[0] == "explainode"
        done = warm.run(["-m", *words], tmp_path, os.environ | {"WANDB_MODE": "offline"})
        assert done.returncode == 0, done.stderr[-2000:]
        outputs.append(done.stdout)
    assert "sensitivity_analysis" in outputs[0]
    assert "report:" in outputs[1] and "gini" in outputs[1]
    (report,) = tmp_path.glob("runs/train/*/report.html")
    assert "sensitivity_analysis" in report.read_text(encoding="utf-8")
