"""What intervals and tests cost: 1000 images, one core.

    python scripts/benchmarks/intervals.py [--images 1000]

CPU time; the target of half a second per metric holds for its first interval, the next finds the quantiles. Also 720 paired tests at once, and
how long metrics of localization take on maps of 224x224.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from explainode.attribution import Explanation
from explainode.metrics import distributions
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.box_iou import BoxIoU
from explainode.metrics.complexity import Complexity
from explainode.metrics.faithfulness import Deletion
from explainode.metrics.human_agreement import FixationMapAgreement
from explainode.metrics.localization import SegmentationAgreement
from explainode.metrics.means import mean_tests
from explainode.metrics.pixel_ranking import BestAreaMIoU, PixelAUROC, PixelAveragePrecision
from explainode.metrics.pointing_game import PointingGame
from explainode.metrics.relevance_mass import RelevanceMass, RelevanceRank
from explainode.metrics.statistics import holm

TARGET = 0.5  # seconds for one metric
TESTS, TARGET_OF_TESTS = 720, 2.0  # a report's comparisons, and seconds for all of them


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def filled(metric: ExplanationMetric, images: int) -> ExplanationMetric:
    """The metric with a table of random rows, one image in fifty excluded."""
    generator = torch.Generator().manual_seed(0)
    metric.setup(images)
    metric.value += torch.rand(metric.value.shape, generator=generator, dtype=torch.float64) * 1000
    there = torch.rand(images, 1, generator=generator) > 0.02
    metric.value *= there
    metric.count += there.int()
    metric.excluded += (~there).int()
    return metric


def intervals(images: int) -> None:
    print(
        f"{images} images                                    first    next   (seconds; target {TARGET} for the first)"
    )
    kinds = (Deletion(), PixelAUROC(), BestAreaMIoU(), BoxIoU(), SegmentationAgreement())
    for metric in kinds:
        filled(metric, images)
        distributions.student_quantile.cache_clear()
        first = cpu_seconds(metric.summary)
        again = cpu_seconds(metric.summary)
        print(
            f"  {metric.kind:28} {len(metric.results)} results {first:8.3f} {again:7.3f}   {'met' if first <= TARGET else 'MISSED'}"
        )
    differences = np.random.default_rng(0).normal(size=(images, TESTS))
    pair = cpu_seconds(lambda: mean_tests(differences[:, :1]))
    print(f"  paired difference with its test           {pair:7.3f}           {'met' if pair <= TARGET else 'MISSED'}")
    family = cpu_seconds(lambda: holm(mean_tests(differences, margin=0.1).p))
    print(
        f"  {TESTS} of them, corrected                   {family:7.3f}           {'met' if family <= TARGET_OF_TESTS else 'MISSED'}"
    )


def refuse(*_: Tensor, **__: Tensor) -> Tensor:
    raise AssertionError("metrics of localization ask the network nothing")


def localization(batch: int = 32, size: int = 224) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(batch, size, size, dtype=torch.int64)
    mask[:, size // 4 : size // 2, size // 3 : size // 2] = 1
    maps = {
        "fine": torch.randn(batch, 1, size, size, generator=generator),
        "coarse": F.interpolate(torch.randn(batch, 1, 14, 14, generator=generator), size=size, mode="bilinear"),
    }
    ranks: list[ExplanationMetric] = [PixelAUROC(), PixelAveragePrecision(), BestAreaMIoU(), RelevanceRank()]
    single: list[ExplanationMetric] = [
        SegmentationAgreement(),
        PointingGame(),
        RelevanceMass(),
        BoxIoU(truth="mask"),
        Complexity(),
        FixationMapAgreement(),
    ]
    print(f"\nmaps of {size}x{size}, batch {batch}: milliseconds per image        fine   coarse")
    for group in (ranks, *([metric] for metric in single)):
        times = []
        for attribution in maps.values():

            def work(attribution: Tensor = attribution, group: list[ExplanationMetric] = group) -> None:
                explanation = Explanation(
                    x=torch.zeros(batch, 3, size, size),
                    target=torch.zeros(batch, dtype=torch.int64),
                    attribution=attribution,
                    logits=torch.zeros(batch, 2),
                    score=torch.zeros(batch),
                    completeness_error=None,
                    forwards=0,
                    backwards=0,
                    noise="off",
                    seed=0,
                    stochastic=False,
                    sample_ids=torch.arange(batch),
                    label=None,
                    mask=mask,
                    boxes=None,
                    seconds=0.0,
                    forward=refuse,
                    explain=refuse,
                    model=torch.nn.Identity(),
                    fixation_map=mask.float(),
                )
                for metric in group:
                    metric.setup(batch)
                    metric.update(explanation)

            times.append(min(cpu_seconds(work) for _ in range(3)) * 1000 / batch)
        names = " + ".join(metric.kind for metric in group)
        print(f"  {names:72} {times[0]:6.2f} {times[1]:7.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    intervals(arguments.images)
    localization()


if __name__ == "__main__":
    main()
