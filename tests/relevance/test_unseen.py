"""What a tape cannot see is refused by one sentence, never taken for a constant."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from explainode import get
from explainode.dynamics.noise import Noise
from explainode.errors import UserError

X = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
RULES = ("dtd_z_plus", "lrp_epsilon", "guided_backprop", "deep_lift", "full_grad")


class ByNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        y = torch.from_numpy(np.tanh(x.detach().numpy()))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return g * (1 - ctx.saved_tensors[0].square())


class Net(nn.Module):
    def __init__(self, f) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.c, self.f = nn.Conv2d(3, 8, 3), nn.Linear(288, 4), f

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.c((self.f(h) + 0.1 * h).flatten(1))


@pytest.mark.parametrize("name", RULES)
def test_numbers_computed_outside_of_torch_are_refused(name):
    with pytest.raises(
        UserError, match="operation 'add' reads numbers that were computed from the image outside of torch"
    ):
        get(f"explainer/{name}")(Net(ByNumpy.apply), X, 0)
    torch.testing.assert_close(
        get("explainer/saliency")(Net(ByNumpy.apply), X, 0), get("explainer/saliency")(Net(torch.tanh), X, 0)
    )


@pytest.mark.parametrize(
    "middle",
    [
        torch.tanh,
        lambda h: h * float(h.mean()),  # a number that is read is constant by agreement
        lambda h: h + torch.randn_like(h),  # drawn, not computed
        lambda h: h * (h > 0.1),
        lambda h: torch.stack([h, 2 * h]).sum(0),
    ],
)
def test_what_is_seen_is_not_refused(middle):
    for name in ("dtd_z_plus", "deep_lift"):
        try:
            get(f"explainer/{name}")(Net(middle), X, 0)
        except UserError as error:
            assert "outside of torch" not in str(error)


def test_noise_blocks_are_constants_by_agreement():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Added(), nn.Flatten(), nn.Linear(144, 2))
    assert get("explainer/dtd_z_plus")(net, X, 0).shape == X.shape


class Added(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.noise = Noise(0.1)
        self.noise.block = 0

    def forward(self, x: Tensor) -> Tensor:
        noise = self.noise(x)
        return x if noise is None else x + noise


BODY = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["script", "trace", "part"])
def test_scripted_networks_have_gradients_and_nothing_else(how):
    net = {"script": torch.jit.script, "trace": lambda net: torch.jit.trace(net, X)}.get(
        how, lambda net: nn.Sequential(torch.jit.script(net))
    )(BODY)
    saliency = get("explainer/saliency")
    torch.testing.assert_close(saliency(net, X, 1), saliency(BODY, X, 1))
    for name in ("gradcam", "dtd_z_plus", "deep_lift"):
        with pytest.raises(UserError, match="compiled by TorchScript"):
            get(f"explainer/{name}")(net, X, 1)


def test_an_exported_network_is_explained_by_what_needs_no_layer():
    net = torch.export.export(BODY, (X,)).module()
    for name in ("saliency", "dtd_z_plus", "ig"):
        explainer = get(f"explainer/{name}", **({"steps": 1} if name == "ig" else {}))
        torch.testing.assert_close(explainer(net, X, 1), explainer(BODY, X, 1))
    with pytest.raises(UserError, match="exported network"):
        get("explainer/gradcam")(net, X, 1)
