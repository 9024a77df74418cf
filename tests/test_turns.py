"""Explaining from several threads: the maps of one thread, bit for bit, and everything as it was found."""

from __future__ import annotations

import random
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

import explainode
from explainode.errors import UserError
from explainode.explaining import explain
from explainode.turns import Switch, exclusive

METHODS = (
    "saliency",
    "ig",
    "smoothgrad",
    "gradcam",
    "lrp_epsilon_plus",
    "guided_backprop",
    "occlusion",
    "input_x_gradient",
)
THREADS = 4


def network(seed=0, train=True):
    torch.manual_seed(seed)
    net = explainode.get("model/six_block", num_classes=4, width=4, blocks=2)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net.train(train)


def state(net):
    """All that an explanation touches for its time."""
    return (
        [(name, module.training) for name, module in net.named_modules()],
        [parameter.requires_grad for parameter in net.parameters()],
        [parameter.grad for parameter in net.parameters()],
        [buffer.tolist() for buffer in net.buffers()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in net.modules()],
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.is_grad_enabled(),
    )


def in_threads(work, count=THREADS):
    """`work(number)` in so many threads at once; what any of them raised is raised."""
    failures = []

    def guarded(number):
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "they wait for each other"
    if failures:
        raise failures[0]


@pytest.mark.parametrize(
    ("nets", "rounds"),
    [([0], 8), pytest.param([0], 50, marks=pytest.mark.slow), ([0, 1, 2, 3], 8)],
    ids=["one", "one, 50 each", "four"],
)
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_threads_find_what_one_thread_finds(nets, rounds, train):
    nets = [network(seed, train) for seed in nets]
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    explainers = {name: explainode.get(f"explainer/{name}") for name in METHODS}
    alone = {
        (k, name): explain(explainers[name], net, x, 0).attribution for k, net in enumerate(nets) for name in METHODS
    }
    before = [state(net) for net in nets]

    def work(thread):
        for number in range(rounds):
            k, name = thread % len(nets), METHODS[(3 * thread + number) % len(METHODS)]
            found = explain(explainers[name], nets[k], x, 0).attribution
            assert torch.equal(found, alone[k, name]), name

    in_threads(work)
    assert [state(net) for net in nets] == before


def test_a_training_loop_that_takes_its_turn_stands_beside_explanations():
    """Without `exclusive` its steps run in eval mode with frozen parameters, or fail."""
    net, twin = network(), network()
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    stop = threading.Event()

    def step(net, optimizer):
        with exclusive(net):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            assert net.training and all(p.grad is not None for p in net.parameters())
            optimizer.step()

    def work(thread):
        if thread:
            while not stop.is_set():
                explain(explainode.get("explainer/saliency"), net, x, 0)
                time.sleep(0.001)
            return
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        try:
            for _ in range(20):
                step(net, optimizer)
        finally:
            stop.set()

    in_threads(work, 2)
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-3)
    for _ in range(20):
        step(twin, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True))


def test_a_forward_pass_beside_an_explanation_waits_for_its_end():
    net = network()
    inside, seen = threading.Event(), []

    def work(thread):
        if thread:
            inside.wait(10)
            seen.append(net(torch.rand(1, 3, 16, 16)).requires_grad)
        else:
            with explainode.explainers.base.guard(net):
                inside.set()
                time.sleep(0.2)
                assert not seen

    in_threads(work, 2)
    assert seen == [True]


def test_parts_of_a_network_are_the_network():
    part = nn.Linear(2, 2)
    whole = nn.Sequential(part, nn.ReLU())
    order = []

    def work(thread):
        if thread:
            time.sleep(0.05)
            with exclusive(part):
                order.append("part")
        else:
            with exclusive(whole), exclusive(part):
                time.sleep(0.2)
                order.append("whole")

    in_threads(work, 2)
    assert order == ["whole", "part"]


def test_two_threads_never_wait_for_each_other():
    nets, both = [nn.Linear(2, 2), nn.Linear(2, 2)], threading.Barrier(2)
    refused = []

    def work(thread):
        with exclusive(nets[thread]):
            both.wait(10)
            try:
                with exclusive(nets[1 - thread]):
                    pass
            except UserError as error:
                refused.append(str(error))

    in_threads(work, 2)
    assert len(refused) == 1 and "wait forever" in refused[0]


def test_a_switch_is_put_back_by_the_last():
    found, on = [], [0]

    def setting():
        from contextlib import contextmanager

        @contextmanager
        def turned():
            before, on[0] = on[0], 1
            yield
            on[0] = before

        return turned()

    switch, all_in = Switch(setting), threading.Barrier(THREADS)

    def work(thread):
        with switch, switch:
            all_in.wait(10)
            time.sleep(0.02 * thread)
            found.append(on[0])

    in_threads(work)
    assert found == [1] * THREADS and on == [0]


@pytest.mark.parametrize(
    "message", ["DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes", "CUDA out of memory"]
)
def test_memory_that_runs_out_halves_the_chunk_and_then_says_so(message):
    """On a CPU torch tells it as any RuntimeError."""
    rows = []

    class Greedy(nn.Module):
        def __init__(self, most):
            super().__init__()
            self.most, self.weight = most, nn.Parameter(torch.ones(1))

        def forward(self, x):
            rows.append(len(x))
            if len(x) > self.most:
                raise RuntimeError(message)
            return x.flatten(1)[:, :3] * self.weight

    x = torch.rand(8, 3, 4, 4)
    greedy = Greedy(2)
    explain(explainode.get("explainer/saliency"), greedy, x[:2], 0)  # what a network gets once is not counted
    rows.clear()
    found = explain(explainode.get("explainer/saliency"), greedy, x, 0)
    assert rows[:3] == [8, 4, 2] and len(found.attribution) == 8
    with pytest.raises(UserError, match="one picture of 4x4 pixels needs more memory"):
        explain(explainode.get("explainer/saliency"), Greedy(0), x, 0)
