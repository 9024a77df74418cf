"""`explainode benchmark`: networks x explainers x metrics, cell by cell, so that nothing finished is ever lost or computed twice."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from explainode.cli.benchmark_words import compose_benchmark
from explainode.cli.finish import finish
from explainode.cli.help import verb_help
from explainode.heartbeat import Heartbeat

EXAMPLES = (
    "explainode benchmark runs=[runs/demo]                                 # every variant of a run, on its own test data",
    "explainode benchmark 'models=[resnet20,resnet32]' models.resnet20.weights=a.th models.resnet32.weights=b.th \\",
    "    data=cifar10 data.root=~/data 'explainer=[saliency,gradcam,random_map]' 'metric=[deletion,insertion]' run_dir=runs/benchmark/nets",
    "explainode benchmark 'models={early:resnet20,late:resnet20}' models.early.weights=10.pt models.late.weights=90.pt data=cifar10",
    "explainode benchmark experiment=benchmark_cifar10 models.resnet20.weights=a.th ...   # tables of conf/experiment",
    "explainode benchmark ... run_dir=runs/benchmark/nets                  # again, after an interruption or with more explainers: goes on",
    "explainode benchmark --config-dir my_conf 'allow_targets=[my_nets]' 'models=[mine]' ...  # a network of your own: docs/benchmark.md",
)


def run(arguments: Sequence[str]) -> int:
    """Compose, build, work through the cells, report.

    Raises:
        UserError: before anything is measured, or where no cell at all can be.
        Exception: the first that nobody expected in a cell, after everything else is measured and reported.
    """
    if "-h" in arguments or "--help" in arguments:
        print(verb_help("benchmark", EXAMPLES))
        return 0
    with Heartbeat("starting"):
        from explainode.jobs.benchmark import Benchmark
        from explainode.jobs.missing import sentences

        bench = Benchmark.build(compose_benchmark(arguments))
    interrupted = bench.run()
    finish(bench.folder)
    for sentence in sentences(bench.missing):
        print(sentence, file=sys.stderr)
    if interrupted:
        print(
            f"interrupted: the same command with run_dir={bench.folder.path} goes on with the first missing cell",
            file=sys.stderr,
        )
        return 130
    if bench.faults:
        raise bench.faults[0]
    return 0
