"""`explainode explain`: one picture, a weights file, and what the methods say about their own maps."""

import json

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
