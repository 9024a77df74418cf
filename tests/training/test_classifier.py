"""The classifier: what it logs, its schedules, its noise, its precision, its hyperparameters."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR

from explainode.data.batch import Batch
from explainode.errors import UserError
from explainode.randomness import current_scope


class Spy(nn.Module):
    """Writes down the noise scope of each call."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 8)
        self.seen = []

    def forward(self, x):
        scope = current_scope()
        self.seen.append((self.training, scope.active, scope.seed, scope.draw, scope.sample_ids.tolist()))
        return self.layer(x.mean((2, 3)))


def test_logs_the_numbers_of_a_plain_loop(classifier, data, trainer, tmp_path):
    """Validation loss, accuracy and calibration error, computed here by hand over the whole split at once."""
    module, images = classifier(), data()
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, datamodule=images)
    logged = {name: float(value) for name, value in run.callback_metrics.items()}

    batch = images.dataset("val").__getitems__(list(range(16)))
    with torch.no_grad():
        probability = module.network.eval()(batch.image).softmax(1)
    confidence, predicted = probability.max(1)
    hit = (predicted == batch.label).float()
    expected_error = 0.0
    for low in torch.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected_error += float(inside.float().mean() * (confidence[inside].mean() - hit[inside].mean()).abs())
    assert set(logged) == {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/calibration_error"}
    assert logged["val/accuracy"] == pytest.approx(float(hit.mean()), abs=1e-6)
    # float32 sums of 16 terms in another order
    assert logged["val/loss"] == pytest.approx(float(F.nll_loss(probability.log(), batch.label)), rel=1e-5)
    assert logged["val/calibration_error"] == pytest.approx(expected_error, abs=1e-5)

    tested = run.test(module, datamodule=images, verbose=False)[0]
    assert set(tested) == {"test/loss", "test/accuracy", "test/calibration_error"}


def test_unknown_labels_count_nowhere(classifier):
    module = classifier()
    module.eval()
    module.log = lambda *args, **kwargs: None
    image = torch.rand(4, 3, 16, 16)
    label = torch.tensor([1, -1, 3, -1])
    module.validation_step(Batch(image, label, torch.arange(4)), 0)
    with torch.no_grad():
        logits = module.network(image)[[0, 2]]
    assert float(module.val_loss.compute()) == pytest.approx(float(F.cross_entropy(logits, label[[0, 2]])), rel=1e-5)
    assert float(module.val_accuracy.compute()) == pytest.approx(
        float((logits.argmax(1) == label[[0, 2]]).float().mean())
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_training_loss_is_the_cross_entropy_of_every_known_label(classifier, smoothing):
    """By hand, with the gradient that teaches: (p - y) x^T / n, where y has a share of the smoothing in every class."""
    module = classifier(network=nn.Sequential(nn.Flatten(), nn.Linear(48, 8)).double(), label_smoothing=smoothing)
    image = torch.rand(10, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 1, 2, -1, 3, 4, 5, 6, 7, 1])
    loss = module.training_step(Batch(image, label, torch.arange(10)), 0)
    loss.backward()

    known = label >= 0
    x = image.flatten(1)[known]
    with torch.no_grad():
        p = module.network(image)[known].softmax(1)
    y = (1 - smoothing) * torch.eye(8, dtype=torch.float64)[label[known]] + smoothing / 8
    torch.testing.assert_close(loss.detach(), -(y * p.log()).sum(1).mean())
    torch.testing.assert_close(module.network[1].weight.grad, (p - y).T @ x / len(x))
    torch.testing.assert_close(module.network[1].bias.grad, (p - y).mean(0))
    assert float(module.train_accuracy.compute()) == pytest.approx(float((p.argmax(1) == label[known]).float().mean()))


def test_each_split_logs_its_own_numbers(classifier, data, trainer, tmp_path):
    """Of a network that does not learn, for which an epoch's running numbers are those of the whole split; the last batches hold 8, 3 and 4 images."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8))
    module, images = (
        classifier(network=network, optimizer=partial(torch.optim.SGD, lr=0.0)),
        data(val_size=19, test_size=20),
    )
    run = trainer(tmp_path, max_epochs=1, checkpoint=False)
    run.fit(module, datamodule=images)
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    logged |= run.test(module, datamodule=images, verbose=False)[0]
    for split, size in (("train", 48), ("val", 19), ("test", 20)):
        batch = images.dataset(split).__getitems__(list(range(size)))
        with torch.no_grad():
            probability = network(batch.image).softmax(1)
        loss = -probability.log()[torch.arange(size), batch.label].mean()
        hits = (probability.argmax(1) == batch.label).float().mean()
        # float32 sums of up to 48 terms in another order
        assert logged[f"{split}/loss"] == pytest.approx(float(loss), rel=1e-5)
        assert logged[f"{split}/accuracy"] == pytest.approx(float(hits), abs=1e-6)


def test_calibration_error_of_fifteen_bins_over_known_labels(classifier):
    """Confidences all over (1/8, 1), so that another number of bins shows; a quarter of the labels is unknown."""
    generator = torch.Generator().manual_seed(0)
    probability = (4 * torch.randn(400, 8, generator=generator)).softmax(1)
    drawn = probability.multinomial(1, generator=generator)[
        :, 0
    ]  # neither too sure nor too unsure: bins differ in sign
    label = torch.where(torch.arange(400) % 4 == 0, -1, drawn)
    metric = classifier().val_calibration_error
    metric.update(probability, label)
    confidence, predicted = probability[label >= 0].double().max(1)
    hit = (predicted == label[label >= 0]).double()
    bins = (confidence * 15).ceil()
    expected = sum(((confidence - hit)[bins == k].sum()).abs() for k in range(1, 16)) / len(hit)
    assert float(metric.compute()) == pytest.approx(float(expected), rel=1e-5)


def test_noise_speaks_in_training_only_and_is_keyed_by_epoch(classifier, data, trainer, tmp_path):
    spy = Spy()
    run = trainer(tmp_path, max_epochs=2)
    run.fit(classifier(network=spy, noise_seed=5), datamodule=data(train_size=16))
    training = [s for s in spy.seen if s[0]]
    assert {s[1:3] for s in training} == {(True, 5)}
    assert [s[3] for s in training] == [0, 0, 1, 1]  # two batches in each of two epochs
    assert sorted(i for s in training[:2] for i in s[4]) == list(range(16))
    assert {s[1] for s in spy.seen if not s[0]} == {False}


class Rates(Callback):
    """The learning rate at each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def cosine(progress):
    return [(1 + math.cos(math.pi * p)) / 2 for p in progress]


@pytest.mark.parametrize(
    ("scheduler", "interval", "expected"),
    [
        (
            partial(CosineAnnealingLR),
            "epoch",
            cosine([0, 0, 0, 1 / 4, 1 / 4, 1 / 4, 2 / 4, 2 / 4, 2 / 4, 3 / 4, 3 / 4, 3 / 4]),
        ),
        (partial(CosineAnnealingLR), "step", cosine([i / 12 for i in range(12)])),
        (partial(MultiStepLR, milestones=[0.5, 0.75], gamma=0.1), "epoch", [1] * 6 + [0.1] * 3 + [0.01] * 3),
        (partial(MultiStepLR, milestones=[3], gamma=0.1), "step", [1] * 3 + [0.1] * 9),
        (None, "step", [1] * 12),
    ],
)
def test_schedules_learn_the_length_of_the_run(classifier, data, trainer, tmp_path, scheduler, interval, expected):
    """Four epochs of three batches against the schedules' closed forms."""
    module = classifier(optimizer=partial(torch.optim.SGD, lr=1.0), scheduler=scheduler, interval=interval)
    rates = Rates()
    trainer(tmp_path, [rates], max_epochs=4, checkpoint=False, limit_val_batches=0).fit(
        module, datamodule=data(train_size=24)
    )
    assert rates.seen == pytest.approx(expected, abs=1e-6)


def test_one_cycle_ends_with_the_run(classifier, data, trainer, tmp_path):
    """From max_lr / 25 up to max_lr and down to nearly nothing at the very last step, also when steps gather two batches each."""
    module = classifier(
        optimizer=partial(torch.optim.SGD, lr=1.0), scheduler=partial(OneCycleLR, max_lr=1.0, pct_start=0.5)
    )
    rates = Rates()
    run = trainer(tmp_path, [rates], max_epochs=4, checkpoint=False, limit_val_batches=0, accumulate_grad_batches=3)
    run.fit(module, datamodule=data(train_size=48))  # 6 batches, 2 steps an epoch
    assert (
        rates.seen[0] == pytest.approx(1 / 25)
        and max(rates.seen) == pytest.approx(1.0)
        and rates.seen[-1] == pytest.approx(1 / 25e4)
    )


def test_bfloat16_and_channels_last_train(classifier, data, trainer, tmp_path):
    module = classifier(channels_last=True)
    run = trainer(tmp_path, max_epochs=1, precision="bf16-mixed")
    run.fit(module, datamodule=data())
    assert module.network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in module.parameters())


