"""A sweep of four points with two ranks each, by every launcher that starts ranks: are the tables those of runs on their own?

    python scripts/benchmarks/sweeps.py [--launchers submitit_local joblib submitit_slurm] [--folder FOLDER]

SLURM takes part where one answers (scripts/slurm_dev.sh up; eval "$(scripts/slurm_dev.sh env)").
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from small_runs import largest_difference, same_weights, table, train

LAUNCHERS = ("submitit_local", "joblib", "submitit_slurm")
MAGNITUDES = (0, 0.05, 0.1, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launchers", nargs="+", choices=LAUNCHERS, default=list(LAUNCHERS))
    parser.add_argument("--folder", type=Path, help="where the runs are kept; a temporary folder without it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        alone = [folder / "alone" / str(point) for point in range(len(MAGNITUDES))]
        for magnitude, run in zip(MAGNITUDES, alone, strict=True):
            if not (run / "report.html").exists():
                train("trainer=ddp_sim", f"model.noise.magnitude={magnitude}", f"run_dir={run}")
        distinct = len({tuple(table(run).values()) for run in alone})
        print(f"on their own: {len(alone)} runs with {distinct} different tables")
        for launcher in options.launchers:
            if launcher == "submitit_slurm" and shutil.which("sbatch") is None:
                print(f"{launcher}: no sbatch here")
                continue
            sweep, start = folder / launcher, time.monotonic()
            values = ",".join(map(str, MAGNITUDES))
            train(
                "-m",
                "trainer=ddp_sim",
                f"hydra/launcher={launcher}",
                f"model.noise.magnitude={values}",
                f"hydra.sweep.dir={sweep}",
            )
            points = [sweep / str(point) for point in range(len(MAGNITUDES))]
            differences = [largest_difference(table(a), table(b)) for a, b in zip(alone, points, strict=True)]
            equal = sum(same_weights(a, b) for a, b in zip(alone, points, strict=True))
            print(
                f"{launcher}: {sum(difference == 0 for difference in differences)} of {len(points)} tables identical (largest difference "
                f"{max(differences):g}), {equal} with the same bits ({time.monotonic() - start:.0f} s)",
                flush=True,
            )


if __name__ == "__main__":
    main()
