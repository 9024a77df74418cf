"""Methods that draw a layer's maps: the same network written channels first, channels last, as tokens, sequence first gives the same maps."""

import pytest
import torch
from torch import nn

from explainode import Unit
from explainode.errors import UserError
from explainode.explainers.cam import CAM, GradCAM, GradCAMPlusPlus, LayerCAM, XGradCAM
from explainode.explainers.fem import FEM
from explainode.explainers.full_grad import FullGrad, keeping_sum
from explainode.explainers.gradient import Saliency
from explainode.explainers.score_cam import GroupCAM, ScoreCAM

LAYOUTS = {
    "channels first": lambda A: A,
    "channels last": lambda A: A.permute(0, 2, 3, 1),
    "tokens": lambda A: A.flatten(2).mT,
    "tokens, channels first": lambda A: A.flatten(2),
    "sequence first": lambda A: A.flatten(2).permute(2, 0, 1),
    "windows": lambda A: A.unflatten(2, (2, -1)).permute(0, 2, 3, 4, 1).flatten(0, 1),
    "class token": lambda A: torch.cat([torch.ones(len(A), 1, A.shape[1]), A.flatten(2).mT], 1),
}
BACK = {
    "channels first": lambda A, B: A,
    "channels last": lambda A, B: A.permute(0, 3, 1, 2),
    "tokens": lambda A, B: A.mT.unflatten(2, (4, 6)),
    "tokens, channels first": lambda A, B: A.unflatten(2, (4, 6)),
    "sequence first": lambda A, B: A.permute(1, 2, 0).unflatten(2, (4, 6)),
    "windows": lambda A, B: A.unflatten(0, (B, 2)).permute(0, 4, 1, 2, 3).flatten(2, 3),
    "class token": lambda A, B: A[:, 1:].mT.unflatten(2, (4, 6)),
}


class Net(nn.Module):
    """Two convolutions; `look` sees the maps (B, 5, 4, 6) between them in some layout."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layout, self.look = layout, nn.Identity()
        self.first, self.head = nn.Conv2d(3, 5, 2, stride=2), nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        A = self.look(LAYOUTS[self.layout](self.first(x).relu()))
        return self.head(BACK[self.layout](A, len(x)).mean((2, 3)))


METHODS = {
    "gradcam": GradCAM("look", relu=False), "gradcam++": GradCAMPlusPlus("look", relu=False), "layercam": LayerCAM("look"),
    "xgradcam": XGradCAM("look", relu=False), "cam": CAM("look"), "fem": FEM("look"), "scorecam": ScoreCAM("look"), "groupcam": GroupCAM("look", 3),
}  # fmt: skip


@pytest.mark.parametrize("layout", list(LAYOUTS)[1:])
@pytest.mark.parametrize("method", METHODS)
def test_a_map_does_not_depend_on_the_layout(method, layout):
    x, target = torch.rand(3, 3, 8, 12, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 3])
    expected = METHODS[method](Net("channels first"), x, target)
    for images, classes, wanted in ((x, target, expected), (x[:1], target[:1], expected[:1])):
        found = METHODS[method](Net(layout), images, classes)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("layout", list(LAYOUTS)[1:])
def test_a_unit_does_not_depend_on_the_layout(layout):
    x = torch.rand(3, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    for unit in (Unit("look", 2), Unit("look", 2, "sum"), Unit("look", 4, (1, 5))):
        torch.testing.assert_close(Saliency()(Net(layout), x, unit), Saliency()(Net("channels first"), x, unit))


def test_a_layer_without_a_place_is_refused_by_name():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.head = nn.Linear(96, 96), nn.Linear(96, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.mix(x.flatten(2)).mean(1))

    with pytest.raises(
        UserError, match=r"layer 'mix' returns \(2, 3, 96\), expected a feature map .* grid in the image"
    ):
        GradCAM("mix")(Mixed(), torch.rand(2, 3, 8, 12), 0)


class RowOfLayerNorm(nn.Module):
    """The head reads row 0 of a layer-normalized map alone, so that all of the logit comes from there."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.c = nn.Conv2d(3, 8, 1, bias=False), nn.LayerNorm(8), nn.Linear(8, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c((self.n(self.a(x).permute(0, 2, 3, 1)) + 1.0)[:, 0].sum(1))


def test_full_grad_draws_a_bias_where_it_is():
    torch.manual_seed(0)
    net, x = RowOfLayerNorm().double(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    found = FullGrad()(net, x, 0)
    assert float(found[:, :, 1:].abs().sum()) < 1e-12 < float(found[:, :, 0].abs().sum())
    torch.testing.assert_close(found.sum((1, 2, 3)), net(x)[:, 0])


@pytest.mark.parametrize("size", [(1, 9), (3, 8), (8, 8), (7, 24), (17, 3), (57, 40)])
def test_a_map_brought_to_the_image_keeps_its_sum(size):
    maps = torch.randn(2, 1, *size, dtype=torch.float64)
    found = keeping_sum(maps, torch.Size((8, 8)))
    assert found.shape == (2, 1, 8, 8)
    torch.testing.assert_close(found.sum((1, 2, 3)), maps.sum((1, 2, 3)))
