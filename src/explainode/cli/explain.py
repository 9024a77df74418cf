"""`explainode explain`: pictures in, a panel, raw maps and scores out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from explainode.cli.help import verb_help
from explainode.errors import UserError, nearest
from explainode.heartbeat import Heartbeat
from explainode.registry.composing import compose, plain, run_id
from explainode.runs.claim import fresh_directory
from explainode.wording import shown

EXAMPLES = (
    "explainode explain picture.jpg                              # the newest run under runs/, four methods",
    "explainode explain picture.jpg -m ig,gradcam --run runs/demo",
    "explainode explain cat.jpg dog.jpg --model tv_resnet18 --weights resnet18.pth --class 'tiger cat' -o out",
    "explainode explain pictures/ --model mobilenet_v2 --weights mobilenet_v2.pth explainer.ig_adaptive.tolerance=0.001",
)
FLAGS = (
    "-m, --methods A,B   explainers (explainode list explainer)",
    "--class C           class index or name; the predicted class by default",
    "--against C         explain the class and not this one (why A and not B)",
    "--model NAME        a model of conf/model, with --weights PATH",
    "--classes FILE      names of the classes: one a line, or a JSON list, or {index: name}",
    "--run RUN           a run directory; --checkpoint PATH picks one of its checkpoints",
    "-o, --output DIR    where the panel, the raw maps and the scores go",
    "--json              print the scores as JSON",
)


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
        from explainode.jobs.pictures import (
            choose_subjects,
            explain_pictures,
            load_pictures,
            named_pictures,
            read_class_names,
            write_pictures,
        )

        if settings["output"] and (Path(settings["output"]) / "scores.json").is_file():
            raise UserError(
                f"{settings['output']} holds explanations already, which would be overwritten; name another folder with -o"
            )
        paths = named_pictures(options.words)
        subjects = choose_subjects(settings)
        if options.classes is not None:
            names = read_class_names(options.classes)
            for subject in subjects:
                subject.class_names = names
    console = Console(stderr=options.json)
    pictures = load_pictures(paths, subjects[0].size)
    for path, note in pictures.notes:
        console.print(shown(f"{path.name}: {note}"), style="dim", highlight=False, markup=False)
    for sentence in pictures.refused:
        console.print(shown(f"skipped: {sentence}"), style="yellow", highlight=False, markup=False)
    scores, maps = [], []
    for subject in subjects:
        with Heartbeat(f"explaining {subject.name}"):
            found, drawn = explain_pictures(subject, settings, pictures)
        scores += found
        maps += drawn
    folder = Path(settings["output"]) if settings["output"] else fresh_directory(Path(f"runs/explain/{run_id()}"))
    picture = write_pictures(folder, scores, maps, subjects[0].class_names)
    if options.json:
        print(json.dumps(scores, indent=1))
    else:
        _print(console, scores, subjects[0].class_names)
    console.print(shown(f"panel: {picture}"), soft_wrap=True, highlight=False, markup=False)
    return 0


def _read(arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Flags, and the settings they and the overrides amount to."""
    parser = _Parser(prog="explainode explain", add_help=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("-m", "--methods")
    parser.add_argument("--class", dest="target")
    parser.add_argument("--against")
    parser.add_argument("--model")
    parser.add_argument("--weights")
    parser.add_argument("--classes")
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
        overrides[:0] = model_words(options.model)
    config = compose("explain", overrides)
    settings = plain(config)
    settings["model_name"] = options.model or next(
        (word.partition("=")[2] for word in overrides if word.startswith("model=")), "model"
    )
    for key in ("target", "against", "run", "checkpoint", "output"):
        if getattr(options, key) is not None:
            settings[key] = getattr(options, key)
    if options.weights is not None:
        if not settings.get("model"):
            raise UserError("--weights needs --model NAME: which network the weights belong to (explainode list model)")
        settings["model"]["weights"] = options.weights
    return options, settings


def model_words(name: str) -> list[str]:
    """The overrides that choose a network: an entry of conf/model, or a classifier of torchvision or timm by its own name.

    Raises:
        UserError: for a name that none of them has, with the nearest.
    """
    from explainode.registry.entries import names

    known = names("model")
    if name in known:
        return [f"model={name}"]
    if f"tv_{name}" in known:  # torchvision's ResNets, on our block
        return [f"model=tv_{name}"]
    from explainode.models.plain import timm_names, torchvision_names

    for entry, offered in (("torchvision", torchvision_names()), ("timm", timm_names())):
        if name in offered:
            return [f"model={entry}", f"model.name={name}"]
    every = {*known, *torchvision_names(), *timm_names()}
    raise UserError(
        f"no model named {name!r}; the nearest are {nearest(name, every)} (explainode list model; also any of torchvision or timm by its name)"
    )


def _print(console: Any, scores: list[dict[str, Any]], names: Sequence[str] | None) -> None:
    """What each network says of each picture, and what each method cost."""
    from rich.table import Table

    for score in scores:
        best = score["predicted"][0]
        said = ", ".join(f"{p['name'] or p['class']} {p['probability']:.2f}" for p in score["predicted"][:3])
        console.print(
            shown(f"{Path(score['picture']).name}: {score['network']} says {said}"), highlight=False, markup=False
        )
        if score["explained"] != best["class"]:
            known = names or ()
            explained = known[score["explained"]] if score["explained"] < len(known) else score["explained"]
            console.print(f"  explained class: {shown(explained)}", highlight=False, markup=False)
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
