"""`explainode demo`: the whole story in about two minutes, on data that is made on the spot."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from explainode.errors import UserError
from explainode.runs.claim import owner_of, refusal
from explainode.runs.directory import run_config

HELP = """explainode demo [settings]

Trains a small ResNet and its noise-injected twin on embedded shapes, explains and measures both each epoch, and ends with one
sentence and runs/demo/report.html. It is `explainode train experiment=demo run_dir=runs/demo`; settings are the same.
An earlier demo in runs/demo is replaced."""


def run(arguments: Sequence[str]) -> int:
    """Train with experiment=demo in a fresh runs/demo."""
    if "-h" in arguments or "--help" in arguments:
        print(HELP)
        return 0
    from explainode.cli import train

    folder = Path(next((word.partition("=")[2] for word in arguments if word.startswith("run_dir=")), "runs/demo"))
    if (owner := owner_of(folder)) is not None:
        raise UserError(refusal(folder, owner))
    if folder.exists() and any(folder.iterdir()):
        if run_config(folder).get("name") != "demo":
            raise UserError(f"{folder} holds another run; name another folder with run_dir=...")
        shutil.rmtree(folder)
    settings = [word for word in arguments if not word.startswith("run_dir=")]
    return train.run(["experiment=demo", f"run_dir={folder}", *settings])
