"""Why A and not B: differences of logits, and maps that are differences where methods are linear."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from explainode.cli.main import main
from explainode.errors import UserError
from explainode.explaining import explain
from explainode.models import Contrast
from explainode.registry import get


@pytest.fixture
def net():
    torch.manual_seed(0)
    return get("model/six_block", num_classes=4, width=8, blocks=2).double().eval()


X = torch.rand(2, 3, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_logits_are_differences_and_probabilities_stay(net):
    contrast = Contrast(net, 2)
    z = net(X)
    assert torch.equal(contrast(X), z - z[:, 2:3])
    torch.testing.assert_close(contrast(X).softmax(1), z.softmax(1))


@pytest.mark.parametrize(
    "method", ["saliency", "ig", "input_x_gradient", "occlusion", "feature_ablation", "lrp_0", "full_grad"]
)
def test_linear_methods_give_the_difference_of_two_maps(net, method):
    explainer = get(f"explainer/{method}")
    a, b, between = (
        explain(explainer, model, X, target).attribution
        for model, target in ((net, 1), (net, 2), (Contrast(net, 2), 1))
    )
    torch.testing.assert_close(between, a - b, rtol=1e-6, atol=1e-8)


def test_a_linear_network_is_exact():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 4)).double()
    w = linear[1].weight.view(4, 3, 24, 24)
    record = explain(get("explainer/input_x_gradient"), Contrast(linear, 3), X, 0)
    torch.testing.assert_close(record.attribution, (w[0] - w[3]) * X)


def test_classes_that_are_none_are_sentences(net):
    with pytest.raises(UserError, match="count from 0"):
        Contrast(net, -1)
    with pytest.raises(UserError, match="class 9 is no class"):
        Contrast(net, 9)(X)


def test_the_command_line_asks_why_a_and_not_b(tmp_path, monkeypatch, capsys):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)).save("p.png")
    assert main(["explain", "p.png", "-m", "saliency", "--class", "star", "--against", "heart", "-o", "both"]) == 0
    for name in ("star", "heart"):
        assert main(["explain", "p.png", "-m", "saliency", "--class", name, "-o", name]) == 0
    both, star, heart = (np.load(f"{name}/maps.npz")["demo/resnet/saliency"] for name in ("both", "star", "heart"))
    np.testing.assert_allclose(both, star - heart, rtol=1e-3, atol=1e-5 * np.abs(star).max())
    assert json.loads((tmp_path / "both" / "scores.json").read_text())[0]["explained"] == 4
    capsys.readouterr()
    assert main(["explain", "p.png", "-m", "saliency", "--class", "star", "--against", "star", "-o", "x"]) == 2
    assert "against itself" in capsys.readouterr().err
    assert main(["explain", "p.png", "-m", "saliency", "--against", "dog", "-o", "x"]) == 2
    assert "no class named 'dog'" in capsys.readouterr().err