def test_channels_last_trains_the_same_net(classifier, data, trainer, tmp_path):
    """Another memory order, the same mathematics: six SGD steps agree to accumulated float32 rounding."""
    weights = []
    for channels_last in (False, True):
        torch.manual_seed(1)
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8))
        module = classifier(network=network, optimizer=partial(torch.optim.SGD, lr=0.1), channels_last=channels_last)
        trainer(tmp_path / str(channels_last), max_epochs=1).fit(module, datamodule=data())
        weights.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


def test_compiling_leaves_the_network_and_its_keys_alone(classifier):
    plain, compiled = classifier(), classifier(compile=True)
    assert list(plain.state_dict()) == list(compiled.state_dict())
    assert type(compiled.network) is type(plain.network)
    assert compiled.__dict__["_step_network"] is not None


def test_only_the_training_step_runs_through_the_compiled_network(classifier, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda network: lambda x: calls.append(len(x)) or network(x))
    module = classifier(compile=True)
    module.log = lambda *args, **kwargs: None
    batch = Batch(torch.rand(4, 3, 16, 16), torch.arange(4), torch.arange(4))
    module.training_step(batch, 0)
    assert calls == [4]
    module.validation_step(batch, 0)
    assert calls == [4]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"network": None}, "network must be a torch.nn.Module, got None"),
        ({"interval": "batch"}, "interval must be 'step' or 'epoch', got 'batch'"),
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\)"),
    ],
)
def test_bad_settings_are_named(classifier, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        classifier(**settings)


def test_a_schedule_without_an_end_is_refused(classifier, data, trainer, tmp_path):
    module = classifier(scheduler=partial(CosineAnnealingLR), interval="epoch")
    with pytest.raises(UserError, match="needs to know when the run ends"):
        trainer(tmp_path, max_epochs=-1).fit(module, datamodule=data())


def test_a_run_too_short_for_its_schedule_is_refused_in_a_sentence(classifier, data, trainer, tmp_path):
    module = classifier(scheduler=partial(OneCycleLR, max_lr=0.1, pct_start=0.25), interval="step")
    with pytest.raises(UserError, match="train longer"):
        trainer(tmp_path, max_epochs=None, max_steps=4).fit(module, datamodule=data())
