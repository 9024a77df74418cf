"""What a W&B run keeps as files: the source, the settings, the checkpoint, the explanations; copied at once, so that later changes do not matter."""

from __future__ import annotations

import io
import logging
import shutil
import zipfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import wandb

log = logging.getLogger(__name__)

MIB = 1 << 20
RECORDED = ("config.yaml", "versions.yaml")
_EPOCH_OF_ZIP = (1980, 1, 1, 0, 0, 0)


def source_zip() -> bytes:
    """The package's code and configs as one zip file, byte for byte the same for the same files: W&B keeps it once, whatever number of runs names it.

    One file, since a run of two hundred small ones would eat up a cluster's quota of files.
    """
    found = []
    for package in ("explainode", "explainode.conf"):
        root = Path(str(resources.files(package)))
        found += [
            (Path(package) / path.relative_to(root), path)
            for path in root.rglob("*")
            if path.suffix in (".py", ".css", ".yaml")
        ]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, path in sorted(found):
            archive.writestr(zipfile.ZipInfo(name.as_posix(), _EPOCH_OF_ZIP), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def log_code(run: Any, folder: Path) -> None:
    """Keep the source as the artifact `source`, and the run directory's settings and versions among the run's files."""
    artifact = wandb.Artifact("source", "code", description="The package's code and configs.")
    with artifact.new_file("source.zip", mode="wb") as file:
        file.write(source_zip())
    run.log_artifact(artifact)
    for name in RECORDED:
        if (folder / name).is_file():
            kept = Path(run.dir) / "run" / name
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, kept)
            run.save(str(kept), base_path=run.dir, policy="now")


def log_model(run: Any, checkpoint: Path, limit: float) -> None:
    """Keep a checkpoint as the artifact `model-<run id>`, unless it is larger than `limit` MiB."""
    manifest = [path for path in (checkpoint.parent / "manifest.json",) if path.is_file()]
    log_files(
        run,
        f"model-{run.id}",
        "model",
        [checkpoint, *manifest],
        checkpoint.parent,
        limit,
        {"checkpoint": checkpoint.name},
    )


def log_files(
    run: Any,
    name: str,
    kind: str,
    files: Sequence[Path],
    base: Path,
    limit: float,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Keep files, named by their place under `base`, as one artifact, unless they are larger than `limit` MiB together."""
    size = sum(path.stat().st_size for path in files)
    if size > limit * MIB:
        log.info(
            "the %s (%.0f MiB) is not kept in W&B, whose limit is %.0f MiB (logger.wandb.%s_mib)",
            kind,
            size / MIB,
            limit,
            kind,
        )
        return
    artifact = wandb.Artifact(name, kind, metadata={"bytes": size, **(metadata or {})})
    for path in files:
        artifact.add_file(str(path), name=path.relative_to(base).as_posix())
    run.log_artifact(artifact)
