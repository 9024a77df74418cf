"""Penalties that keep a ResNet near a flow: closed forms, and that training on them does what they are for."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from explainode.dynamics.solver import RungeKutta
from explainode.errors import UserError
from explainode.models.neural_ode import NeuralODE
from explainode.models.residual import Residual
from explainode.models.resnet import cifar_resnet, six_block_resnet
from explainode.training.classifier import Classifier
from explainode.training.conditioning import DepthConditioning, depth_smoothness, flow_blocks, refined


@pytest.fixture
def network():
    torch.manual_seed(0)
    return six_block_resnet(width=16, blocks=2, num_classes=8)


@pytest.fixture
def images():
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_refined_is_the_neural_ode_of_so_many_steps(network, images):
    ode = NeuralODE.from_resnet(network, RungeKutta("euler", steps=3))
    with refined(network, 3):
        assert torch.allclose(network(images), ode(images), atol=1e-6)
    assert not torch.allclose(network(images), ode(images), atol=1e-6)  # the blocks are themselves again


def test_refining_evaluates_a_branch_once_a_step(network, images):
    calls = []
    network.blocks[0].branch.register_forward_hook(lambda *_: calls.append(1))
    with refined(network, 2):
        network(images)
    assert len(calls) == 2


def test_hooks_on_a_refined_block_see_where_its_steps_lead(network, images):
    seen = []
    network.blocks[0].register_forward_hook(lambda block, args, output: seen.append((args[0], output)))
    with refined(network, 2):
        network(images)
    (x, y), block = seen[0], network.blocks[0]
    half = x + block.field(x) / 2
    assert torch.equal(y, half + block.field(half) / 2)


def test_refinement_is_half_the_symmetric_divergence(network, images):
    p = network(images[:4]).softmax(1)
    with refined(network, 2):
        q = network(images[:4]).softmax(1)
    expected = 3.0 * ((p - q) * (p.log() - q.log())).sum(1).mean() / 2
    found = DepthConditioning(refinement=3.0, images=4)(network, images)
    assert list(found) == ["refinement"] and torch.allclose(found["refinement"], expected, rtol=1e-4)


def test_smoothness_is_relative_and_looks_at_neighbours_of_one_shape():
    blocks = [Residual(nn.Linear(2, 2, bias=False)) for _ in range(2)] + [Residual(nn.Linear(3, 3, bias=False))]
    nn.init.constant_(blocks[0].branch.weight, 1.0)
    nn.init.constant_(blocks[1].branch.weight, 3.0)
    assert float(depth_smoothness(blocks).detach()) == pytest.approx(2 * 4 * (3 - 1) ** 2 / (4 * 1 + 4 * 9))
    assert float(depth_smoothness(blocks[2:])) == 0


def test_smoothness_of_branches_of_zeros_is_a_number():
    """Residual branches often start as nothing: to its like such a branch has no change, to any other one a change of 2."""
    blocks = [Residual(nn.Linear(2, 2, bias=False)) for _ in range(3)]
    for block in blocks[:2]:
        nn.init.zeros_(block.branch.weight)
    assert float(depth_smoothness(blocks[:2])) == 0
    change = depth_smoothness(blocks[1:])
    assert float(change.detach()) == pytest.approx(2.0)
    change.backward()
    assert torch.isfinite(blocks[2].branch.weight.grad).all()


def test_smoothness_of_blocks_without_parameters_is_nothing():
    assert float(depth_smoothness([Residual(nn.Tanh()), Residual(nn.Tanh())])) == 0


def test_smoothness_stays_on_the_device_of_the_blocks():
    lonely = [Residual(nn.Linear(2, 2, device="meta"))]
    assert depth_smoothness(lonely).device.type == "meta"


def test_a_flow_needs_no_refinement(network, images):
    """A field that is the same everywhere makes half steps end where whole ones do."""
    for block in flow_blocks(network):
        nn.init.zeros_(block.branch.conv2.weight)
    assert float(DepthConditioning(refinement=1.0)(network, images)["refinement"]) == pytest.approx(0.0, abs=1e-10)


def test_training_with_the_penalty_ends_nearer_to_the_ode(images):
    def gap_after_training(refinement: float) -> float:
        torch.manual_seed(0)
        network = six_block_resnet(width=16, blocks=2, num_classes=8)
        optimizer, label = torch.optim.Adam(network.parameters(), lr=1e-2), torch.arange(6)
        for _ in range(60):
            loss = F.cross_entropy(network(images), label) + sum(
                DepthConditioning(refinement)(network, images).values()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            ode = NeuralODE.from_resnet(network, RungeKutta("rk4", steps=4))
            return float((ode(images).softmax(1) - network(images).softmax(1)).norm(dim=1).mean())

    assert gap_after_training(30.0) < 0.75 * gap_after_training(0.0)


def test_training_logs_the_penalties_and_freezes_batchnorm(data, trainer, tmp_path):
    torch.manual_seed(0)
    module = Classifier(
        cifar_resnet(8, num_classes=8),
        partial(torch.optim.Adam, lr=1e-3),
        8,
        conditioning=DepthConditioning(refinement=1.0, smoothness=0.1),
    )
    with pytest.raises(UserError, match="never seen an image"):
        trainer(tmp_path, max_epochs=1).fit(module, datamodule=data())
    module.network.bn1.running_mean.fill_(0.1)
    statistics = module.network.bn1.running_mean.clone()
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, datamodule=data())
    assert {"train/refinement", "train/smoothness"} <= set(run.callback_metrics)
    assert torch.equal(module.network.bn1.running_mean, statistics)


def test_bad_settings():
    with pytest.raises(UserError, match="0 or more"):
        DepthConditioning(refinement=-1.0)
    with pytest.raises(UserError, match="identity shortcut"):
        DepthConditioning(refinement=1.0)(nn.Flatten(), torch.zeros(1, 3, 4, 4))


def test_a_run_resumed_in_mid_epoch_stays_frozen(data, trainer, tmp_path):
    """Lightning does not start an epoch again that it resumes inside of."""

    def module():
        torch.manual_seed(0)
        made = Classifier(
            cifar_resnet(8, num_classes=8), partial(torch.optim.SGD, lr=0.0), 8, conditioning=DepthConditioning(1.0)
        )
        made.network.bn1.running_mean.fill_(0.1)
        return made

    trainer(tmp_path, max_steps=2, max_epochs=-1).fit(module(), datamodule=data())
    resumed = module()
    trainer(tmp_path, max_epochs=1).fit(resumed, datamodule=data(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert torch.equal(resumed.network.bn1.running_mean, torch.full((16,), 0.1))


def test_a_neural_ode_cannot_be_conditioned(network):
    with pytest.raises(UserError, match="condition its teacher"):
        DepthConditioning(refinement=1.0)(
            NeuralODE.from_resnet(network, RungeKutta("euler", steps=1)), torch.zeros(1, 3, 16, 16)
        )
