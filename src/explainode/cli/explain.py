"""`explainode explain`: pictures in, a panel, raw maps and scores out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from explainode.cli.compose import compose, plain, run_id
from explainode.cli.heartbeat import Heartbeat
from explainode.cli.help import verb_help
from explainode.errors import UserError, nearest

EXAMPLES = (
    "explainode explain picture.jpg                              # the newest run under runs/, four methods",
    "explainode explain picture.jpg -m ig,gradcam --run runs/demo",
    "explainode explain cat.jpg dog.jpg --model tv_resnet18 --weights resnet18.pth --class 'tiger cat' -o out",
    "explainode explain pictures/ --model mobilenet_v2 --weights mobilenet_v2.pth explainer.ig_adaptive.tolerance=0.001",
)
FLAGS = (
    "-m, --methods A,B   explainers (explainode list explainer)",
    "--class C           class index or name; the predicted class by default",
    "--model NAME        a model of conf/model, with --weights PATH",
    "--run RUN           a run directory; --checkpoint PATH picks one of its checkpoints",
    "-o, --output DIR    where the panel, the raw maps and the scores go",
    "--json              print the scores as JSON",
)
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif")


@dataclass
class Subject:
    """A network and what must be known to feed and read it."""

    name: str
    network: Any
    size: int
    class_names: list[str] | None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message} (explainode explain --help)")


def run(arguments: Sequence[str]) -> int:
    """Read the pictures, explain each with every method, write and print what was found."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(verb_help("explain", EXAMPLES, FLAGS))
        return 0 if arguments else 2
    from rich.console import Console

    with Heartbeat("starting"):
        options, settings = _read(arguments)
        paths = _pictures(options.words)
        subjects = _subjects(settings)
    console = Console(stderr=options.json)
    images, kept = _load(paths, subjects[0].size, console)
    scores, maps = [], []
    for subject in subjects:
        with Heartbeat(f"explaining {subject.name}"):
            found, drawn = _explain(subject, settings, images, kept)
        scores += found
        maps += drawn
    folder = Path(settings["output"] or f"runs/explain/{run_id()}")
    picture = _write(folder, scores, maps, subjects[0].class_names)
    if options.json:
        print(json.dumps(scores, indent=1))
    else:
        _print(console, scores, subjects[0].class_names)
    console.print(f"panel: {picture}", soft_wrap=True, highlight=False, markup=False)
    return 0


