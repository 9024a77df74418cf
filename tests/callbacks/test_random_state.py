"""Random state: captured whole, restored whole, and not moved by validation."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from explainode.callbacks.random_state import RandomState, capture, preserved, restore


def draws():
    return [
        random.random(),
        random.gauss(0, 1),
        *np.random.rand(2),
        np.random.randn(),
        *torch.rand(3).tolist(),
        torch.randn(1).item(),
    ]


def test_a_restored_state_draws_the_same(tmp_path):
    random.gauss(0, 1), np.random.randn()  # both keep the second of a pair for later: part of the state
    torch.save(capture(), tmp_path / "state")
    expected = draws()
    assert draws() != expected
    restore(torch.load(tmp_path / "state", weights_only=True))
    assert draws() == expected


def test_preserved_hides_what_is_drawn_inside_even_when_it_fails():
    state = capture()
    expected = draws()
    restore(state)
    with pytest.raises(ZeroDivisionError), preserved():
        draws()
        _ = 1 / 0
    assert draws() == expected


class Drawing(Callback):
    def on_validation_epoch_end(self, trainer, pl_module):
        draws()


def test_validation_does_not_move_training(classifier, data, trainer, tmp_path):
    """Dropout's masks are the same however much validation draws; without the callback they are not."""

    def weights(name, *callbacks):
        module = classifier()
        torch.manual_seed(3)
        trainer(tmp_path / name, callbacks, checkpoint=False).fit(module, datamodule=data())
        return torch.cat([p.detach().flatten() for p in module.network.parameters()])

    plain = weights("a", RandomState())
    assert torch.equal(plain, weights("b", Drawing(), RandomState()))
    assert not torch.equal(plain, weights("c", Drawing()))


def test_a_checkpoint_without_random_state_is_told(classifier, data, trainer, tmp_path):
    trainer(tmp_path, max_epochs=1).fit(classifier(), datamodule=data())
    with pytest.warns(UserWarning, match="holds no random state"):
        trainer(tmp_path, [RandomState()], max_epochs=2).fit(
            classifier(), datamodule=data(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt"
        )


def test_another_number_of_gpus_is_told():
    """Their states cannot be given back: said, and the others are."""
    state = capture()
    expected = draws()
    with pytest.warns(
        UserWarning, match=rf"state of {len(state['cuda']) + 1} GPU\(s\), and {len(state['cuda'])} are visible"
    ):
        restore(state | {"cuda": [*state["cuda"], torch.zeros(16, dtype=torch.uint8)]})
    assert draws() == expected
