"""The id under which W&B goes on with a run: the same for every start in the same run directory, and no other's."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from explainode.files import replace_file
from explainode.runs.directory import RUN_TOKEN


def stable_id(folder: Path, *names: str) -> str:
    """16 hexadecimal digits made of a random token that the run directory keeps, and of `names` (the variant, the kind of work).

    A requeued or resumed run thus goes on with its own curves, also where the directory has been copied to. Not made of the run's id: job numbers of
    two clusters, or two people's clocks, would meet in one project.

    Raises:
        UserError: if the directory cannot be written.
    """
    path = folder / RUN_TOKEN
    if not path.is_file() and getattr(rank_zero_only, "rank", 0) == 0:  # only the first rank has a run
        replace_file(path, f"{secrets.token_hex(16)}\n".encode())
    token = path.read_text(encoding="ascii") if path.is_file() else ""
    return hashlib.blake2b("\n".join([token, *names]).encode(), digest_size=8).hexdigest()
