"""Every explainer of conf/explainer keeps the noun's promises; a new yaml is held to them by itself."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from explainode.dynamics.solver import RungeKutta
from explainode.evaluation import in_batches
from explainode.explainers.attention import IViT
from explainode.explainers.base import Explainer, count_passes, guard, pass_limit
from explainode.explainers.deeplift import DeepSHAP
from explainode.explainers.score_cam import GroupCAM
from explainode.models.neural_ode import NeuralODE
from explainode.randomness import noise_scope
from explainode.registry.build import get

CONF = Path(__file__).parents[2] / "conf" / "explainer"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


def first_of_each_class() -> list[str]:
    """The entries without those that differ from an earlier one in settings alone."""
    classes = {
        re.search(r"^_target_: (\S+)", (CONF / f"{name}.yaml").read_text(), re.M)[1]: name for name in NAMES[::-1]
    }
    return sorted(classes.values())


@pytest.fixture(params=NAMES)
def explainer(request, small_net, x) -> Explainer:
    """An entry, with few samples: the promises hold for any number; one that learns from data has seen some."""
    made = get(f"explainer/{request.param}")
    few = {"samples": 20, "orders": 2}
    most = {name: few[name] for name in few if getattr(made, name, 0) > few[name]}
    return (replace(made, **most) if most else made).fit(small_net, in_batches(x))


# For what the settings of a class cannot change, since it happens around `attribute`.
once_per_class = pytest.mark.parametrize("explainer", first_of_each_class(), indirect=True)


def suited(net: nn.Module, vit: nn.Module, explainer: Explainer) -> nn.Module:
    """The network, or the transformer or the neural ODE made of the network where only such can be explained."""
    if explainer.needs_attention:
        return vit
    return NeuralODE.from_resnet(net, RungeKutta("midpoint", steps=2)) if explainer.needs_ode else net


@pytest.fixture
def net(net, vit, explainer):
    return suited(net, vit, explainer)


@pytest.fixture
def noisy_net(noisy_net, noisy_vit, explainer):
    return suited(noisy_net, noisy_vit, explainer)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Equal to 1e-5 of the largest value: convolutions of other batch sizes add in another order."""
    assert (a - b).abs().max() <= tolerance * b.abs().max()


def rounding(explainer: Explainer) -> float:
    """Group-CAM's weights are small differences of probabilities: rounding of 1e-8 on gains of 1e-4. I.ViT divides by sums that nearly cancel."""
    return 1e-3 if isinstance(explainer, (GroupCAM, IViT)) else 1e-5


def test_all_entries_are_there():
    assert {
        "saliency",
        "input_x_gradient",
        "ig",
        "ig_adaptive",
        "smoothgrad",
        "vargrad",
        "gradient_shap",
        "occlusion",
        "gradcam",
    } <= set(NAMES)
    assert {"gradcampp", "xgradcam", "layercam", "cam", "scorecam", "groupcam", "fem"} <= set(NAMES)
    assert {"random_map", "centre_prior", "edge_map", "inverted_map"} <= set(NAMES)


def test_shape_type_and_values(explainer, net, x, target):
    attribution = explainer(net, x, target)
    assert attribution.shape[0] == 4 and attribution.dim() == 4
    assert attribution.shape[1:] == x.shape[1:] or attribution.shape[1] == 1
    assert attribution.dtype == torch.float32 and attribution.device == x.device
    assert torch.isfinite(attribution).all() and not attribution.requires_grad and attribution.grad_fn is None
    assert attribution.std() > 0


def test_configuration_is_a_value(explainer):
    with pytest.raises(AttributeError):
        explainer.anything = 1
    assert not any(isinstance(value, nn.Module) for value in vars(explainer).values())
    assert isinstance(explainer.stochastic, bool) and isinstance(explainer.class_specific, bool)


@pytest.mark.parametrize("noise", [False, True])
def test_a_batch_of_four_equals_four_singles(explainer, noise, noisy_net, x, target):
    ids = torch.tensor([7, 3, 100, 4])
    with noise_scope(ids, seed=5, active=noise):
        batch = explainer(noisy_net, x, target)
    for i in range(4):
        with noise_scope(ids[i : i + 1], seed=5, active=noise):
            close(explainer(noisy_net, x[i : i + 1], target[i : i + 1]), batch[i : i + 1], rounding(explainer))


