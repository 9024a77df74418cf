"""`explainode dashboard`: a W&B workspace that shows networks and explanations side by side, as a file or on the server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from explainode.errors import UserError
from explainode.heartbeat import Heartbeat

if TYPE_CHECKING:
    from explainode.callbacks.dashboard_wandb import Shown

HELP = """explainode dashboard [PROJECT] [--from RUN ...] [--entity NAME] [-o FILE] [--save] [--report]

Builds the dashboard of a W&B project: accuracy against faithfulness, sensitivity by noise magnitude, panels and curves over epochs. Its
specification is written as JSON; nothing is sent unless asked. Needs the extra: pip install 'explainode[reports]'.

  PROJECT          explainode, unless logger.wandb.project says otherwise
  --from RUN       draw the explainers and metrics of these run directories; without it, those that `explainode train` takes by default
  --entity NAME    user or team; yours where it is left out
  -o FILE          the specification, runs/dashboard/PROJECT.json
  --save           make the workspace on the server, which needs `wandb login`
  --report         with --save: also a report of the same panels

examples:
  explainode dashboard --from runs/train/2026-01-31_12-00-00
  explainode dashboard cifar10 --entity my-team --save"""


def run(arguments: Sequence[str]) -> int:
    """Build, write, and upload if asked to."""
    if "-h" in arguments or "--help" in arguments:
        print(HELP)
        return 0
    words, flags, options = _parse(arguments)
    if len(words) > 1:
        raise UserError(f"dashboard takes one project, got {', '.join(words)}; run directories follow --from")
    if "--report" in flags and "--save" not in flags:
        raise UserError("a report exists on the server only; add --save")
    project = words[0] if words else "explainode"
    entity = options["--entity"][-1] if options["--entity"] else ""
    with Heartbeat("starting"):
        from explainode.callbacks.dashboard_wandb import build_report, build_workspace, specification
        from explainode.callbacks.wandb_login import logged_in
        from explainode.files import replace_file

        shown = _shown([Path(word) for word in options["--from"]])
        workspace = build_workspace(project, entity, shown)
        path = Path(options["-o"][-1]) if options["-o"] else Path("runs/dashboard") / f"{project}.json"
        replace_file(path, json.dumps(specification(workspace), indent=1).encode())
    if "--save" in flags:
        if not logged_in():
            raise UserError(f"nobody is logged in to W&B; run `wandb login` (the specification is in {path})")
        if not entity:
            raise UserError("--save needs to know whose project it is; add --entity NAME")
        workspace.save()
        print(f"workspace: {workspace.url}")
        if "--report" in flags:
            report = build_report(project, entity, shown)
            report.save()
            print(f"report: {report.url}")
    print(f"specification: {path}")
    return 0


def _parse(arguments: Sequence[str]) -> tuple[list[str], set[str], dict[str, list[str]]]:
    """Words, flags, and options with their values; `--from` takes all words up to the next option."""
    words: list[str] = []
    flags: set[str] = set()
    options: dict[str, list[str]] = {"--from": [], "--entity": [], "-o": []}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word in options:
            taken: list[str] = []
            while rest and not rest[0].startswith("-") and (word == "--from" or not taken):
                taken.append(rest.pop(0))
            if not taken:
                raise UserError(f"{word} needs a value")
            options[word] += taken
        elif word in ("--save", "--report"):
            flags.add(word)
        elif word.startswith("-"):
            raise UserError(f"dashboard knows --from, --entity, -o, --save and --report, got {word}")
        else:
            words.append(word)
    return words, flags, options


def _shown(runs: Sequence[Path]) -> Shown:
    """Explainers and metrics of the runs, or those that training takes by default.

    Raises:
        UserError: for a folder that is no run directory, or runs without explanations.
    """
    from explainode.callbacks.dashboard_wandb import Shown

    if not runs:
        from explainode.registry import compose, locate

        config = compose("train", [])
        explainers = {name: locate(entry["_target_"]).control for name, entry in config.explainer.items()}
        roles = {name: locate(entry["_target_"]).role for name, entry in config.metric.items()}
        return Shown(tuple(explainers), roles, {name for name, control in explainers.items() if control})
    from explainode.metrics.results import Results
    from explainode.runs.directory import RunDirectory

    found = Results()
    for folder in runs:
        directory = RunDirectory(folder)
        directory.read_config()  # says so where it is none
        found.rows += [row for row in directory.read_results().rows if row.explainer]
    if not found.rows:
        raise UserError(f"nothing was explained in {', '.join(map(str, runs))}; name runs with a metrics.csv")
    return Shown(tuple(dict.fromkeys(row.explainer for row in found.rows)), found.roles, found.controls)
