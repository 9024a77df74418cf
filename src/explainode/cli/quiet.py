"""What libraries say that no user can act on."""

from __future__ import annotations

import logging
import warnings

from explainode.wording import shown


def quiet_libraries() -> None:
    """Silence Lightning's banners and warnings of its own making; everything else is heard.

    Each filter names one message, so that a new one is not lost with it. What is heard is a line, without the place in the source.
    """
    warnings.formatwarning = lambda message, *_: f"warning: {shown(message)}\n"
    for name in (
        "lightning.pytorch",
        "lightning.fabric",
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.seed",
        "lightning.fabric.utilities.distributed",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")  # Lightning's own use of torch's pytree
    warnings.filterwarnings(
        "ignore", message="The number of training batches .* is smaller than the logging interval"
    )  # epochs are logged too
    warnings.filterwarnings(
        "ignore", message="The '.*_dataloader' does not have many workers"
    )  # ours makes whole batches at once
    warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")
    warnings.filterwarnings(
        "ignore", message="It is recommended to use `self.log"
    )  # what we log is the same on every rank already
    warnings.filterwarnings(
        "ignore", message="The `srun` command is available"
    )  # on any machine with SLURM; inside a job we say it ourselves
