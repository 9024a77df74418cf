"""Where the time of an epoch goes, as one table: data, forward, backward, optimizer, callbacks, validation, explanations; and what to try."""

from __future__ import annotations

import os
import re
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.profilers import Profiler

from explainode.files import replace_file

# the first pattern that an action's name meets says what its own time (without that of actions inside it) is spent on
PARTS = (
    ("reading data", r"train_dataloader_next"),
    ("to the device, augmentation", r"batch_to_device|batch_transfer"),
    ("explanations", r"^\[Callback\]explanations"),
    ("checkpoints", r"^\[Callback\](Model)?Checkpoint|save_checkpoint"),
    ("callbacks", r"^\[Callback\]"),
    ("forward", r"training_step$"),
    ("backward", r"\.backward$"),
    ("optimizer", r"optimizer_step$|zero_grad$|lr_scheduler"),
)
REST = "Lightning and loggers"
VALIDATION = "validation"
ORDER = (
    *(name for name, _ in PARTS if name not in ("explanations", "checkpoints")),
    REST,
    VALIDATION,
    "explanations",
    "checkpoints",
)
OPERATORS = 8


class StepProfiler(Profiler):
    """A profiler of Lightning's that sorts the time of the first epoch into parts and says what to try.

    Steps `skip` to `skip + steps` are timed by the clock, the next `steps` are watched by torch's profiler for the table of operators; being watched
    slows them, so they are not timed. What is paid once an epoch (validation, explanations, checkpoints) is measured as it comes. On a GPU, the device
    is waited for at the borders of parts, or the time would be booked where somebody happens to wait. The table is printed and written when the
    second epoch begins, or training ends.

    Args:
        path: the text file that the table is written to.
        steps: in each of the two windows; a shorter epoch gives fewer.
        skip: first steps, which fill caches.
    """

    def __init__(self, path: str | Path, steps: int = 20, skip: int = 3) -> None:
        super().__init__()
        if steps < 1 or skip < 0:
            raise ValueError(f"steps must be at least 1 and skip 0 or more, got {steps} and {skip}")
        self.path, self.steps, self.skip = Path(path), steps, skip
        self.batches = 0  # of the epoch, begun so far
        self.timed = 0  # whole steps in the clock's window
        self.step_seconds: dict[str, float] = defaultdict(float)  # by part, in the clock's window
        self.epoch_seconds: dict[str, float] = defaultdict(float)  # by part, once an epoch
        self._stack: list[list[Any]] = []  # action, start, seconds of actions inside
        self._validating = False
        self._done = False
        self._watch: torch.profiler.profile | None = None
        self._watched = False
        self._facts: dict[str, Any] = {}

    def start(self, action_name: str) -> None:
        if action_name == "run_training_epoch" and self.batches:
            self._end()
        if self._done or (not self.batches and not self._stack and action_name != "run_training_epoch"):
            return
        if action_name.endswith("train_dataloader_next"):
            self._next_batch()
        self._validating |= action_name.endswith("on_validation_start")
        self._stack.append([action_name, self._now(), 0.0])

    def stop(self, action_name: str) -> None:
        if not self._stack or self._done:
            return
        name, begun, inside = self._stack.pop()
        assert name == action_name, f"{name} was begun, {action_name} ends"
        seconds = self._now() - begun
        if self._stack:
            self._stack[-1][2] += seconds
        self._book(name, seconds - inside)
        if re.match(r"^\[Strategy\].*on_validation_end$", name):
            self._validating = False

    def _now(self) -> float:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()

    def _next_batch(self) -> None:
        """A step begins: count it, and begin or end the window of torch's profiler."""
        self.batches += 1
        if self._in_clock_window(self.batches - 1):
            self.timed += 1
        if self.batches == self.skip + self.steps + 1:
            activities = [torch.profiler.ProfilerActivity.CPU] + [
                torch.profiler.ProfilerActivity.CUDA
            ] * torch.cuda.is_available()
            os.environ.setdefault(
                "KINETO_LOG_LEVEL", "5"
            )  # or torch's profiler complains on stderr where there is no GPU
            self._watch = torch.profiler.profile(activities=activities)
            self._watch.__enter__()
        elif self.batches == self.skip + 2 * self.steps + 1:
            self._unwatch()

    def _unwatch(self) -> None:
        if self._watch is not None and not self._watched:
            self._watched = True
            self._watch.__exit__(None, None, None)

    def _in_clock_window(self, batch: int) -> bool:
        return self.skip < batch <= self.skip + self.steps

    def _book(self, name: str, seconds: float) -> None:
        part = next((part for part, pattern in PARTS if re.search(pattern, name)), REST)
        if part in ("explanations", "checkpoints"):
            self.epoch_seconds[part] += seconds
        elif self._validating:
            self.epoch_seconds[VALIDATION] += seconds
        elif name == "run_training_epoch":  # the loop itself, over all steps, validation's part of it included
            self.epoch_seconds[REST] += seconds
        elif self._in_clock_window(self.batches):
            self.step_seconds[part] += seconds

    def _end(self) -> None:
        """The first epoch is over, with what is done after its last step."""
        self._unwatch()
        if self._done:
            return
        self._done = True
        if not self._local_rank:
            text = self.table()
            replace_file(self.path, text.encode())
            print(text, file=sys.stderr, flush=True)

    def teardown(self, stage: str | None = None) -> None:
        if self.batches:
            self._end()
        super().teardown(stage=stage)

    def summary(self) -> str:
        return ""  # ours is printed at the end of the epoch, not of the run

    def shares(self) -> dict[str, tuple[float, float]]:
        """part -> (seconds in the epoch, share of it), the steps' parts scaled from the timed steps to all."""
        scale = self.batches / self.timed if self.timed else 0.0
        seconds = {part: self.step_seconds.get(part, 0.0) * scale + self.epoch_seconds.get(part, 0.0) for part in ORDER}
        total = sum(seconds.values()) or 1.0
        return {part: (value, value / total) for part, value in seconds.items()}

    def table(self) -> str:
        """The table: parts of the epoch, operators, what to try."""
        shares = self.shares()
        whole = sum(seconds for seconds, _ in shares.values())
        step = sum(self.step_seconds.values()) / max(1, self.timed)
        lines = [
            f"Profile of the first epoch: {self.batches} steps of {1000 * step:.1f} ms ({self.timed} were timed), {whole:.1f} s with everything.",
            "",
            f"{'part':<30}{'ms a step':>10}{'share of the epoch':>20}",
        ]
        for part, (_, share) in shares.items():
            each = (
                f"{1000 * self.step_seconds[part] / self.timed:.2f}"
                if self.timed and self.step_seconds.get(part)
                else ""
            )
            lines.append(f"{part:<30}{each:>10}{share:>20.1%}")
        lines += ["", *self._operators(), "", "What to try:", *(f"- {sentence}" for sentence in self.advice())]
        return "\n".join(lines) + "\n"

    def _operators(self) -> list[str]:
        if self._watch is None:
            return [
                f"(operators: the epoch has {self.batches} steps; they are watched from step {self.skip + self.steps + 1} on)"
            ]
        device = "device_time" if torch.cuda.is_available() else "cpu_time"
        events = [(getattr(event, f"self_{device}_total"), event) for event in self._watch.key_averages()]
        total = sum(own for own, _ in events) or 1.0
        most = sorted(events, key=lambda item: -item[0])[:OPERATORS]
        rows = [f"{event.key[:44]:<46}{own / total:>7.1%}{event.count:>10}" for own, event in most]
        return [f"{'operator':<46}{'share':>7}{'calls':>10}", *rows]

    def describe_settings(self, **facts: Any) -> None:
        """What advice may depend on: workers, precision, accelerator, channels_last."""
        self._facts = facts

    def advice(self) -> list[str]:
        """Sentences for the parts that take more than they should; the settings they name exist."""
        share = {part: value for part, (_, value) in self.shares().items()}
        facts, found = self._facts, []
        on_gpu = torch.cuda.is_available() and facts.get("accelerator") != "cpu"
        if share["reading data"] > 0.1:
            found.append(
                f"reading data takes {share['reading data']:.0%}: raise data.num_workers (now {facts.get('workers', '?')}) as far as there are cores"
            )
        if share["to the device, augmentation"] > 0.1:
            found.append(
                "augmentation is paid in the training process: data.augment=null says how much; on a GPU it runs there"
            )
        if share["explanations"] > 0.15:
            found.append(
                f"explanations take {share['explanations']:.0%}: lower callback.explanations.budget or .images, or raise .every_n_epochs"
            )
        if share["checkpoints"] > 0.05:
            found.append(
                "checkpoints: raise callback.checkpoint.every_n_epochs, or write to a faster disk with run_dir"
            )
        if share["optimizer"] > 0.1:
            found.append("the optimizer: +module.optimizer.fused=true does its step in one pass over the weights")
        if share["callbacks"] + share[REST] > 0.05:
            found.append(
                "callbacks, loggers and the loop: raise trainer.log_every_n_steps, and data.batch_size, so that a step does more"
            )
        if share[VALIDATION] > 0.3:
            found.append(
                "validation: raise trainer.check_val_every_n_epoch, or lower data.val_size where the data has it"
            )
        arithmetic = share["forward"] + share["backward"]
        if on_gpu and arithmetic > 0.5 and str(facts.get("precision", "")).startswith("32"):
            found.append("arithmetic in float32 on a GPU: trainer.precision=bf16-mixed")
        if on_gpu and arithmetic > 0.5 and not facts.get("channels_last"):
            found.append("convolutions on a GPU: module.channels_last=true")
        if not found:
            found.append(f"nothing stands out: the network's own arithmetic is {arithmetic:.0%} of the epoch")
        return found
