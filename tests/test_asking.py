"""The question as users ask it: names, arrays, pictures, paths; what is no picture is said with its cure."""

import numpy as np
import pytest
import torch
from PIL import Image

import explainode
from explainode.data import load_picture
from explainode.errors import UserError
from explainode.explaining import explain as strict


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return explainode.get("model/small_vgg", num_classes=4).eval()


PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
X = torch.from_numpy(PIXELS).permute(2, 0, 1).float().contiguous() / 255


def test_every_form_of_a_picture_gives_the_same_bits(net, tmp_path):
    expected = strict(explainode.get("explainer/ig"), net, X[None]).attribution
    forms = [X, X[None], PIXELS, PIXELS[None], PIXELS / np.float32(255), Image.fromarray(PIXELS), [PIXELS]]
    for form in forms:
        assert torch.equal(explainode.explain("ig", net, form).attribution, expected)
    assert explainode.explain("ig", net, [PIXELS, Image.fromarray(PIXELS)]).attribution.shape[0] == 2
    Image.fromarray(PIXELS).save(tmp_path / "p.png")
    read = load_picture(tmp_path / "p.png", net.image_size).image[
        None
    ]  # a path is resized to what the network was made for
    for path in (tmp_path / "p.png", str(tmp_path / "p.png")):
        assert torch.equal(explainode.explain("saliency", net, path).x, read)
    assert explainode.explain("saliency", net, PIXELS[:, :, 0]).attribution.shape == (1, 3, 32, 32)


def test_old_calls_are_what_they_were(net):
    record = explainode.explain(
        explainode.get("explainer/smoothgrad"),
        net,
        X[None],
        1,
        seed=3,
        sample_ids=torch.tensor([7]),
        noise="off",
        label=torch.tensor([1]),
    )
    again = strict(explainode.get("explainer/smoothgrad"), net, X[None], 1, seed=3, sample_ids=torch.tensor([7]))
    assert torch.equal(record.attribution, again.attribution) and record.label.tolist() == [1]


def test_a_double_network_takes_bytes():
    double = explainode.get("model/small_vgg", num_classes=4).double().eval()
    assert explainode.explain("saliency", double, PIXELS).x.dtype == torch.float64


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (X * 4 - 2, "put the normalization into the network"),
        (torch.from_numpy(PIXELS).permute(2, 0, 1).float(), "divide by 255"),
        (PIXELS.astype(np.float64), "divide by 255"),
        (PIXELS.transpose(2, 0, 1), "channels last"),
        (np.zeros(5), r"\(H, W\)"),
        ({"a": 1}, "got dict"),
        ("no/such/file.png", "no file"),
        ([PIXELS, PIXELS[:16, :16]], "one size"),
    ],
)
def test_what_is_no_picture_is_said_with_its_cure(net, image, words):
    with pytest.raises(UserError, match=words):
        explainode.explain("saliency", net, image)


def test_the_order_of_the_words_is_said(net):
    with pytest.raises(UserError, match=r"explain\(method, network, image\)"):
        explainode.explain(net, explainode.get("explainer/saliency"), X)
    with pytest.raises(UserError, match=r"explain\(method, network, image\)"):
        explainode.explain("saliency", X, net)
    with pytest.raises(UserError, match="nearest are gradcam"):
        explainode.explain("gradcamm", net, X)
