"""`explainode compare`: two or more runs, image by image, with paired tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from explainode.errors import UserError

HELP = """explainode compare RUN RUN [RUN ...] [-o FOLDER]

Puts the results of runs side by side: paired sign-flip tests over the images they share, with Holm's correction, and a report.
Runs that measured a metric with different protocols are refused: their numbers do not compare.

examples:
  explainode compare runs/a runs/b
  explainode compare runs/a runs/b -o runs/a_against_b"""


def run(arguments: Sequence[str]) -> int:
    """Merge the runs' results under the runs' names; report."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(HELP)
        return 0 if arguments else 2
    from explainode.cli.compose import run_id
    from explainode.cli.train import finish
    from explainode.report.merge import merge_runs
    from explainode.report.run import RunDirectory

    words = list(arguments)
    output = Path(f"runs/compare/{run_id()}")
    if "-o" in words:
        at = words.index("-o")
        if at + 1 == len(words):
            raise UserError("-o needs a folder")
        output = Path(words[at + 1])
        del words[at : at + 2]
    if len(words) < 2:
        raise UserError(f"compare needs two runs or more, got {len(words)}")
    results = merge_runs([Path(word) for word in words])
    folder = RunDirectory(output)
    folder.write_config({"name": "compare", "runs": words})
    folder.write_results(results)
    finish(folder)
    return 0
