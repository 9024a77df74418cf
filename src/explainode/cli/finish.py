"""What every verb that measures says at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from explainode.runs.directory import RunDirectory


def finish(folder: RunDirectory, interrupted: bool = False) -> None:
    """Write the report and its tables; print what was found, the verdict, and where the report lies."""
    from rich.console import Console

    from explainode.jobs.reporting import write_up
    from explainode.report.tables import print_results

    written = write_up(folder)
    console = Console()
    print_results(written.results, console)
    if interrupted:
        console.print(
            "Interrupted: the checkpoint and the report hold what was finished; go on with ckpt_path=auto and the same run_dir."
        )
    console.print(written.verdict, soft_wrap=True, highlight=False, markup=False)
    console.print(f"report: {written.report}", soft_wrap=True, highlight=False, markup=False)
