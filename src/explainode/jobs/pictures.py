"""Explaining pictures: files in, a panel, raw maps and scores out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from explainode.data.pictures import load_picture
from explainode.data.shapes import CLASS_NAMES
from explainode.errors import UserError, nearest
from explainode.evaluation import in_batches
from explainode.explaining import explain
from explainode.jobs.demo_pair import SIZE, demo_networks
from explainode.jobs.measure import choose_device, many
from explainode.jobs.networks import build_network, fill_classes, run_networks
from explainode.metrics.maps import concatenate_maps, to_maps
from explainode.metrics.results import Maps
from explainode.models.contrast import Contrast
from explainode.models.names import imagenet_classes
from explainode.models.weights import load_weights
from explainode.registry.foreign import foreign_run
from explainode.report.panels import panel
from explainode.runs.directory import RunDirectory

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif")


@dataclass
class Subject:
    """A network and what must be known to feed and read it."""

    name: str
    network: Any
    size: int
    class_names: list[str] | None


def named_pictures(words: Sequence[str]) -> list[Path]:
    """The files that the words name; a folder stands for the pictures in it.

    Raises:
        UserError: for none, or one that is not there.
    """
    paths: list[Path] = []
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES)
            if not inside:
                raise UserError(f"{word} has no pictures in it; known endings are {', '.join(PICTURES)}")
            paths += inside
        elif path.is_file():
            paths.append(path)
        else:
            raise UserError(f"no file or folder {word!r}")
    if not paths:
        raise UserError("no picture is named: explainode explain picture.jpg")
    return paths


def read_class_names(path: str | Path) -> list[str]:
    """The names of classes from a file: one a line, a JSON list, or a JSON object {index: name} such as Hugging Face's `id2label`.

    Raises:
        UserError: if there is no such file, or it holds something else.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the class names in {path} cannot be read ({getattr(error, 'strerror', None) or 'it is no text'}); give a text file, one name a line"
        ) from error
    if not text.lstrip().startswith(("[", "{")):
        found = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path} is damaged JSON; give a list of names, {{index: name}}, or one name a line"
            ) from error
        content = content.get("id2label", content) if isinstance(content, dict) else content
        if isinstance(content, dict):
            indices = {int(key): str(value) for key, value in content.items() if str(key).isdigit()}
            if len(indices) != len(content) or sorted(indices) != list(range(len(indices))):
                raise UserError(f"{path} names classes by {list(content)[:3]}, expected every index from 0 on")
            found = [indices[k] for k in range(len(indices))]
        else:
            found = [str(name) for name in content]
    if not found:
        raise UserError(f"{path} holds no class name; give one a line")
    return found


def choose_subjects(settings: Mapping[str, Any]) -> list[Subject]:
    """The network that model names, or those of a run: all its variants, side by side; without either those of the newest run under
    runs/, and where there is none the pair that comes with the package.

    Raises:
        UserError: if a run or a model cannot be used.
    """
    device = choose_device(settings["device"])
    if settings.get("model"):
        model = dict(settings["model"])
        num_classes = fill_classes(model)
        if not model.get("weights") and settings["checkpoint"] is None:
            raise UserError(
                "a network without trained weights has nothing to explain: add --weights PATH (or model.weights=torchvision to download them)"
            )
        network: Any = build_network(model)
        if settings["checkpoint"] is not None:
            load_weights(network, settings["checkpoint"])
        size = settings["size"] or network.image_size
        names = imagenet_classes() if num_classes == 1000 else None
        return [Subject(settings["model_name"], network.to(device).eval(), size, names)]
    if not settings["run"] and (newest := _newest_run()) is None:
        if settings["checkpoint"] is not None:
            raise UserError("--checkpoint needs the run that it belongs to (--run RUN) or a network (--model NAME)")
        return [
            Subject(f"demo/{name}", network.to(device), settings["size"] or SIZE, list(CLASS_NAMES))
            for name, network in demo_networks().items()
        ]
    folder = Path(settings["run"]) if settings["run"] else newest
    trained = foreign_run(folder)
    asked = {
        "run": str(folder),
        "checkpoint": settings["checkpoint"],
        "variant": "model",
        "trained_as": trained.get("variant"),
    }
    networks = run_networks(trained | asked)
    names = RunDirectory(folder).read_class_names() or None
    return [
        Subject(
            f"{folder.name}/{name}",
            network.to(device).eval(),
            settings["size"] or trained.get("image_size") or network.image_size,
            names,
        )
        for name, network in networks.items()
    ]


def _newest_run() -> Path | None:
    """The run directory under runs/ whose checkpoint is newest; None where there is none."""
    found = sorted(Path("runs").glob("**/checkpoints/*/*.ckpt"), key=lambda path: path.stat().st_mtime)
    return found[-1].parents[2] if found else None


@dataclass
class Pictures:
    """N pictures that could be read: (N, 3, size, size) pixels in [0, 1], their paths, and what must be said of them.

    Attributes:
        notes: (path, what was done to the picture) for what a user would not expect; refused: a sentence for each that was left out.
    """

    image: torch.Tensor
    paths: list[Path]
    notes: list[tuple[Path, str]]
    refused: list[str]


