"""A SLURM job of two ranks is told to make room, at random moments; does it come back, and with the result of a job that was left alone?

    scripts/slurm_dev.sh up; eval "$(scripts/slurm_dev.sh env)"
    python scripts/benchmarks/requeue.py [--trials 20] [--seed 0] [--folder FOLDER]

Trials take turns among start-up, training, validation, explanation and the measuring at the end; every fourth signal is SIGTERM, the others are SIGUSR1. A
requeued job would wait for two minutes: it is let go at once. Lost steps are those that the progress line had shown before the signal and
the checkpoint does not hold.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from small_runs import ONE_THREAD, SETTINGS, largest_difference, same_weights, steps, table, train, wait_for

SCRIPT = Path(__file__).parents[1] / "train.sbatch"
PHASES = {
    "start-up": None,
    "training": "training batch",
    "validation": "validating batch",
    "explanation": "explaining",
    "measuring": "epoch 3 done",
}
BATCHES = 768 // 16 // 2  # of an epoch, with two ranks
PATIENCE = 240.0  # seconds until a job counts as hung


def ask(*words: str) -> str:
    """What a SLURM command prints."""
    return subprocess.run(words, env=ONE_THREAD, capture_output=True, text=True, check=True).stdout.strip()


def fact(job: str, name: str) -> str:
    """One field of `scontrol show job`."""
    return re.search(rf"\b{name}=(\S+)", ask("scontrol", "show", "job", job))[1]  # type: ignore[index]


def submit(folder: Path) -> str:
    """A job of two ranks in its own folder."""
    options = ["--parsable", "--ntasks-per-node=2", "--time=60", f"--chdir={folder}", f"--output={folder}/out.txt"]
    environment = ONE_THREAD | {"EXPLAINODE": str(Path(sys.executable).with_name("explainode"))}
    done = subprocess.run(
        ["sbatch", *options, SCRIPT, "trainer=ddp_sim", *SETTINGS],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def shown(output: Path) -> int:
    """The step that the progress line has reached, over all epochs."""
    found = re.findall(r"epoch (\d+)/\d+ \| training batch (\d+)/", output.read_text() if output.exists() else "")
    return 0 if not found else (int(found[-1][0]) - 1) * BATCHES + int(found[-1][1])


def trial(folder: Path, phase: str, number: str, draw: random.Random, unbroken: Path) -> tuple[str, str]:
    """One job, one signal: how it ended, and details."""
    job = submit(folder)
    output = folder / "out.txt"
    try:
        if not wait_for(lambda: fact(job, "JobState") == "RUNNING", 60):
            return "never started", ""
        mark = PHASES[phase]
        if mark is None:
            time.sleep(draw.uniform(0, 6))
        else:
            seen = mark if phase == "measuring" else f"epoch {draw.randrange(3) + 1}/3 | {mark}"
            if not wait_for(lambda: output.exists() and seen in output.read_text(), PATIENCE, 0.02):
                return "phase not seen", seen
            time.sleep(draw.uniform(0, 1))
        before = shown(output)
        ask("scancel", f"--signal={number}", job)
        if not wait_for(lambda: fact(job, "Restarts") == "1" and fact(job, "JobState") == "PENDING", PATIENCE):
            return "hung" if fact(job, "JobState") in (
                "RUNNING",
                "COMPLETING",
            ) else f"not requeued ({fact(job, 'JobState')})", ""
        run = folder / "runs" / "train" / job
        saved = steps(run)
        ask("scontrol", "update", f"jobid={job}", "starttime=now")
        if not wait_for(
            lambda: fact(job, "JobState") not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"), PATIENCE, 0.5
        ):
            return "hung after resuming", ""
        if fact(job, "JobState") != "COMPLETED":
            return f"failed after resuming ({fact(job, 'JobState')})", ""
        difference = largest_difference(table(unbroken), table(run))
        equal = same_weights(unbroken, run)
        lost = max(0, before - saved)
        return (
            "resumed",
            f"step {saved}, lost {lost}, weights {'equal' if equal else 'DIFFER'}, table differs by {difference:g}",
        )
    finally:
        subprocess.run(["scancel", "--signal=KILL", job], env=ONE_THREAD, capture_output=True, check=False)
        subprocess.run(["scancel", job], env=ONE_THREAD, capture_output=True, check=False)
        wait_for(lambda: fact(job, "JobState") not in ("PENDING", "RUNNING", "COMPLETING"), 60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs are kept; a temporary folder without it")
    options = parser.parse_args()
    if shutil.which("sbatch") is None:
        raise SystemExit('there is no sbatch here: scripts/slurm_dev.sh up, then eval "$(scripts/slurm_dev.sh env)"')
    draw = random.Random(options.seed)
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        unbroken = folder / "unbroken"
        if not (unbroken / "report.html").exists():
            train("trainer=ddp_sim", f"run_dir={unbroken}")
        for count in range(options.trials):
            phase, number = list(PHASES)[count % len(PHASES)], "TERM" if count % 4 == 3 else "USR1"
            place = folder / f"trial{count}"
            place.mkdir(parents=True)
            start = time.monotonic()
            end, details = trial(place, phase, number, draw, unbroken)
            ends[end] += 1
            print(
                f"{count:3} {number:5} in {phase:12} {end:16} {details} ({time.monotonic() - start:.0f} s)", flush=True
            )
    print(", ".join(f"{count} {end}" for end, count in ends.items()))


if __name__ == "__main__":
    main()
