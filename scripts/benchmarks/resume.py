"""A training run is killed at a random step and resumed: does it end with the bits and the table of the unbroken one?

    python scripts/benchmarks/resume.py [--kills 20] [--ranks 1] [--seed 0] [--folder FOLDER]

The signals take turns: SIGKILL, SIGTERM, SIGUSR1 and Ctrl-C (SIGINT to all processes, as a terminal sends it). After SIGKILL a run goes on from its last
finished epoch, after the others from the batch where it stopped. A repeated line is one that was written before the kill and again after it; readers
take the later one. A lost or doubled row would make the tables differ.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from small_runs import (
    ONE_THREAD,
    command,
    largest_difference,
    repeated_lines,
    same_weights,
    steps,
    table,
    train,
    wait_for,
)

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
IMAGES, BATCH, EPOCHS = 768, 16, 3  # of the small settings


def shown(output: Path) -> tuple[int, int]:
    """The last epoch and batch on the progress line."""
    found = re.findall(r"epoch (\d+)/\d+ \| training batch (\d+)/", output.read_text() if output.exists() else "")
    return (0, 0) if not found else (int(found[-1][0]) - 1, int(found[-1][1]))


def kill_at(step: int, per_epoch: int, folder: Path, words: list[str], number: signal.Signals) -> int:
    """Start a run, send the signal once the progress line has reached `step`; the step that it showed then. The whole tree ends here."""
    output = folder / "out.txt"
    with open(output, "w") as file:
        run = subprocess.Popen(command(*words), env=ONE_THREAD, stdout=file, stderr=file, start_new_session=True)
    try:

        def there() -> bool:
            epoch, batch = shown(output)
            return epoch * per_epoch + batch >= step or run.poll() is not None

        if not wait_for(there, 300, 0.02) or run.poll() is not None:
            raise SystemExit(f"the run did not get to step {step}:\n{output.read_text()[-2000:]}")
        epoch, batch = shown(output)
        if number in (signal.SIGKILL, signal.SIGINT):
            os.killpg(run.pid, number)
        else:
            os.kill(run.pid, number)
        run.wait(120)
        return epoch * per_epoch + batch
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs are kept; a temporary folder without it")
    options = parser.parse_args()
    trainer = [] if options.ranks == 1 else ["trainer=ddp_sim", f"trainer.devices={options.ranks}"]
    per_epoch = IMAGES // options.ranks // BATCH
    draw = random.Random(options.seed)
    good = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        unbroken = folder / "unbroken"
        if not (unbroken / "report.html").exists():
            train(*trainer, f"run_dir={unbroken}")
        for count in range(options.kills):
            number, step = SIGNALS[count % len(SIGNALS)], draw.randrange(1, per_epoch * EPOCHS - 1)
            place = folder / f"kill{count}"
            place.mkdir(parents=True)
            words = [*trainer, f"run_dir={place / 'run'}"]
            start = time.monotonic()
            reached = kill_at(step, per_epoch, place, words, number)
            saved = steps(place / "run")
            train(*words, "ckpt_path=auto")
            equal = same_weights(unbroken, place / "run")
            difference = largest_difference(table(unbroken), table(place / "run"))
            good += equal and difference == 0
            print(
                f"{count:3} {number.name:8} at step {reached:3}, went on from {saved:3}: weights {'equal' if equal else 'DIFFER'}, "
                f"table differs by {difference:g}, {repeated_lines(place / 'run')} repeated lines ({time.monotonic() - start:.0f} s)",
                flush=True,
            )
    print(f"{good} of {options.kills} equal the unbroken run: the same bits, the same table")


if __name__ == "__main__":
    main()
