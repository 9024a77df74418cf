"""Explanations at epoch ends: what is explained, what it costs, what is written, and that training does not notice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging

from explainode.callbacks import explanations
from explainode.callbacks.explanations import ExplanationCallback, spread_order
from explainode.callbacks.interrupt import Interrupt, TrainingInterrupted
from explainode.callbacks.random_state import RandomState
from explainode.errors import UserError
from explainode.evaluation import evaluate
from explainode.explainers.base import Explainer
from explainode.explainers.gradient import Saliency
from explainode.explainers.sampling import SmoothGrad
from explainode.metrics.faithfulness import Deletion
from explainode.metrics.smoothness import Smoothness
from explainode.runs.directory import RunDirectory
from explainode.training.checkpoint import latest_checkpoint


@pytest.fixture
def explaining():
    def make(**settings):
        chosen = {
            "explainers": {"saliency": Saliency(), "smoothgrad": SmoothGrad(Saliency(), samples=2)},
            "metrics": {"deletion": Deletion(points=5), "smoothness": Smoothness()},
            "images": 6,
            "panel_images": 3,
            "budget": None,
        }
        return ExplanationCallback(**(chosen | settings))

    return make


class Clock:
    """A clock on which only what says so takes time: what a shared machine makes of the real one decides nothing here."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


clock = Clock()


@pytest.fixture(autouse=True)
def _clock(monkeypatch):
    monkeypatch.setattr(explanations, "time", clock)


@dataclass(frozen=True)
class Sleepy(Explainer):
    """Takes a known time per image."""

    seconds: float = 0.05

    def attribute(self, model, x, target):
        clock.sleep(self.seconds * len(x))
        return x


