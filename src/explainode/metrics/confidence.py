"""Average drop and increase in confidence: does the network still see the class when it sees the explanation only?"""

from __future__ import annotations

import torch
from torch import Tensor

from explainode.attribution import Explanation, check_reduction, normalize
from explainode.errors import UserError
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.baselines import baseline_image, check_baseline
from explainode.metrics.perturbation import PerturbationPath, logits_at, percent_counts, target_score, usable


class AverageDrop(ExplanationMetric):
    """max(0, f(x) - f(e)) / f(x) with e = m x + (1 - m) baseline, m the map scaled to [0, 1]: lower is more faithful.

    Results: the headline is the drop; `increase` is the share of images with f(e) > f(x): higher is more faithful.
    Images whose map is constant or not finite are excluded and counted.

    Args:
        baseline: what shows where the map is 0, a name in `baselines.BASELINES`.
        keep: "map", or a percentage: e then holds the most relevant pixels alone, a point of the insertion, which does not depend on the
            scale of the map.
        reduction: of the channels.
        ties: "raster" or "reverse", for a percentage.

    Shapes:
        compute(): two scalars in [0, 1]. Costs one forward per image.

    Source: Chattopadhyay et al. 2018 (Grad-CAM++), for maps >= 0 and black; f is the softmax probability of the predicted class.
    We scale signed maps by their own minimum and maximum too, so that a map that is negative everywhere but at one pixel hides nothing.
    """

    columns = ("", "increase")
    higher_is_better = {"": False, "increase": True}
    role = "faithfulness"
    kind = "average_drop"

    def __init__(
        self, baseline: str = "zero", keep: str | float = "map", reduction: str = "sum", ties: str = "raster"
    ) -> None:
        self.baseline, self.keep, self.reduction, self.ties = (
            check_baseline(baseline),
            keep,
            check_reduction(reduction),
            ties,
        )
        if keep != "map" and (isinstance(keep, str) or not 0 < keep < 100):
            raise UserError(f"keep must be 'map' or a percentage between 0 and 100, got {keep!r}; 50 is one")
        self.walk = PerturbationPath(101, baseline, reduction, ties)
        super().__init__()

    def measure(self, explanation: Explanation) -> Tensor:
        predicted = explanation.logits.argmax(1)
        before = target_score(explanation.logits.float(), predicted, "probability").double()
        after = target_score(self._logits(explanation), predicted, "probability").double()
        drop = (before - after).clamp(min=0) / before
        return torch.stack((drop, torch.where(torch.isnan(after), torch.nan, (after > before).double())), 1)

    def _logits(self, explanation: Explanation) -> Tensor:
        """(B, K) logits of the explanation maps; NaN where there is none."""
        if not isinstance(self.keep, str):
            return logits_at(explanation, self.walk, True, percent_counts([self.keep], explanation.x[0, 0].numel()))[
                :, 0
            ]
        good = torch.nonzero(usable(explanation, self.reduction))[:, 0]
        logits = torch.full_like(explanation.logits, torch.nan, dtype=torch.float32)
        if len(good):
            m = normalize(explanation.heatmap(self.reduction)[good])[:, None]
            seen = m * explanation.x[good] + (1 - m) * baseline_image(explanation, self.baseline)[good]
            logits[good] = explanation.forward(seen.to(explanation.x.dtype), rows=good).float()
        return logits

    def settings(self) -> tuple[str, ...]:
        return self.baseline, "map" if isinstance(self.keep, str) else f"{self.keep:g}%", self.reduction
