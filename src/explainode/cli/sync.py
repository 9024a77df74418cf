"""`explainode sync`: upload what was recorded offline, run by run in the order in which the runs began."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from explainode.errors import UserError
from explainode.heartbeat import Heartbeat
from explainode.wording import shown

if TYPE_CHECKING:
    from explainode.callbacks.wandb_records import RunFile

HELP = """explainode sync RUN [RUN ...] [--dry-run] [--include-online]

Uploads the W&B runs that were recorded offline in run directories, or in all of a sweep's, in the order in which they began. The parts of a run
that was interrupted and resumed go together. A directory that was copied from another place or machine is uploaded as it lies. What is uploaded
already is left out.

Nothing outside of a run directory is uploaded: a run that names such a file is refused.

  --dry-run         says what would be uploaded, every file of it, and where to; nobody needs to be logged in
  --include-online  also what an online run could not send

examples:
  explainode sync runs/train/2026-01-31_12-00-00
  explainode sync multirun/train/2026-01-31_12-00-00 --dry-run"""

MIB = 1 << 20
# of a server that does not answer, about a minute each; W&B's own numbers are a matter of hours
PATIENCE = {f"WANDB_X_{what}_RETRY_MAX": "5" for what in ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER")}
Job = list[tuple["RunFile", Path]]  # the parts of one W&B run, and the run directories in which they lie


def run(arguments: Sequence[str]) -> int:
    """Find the runs, say or upload them; 1 if one could not be uploaded."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(HELP)
        return 0 if arguments else 2
    flags = {word for word in arguments if word.startswith("-")}
    if unknown := flags - {"--dry-run", "--include-online"}:
        raise UserError(f"sync knows --dry-run and --include-online, got {', '.join(sorted(unknown))}")
    folders = [Path(word) for word in arguments if not word.startswith("-")]
    if not folders:
        raise UserError("sync needs a run directory or several; runs are under runs/<name>/<run id>")
    with Heartbeat("starting"):
        from explainode.callbacks.wandb_login import logged_in

        jobs = find_jobs(folders, "--include-online" in flags)
    if not jobs:
        print("everything is uploaded already")
        return 0
    if "--dry-run" in flags:
        for number, job in enumerate(jobs, 1):
            print(f"{number}. would upload {describe(job)}")
            for part, folder in job:
                for file, size in part.sizes().items():
                    print(f"   {shown(_within(file, folder))} ({size} bytes)")
        return 0
    if not logged_in():
        raise UserError(
            "nobody is logged in to W&B; run `wandb login`, or set WANDB_API_KEY (--dry-run says what would be uploaded)"
        )
    failures = []
    for number, job in enumerate(jobs, 1):
        print(f"{number}/{len(jobs)}: uploading {describe(job)}", flush=True)
        reason = upload(job)
        if reason is not None:
            failures.append(shown(f"{job[0][0].run_id} of {job[0][1]}: {reason}"))
    for failure in failures:
        print(f"explainode: not uploaded: {failure}", file=sys.stderr)
    print(f"{len(jobs) - len(failures)} of {len(jobs)} runs uploaded")
    return 1 if failures else 0


def find_jobs(folders: Sequence[Path], include_online: bool = False) -> list[Job]:
    """The W&B runs in run directories that are not uploaded yet, in the order of their starts; each with its parts in the order of theirs.

    Raises:
        UserError: for a folder without W&B runs, a damaged file, or a run that names files outside of it.
    """
    from explainode.callbacks.wandb_records import inspect

    parts: dict[tuple[str, str, str], Job] = {}
    seen: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}; runs are under runs/<name>/<run id>")
        kinds = ("offline-run-*", "run-*") if include_online else ("offline-run-*",)
        files = sorted(path for kind in kinds for path in folder.rglob(f"wandb/{kind}/run-*.wandb"))
        if not files:
            raise UserError(
                f"{folder} holds no {'' if include_online else 'offline '}W&B run; train with 'logger=[csv,wandb]'"
            )
        for path in files:
            if path.resolve() in seen or is_uploaded(path):
                continue
            seen.add(path.resolve())
            where = path.parents[2]
            part = inspect(path, where)
            if part.outside:
                raise UserError(
                    f"{path} names {part.outside[0]}{f' and {len(part.outside) - 1} more' if part.outside[1:] else ''}, outside of the run "
                    f"{where}; nothing of it is uploaded"
                )
            parts.setdefault((part.entity, part.project, part.run_id), []).append((part, where))
    jobs = [sorted(job, key=lambda item: item[0].started) for job in parts.values()]
    return sorted(jobs, key=lambda job: job[0][0].started)


def _within(file: Path, folder: Path) -> Path:
    """A file's place as seen from its run directory."""
    return file.resolve().relative_to(folder.resolve())


def is_uploaded(path: Path) -> bool:
    """Whether W&B has left its mark that all of a log file was taken."""
    return path.with_name(f"{path.name}.synced").exists()


def describe(job: Job) -> str:
    """One W&B run in words: what, where to, how much."""
    first = job[0][0]
    started = datetime.datetime.fromtimestamp(first.started).strftime("%Y-%m-%d %H:%M:%S")
    size = sum(part.size for part, _ in job) / MIB
    lines = sum(part.history for part, _ in job)
    facts = [
        shown(f"run {first.run_id}, {first.job_type or 'no job type'}, group {first.group or 'none'}, begun {started}"),
        f"{len(job)} part{'s' if len(job) > 1 else ''}, {lines} lines of numbers, {size:.1f} MiB",
    ]
    if not all(part.finished for part, _ in job[-1:]):
        facts.append("it was not finished")
    missing = [name for part, _ in job for name in part.missing]
    if missing:
        facts.append(f"{len(missing)} file(s) of artifacts are not there any more, such as {shown(missing[0])}")
    place = shown(f"{first.name or first.run_id} to {first.entity or 'your default entity'}/{first.project}")
    return f"{place} ({'; '.join(facts)})"


def upload(job: Job) -> str | None:
    """Upload one run with `wandb sync`; None, or why it failed.

    W&B's exit status says nothing: it is 0 whatever happened. Its mark beside the file is what counts.
    """
    from explainode.callbacks.wandb_records import relocate_in_place

    for part, folder in job:
        if part.moved:
            relocate_in_place(part.path, folder)
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", *(str(part.path) for part, _ in job)]
    environment = {**PATIENCE, **os.environ}
    environment.pop("WANDB_SERVICE", None)  # a service that this process may have started knows other settings
    with Heartbeat(f"uploading {job[0][0].run_id}"):
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    if all(is_uploaded(part.path) for part, _ in job):
        return None
    said = [line.removeprefix("wandb:").strip() for line in done.stdout.splitlines() if line.strip()]
    errors = [line for line in said if line.startswith("ERROR")] or said[-1:]
    return (
        errors[0].removeprefix("ERROR").strip()
        if errors
        else f"wandb sync ended with status {done.returncode} and said nothing"
    )