def _read(arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Flags, and the settings they and the overrides amount to."""
    parser = _Parser(prog="explainode explain", add_help=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("-m", "--methods")
    parser.add_argument("--class", dest="target")
    parser.add_argument("--model")
    parser.add_argument("--weights")
    parser.add_argument("--run")
    parser.add_argument("--checkpoint")
    parser.add_argument("-o", "--output")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_intermixed_args(list(arguments))
    overrides = [word for word in options.words if "=" in word and not Path(word).exists()]
    options.words = [word for word in options.words if word not in overrides]
    if options.methods:
        overrides.insert(0, f"explainer=[{options.methods}]")
    if options.model:
        overrides.insert(0, f"model={options.model}")
    config = compose("explain", overrides)
    settings = plain(config)
    settings["model_name"] = options.model or next(
        (word.partition("=")[2] for word in overrides if word.startswith("model=")), "model"
    )
    for key in ("target", "run", "checkpoint", "output"):
        if getattr(options, key) is not None:
            settings[key] = getattr(options, key)
    if options.weights is not None:
        if not settings.get("model"):
            raise UserError("--weights needs --model NAME: which network the weights belong to (explainode list model)")
        settings["model"]["weights"] = options.weights
    return options, settings


def _pictures(words: Sequence[str]) -> list[Path]:
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


def _subjects(settings: Mapping[str, Any]) -> list[Subject]:
    """The network that model names, or those of a run: all its variants, side by side.

    Raises:
        UserError: if there is neither.
    """
    from explainode.cli.build import build_network, choose_device, fill_classes, run_config
    from explainode.cli.evaluate import run_networks
    from explainode.models.names import imagenet_classes
    from explainode.report.run import RunDirectory

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
            from explainode.models.weights import load_weights

            load_weights(network, settings["checkpoint"])
        size = settings["size"] or network.image_size
        names = imagenet_classes() if num_classes == 1000 else None
        return [Subject(settings["model_name"], network.to(device).eval(), size, names)]
    folder = Path(settings["run"]) if settings["run"] else _newest_run()
    trained = run_config(folder)
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


def _newest_run() -> Path:
    """The run directory under runs/ whose checkpoint is newest.

    Raises:
        UserError: if there is none.
    """
    found = sorted(Path("runs").glob("**/checkpoints/*/*.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(
            "there is no trained run under runs/; name one with --run RUN, or a network with --model NAME --weights PATH"
        )
    return found[-1].parents[2]


def _load(paths: Sequence[Path], size: int, console: Any) -> tuple[Any, list[Path]]:
    """(N, 3, size, size) pictures and their paths; what cannot be read is named and left out.

    Raises:
        UserError: if none can be read.
    """
    import torch

    from explainode.data.pictures import load_picture

    images, kept, refused = [], [], []
    for path in paths:
        try:
            picture = load_picture(path, size)
        except UserError as error:
            refused.append(str(error))
            continue
        images.append(picture.image)
        kept.append(path)
        for note in picture.notes:
            console.print(f"{path.name}: {note}", style="dim", highlight=False, markup=False)
    if not images:
        raise UserError("; ".join(refused))
    for sentence in refused:
        console.print(f"skipped: {sentence}", style="yellow", highlight=False, markup=False)
    return torch.stack(images), kept


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


def _explain(
    subject: Subject, settings: Mapping[str, Any], images: Any, paths: Sequence[Path]
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Scores of every picture, and the maps of every method."""
    import torch

    from explainode.cli.build import many
    from explainode.evaluation import explain, in_batches, to_maps

    device = next(subject.network.parameters()).device
    scores: list[dict[str, Any]] = [{"picture": str(path), "network": subject.name} for path in paths]
    maps: dict[str, list[Any]] = {}
    target: int | None = None
    for batch in in_batches(images, batch_size=16):
        batch = batch.to(device)
        first = int(batch.sample_id[0])
        shared: dict[Any, Any] = {}
        for name, explainer in many(settings, "explainer").items():
            if not shared:  # the first method's forward also tells how many classes there are
                with torch.no_grad():
                    classes = subject.network(batch.image[:1]).shape[1]
                target = class_index(settings["target"], classes, subject.class_names)
            record = explain(
                explainer,
                subject.network,
                batch.image,
                target,
                noise=settings["noise"],
                seed=settings["seed"],
                sample_ids=batch.sample_id,
                chunk_size=settings["chunk_size"],
                shared=shared,
            )
            maps.setdefault(name, []).append(to_maps(record, list(range(len(batch))), subject.name, name, 0))
            probabilities = record.logits.softmax(1)
            for row in range(len(batch)):
                score = scores[first + row]
                top = probabilities[row].topk(min(5, probabilities.shape[1]))
                score["predicted"] = [
                    {
                        "class": int(k),
                        "name": subject.class_names[int(k)] if subject.class_names else None,
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
    from explainode.evaluation import concatenate_maps

    return concatenate_maps(parts, [int(sample) for part in parts for sample in part.sample_id])


def _write(folder: Path, scores: list[dict[str, Any]], maps: list[Any], names: Sequence[str] | None) -> Path:
    """panel.png, maps.npz and scores.json in the folder; the path of the panel."""
    from explainode.report.panels import panel

    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scores.json").write_text(json.dumps(scores, indent=1), encoding="utf-8")
        np.savez_compressed(
            folder / "maps.npz", **{f"{m.model}/{m.explainer}": m.attribution for m in maps}, image=maps[0].image
        )
        picture = folder / "panel.png"
        panel(maps, names).save(picture)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another folder with -o") from error
    return picture


def _print(console: Any, scores: list[dict[str, Any]], names: Sequence[str] | None) -> None:
    """What each network says of each picture, and what each method cost."""
    from rich.table import Table

    for score in scores:
        best = score["predicted"][0]
        said = ", ".join(f"{p['name'] or p['class']} {p['probability']:.2f}" for p in score["predicted"][:3])
        console.print(f"{Path(score['picture']).name}: {score['network']} says {said}", highlight=False, markup=False)
        if score["explained"] != best["class"]:
            console.print(
                f"  explained class: {names[score['explained']] if names else score['explained']}",
                highlight=False,
                markup=False,
            )
    table = Table(box=None, pad_edge=False)
    told = list(dict.fromkeys(what for entry in scores[0]["methods"].values() for what in entry.get("diagnostics", {})))
    for column in ("method", "gradients", "forwards", "seconds per picture", "completeness error", *told):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name in scores[0]["methods"]:
        entries = [score["methods"][name] for score in scores]
        errors = [abs(entry["completeness_error"]) for entry in entries if "completeness_error" in entry]
        table.add_row(
            name,
            *(f"{np.mean([entry[key] for entry in entries]):.0f}" for key in ("gradients", "forwards")),
            f"{np.mean([entry['seconds'] for entry in entries]):.3f}",
            f"{np.mean(errors):.2g}" if errors else "not defined",
            *(
                f"{np.mean([e['diagnostics'][what] for e in entries]):.2g}"
                if what in entries[0].get("diagnostics", {})
                else ""
                for what in told
            ),
        )
    console.print(table)
