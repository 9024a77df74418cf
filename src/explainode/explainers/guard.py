"""The guard: one context that makes explaining safe inside training and leaves everything as it was found."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from explainode.errors import UserError
from explainode.turns import EAGER, Switch, exclusive


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside DDP, DataParallel, AveragedModel and `torch.compile` wrappers, however they are nested."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel, AveragedModel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


_keep_autocast: ContextVar[bool] = ContextVar("explainode_keep_autocast", default=False)


@contextmanager
def guard(model: nn.Module, autocast: bool | None = None) -> Iterator[nn.Module]:
    """Context that yields the unwrapped network, ready to be explained, and restores everything at the end, also after an exception.

    Inside: eval mode, frozen parameters, gradients enabled outside of inference mode, autocast off, compiled code run eagerly (hooks do not
    fire in compiled code) and the fused attention path off (it hides attention from autograd). Afterwards: each module's own mode, each
    parameter's own `requires_grad`, and the generators of torch, numpy and python are what they were. `.grad` is never touched, BatchNorm
    statistics do not move. Guards nest. Of threads one at a time may be inside for one network, or for networks that share a part; what is
    one for the whole process (generators, attention, compiling) is put back when the last thread leaves.

    Args:
        model: the network or any wrapper of it.
        autocast: keep the caller's autocast, or switch it off (bf16 changes the ranking of pixels); None does what the guard around this one
            does, and switches it off where there is none.

    Raises:
        UserError: if a parameter was created in inference mode, so that no gradient can pass through it.
    """
    network = unwrap(model)
    for name, parameter in network.named_parameters():
        if parameter.is_inference():
            raise UserError(
                f"parameter {name!r} was created under torch.inference_mode, so nothing can be differentiated through it; "
                "build or load the model outside of inference mode"
            )
    with ExitStack() as stack:
        stack.enter_context(exclusive(network))
        stack.enter_context(_GENERATORS)
        if (
            _GENERATORS.alone
        ):  # a guard inside of a guard restores for itself; beside other threads, the last one to leave does
            stack.enter_context(_restored())
        stack.enter_context(_modes(network))
        stack.enter_context(_frozen(network))
        stack.enter_context(_ATTENTION_UNFUSED)
        if (
            "torch._dynamo" in sys.modules
        ):  # nothing is compiled before dynamo is imported, and importing it takes seconds
            stack.enter_context(EAGER)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        keep = _keep_autocast.get() if autocast is None else autocast
        token = _keep_autocast.set(keep)
        stack.callback(_keep_autocast.reset, token)
        if not keep:
            for device in {"cpu", *(parameter.device.type for parameter in network.parameters())}:
                if torch.amp.is_autocast_available(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
        yield network


@contextmanager
def _restored() -> Iterator[None]:
    """Restores the global generators of torch, numpy and python."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    cpu, of_numpy, of_python = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        np.random.set_state(of_numpy)
        random.setstate(of_python)
        for device, state in enumerate(cuda):
            torch.cuda.set_rng_state(state, device)


@contextmanager
def _modes(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, each module's own mode afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    was_training = network.training
    try:
        if any(training for _, training in modes):
            with suppress(NotImplementedError):  # an exported network is what it was when it was exported
                network.eval()
        yield
    finally:
        if was_training and not network.training:
            network.train()  # through the method: some networks do more than set flags here
        for module, training in modes:
            module.training = training


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient inside; those that did, do so again afterwards."""
    trainable = [parameter for parameter in network.parameters() if parameter.is_leaf and parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def _attention_unfused() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


_GENERATORS, _ATTENTION_UNFUSED = Switch(_restored), Switch(_attention_unfused)
