"""`explainode evaluate`: explain and measure a trained network."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from explainode.cli.finish import finish
from explainode.cli.help import verb_help
from explainode.cli.record import record_evaluation
from explainode.heartbeat import Heartbeat
from explainode.registry.composing import compose

EXAMPLES = (
    "explainode evaluate run=runs/demo                                     # every variant of a run, on its own test data",
    "explainode evaluate run=runs/demo evaluation.noise=path               # the same with one noise path per image",
    "explainode evaluate run=runs/surrogate model.solver.steps=8           # a surrogate with other steps, and its gap to the teacher",
    "explainode evaluate model=resnet20 model.weights=resnet20.th data=cifar10 data.root=~/data 'evaluation.images=\"0:500\"'",
    "explainode evaluate model=tv_resnet18 model.weights=r18.pth data=image_folder data.root=~/pictures metric=[deletion,insertion]",
)


def run(arguments: Sequence[str]) -> int:
    """Compose, measure, report."""
    if "-h" in arguments or "--help" in arguments:
        print(verb_help("evaluate", EXAMPLES))
        return 0
    with Heartbeat("starting"):
        from explainode.jobs.evaluate import evaluate, prepare

        changes = _of_the_run(arguments)
        config = compose("evaluate", [word for word in arguments if word not in changes])
        chosen = {group for group in ("data", "model") if any(word.startswith(f"{group}=") for word in arguments)}
        subjects = prepare(config, chosen, changes, say=lambda sentence: print(sentence, file=sys.stderr))
    folder = evaluate(subjects)
    finish(folder)
    record_evaluation(dict.fromkeys(subjects.networks, subjects.settings), folder)
    return 0


def _of_the_run(arguments: Sequence[str]) -> list[str]:
    """The words that change single settings of the run's data and model: ours, which they may not fit, are composed without them."""
    if not any(word.startswith("run=") and word != "run=null" for word in arguments):
        return []
    return [
        word
        for word in arguments
        if word.split(".")[0] in ("data", "model") and "." in word.split("=")[0] and "=" in word
    ]
