"""`explainode doctor`: what this installation is and whether it can work."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HELP = """explainode doctor

Prints versions, device, memory, disk, the logging mode of W&B, and whether a run directory can be written here."""

PACKAGES = (
    "explainode",
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "hydra-core",
    "omegaconf",
    "wandb",
    "captum",
    "torchsde",
    "torchdiffeq",
)
EXTRAS = ("timm", "fastapi", "hydra-submitit-launcher", "hydra-joblib-launcher", "wandb-workspaces")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def run(arguments: Sequence[str]) -> int:
    """Print the facts; exit status 1 where a needed part is missing."""
    if "-h" in arguments or "--help" in arguments:
        print(HELP)
        return 0
    import torch
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    missing = False
    for package in PACKAGES:
        found = _version(package)
        missing |= found == "not installed"
        table.add_row(package, f"[red]{found}[/red]" if found == "not installed" else found)
    table.add_row("extras", ", ".join(f"{package} {_version(package)}" for package in EXTRAS))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            table.add_row(f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    else:
        table.add_row("device", f"cpu, {torch.get_num_threads()} threads (no CUDA device)")
    from explainode.training.precision import native_bf16

    bf16 = {
        True: "native on this CPU",
        False: "not native on this CPU: train on it with trainer.precision=32-true",
        None: "unknown",
    }
    table.add_row("bfloat16", bf16[native_bf16()])
    disk = shutil.disk_usage(Path.cwd())
    table.add_row("disk here", f"{disk.free / 2**30:.1f} GiB free of {disk.total / 2**30:.0f}")
    table.add_row(
        "runs/",
        "writable" if os.access(Path.cwd(), os.W_OK) else "[red]this folder is read-only; pass run_dir=...[/red]",
    )
    from explainode.callbacks.loggers import wandb_mode

    table.add_row("W&B", wandb_mode())
    job = os.environ.get("SLURM_JOB_ID")
    table.add_row("SLURM", f"job {job}" if job else ("sbatch found" if shutil.which("sbatch") else "not here"))
    Console().print(table)
    return 1 if missing else 0
