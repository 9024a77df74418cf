"""Where the training stands: one line that moves on a terminal, plain lines in a log file, never silent for more than two seconds."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from explainode.ticker import Ticker

_REFRESH = 0.2  # seconds between two looks of the line on a terminal


def note(trainer: Trainer, text: str | None) -> None:
    """Say in the trainer's progress line, if it has ours, what is going on besides training; None says that it is over."""
    if isinstance(trainer.progress_bar_callback, Progress):
        trainer.progress_bar_callback.note = text


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Progress(ProgressBar):
    """A progress line on stderr, which a long step does not silence, and a summary line for each epoch.

    Args:
        every: seconds between plain lines where stderr is no terminal, at most 2 if nobody shall wonder.
        name: what is trained, at the beginning of each line.
    """

    def __init__(self, every: float = 2.0, name: str = "") -> None:
        super().__init__()
        self.every = every
        self.name = name
        self.note: str | None = None
        self._enabled = True
        self._stage, self._done, self._total = "", 0, 0.0
        self._loss: Any = None
        self._epoch_started = self._batches_before = 0.0
        self._ticker: Ticker | None = None
        self._shown = 0  # width of the line that stands on the terminal
        self._summarized = -1

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ticker": None}

    def print(self, *args: Any, **kwargs: Any) -> None:
        """A line that stays."""
        if self._enabled:
            self._clear()
            print(*args, **{"file": self.stream, "flush": True, **kwargs})

    def line(self) -> str:
        """The present state in words."""
        trainer = self.trainer
        epochs = "" if trainer.max_epochs is None or trainer.max_epochs < 0 else f"/{trainer.max_epochs}"
        parts = [self.name] if self.name else []
        if trainer.state.fn == "fit":
            parts.append(f"epoch {min(trainer.current_epoch + 1, trainer.max_epochs or sys.maxsize)}{epochs}")
        if self.note is not None:
            parts.append(self.note)
        elif self._stage:
            total = "" if self._total == float("inf") else f"/{int(self._total)}"
            parts.append(f"{self._stage} batch {self._done}{total}")
        else:
            parts.append("preparing")
        if self._stage == "training" and self.note is None and self._done:
            if self._loss is not None:
                parts.append(f"loss {float(self._loss):.3f}")
            elapsed, fresh = time.monotonic() - self._epoch_started, self._done - self._batches_before
            if fresh > 0 and self._total != float("inf"):
                parts.append(f"{_clock(elapsed / fresh * (self._total - self._done))} left in this epoch")
        return " | ".join(parts)

    def _clear(self) -> None:
        if self._shown:
            self.stream.write("\r" + " " * self._shown + "\r")
            self._shown = 0

    def _show(self) -> None:
        text = self.line()
        if self.stream.isatty():
            self._clear()
            self.stream.write(text)
            self._shown = len(text)
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def _begin(self) -> None:
        if self._enabled and self._ticker is None:
            self._ticker = Ticker(self._show, _REFRESH if self.stream.isatty() else self.every).start()

    def _end(self) -> None:
        if self._ticker is not None:
            self._ticker.stop()
            self._ticker = None
            self._clear()

    def _at(self, stage: str, done: int, total: float) -> None:
        self._stage, self._done, self._total = stage, done, total

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._stage, self.note = "", None
        self._begin()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._summary(trainer)
        self._at("training", 0, self.total_train_batches)
        self._epoch_started, self._batches_before = time.monotonic(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._stage != "training":  # resumed in mid epoch, or back from a validation
            self._epoch_started, self._batches_before = time.monotonic(), batch_idx + 1
        self._loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        self._at("training", batch_idx + 1, self.total_train_batches)

    def _evaluated(self, stage: str, done: int, dataloader_idx: int) -> None:
        self.has_dataloader_changed(dataloader_idx)
        total = (
            self.total_test_batches_current_dataloader
            if stage == "testing"
            else self.total_val_batches_current_dataloader
        )
        self._at(stage, done, total)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._evaluated("checking" if trainer.sanity_checking else "validating", batch_idx, dataloader_idx)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._evaluated("testing", batch_idx, dataloader_idx)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._summary(trainer)

    def _summary(self, trainer: Trainer) -> None:
        """What the epoch before achieved: its metrics are complete once the next one starts."""
        epoch = trainer.fit_loop.epoch_progress.current.completed
        shown = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name in shown}
        if values and epoch > self._summarized and epoch:
            self._summarized = epoch
            text = " | ".join(f"{name.replace('/', ' ')} {values[name]:.3f}" for name in shown if name in values)
            self.print(f"{self.name + ' | ' if self.name else ''}epoch {epoch} done | {text}")
