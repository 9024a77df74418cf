"""Torch's, numpy's and Python's random state in the checkpoint, so that a resumed run goes on drawing where it stopped."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from explainode.ranks import gather_ranks, of_rank


def capture() -> dict[str, Any]:
    """The random state of this process, as tensors and plain values (loadable with weights_only=True)."""
    _, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": position,
            "has_gauss": has_gauss,
            "gauss": gauss,
        },
        "python": random.getstate(),
    }


def restore(state: dict[str, Any]) -> None:
    """Set the random state of this process to what `capture` returned."""
    torch.set_rng_state(state["torch"].cpu())
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    else:
        rank_zero_warn(
            f"the checkpoint holds the random state of {len(state['cuda'])} GPU(s), and {torch.cuda.device_count()} are visible: what is drawn on "
            "GPUs (dropout) will be other numbers than in the unbroken run; make as many visible as before"
        )
    numpy = state["numpy"]
    np.random.set_state(
        ("MT19937", numpy["keys"].numpy().astype(np.uint32), numpy["position"], numpy["has_gauss"], numpy["gauss"])
    )
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


@contextmanager
def preserved() -> Iterator[None]:
    """Context: whatever is drawn inside, draws outside go on as if nothing had happened."""
    state = capture()
    try:
        yield
    finally:
        restore(state)


class RandomState(Callback):
    """Save every rank's random state with each checkpoint, restore it on resuming, and keep validation from moving it.

    Dropout and other draws of the network thus go on after a resume as in the unbroken run, and training does not depend on how often, or on
    what, is validated.
    """

    def __init__(self) -> None:
        self._before_validation: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["random_state"] = gather_ranks(self._before_validation or capture())

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        state = of_rank(checkpoint.get("random_state") or [])
        if state is not None:
            restore(state)
        elif trainer.state.fn == "fit":
            rank_zero_warn(
                "the checkpoint holds no random state for this number of ranks; dropout will draw other numbers than the unbroken run"
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._before_validation = capture()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._before_validation is not None:
            restore(self._before_validation)
            self._before_validation = None
