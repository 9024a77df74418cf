"""Explains and measures the same validation images at epoch ends, as validation measures accuracy."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from explainode.callbacks.leave import SafePoints
from explainode.callbacks.progress import note
from explainode.callbacks.random_state import preserved
from explainode.data.batch import Batch
from explainode.errors import UserError
from explainode.evaluation import evaluate
from explainode.explainers.base import Explainer
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.results import Results
from explainode.runs.directory import RunDirectory

_PROBE = 2  # images explained to learn the cost; where many are affordable, a second probe separates what is paid per image from what is paid once
_TOLERANCE = 1.5  # times the budget before the clock complains: a shared machine is that uneven


def spread_order(count: int) -> list[int]:
    """0..count-1 so that every beginning of the list is spread over the whole: the bit-reversed order.

    Runs that can afford different numbers of images thus share the smaller one's images, and can be compared pairwise on them.
    """
    bits = max(1, (count - 1).bit_length())
    order = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits))
    return [i for i in order if i < count]


class ExplanationCallback(Callback):
    """Explanations and their metrics on fixed validation images, logged like any other metric.

    Runs at the end of a validation epoch inside `fit` (never in the sanity check), on the weights that were validated, so it must stand before
    weight averaging in the list of callbacks. Training goes on as if nothing had happened: same random numbers, same gradients, same modes.

    The number of images is fixed once, in the first pass: as many as the measured rate lets into `budget` of the epoch's time, at most `images`. Where
    not even `panel_images` fit, these (or fewer, if the whole run cannot pay for them) are explained less often, so that the budget is kept on
    average. Both are kept in the checkpoint; later the clock only warns.

    Args:
        explainers, metrics: by name.
        without: names of explainers and metrics to leave out here, because they cost many times what the others do. Explainers that learn
            from data are left out in any case.
        images: which validation images may be taken: a count (evenly spaced), "a:b", or a list of positions.
        panel_images: how many are also drawn.
        every_n_epochs: explain after every n-th epoch (or more rarely, see above), and after the last.
        budget: share of the training time of `every_n_epochs` epochs that a pass may take; None takes all of `images`.
        batch_size, chunk_size: images read at once; rows sent through the network at once. The result depends on neither.
        noise: "off", "path" or "mean:k"; seed: of every keyed draw.
        model_name: the model's name in tables.
        run_directory: where tables and maps are written; None: nowhere.

    Logs `explain/<explainer>/<metric>`, `explain/images`, `explain/seconds`; with W&B also the panel as `explain/panel` and `explain/table`.

    Raises:
        UserError: if weight averaging stands before it, a number is out of range, or the data cannot give images.
    """

    def __init__(
        self,
        explainers: Mapping[str, Explainer],
        metrics: Mapping[str, ExplanationMetric],
        without: Sequence[str] = (),
        images: int | str | list[int] = 64,
        panel_images: int = 6,
        every_n_epochs: int = 1,
        budget: float | None = 0.1,
        batch_size: int = 8,
        chunk_size: int | str = "auto",
        noise: str = "off",
        seed: int = 0,
        model_name: str = "model",
        run_directory: str | None = None,
    ) -> None:
        if every_n_epochs < 1 or panel_images < 1 or batch_size < 1:
            raise UserError(
                f"every_n_epochs, panel_images and batch_size must be at least 1, got {every_n_epochs}, {panel_images} and {batch_size}"
            )
        if budget is not None and not budget > 0:
            raise UserError(
                f"budget must be a positive share of the epoch's time or null, got {budget}; leave the callback out to explain nothing"
            )
        chosen = {name: explainer for name, explainer in explainers.items() if name not in without}
        self.explainers = {name: explainer for name, explainer in chosen.items() if not explainer.learns}
        if learning := [name for name in chosen if name not in self.explainers]:
            rank_zero_info(
                f"{', '.join(learning)}: learns from a pass over the data, so it explains after training, not in each epoch"
            )
        self.metrics = {name: metric for name, metric in metrics.items() if name not in without}
        self.images, self.panel_images, self.every_n_epochs, self.budget = images, panel_images, every_n_epochs, budget
        self.batch_size, self.chunk_size, self.noise, self.seed = batch_size, chunk_size, noise, seed
        self.model_name = model_name
        self.run_directory = None if run_directory is None else RunDirectory(Path(run_directory))
        self.chosen: list[int] | None = None  # positions in the validation split, once they are fixed
        self.latest: Results | None = None
        self.every = every_n_epochs  # what became of `every_n_epochs`
        self._epoch_started: float | None = None
        self._overrun_told = False

    @property
    def state_key(self) -> str:
        return "explanations"

    def state_dict(self) -> dict[str, Any]:
        return {"chosen": self.chosen, "every": self.every}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.chosen, self.every = state_dict["chosen"], state_dict["every"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        averaging = [c for c in callbacks[: callbacks.index(self)] if isinstance(c, WeightAveraging)]
        if averaging:
            raise UserError(
                f"{type(averaging[0]).__name__} stands before the explanations, which would explain other weights than the validated ones"
            )
        data = trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit" and not all(hasattr(data, name) for name in ("batches", "select_images", "dataset")):
            raise UserError(
                "the explanations callback takes its images from an explainode data module; pass one as datamodule=..."
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_started = time.monotonic()

    def _due(self, trainer: Trainer) -> bool:
        epoch = trainer.current_epoch + 1
        return (
            trainer.state.fn == "fit"
            and not trainer.sanity_checking
            and (epoch % self.every == 0 or epoch == trainer.max_epochs)
        )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._due(trainer):
            return
        # a pass resumed in mid epoch has not seen the epoch's beginning
        epoch_seconds = None if self._epoch_started is None else time.monotonic() - self._epoch_started
        with preserved():
            if self.chosen is None:
                self.chosen = self._choose(trainer, pl_module, epoch_seconds)
                if not self._due(trainer):  # it turned out to be too expensive for every time
                    return
            start = time.monotonic()
            results = self._evaluate(trainer, pl_module, self.chosen, self.panel())
            seconds = time.monotonic() - start
        self.latest = results
        self._check_clock(trainer, seconds, epoch_seconds)
        self._log(trainer, pl_module, results, seconds)
        if trainer.is_global_zero:
            if self.run_directory is not None:
                self.run_directory.write_results(results)
            self._log_pictures(trainer, results)

    def panel(self) -> list[int]:
        """The chosen images that are drawn: the first ones of the spread order, sorted."""
        return sorted((self.chosen or [])[: self.panel_images])

    def _choose(self, trainer: Trainer, pl_module: LightningModule, epoch_seconds: float | None) -> list[int]:
        """The images of this run, in spread order; the same on every rank."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        n = len(data.dataset("val"))
        allowed = data.select_images(n, min(self.images, n) if isinstance(self.images, int) else self.images)
        allowed = [allowed[i] for i in spread_order(len(allowed))]
        if self.budget is None or epoch_seconds is None:
            return allowed
        count, self.every = self._afford(
            trainer, pl_module, allowed, self.budget * trainer.strategy.broadcast(epoch_seconds)
        )
        return allowed[:count]

    def _afford(
        self, trainer: Trainer, pl_module: LightningModule, allowed: list[int], seconds: float
    ) -> tuple[int, int]:
        """How many images fit into `seconds` of each epoch, and every how many epochs they are explained; by the clock of rank 0."""

        def cost(count: int) -> float:
            start = time.monotonic()
            self._evaluate(trainer, pl_module, allowed[:count], ())
            return trainer.strategy.broadcast(time.monotonic() - start)

        small = min(_PROBE * trainer.world_size, len(allowed))
        first, once = cost(small), 0.0
        per_image = first / small
        affordable = int(seconds * self.every_n_epochs / per_image)
        large = min(len(allowed), self.batch_size * trainer.world_size, affordable // 4)
        if large > 2 * small:
            second = cost(large)
            per_image = max(
                (second - first) / (large - small), second / large / 4
            )  # the difference of two noisy times may be anything
            once = max(0.0, second - per_image * large)
            affordable = int((seconds * self.every_n_epochs - once) / per_image)
        least = min(self.panel_images, len(allowed))
        if affordable >= least:
            return min(affordable, len(allowed)), self.every_n_epochs
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            least = max(1, min(least, int((seconds * trainer.max_epochs - once) / per_image)))
        every = math.ceil((once + least * per_image) / seconds)
        rank_zero_info(
            f"explaining {least} images takes longer than {self.budget:.0%} of the epoch's time: it is done every {every} epochs and after the last"
        )
        return least, every

    def _evaluate(
        self, trainer: Trainer, pl_module: LightningModule, positions: Sequence[int], panel: Sequence[int]
    ) -> Results:
        data = trainer.datamodule  # type: ignore[attr-defined]
        mine = sorted(positions)[trainer.global_rank :: trainer.world_size]
        largest = -(-len(positions) // trainer.world_size)  # of the ranks' shares
        safe_points = SafePoints(trainer, -(-largest // self.batch_size) * len(self.explainers))

        def progress(explainer: str, done: int, total: int) -> None:
            note(trainer, f"explaining {total} images, {explainer} {done}/{total}")
            safe_points()

        def batches() -> Iterator[Batch]:
            yield from data.batches("val", mine, self.batch_size)
            safe_points.finish()  # before the tables are summed over the ranks

        try:
            return evaluate(
                getattr(pl_module, "network", pl_module),
                self.explainers,
                self.metrics,
                batches(),
                n=len(data.dataset("val")),
                name=self.model_name,
                split="val",
                epoch=trainer.current_epoch,
                noise=self.noise,
                seed=self.seed,
                chunk_size=self.chunk_size,
                panel=panel,
                total=len(mine),
                progress=progress,
            )
        finally:
            note(trainer, None)

    def _check_clock(self, trainer: Trainer, seconds: float, epoch_seconds: float | None) -> None:
        if self.budget is None or epoch_seconds is None or self._overrun_told or not trainer.is_global_zero:
            return
        epochs = min(self.every, trainer.max_epochs) if trainer.max_epochs and trainer.max_epochs > 0 else self.every
        share = seconds / (epoch_seconds * epochs)
        if share > _TOLERANCE * self.budget:
            self._overrun_told = True
            warnings.warn(
                f"explaining {len(self.chosen or [])} images took {seconds:.1f} s, {share:.0%} of {epochs} epoch(s), where {self.budget:.0%} were planned; "
                "choose fewer explainers, metrics or panel_images, or a larger every_n_epochs",
                stacklevel=2,
            )

    def _log(self, trainer: Trainer, pl_module: LightningModule, results: Results, seconds: float) -> None:
        scalars = {f"explain/{row.explainer}/{row.metric}": row.value for row in results.rows if row.explainer}
        pl_module.log_dict(
            {**scalars, "explain/images": float(len(self.chosen or [])), "explain/seconds": seconds}, batch_size=1
        )

    def _log_pictures(self, trainer: Trainer, results: Results) -> None:
        from lightning.pytorch.loggers import WandbLogger

        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                from explainode.callbacks.panels_wandb import log_explanations

                names = getattr(trainer.datamodule, "class_names", ())  # type: ignore[attr-defined]
                step = max(0, trainer.global_step - 1)  # Lightning's loggers count from 0
                log_explanations(logger, results, names, trainer.current_epoch, step)
