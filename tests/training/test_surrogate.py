"""Distillation: the loss is what it says, the teacher stays, and what is worse is not kept."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from explainode.dynamics.block import ode_blocks
from explainode.dynamics.solver import RungeKutta
from explainode.errors import UserError
from explainode.models.neural_ode import NeuralODE
from explainode.models.resnet import six_block_resnet
from explainode.models.weights import load_weights
from explainode.training.conditioning import flow_blocks
from explainode.training.surrogate import Surrogate

SOLVER = RungeKutta("heun2", steps=2)


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    network = six_block_resnet(width=16, blocks=2, num_classes=8).eval()
    for block in flow_blocks(network):
        block.branch.conv2.weight.data *= 8  # far from a flow
    network.linear.weight.data *= 20  # sure of itself
    return network


@pytest.fixture
def surrogate(teacher):
    def make(solver=SOLVER, tied=False, lr=1e-3, **settings):
        torch.manual_seed(1)
        network = NeuralODE.from_resnet(teacher, solver, tied)
        return Surrogate(network, teacher, optimizer=partial(torch.optim.Adam, lr=lr), num_classes=8, **settings)

    return make


def test_the_loss_is_what_the_docstring_says(surrogate, data):
    module = surrogate(feature_weight=2.0, logit_weight=3.0, temperature=2.0)
    batch = data().dataset("train").__getitems__(list(range(8)))
    teacher, network = module.teacher, module.network
    x = teacher.stem(teacher.normalize(batch.image))
    feature = []
    for block, ode in zip(teacher.blocks, ode_blocks(network).values(), strict=True):
        y = block(x)
        feature.append(((ode(x) - y).flatten(1).norm(dim=1) ** 2 / y.flatten(1).norm(dim=1) ** 2).mean())
        x = y
    p, q = (teacher(batch.image) / 2).softmax(1), (network(batch.image) / 2).softmax(1)
    expected = 2.0 * torch.stack(feature).mean() + 3.0 * 4.0 * (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(module.training_step(batch, 0), expected, rtol=1e-4)


def test_the_teacher_is_asked_once_a_step(surrogate, data):
    module, calls = surrogate(), []
    module.teacher.register_forward_hook(lambda *_: calls.append(1))
    module.training_step(data().dataset("train").__getitems__(list(range(8))), 0)
    assert len(calls) == 1


def test_distilling_brings_the_surrogate_closer_and_leaves_the_teacher(surrogate, teacher, data, trainer, tmp_path):
    module = surrogate(lr=1e-2)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    run = trainer(tmp_path, max_epochs=3)
    run.fit(module, datamodule=data(train_size=192))
    assert module.best_kappa < 0.9 * module.first_kappa and "accepted" in module.verdict()
    assert {"val/kappa", "val/agreement", "val/accuracy", "train/loss"} <= set(run.callback_metrics)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not any(name.startswith("teacher") for name in module.state_dict())


def test_stem_and_head_stay_the_teachers(surrogate, teacher, data, trainer, tmp_path):
    module = surrogate(lr=1e-2)
    trainer(tmp_path, max_epochs=1).fit(module, datamodule=data())
    assert torch.equal(module.network.network.linear.weight, teacher.linear.weight)
    assert torch.equal(module.network.network.stem.conv1.weight, teacher.stem.conv1.weight)


def test_what_does_not_come_closer_is_not_kept(surrogate, teacher, data, trainer, tmp_path):
    """Euler with one step is the teacher; every step of training leads away."""
    module = surrogate(RungeKutta("euler", steps=1), lr=3e-2, train_discrete=True)
    start = {name: tensor.clone() for name, tensor in module.network.state_dict().items()}

    def astray(batch, batch_idx):
        return F.cross_entropy(module.network(batch.image), (batch.label + 1) % 8)

    module.training_step = astray
    trainer(tmp_path, max_epochs=1).fit(module, datamodule=data())
    assert module.first_kappa == 0 and "not accepted" in module.verdict()
    assert all(torch.equal(tensor, start[name]) for name, tensor in module.network.state_dict().items())


def test_a_resumed_distillation_remembers_its_best(surrogate, data, trainer, tmp_path):
    whole = surrogate(lr=3e-3)
    trainer(tmp_path / "whole", max_epochs=2).fit(whole, datamodule=data())
    first = surrogate(lr=3e-3)
    trainer(tmp_path / "cut", max_epochs=1).fit(first, datamodule=data())
    second = surrogate(lr=3e-3)
    trainer(tmp_path / "cut", max_epochs=2).fit(
        second, datamodule=data(), ckpt_path=tmp_path / "cut" / "checkpoints" / "last.ckpt"
    )
    assert second.first_kappa == whole.first_kappa and second.best_kappa == whole.best_kappa


def test_a_tied_surrogate_learns_too(surrogate, data, trainer, tmp_path):
    module = surrogate(tied=True, lr=1e-2)
    trainer(tmp_path, max_epochs=2).fit(module, datamodule=data(train_size=96))
    assert module.best_kappa < module.first_kappa


def test_bad_settings(surrogate, teacher):
    with pytest.raises(UserError, match="temperature"):
        surrogate(temperature=0.0)
    with pytest.raises(UserError, match="no surrogate of this teacher"):
        Surrogate(teacher, teacher, optimizer=torch.optim.Adam, num_classes=8)
    with pytest.raises(UserError, match="was not; choose model=neural_ode"):
        Surrogate(teacher, None, optimizer=torch.optim.Adam, num_classes=8)
    torch.manual_seed(3)
    other = six_block_resnet(width=16, blocks=2, num_classes=8)
    with pytest.raises(UserError, match=r"same weights"):
        Surrogate(NeuralODE.from_resnet(other, SOLVER), teacher, optimizer=torch.optim.Adam, num_classes=8)


def test_what_was_kept_is_what_a_checkpoint_gives_and_a_finished_run_has(surrogate, data, trainer, tmp_path):
    """One epoch on a loss that leads away; then the checkpoint is read, and the finished run is resumed with nothing left to do."""
    module = surrogate(RungeKutta("euler", steps=1), lr=0.1)
    module.training_step = lambda batch, batch_idx: F.cross_entropy(module.network(batch.image), (batch.label + 1) % 8)
    trainer(tmp_path, max_epochs=1).fit(module, datamodule=data())
    assert "not accepted" in module.verdict()
    path = tmp_path / "checkpoints" / "last.ckpt"
    kept = module.network.state_dict()
    assert not torch.equal(torch.load(path, weights_only=True)["state_dict"]["network.network.blocks.0.field.block.branch.conv1.weight"],
                           kept["network.blocks.0.field.block.branch.conv1.weight"])  # fmt: skip

    read = surrogate().network
    load_weights(read, path)
    again = surrogate()
    trainer(tmp_path, max_epochs=1).fit(again, datamodule=data(), ckpt_path=path)
    for network in (read, again.network):
        assert all(torch.equal(tensor, kept[name]) for name, tensor in network.state_dict().items())


def test_a_surrogate_that_fails_on_some_images_is_not_accepted(surrogate):
    module = surrogate()
    module.val_kappa.update(torch.tensor([float("nan"), 0.5]))
    assert not float(module.val_kappa.compute()) < 1


def test_the_first_comparison_is_of_the_images_that_epochs_are_judged_on(surrogate, data, trainer, tmp_path):
    module = surrogate(lr=1e-12)
    run = trainer(tmp_path, max_epochs=1, limit_val_batches=1)
    run.fit(module, datamodule=data())
    assert module.first_kappa == pytest.approx(float(run.callback_metrics["val/kappa"]), rel=1e-4)


def test_without_validation_nothing_is_claimed(surrogate, data, trainer, tmp_path):
    module = surrogate()
    trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(module, datamodule=data())
    assert "Nothing was distilled and compared" in module.verdict()


def test_settings_that_would_be_ignored_are_refused(surrogate):
    with pytest.raises(UserError, match="label_smoothing"):
        surrogate(label_smoothing=0.1)
