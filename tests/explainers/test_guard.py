"""The guard leaves no trace, whatever the state it finds and whether the explainer succeeds or raises."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from explainode.errors import UserError
from explainode.explainers.base import guard
from explainode.explainers.cam import GradCAM
from explainode.explainers.gradient import AdaptiveIntegratedGradients, IntegratedGradients, Saliency
from explainode.explainers.guard import unwrap
from explainode.explainers.perturbation import Occlusion
from explainode.explainers.sampling import GradientSHAP, SmoothGrad

EXPLAINERS = [
    Saliency(),
    IntegratedGradients(3),
    AdaptiveIntegratedGradients(first_steps=2, max_steps=5),
    SmoothGrad(Saliency(), samples=2),
    GradientSHAP(samples=2),
    GradCAM(),
    Occlusion(0.5, 0.5),
]
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def snapshot(net: nn.Module) -> dict[str, object]:
    """All that an explanation must not change, in comparable form."""
    return {
        "state": {name: value.clone() for name, value in net.state_dict().items()},
        "grad": {name: None if p.grad is None else (id(p.grad), p.grad.clone()) for name, p in net.named_parameters()},
        "requires_grad": [p.requires_grad for p in net.parameters()],
        "training": [module.training for module in net.modules()],
        "hooks": [len(getattr(module, hooks)) for module in net.modules() for hooks in HOOKS],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "python": random.getstate(),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "fastpath": torch.backends.mha.get_fastpath_enabled(),
    }


def assert_equal(a: object, b: object) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, tuple | list):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_equal(left, right)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, np.ndarray):
        assert np.array_equal(a, b)
    else:
        assert a == b


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nothing_changes_after_success_or_exception(data, net, x):
    modules, parameters = list(net.modules()), list(net.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
        parameter.grad = None
    net.fuse.calls_left = None
    if data.draw(st.booleans(), "in the middle of gradient accumulation"):
        net.train()
        net(x).sum().backward()
    for module, training in zip(
        modules, data.draw(st.lists(st.booleans(), min_size=len(modules), max_size=len(modules)), "train"), strict=True
    ):
        module.training = training
    pattern = data.draw(st.lists(st.booleans(), min_size=len(parameters), max_size=len(parameters)), "requires_grad")
    for parameter, trainable in zip(parameters, pattern, strict=True):
        parameter.requires_grad_(trainable)
    explainer = data.draw(st.sampled_from(EXPLAINERS), "explainer")
    target = data.draw(st.sampled_from([None, 2]), "target")
    fuse = data.draw(st.sampled_from([None, 0, 1, 2, 3]), "the forward that raises")
    mode = data.draw(st.sampled_from(["grad", "no_grad", "inference"]), "mode")
    autocast, fastpath = data.draw(st.booleans(), "autocast"), data.draw(st.booleans(), "fastpath")
    torch.backends.mha.set_fastpath_enabled(fastpath)
    contexts = {"grad": torch.enable_grad(), "no_grad": torch.no_grad(), "inference": torch.inference_mode()}
    images = x.clone().requires_grad_() if data.draw(st.booleans(), "x requires grad") else x.clone()
    try:
        with contexts[mode], torch.autocast("cpu", enabled=autocast):
            before = snapshot(net)
            pixels = images.detach().clone()
            net.fuse.calls_left = fuse
            try:
                explainer(net, images, target)
            except RuntimeError as error:
                assert fuse is not None and "the fuse blew" in str(error)
            after = snapshot(net)
            assert_equal(before, after)
            assert torch.equal(images, pixels) and images.grad is None
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_inside_the_guard(net):
    net.train()
    with torch.inference_mode(), torch.autocast("cpu"), guard(net) as network:
        assert network is net and not any(module.training for module in net.modules())
        assert not any(p.requires_grad for p in net.parameters())
        assert (
            torch.is_grad_enabled() and not torch.is_inference_mode_enabled() and not torch.is_autocast_enabled("cpu")
        )
        assert not torch.backends.mha.get_fastpath_enabled()


def test_guards_nest_and_the_inner_one_leaves_the_outer_one_whole(net):
    net.train()
    with guard(net):
        with guard(net):
            pass
        assert not net.training and not net.head.weight.requires_grad
    assert net.training and net.head.weight.requires_grad


def test_autocast_is_kept_when_asked_also_by_inner_guards(net):
    with torch.autocast("cpu"), guard(net, autocast=True), guard(net):
        assert torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu"), guard(net):
        assert not torch.is_autocast_enabled("cpu")


def test_a_network_that_does_more_than_set_flags_in_train_gets_its_call():
    class Merging(nn.Linear):
        merged = False

        def train(self, mode: bool = True):
            self.merged = not mode
            return super().train(mode)

    net = Merging(2, 2).train()
    with guard(net):
        assert net.merged
    assert not net.merged and net.training


def test_unwrap_finds_the_network_in_any_nest(net):
    averaged = torch.optim.swa_utils.AveragedModel(net)
    assert unwrap(averaged) is averaged.module
    assert unwrap(torch.compile(torch.nn.DataParallel(torch.compile(net, backend="eager")), backend="eager")) is net


def test_parameters_made_in_inference_mode_are_refused(x):
    with torch.inference_mode():
        net = nn.Sequential(nn.Flatten(), nn.Linear(432, 3))
    with pytest.raises(UserError, match=r"1.weight.*inference_mode.*outside"):
        Saliency()(net, x, 0)
