"""`explainode compare`: two or more runs, or the points of a sweep, image by image, with paired tests."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from explainode.errors import UserError, nearest

OPTIONS = ("-o", "--matched")
HELP = """explainode compare RUN RUN [RUN ...] [--matched] [-o FOLDER]
explainode compare SWEEP [--matched] [-o FOLDER]

Puts the results of runs side by side: paired tests over the images they share, corrected for their number, and a report.
Runs that differ by their seed alone are one recipe; with four seeds of each or more, recipes are compared, seeds being the units.
A sweep is the folder that explainode train -m leaves under multirun/: each point becomes a model, named by the settings that differ.
Runs that measured a metric with different protocols, on other data or on other images are refused: their numbers do not compare.

--matched   compare at equal accuracy: each model at the epoch at which it was as accurate as the weakest one is at its end, by what was
            measured on validation images after each epoch
-o FOLDER   where the comparison goes, instead of runs/compare/<time>

examples:
  explainode compare runs/a runs/b
  explainode compare runs/a runs/b -o runs/a_against_b
  explainode compare runs/resnet runs/sde --matched
  explainode compare multirun/train/2026-01-31_12-00-00"""


def run(arguments: Sequence[str]) -> int:
    """Merge the runs' results under the runs' names; report."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(HELP)
        return 0 if arguments else 2
    from explainode.cli.finish import finish
    from explainode.registry.composing import run_id
    from explainode.runs.directory import RunDirectory
    from explainode.runs.merge import match_accuracy, merge_runs

    words = list(arguments)
    output = _free(Path(f"runs/compare/{run_id()}"))
    if "-o" in words:
        at = words.index("-o")
        if at + 1 == len(words):
            raise UserError("-o needs a folder")
        output = Path(words[at + 1])
        del words[at : at + 2]
    matched = "--matched" in words
    words = [word for word in words if word != "--matched"]
    if unknown := [word for word in words if word.startswith("-")]:
        raise UserError(f"compare has no option {unknown[0]}; the nearest are {nearest(unknown[0], OPTIONS)}")
    sources, failed = _sources([Path(word) for word in words], alone=matched)
    _check_output(output, [source.folder for source in sources])
    sentences = list(failed)
    if matched:
        matching = match_accuracy(sources)
        sources, sentences = matching.sources, [*failed, *matching.sentences]
    results = merge_runs(sources)
    results.warnings[:0] = sentences
    folder = RunDirectory(output)
    folder.write_config({"name": "compare", "runs": words, "matched": matched})
    if names := _class_names([source.folder for source in sources]):
        folder.write_class_names(names)
    folder.write_results(results)
    for sentence in sentences:
        print(sentence)
    finish(folder)
    return 0


def _sources(folders: Sequence[Path], alone: bool) -> tuple[list, list[str]]:
    """The runs to compare and a sentence for each point of a sweep that has no results; a single run is enough where `alone`.

    Raises:
        UserError: if there are fewer than two runs, or two have one name.
    """
    from explainode.runs.sweep import is_sweep, read_sweep

    sweeps = {folder: read_sweep(folder) for folder in folders if is_sweep(folder)}
    runs = [folder for folder in folders if folder not in sweeps]
    sources = [*_each(runs), *(point for sweep in sweeps.values() for point in sweep.points)]
    labels = [source.label for source in sources]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise UserError(f"two of the runs are called {twice!r}; compare sweeps one by one, or rename a folder")
    if len(sources) < (1 if alone else 2):
        raise UserError(f"compare needs two runs or more, or a sweep of two points, got {len(sources)}")
    return sources, [sentence for sweep in sweeps.values() for sentence in sweep.failed]


def _each(runs: Sequence[Path]) -> list:
    """The runs under their names; one that is named again has its number behind its name."""
    from explainode.runs.merge import name_runs

    places = [run.resolve() for run in runs]
    once = dict(zip(places, runs, strict=True))
    named = dict(zip(once, name_runs(list(once.values())), strict=True))
    turns = [places[: k + 1].count(place) for k, place in enumerate(places)]
    return [
        named[place] if turn == 1 else replace(named[place], label=f"{named[place].label} ({turn})")
        for place, turn in zip(places, turns, strict=True)
    ]


def _free(folder: Path) -> Path:
    """The folder, or with -2, -3, ... behind its name where it holds results: two comparisons of one SLURM job have one run id."""
    names = itertools.chain([folder.name], (f"{folder.name}-{k}" for k in itertools.count(2)))
    return next(place for name in names if not ((place := folder.with_name(name)) / "metrics.csv").is_file())


def _check_output(output: Path, folders: Sequence[Path]) -> None:
    """Refuse to write into one of the runs, or to mix this comparison with other results."""
    if output.resolve() in [folder.resolve() for folder in folders]:
        raise UserError(
            f"the comparison would be written into {output}, which is one of the runs; name another folder with -o"
        )
    if (output / "metrics.csv").is_file():
        raise UserError(f"{output} holds results already; name another folder with -o")


def _class_names(folders: Sequence[Path]) -> list[str]:
    """The names of the classes, where the runs that have any agree."""
    from explainode.runs.directory import RunDirectory

    found = [names for folder in folders if (names := RunDirectory(folder).read_class_names())]
    return found[0] if found and all(names == found[0] for names in found) else []
