"""Weights in half precision: relevance walks in single precision, so that the map is that of the same weights in float32."""

import pytest
import torch
from torch import nn

from explainode import get
from explainode.explainers.guard import guard
from explainode.relevance.tape import record


class ViT(nn.Module):
    """Two blocks of attention on 4 x 4 patches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 4)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu", norm_first=True)
            for _ in range(2)
        )

    def forward(self, x):
        x = self.patches(x).flatten(2).mT
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class Convolutions(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(392, 4),
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [ViT, Convolutions])
@pytest.mark.parametrize("name", ["attn_lrp", "dtd_z_plus", "lrp_epsilon", "deep_lift", "guided_backprop"])
def test_a_map_of_half_precision_is_that_of_the_same_weights(name, make, dtype):
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    half = make().eval().to(dtype)
    single = make().eval()
    single.load_state_dict(half.state_dict())
    explainer = get(f"explainer/{name}")
    found = explainer(half, x, 1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, explainer(single, x.float(), 1), rtol=1e-3, atol=1e-5)
    with guard(half):
        assert all(o.output.data.dtype == torch.float32 for o in record(half, x).operations)
