"""`explainode explain`: one picture, a weights file, and what the methods say about their own maps."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from explainode.cli.main import main
from explainode.models.resnet import six_block_resnet


@pytest.fixture
def picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(six_block_resnet(num_classes=3).state_dict(), tmp_path / "weights.pth")
    Image.new("RGB", (40, 36), (200, 30, 90)).save(tmp_path / "picture.png")
    return ["explain", "picture.png", "--model", "six_block", "--weights", "weights.pth", "num_classes=3", "-o", "out"]


def test_a_surrogate_says_how_far_it_is_from_the_network(picture, capsys):
    assert main([*picture, "-m", "saliency,surrogate"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(line for line in lines if line.startswith("method"))
    assert header.rstrip().endswith("kappa")
    assert float(next(line for line in lines if line.startswith("surrogate")).split()[-1]) >= 0
    assert next(line for line in lines if line.startswith("saliency")).rstrip().endswith("not defined")


def test_the_scores_carry_it_too(picture, capsys):
    assert main([*picture, "-m", "saliency,surrogate", "--json"]) == 0
    (score,) = json.loads(capsys.readouterr().out)
    assert score["methods"]["surrogate"]["diagnostics"]["kappa"] >= 0
    assert "diagnostics" not in score["methods"]["saliency"]


def test_an_adjoint_of_a_resnet_is_refused_in_a_sentence(picture, capsys):
    assert main([*picture, "-m", "adjoint_map"]) == 2
    assert "solves no equation" in capsys.readouterr().err


def test_a_second_time_does_not_overwrite_the_first(picture, capsys):
    """A folder that was named is refused; one that was not gets a name that is free, also within a second."""
    assert main([*picture, "-m", "saliency"]) == 0
    before = Path("out/scores.json").stat().st_mtime_ns
    assert main([*picture, "-m", "input_x_gradient"]) == 2
    assert "out holds explanations already" in capsys.readouterr().err
    assert Path("out/scores.json").stat().st_mtime_ns == before
    for _ in range(2):
        assert main([*picture[:-2], "-m", "saliency"]) == 0
    assert sum(1 for _ in Path("runs/explain").glob("*/scores.json")) == 2