@pytest.mark.parametrize("noise", [False, True])
def test_the_chunk_does_not_matter(explainer, noise, noisy_net, x, target):
    with noise_scope(torch.arange(4), active=noise):
        whole = explainer(noisy_net, x, target)
        for limit in (1, 3, 8):
            with pass_limit(limit):
                close(explainer(noisy_net, x, target), whole, rounding(explainer))


@once_per_class
def test_without_a_scope_rows_count_as_samples_0_to_b(explainer, net, x, target):
    with pass_limit(6):
        without = explainer(net, x, target)
        with noise_scope(torch.arange(4), active=False):
            assert torch.equal(explainer(net, x, target), without)


@once_per_class
def test_the_same_call_gives_the_same_bits_whatever_the_global_seed(explainer, net, x, target):
    torch.manual_seed(1)
    first = explainer(net, x, target)
    torch.manual_seed(2)
    assert torch.equal(explainer(net, x, target), first)


def test_another_draw_changes_what_samples_and_nothing_else(explainer, net, x, target):
    maps = []
    for draw in range(2):
        with noise_scope(torch.arange(4), draw=draw, active=False):
            maps.append(explainer(net, x, target))
    assert torch.equal(*maps) != explainer.stochastic


def test_the_class_matters_where_it_is_said_to(explainer, net, x, target):
    assert torch.equal(explainer(net, x, target), explainer(net, x, (target + 1) % 5)) != explainer.class_specific


@once_per_class
def test_no_target_is_the_predicted_class(explainer, net, x):
    assert torch.equal(explainer(net, x), explainer(net, x, net(x).argmax(1)))


@contextmanager
def data_parallel(net: nn.Module, store: Path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    try:
        yield nn.parallel.DistributedDataParallel(net)
    finally:
        torch.distributed.destroy_process_group()


class Lit(nn.Module):
    """A module that holds a compiled network, as a Lightning module does."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.network = torch.compile(net, backend="eager")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)


@once_per_class
def test_maps_are_the_same_wherever_they_are_made(explainer, net, x, target, tmp_path):
    expected = explainer(net, x, target)

    def check(model: nn.Module = net, images: torch.Tensor = x) -> None:
        assert torch.equal(explainer(model, images, target), expected)

    with torch.no_grad():
        check()
    with torch.inference_mode():
        check()
        check(images=x.clone())  # an inference tensor
    with torch.autocast("cpu", torch.bfloat16):
        check()
    check(images=x.clone().requires_grad_())
    check(net.train())
    assert net.training
    net.eval()
    check(torch.compile(net, backend="eager"))
    check(Lit(net))
    with data_parallel(net, tmp_path / "store") as parallel:
        check(parallel)
    check(net.requires_grad_(False))
    net.compile(backend="eager")
    with torch.no_grad():
        net(x)  # compiled and warm
    check()


def test_expected_sum_is_one_number_per_image(explainer, net, x, target):
    with guard(net) as network, noise_scope(torch.arange(4), active=False):
        expected = explainer.expected_sum(network, x, target)
    assert expected is None or (expected.shape == (4,) and not expected.requires_grad)


def test_channels_last_and_double(explainer, net, x, target):
    expected = explainer(net, x, target)
    close(explainer(net, x.to(memory_format=torch.channels_last), target), expected, rounding(explainer))
    double = explainer(net.double(), x.double(), target)
    assert double.dtype == torch.float64
    assert (double - expected).abs().max() <= 1e-3 * expected.abs().max()


@once_per_class
def test_bound_explainers_answer_captums_call(explainer, net, x, target):
    expected = explainer(net, x, target)
    bound = explainer.bind(net)
    assert torch.equal(bound.attribute(x, target=target), expected)
    (from_tuple,) = bound.attribute((x,), target=target)
    assert torch.equal(from_tuple, expected)


@once_per_class
def test_fit_returns_an_explainer(explainer, net, x):
    assert isinstance(explainer.fit(net, in_batches(x)), Explainer)


def test_passes_are_counted_for_every_row(explainer, net, x, target):
    explainer(net, x, target)  # a default layer is found in the first call
    with count_passes() as passes:
        explainer(net, x, target)
    assert passes.forwards % 4 == 0 or "Adaptive" in type(explainer).__name__
    most = 2 if explainer.needs_attention else 1  # the gradient and the relevance of attention
    if isinstance(explainer, DeepSHAP):
        most = 4  # one forward of a baseline serves all images
    assert passes.backwards <= passes.forwards * most
