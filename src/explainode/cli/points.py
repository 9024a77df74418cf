"""The points of a sweep, or the only run: each trained where its launcher puts it, and what went wrong said once, in a sentence."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from explainode.cli.finish import finish
from explainode.cli.launch import check_launcher, failures, note_failure, train_in_own_process
from explainode.cli.quiet import quiet_libraries
from explainode.cli.record import record_evaluation
from explainode.errors import UserError
from explainode.heartbeat import Heartbeat
from explainode.jobs.slurm import is_first_rank, join_ranks, keep_preemptions, local_job, requeue, slurm_job
from explainode.registry.composing import check_entries
from explainode.registry.devices import count_devices
from explainode.registry.targets import allow_targets, consent
from explainode.signals import TrainingInterrupted, TrainingLeft, TrainingPreempted, at_once


class Points:
    """The points of a sweep, or the only run. Hydra's main returns nothing, and would print a failure before we can say it in a sentence.

    A copy of this trains in each process that a launcher starts: what went wrong there comes back as files.
    """

    def __init__(self, sweeps: bool, launcher: str, config_folders: Sequence[Path]) -> None:
        self.sweeps, self.launcher, self.config_folders = sweeps, launcher, list(config_folders)
        self.consent = consent()  # the command line's, which other processes do not see
        self.failure: Exception | None = None
        self.left: TrainingLeft | None = None

    def train(self, point: DictConfig) -> None:
        """Train one point; of a sweep, a failure is written down, so that the other points go on.

        Raises:
            SystemExit: where our job was put back into the queue: it is not over, and no launcher may take it for that.
        """
        if self.left is not None:
            return  # an earlier point was stopped, and with it the sweep
        folder = Path(point.output_dir)
        try:
            allow_targets(self.consent)
            check_entries(point)
            if self.sweeps and self.launcher == "basic":
                check_launcher(point, self.launcher, self.sweeps)  # its number of devices may be what is swept
            elif self.sweeps:  # a process of its own, which has not come through main
                quiet_libraries()
                keep_preemptions()
                join_ranks()
            if self.sweeps and self.launcher == "joblib" and count_devices(point.trainer) > 1:
                from hydra.core.hydra_config import HydraConfig

                train_in_own_process(folder, HydraConfig.get().overrides.task, self.config_folders)
            else:
                _train(point)
        except TrainingPreempted as left:
            self._make_room(left, folder)
        except TrainingLeft as left:
            self.left = left
        except Exception as error:
            self.failure = error
        if self.sweeps and (self.failure or self.left):
            why = self.failure or UserError("it was stopped before its end")
            note_failure(folder, why)
            if self.launcher != "basic":  # into the log of this process; who started the sweep lists all at its end
                print(f"explainode: {why}", file=sys.stderr)
            self.failure = None

    def _make_room(self, left: TrainingPreempted, folder: Path) -> None:
        """Put our job back into the queue, if there is one, or remember that the training was left."""
        first = is_first_rank()
        if first:
            saved = (
                "there was nothing new to save" if left.checkpoint is None else f"everything is in {left.checkpoint}"
            )
            print(f"\nasked to make room: {saved}", file=sys.stderr, flush=True)
        queued = slurm_job() is not None or local_job() is not None
        if queued and (not first or requeue(folder)):
            raise SystemExit(0) from left
        self.left = left

    def status(self, sweep: Path) -> int:
        """The exit status; the only run's failure is raised, those of a sweep are listed."""
        if self.failure is not None:
            raise self.failure
        found = failures(sweep) if self.sweeps else {}
        for place, why in found.items():
            print(f"explainode: {place}: {why}", file=sys.stderr)
        if self.left is None:
            return 1 if found else 0
        if not is_first_rank():
            return (
                0  # Lightning would take it for a rank that died, and kill the first one, which still writes its report
            )
        return 130 if isinstance(self.left, TrainingInterrupted) else 128 + (self.left.signal or signal.SIGTERM)


def _train(point: DictConfig) -> None:
    """Train as the configuration says; say what was found, and hand it to W&B where that is chosen.

    Raises:
        TrainingLeft: if a signal asked to leave.
    """
    with Heartbeat("starting"):
        from explainode.jobs.train import prepare, train
        from explainode.ranks import rank_and_size

        data, settings = prepare(point)
    training = train(point, data, settings, say=lambda sentence: print(sentence, flush=True))
    if rank_and_size()[0] == 0:
        with at_once():
            finish(training.folder, training.interrupted is not None)
            if training.interrupted is None:
                record_evaluation(training.settings, training.folder)
    if training.interrupted is not None:
        raise training.interrupted
