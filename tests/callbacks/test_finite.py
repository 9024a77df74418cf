"""A run whose loss or gradients stop being numbers ends before its weights do."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from explainode.callbacks.finite import Finite
from explainode.errors import UserError
from explainode.training.checkpoint import verify


class Poison(Callback):
    """Put a bad value somewhere in one batch; remember the weights before it."""

    def __init__(self, step, value, where="image"):
        self.step, self.value, self.where, self.weights = step, value, where, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step and self.weights is None:
            self.weights = {k: v.clone() for k, v in pl_module.network.named_parameters()}
            if self.where == "image":
                batch.image[2, 0, 0, 0] = self.value
            self.ids = batch.sample_id.tolist()

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == self.step and self.where == "gradient":
            next(pl_module.network.parameters()).grad[0] = self.value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["image", "gradient"])
def test_stops_before_the_weights_change(classifier, data, trainer, tmp_path, value, where):
    module, poison = classifier(), Poison(8, value, where)
    with pytest.raises(UserError) as told:
        trainer(tmp_path, [poison, Finite()], max_epochs=3).fit(module, datamodule=data())
    assert all(torch.equal(v, poison.weights[k]) for k, v in module.network.named_parameters())
    sentence = str(told.value)
    assert "step 8 (epoch 1, batch 2" in sentence and "the weights were not updated" in sentence
    assert (
        f"samples {poison.ids[2]} whose pixels are not finite" in sentence
        if where == "image"
        else "a gradient" in sentence
    )
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    assert str(checkpoint) in sentence
    assert torch.load(verify(checkpoint), weights_only=True)["global_step"] == 6


def test_without_it_the_weights_are_lost(classifier, data, trainer, tmp_path):
    """What the callback is for: Lightning goes on by itself."""
    module = classifier()
    trainer(tmp_path, [Poison(3, float("nan"))], max_epochs=1).fit(module, datamodule=data())
    assert any(p.isnan().any() for p in module.network.parameters())


def test_a_bad_batch_inside_an_accumulated_step_is_the_one_named(classifier, data, trainer, tmp_path):
    class Middle(Poison):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 1:
                super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    poison = Middle(0, float("nan"))
    with pytest.raises(UserError, match=r"step 0 \(epoch 0, batch 1, samples .*no checkpoint was written yet"):
        trainer(tmp_path, [poison, Finite()], accumulate_grad_batches=3).fit(classifier(), datamodule=data())


def test_infinite_gradients_of_float16_belong_to_the_scaler(classifier, data, trainer, tmp_path):
    """With a gradient scaler such a step is skipped and the scale lowered; only the loss is held to account, here one step later."""
    run = trainer(tmp_path, [Finite(), Poison(1, float("inf"), "gradient")], max_epochs=1)
    run.precision_plugin.scaler = object()  # what Lightning's float16 plugin holds on a GPU
    with pytest.raises(UserError, match="the loss became nan at step 2"):
        run.fit(classifier(network=nn.Sequential(nn.Flatten(), nn.Linear(768, 8))), datamodule=data())


def test_large_gradients_are_not_infinite(classifier, data, trainer, tmp_path):
    """1e30 is a number, though its square is none in float32."""
    run = trainer(
        tmp_path,
        [Poison(1, 1e30, "gradient"), Finite()],
        max_epochs=1,
        gradient_clip_val=1.0,
        gradient_clip_algorithm="value",
    )
    run.fit(classifier(), datamodule=data())
    assert run.global_step == 6


def test_leaves_a_good_run_alone(classifier, data, trainer, tmp_path):
    weights = []
    for callbacks in ([], [Finite()]):
        torch.manual_seed(0)
        module = classifier()
        trainer(tmp_path / str(len(callbacks)), callbacks, checkpoint=False).fit(module, datamodule=data())
        weights.append(module.network.state_dict())
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
