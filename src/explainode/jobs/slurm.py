"""The SLURM job that we are: its id, its tasks against our ranks, its way back into the queue. submitit's jobs on this machine are treated alike."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from explainode.errors import UserError
from explainode.runs.claim import Owner, claimed
from explainode.signals import NOTICES, PREEMPTIONS, keep_signals

_RESTARTED = "requeued.txt"  # in the run directory of submitit's local job: which job left it there


def slurm_job() -> str | None:
    """The id of the SLURM job that this process belongs to, ARRAY_TASK for an element of an array; None outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def local_job() -> str | None:
    """The id of the job that submitit runs on this machine; None elsewhere."""
    return os.environ.get("SUBMITIT_LOCAL_JOB_ID") if os.environ.get("SUBMITIT_EXECUTOR") == "local" else None


def is_first_rank() -> bool:
    """Whether this is the first of the processes that train together, as far as the environment says: torch may not have met them yet."""
    if local_job() is not None:
        return os.environ.get("SUBMITIT_LOCAL_GLOBALID", "0") == "0"
    if "SLURM_STEP_ID" in os.environ:
        return os.environ.get("SLURM_PROCID", "0") == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


def _under_srun() -> bool:
    """Whether SLURM's tasks are our ranks: not in an interactive shell, but in a step of several tasks that was started from one."""
    if "SLURM_NTASKS" not in os.environ:
        return False
    several = "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1
    return several or os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def check_tasks(devices: int, nodes: int) -> None:
    """Refuse ranks that are not the tasks that SLURM or submitit started: a missing one is waited for, a spare one trains on its own.

    Raises:
        UserError: naming both numbers.
    """
    if local_job() is not None:
        tasks = int(os.environ.get("SUBMITIT_LOCAL_NTASKS", "1"))
    elif _under_srun():
        tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ["SLURM_NTASKS"])
        if tasks > 1 and "SLURM_STEP_ID" not in os.environ:
            raise UserError(
                f"this SLURM job has {tasks} tasks, but explainode was started once; start it with srun: srun explainode train ..."
            )
        if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise UserError(
                f"this SLURM job has {tasks} tasks, but does not say how many on each node; use --ntasks-per-node instead of --ntasks"
            )
    else:
        return
    if devices * nodes != tasks:
        raise UserError(
            f"trainer.devices={devices} on {nodes} node(s) asks for {devices * nodes} rank(s), but {tasks} task(s) were started, one for each; "
            f"set trainer.devices={max(1, tasks // nodes)} or --ntasks-per-node={devices}"
        )


def cluster_plugins() -> list[Any]:
    """SLURM's environment where Lightning would find it, without Lightning's own requeueing (see `explainode.callbacks.requeue`)."""
    if not _under_srun():
        return []
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    return [SLURMEnvironment(auto_requeue=False)]


def keep_preemptions() -> None:
    """Keep what says that we are to make room, until we can; SIGTERM too where SLURM sends it for that, else it just ends the program."""
    keep_signals(NOTICES if slurm_job() is None else PREEMPTIONS)


def join_ranks() -> None:
    """Tell torch which rank this is where submitit started several on this machine; under SLURM Lightning asks SLURM."""
    if local_job() is None or int(os.environ.get("SUBMITIT_LOCAL_NTASKS", "1")) < 2:
        return
    from submitit.helpers import TorchDistributedEnvironment

    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    os.environ["NODE_RANK"] = "0"


def requeue(run_directory: Path) -> bool:
    """Put our job back into the queue; one rank does it. False where there is no queue, or the job was cancelled.

    submitit requeues its jobs itself: it counts how often.

    Raises:
        UserError: if SLURM refuses.
        SystemExit: by submitit.
    """
    job, by_submitit = slurm_job(), _submitit_handler()
    if job is None:
        if local_job() is None or by_submitit is None:
            return False
        (run_directory / _RESTARTED).write_text(str(local_job()), encoding="utf-8")
    try:
        # a job that was cancelled, or is being requeued already, is not running any more
        if job is not None and _ask("squeue", "--noheader", f"--jobs={job}", "--format=%T").split()[:1] != ["RUNNING"]:
            return False
        if by_submitit is not None:
            by_submitit(signal.SIGUSR2, None)
        _ask("scontrol", "requeue", str(job))
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        raise UserError(
            f"job {job} could not be put back into the queue ({said}); submit it again with run_dir={run_directory} ckpt_path=auto"
        ) from error
    return True


def _ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def restarts() -> int:
    """How often SLURM has put our job back into the queue."""
    return 0 if slurm_job() is None else int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def own(run_directory: Path) -> AbstractContextManager[Any]:
    """Context: the run directory is ours alone, see `claimed`; the first rank says so for all, and a requeued job for what it was before.

    Raises:
        UserError: naming the owner, if it is somebody else's.
    """
    if not is_first_rank():
        return nullcontext()
    job, step = slurm_job(), os.environ.get("SLURM_STEP_ID")
    return claimed(run_directory, Owner.here(f"{job}.{step or 'batch'}" if job else "", restarts()))


def was_requeued(run_directory: Path) -> bool:
    """Whether our job has run before: it goes on from the checkpoints in its run directory."""
    if slurm_job() is not None:
        return restarts() > 0
    marker = run_directory / _RESTARTED
    return local_job() is not None and marker.is_file() and marker.read_text(encoding="utf-8") == local_job()


def _submitit_handler() -> Any | None:
    """The handler by which submitit requeues a job of its own; None where submitit does not run us."""
    handlers = (signal.getsignal(number) for number in NOTICES)
    return next(
        (handler for handler in handlers if getattr(handler, "__name__", "") == "checkpoint_and_try_requeue"), None
    )