def test_the_order_is_spread_and_nested():
    for count in (1, 2, 7, 64, 100):
        order = spread_order(count)
        assert sorted(order) == list(range(count))
    for n in (2, 4, 8, 16):  # every beginning of a power of two is exactly evenly spaced
        assert sorted(spread_order(64)[:n]) == list(range(0, 64, 64 // n))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_does_not_notice(classifier, data, trainer, tmp_path, explaining, precision):
    """Weights, running statistics and optimizer moments equal bit for bit, with accumulation windows open and dropout drawing."""

    def fit(name, *callbacks):
        module = classifier()
        torch.manual_seed(3)
        run = trainer(tmp_path / name, callbacks, accumulate_grad_batches=4, val_check_interval=2, precision=precision)
        run.fit(module, datamodule=data())
        moments = [v for s in run.optimizers[0].state_dict()["state"].values() for v in s.values()]
        return [*module.state_dict().values(), *moments]

    callback = explaining()
    without, with_explanations = fit("without"), fit("with", callback)
    assert callback.latest is not None
    assert all(torch.equal(a, b) for a, b in zip(without, with_explanations, strict=True))


def test_writes_and_logs_what_evaluate_finds(classifier, data, trainer, tmp_path, explaining):
    module, images, callback = classifier(), data(), explaining(run_directory=str(tmp_path / "run"), model_name="net")
    run = trainer(tmp_path, [callback], max_epochs=2)
    run.fit(module, datamodule=images)
    chosen = sorted(callback.chosen)
    assert (
        chosen == [i * 16 // 6 for i in range(6)]
        and len(callback.panel()) == 3
        and set(callback.panel()) <= set(chosen)
    )

    again = evaluate(
        module.network.eval(),
        callback.explainers,
        callback.metrics,
        images.batches("val", chosen, 2),
        n=16,
        name="net",
        split="val",
        epoch=1,
    )
    expected = {(row.explainer, row.metric): row.value for row in again.rows}
    kept = RunDirectory(tmp_path / "run").read_results()
    assert {row.epoch for row in kept.rows} == {0, 1}
    found = {(row.explainer, row.metric): row.value for row in kept.rows if row.epoch == 1}
    assert found.keys() == expected.keys()
    for key, value in found.items():  # other batch sizes: float32 sums of the network in another order
        assert value == pytest.approx(expected[key], abs=1e-5), key
        if key[0]:
            assert float(run.callback_metrics[f"explain/{key[0]}/{key[1]}"]) == pytest.approx(value, rel=1e-6)
    assert [maps.sample_id.tolist() for maps in kept.maps] == [callback.panel()] * 2
    assert float(run.callback_metrics["explain/images"]) == 6


class Epochs(ExplanationCallback):
    """Writes down when it explained, and which images: passes that are kept, not probes."""

    def _log(self, trainer, pl_module, results, seconds):
        self.__dict__.setdefault("seen", []).append((trainer.current_epoch, sorted(self.chosen)))
        super()._log(trainer, pl_module, results, seconds)


@pytest.fixture
def recording():
    def make(**settings):
        return Epochs(
            **(
                {"explainers": {"sleepy": Sleepy()}, "metrics": {}, "images": 16, "panel_images": 2, "budget": None}
                | settings
            )
        )

    return make


class SlowEpoch(Callback):
    def __init__(self, seconds):
        self.seconds = seconds

    def on_train_epoch_end(self, trainer, pl_module):
        pass

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        clock.sleep(self.seconds / 6)


def test_explains_every_nth_epoch_and_the_last_and_never_in_the_sanity_check(
    classifier, data, trainer, tmp_path, recording
):
    callback = recording(every_n_epochs=2, images=[3, 5])
    trainer(tmp_path, [callback], max_epochs=5, num_sanity_val_steps=1).fit(classifier(), datamodule=data())
    assert callback.seen == [(1, [3, 5]), (3, [3, 5]), (4, [3, 5])]


def test_the_budget_fixes_the_number_of_images_once(classifier, data, trainer, tmp_path, recording):
    """An epoch of 1.2 s, a quarter of it allowed, 0.05 s an image: six images (five where 0.3 / 0.05 rounds down); then always the same."""
    callback = recording(budget=0.25)
    trainer(tmp_path, [SlowEpoch(1.2), callback], max_epochs=2).fit(classifier(), datamodule=data())
    (_, first), (_, second) = callback.seen
    assert first == second and len(first) in (5, 6)
    assert set(spread_order(16)[: len(first)]) == set(first)


def test_what_does_not_fit_is_explained_less_often(classifier, data, trainer, tmp_path, recording):
    """Four images take 0.2 s, a tenth of a 0.6 s epoch is 0.06 s: every fourth epoch, and the last."""
    callback = recording(budget=0.1, panel_images=4)
    trainer(tmp_path, [SlowEpoch(0.6), callback], max_epochs=6).fit(classifier(), datamodule=data())
    every = callback.every
    assert every == 4 and all(len(images) == 4 for _, images in callback.seen)
    assert [epoch for epoch, _ in callback.seen] == sorted({*range(every - 1, 6, every), 5})


def test_what_the_whole_run_cannot_pay_is_cut(classifier, data, trainer, tmp_path, recording):
    """Four images take 4 s, a tenth of two 0.6 s epochs is 0.12 s: one image, after the last epoch."""
    callback = recording(explainers={"sleepy": Sleepy(1.0)}, budget=0.1, panel_images=4)
    with pytest.warns(UserWarning, match="explaining 1 images took"):
        trainer(tmp_path, [SlowEpoch(0.6), callback], max_epochs=2).fit(classifier(), datamodule=data())
    assert [(epoch, len(images)) for epoch, images in callback.seen] == [(1, 1)]


def test_one_safe_point_is_planned_for_each_batch_and_explainer(
    classifier, data, trainer, tmp_path, explaining, monkeypatch
):
    """The ranks vote as often as was planned: a plan of fewer lets one that has more to do stop alone."""
    planned, passed = [], []

    class Counting(explanations.SafePoints):
        def __init__(self, trainer, points):
            super().__init__(trainer, points)
            planned.append(points)

        def __call__(self):
            passed.append(len(planned))
            super().__call__()

    monkeypatch.setattr(explanations, "SafePoints", Counting)
    callback = explaining(images=6, batch_size=2)
    trainer(tmp_path, [callback], max_epochs=1, checkpoint=False).fit(classifier(), datamodule=data())
    assert planned == [6] and passed == [1] * 6, "three batches, two explainers"


def test_what_is_left_out_is_not_measured(explaining):
    callback = explaining(without=["smoothgrad", "smoothness", "never chosen"])
    assert set(callback.explainers) == {"saliency"} and set(callback.metrics) == {"deletion"}


def test_later_the_clock_only_warns(classifier, data, trainer, tmp_path, recording):
    callback = recording(budget=0.01)
    callback.chosen, callback.every = [0, 1, 2, 3], 1
    with pytest.warns(UserWarning, match=r"explaining 4 images took .* where 1% were planned"):
        trainer(tmp_path, [SlowEpoch(0.6), callback], max_epochs=2).fit(classifier(), datamodule=data())
    assert [images for _, images in callback.seen] == [[0, 1, 2, 3]] * 2


def test_the_choice_survives_a_resume(classifier, data, trainer, tmp_path, recording):
    first = recording(budget=0.25)
    trainer(tmp_path, [SlowEpoch(0.6), first], max_epochs=1).fit(classifier(), datamodule=data())
    second = recording(budget=0.25)
    trainer(tmp_path, [SlowEpoch(0.6), second], max_epochs=2).fit(
        classifier(), datamodule=data(), ckpt_path=latest_checkpoint(tmp_path / "checkpoints")
    )
    assert second.chosen == first.chosen and second.every == first.every


def test_a_stop_inside_the_explanations_resumes_to_the_unbroken_run(classifier, data, trainer, tmp_path, explaining):
    """Interrupted in the second epoch's explanations, between averaged and trained weights: resumed, everything is as if it had not been."""

    class Stop(ExplanationCallback):
        def _evaluate(self, trainer, *args, **kwargs):
            if trainer.current_epoch == 1 and self.__dict__.pop("stop", False):
                next(c for c in trainer.callbacks if isinstance(c, Interrupt)).request()
            return super()._evaluate(trainer, *args, **kwargs)

    def fit(name, stop=False, resume=None):
        module, callback = classifier(), explaining(run_directory=str(tmp_path / name / "run"))
        callback.__class__ = Stop
        callback.__dict__["stop"] = stop
        torch.manual_seed(3 if resume is None else 8)
        run = trainer(
            tmp_path / name, [callback, EMAWeightAveraging(decay=0.5), RandomState(), Interrupt()], max_epochs=3
        )
        run.fit(module, datamodule=data(), ckpt_path=resume)
        return module.state_dict()

    unbroken = fit("unbroken")
    with pytest.raises(TrainingInterrupted):
        fit("broken", stop=True)
    resumed = fit("broken", resume=tmp_path / "broken" / "checkpoints" / "last.ckpt")
    assert all(torch.equal(unbroken[k], resumed[k]) for k in unbroken)
    rows = [RunDirectory(tmp_path / name / "run").read_results().rows for name in ("unbroken", "broken")]
    numbers = [sorted((r.epoch, r.explainer, r.metric, r.value, r.low, r.high, r.n) for r in some) for some in rows]
    np.testing.assert_equal(numbers[0], numbers[1])  # few images have no interval, and NaN is not equal to itself
    assert {row[0] for row in numbers[0]} == {0, 1, 2}


def test_explains_the_averaged_weights_that_were_validated(classifier, data, trainer, tmp_path, explaining, network):
    """The weights that validation batches met, not those that training goes on with."""

    class Met(Callback):
        def on_validation_batch_end(self, trainer, pl_module, *args):
            self.validated = {k: v.clone() for k, v in pl_module.network.state_dict().items()}

        def on_train_epoch_end(self, trainer, pl_module):
            self.trained = {k: v.clone() for k, v in pl_module.network.state_dict().items()}

    images, callback, met = data(), explaining(metrics={"smoothness": Smoothness()}, images=[0, 5]), Met()
    trainer(tmp_path, [callback, met, EMAWeightAveraging(decay=0.9)], max_epochs=1, checkpoint=False).fit(
        classifier(), datamodule=images
    )

    def numbers(state):
        net = network()
        net.load_state_dict(state)
        results = evaluate(net.eval(), callback.explainers, callback.metrics, images.batches("val", [0, 5], 2), n=16)
        return [row.value for row in results.rows if row.explainer]

    found = [row.value for row in callback.latest.rows if row.explainer]
    assert found == numbers(met.validated) and found != numbers(met.trained)


def test_averaging_before_it_is_refused(classifier, data, trainer, tmp_path, explaining):
    with pytest.raises(UserError, match="EMAWeightAveraging stands before the explanations"):
        trainer(tmp_path, [EMAWeightAveraging(), explaining()]).fit(classifier(), datamodule=data())


def test_other_data_is_refused_before_training(classifier, data, trainer, tmp_path, explaining):
    loader = data().train_dataloader()
    with pytest.raises(UserError, match="takes its images from an explainode data module"):
        trainer(tmp_path, [explaining()]).fit(classifier(), train_dataloaders=loader, val_dataloaders=loader)


@pytest.mark.parametrize(
    "settings", [{"every_n_epochs": 0}, {"panel_images": 0}, {"batch_size": 0}, {"budget": 0.0}, {"budget": -1.0}]
)
def test_bad_settings_are_named(explaining, settings):
    with pytest.raises(UserError, match=str(next(iter(settings.values())))):
        explaining(**settings)