def load_pictures(paths: Sequence[Path], size: int) -> Pictures:
    """The pictures of the files, as a network of that size sees them; what cannot be read is left out, with its reason.

    Raises:
        UserError: if none can be read.
    """
    images, kept, notes, refused = [], [], [], []
    for path in paths:
        try:
            picture = load_picture(path, size)
        except UserError as error:
            refused.append(str(error))
            continue
        images.append(picture.image)
        kept.append(path)
        notes += [(path, note) for note in picture.notes]
    if not images:
        raise UserError("; ".join(refused))
    return Pictures(torch.stack(images), kept, notes, refused)


def class_index(word: str | int | None, classes: int, names: Sequence[str] | None) -> int | None:
    """A class as its index.

    Raises:
        UserError: for an index out of range or an unknown name, with the nearest names.
    """
    if word is None:
        return None
    text = str(word)
    if text.lstrip("-").isdigit():
        index = int(text)
        if 0 <= index < classes:
            return index
        raise UserError(
            f"class {index} is out of range: this network has classes 0..{classes - 1}"
            + (", or give a class name" if names else "")
        )
    lowered = {name.lower(): index for index, name in enumerate(names or [])}
    if text.lower() in lowered:
        return lowered[text.lower()]
    if not names:
        raise UserError(f"class {text!r}: this network's classes have no names; give an index in 0..{classes - 1}")
    raise UserError(f"no class named {text!r}; the nearest are {nearest(text.lower(), lowered)}")


def explain_pictures(
    subject: Subject, settings: Mapping[str, Any], pictures: Pictures
) -> tuple[list[dict[str, Any]], list[Maps]]:
    """Scores of every picture, and the maps of every method."""
    device = next(subject.network.parameters()).device
    names = subject.class_names or []
    scores: list[dict[str, Any]] = [{"picture": str(path), "network": subject.name} for path in pictures.paths]
    maps: dict[str, list[Maps]] = {}
    target: int | None = None
    network = subject.network
    if settings.get("against") is not None:
        with torch.no_grad():
            classes = network(pictures.image[:1].to(device)).shape[1]
        against = class_index(settings["against"], classes, subject.class_names)
        assert against is not None
        if class_index(settings["target"], classes, subject.class_names) == against:
            raise UserError("a class against itself has nothing to explain; name two classes, --class A --against B")
        network = Contrast(network, against).eval()
    for batch in in_batches(pictures.image, batch_size=16):
        batch = batch.to(device)
        first = int(batch.sample_id[0])
        shared: dict[Any, Any] = {}
        for name, explainer in many(settings, "explainer").items():
            if not shared:  # the first method's forward also tells how many classes there are
                with torch.no_grad():
                    classes = network(batch.image[:1]).shape[1]
                target = class_index(settings["target"], classes, subject.class_names)
            record = explain(
                explainer,
                network,
                batch.image,
                target,
                noise=settings["noise"],
                seed=settings["seed"],
                sample_ids=batch.sample_id,
                chunk_size=settings["chunk_size"],
                shared=shared,
            )
            maps.setdefault(name, []).append(
                to_maps(record, list(range(len(batch))), subject.name, name, 0, explainer.control)
            )
            if not torch.isfinite(record.logits).all():
                raise UserError(
                    f"{subject.name} answers with NaN or infinite logits, so there is nothing to explain; check its weights and the picture"
                )
            probabilities = record.logits.softmax(1)
            for row in range(len(batch)):
                score = scores[first + row]
                top = probabilities[row].topk(min(5, probabilities.shape[1]))
                score["predicted"] = [
                    {
                        "class": int(k),
                        "name": names[int(k)] if int(k) < len(names) else None,
                        "probability": float(p),
                    }
                    for p, k in zip(top.values, top.indices, strict=True)
                ]
                score["explained"] = int(record.target[row])
                entry: dict[str, Any] = {
                    "seconds": record.seconds / len(batch),
                    "gradients": record.backwards / len(batch),
                    "forwards": record.forwards / len(batch),
                }
                if record.completeness_error is not None:
                    entry["completeness_error"] = float(record.completeness_error[row])
                if record.diagnostics:
                    entry["diagnostics"] = {what: float(values[row]) for what, values in record.diagnostics.items()}
                score.setdefault("methods", {})[name] = entry
    return scores, [_joined(parts) for parts in maps.values()]


def _joined(parts: list[Any]) -> Any:

    return concatenate_maps(parts, [int(sample) for part in parts for sample in part.sample_id])


def write_pictures(folder: Path, scores: list[dict[str, Any]], maps: list[Maps], names: Sequence[str] | None) -> Path:
    """panel.png, maps.npz and scores.json in the folder; the path of the panel."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scores.json").write_text(json.dumps(scores, indent=1), encoding="utf-8")
        arrays: dict[str, Any] = {f"{m.model}/{m.explainer}": m.attribution for m in maps}
        np.savez_compressed(folder / "maps.npz", **arrays, image=maps[0].image)
        picture = folder / "panel.png"
        panel(maps, names).save(picture)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another folder with -o") from error
    return picture
