"""F-Fidelity: never remove more of the picture than a network can bear, whatever part of the map is asked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from explainode.attribution import Explanation, check_reduction
from explainode.errors import UserError
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.baselines import baseline_image, check_baseline
from explainode.metrics.perturbation import check_percent, check_score, pixel_order, target_score, usable
from explainode.randomness import sample_keys, uniform

STREAM = "robust fidelity"


class RobustFidelity(ExplanationMetric):
    """Mean fall of the score without random parts of the most relevant pixels, less that without as large parts of the others.

    Of the top `percent` of the pixels and of the rest, as many random pixels go, at most `bound` percent of the picture and never more than the smaller side
    holds, so that both pictures are equally damaged.

    Results: the headline, `plus` less `minus`, higher is better; `plus`, the fall without relevant pixels, higher is better; `minus`, without the others,
    lower is better. Maps that are constant or not finite are excluded and counted.

    Args:
        percent: sizes of the top, ascending; the mean over them counts.
        bound: percent of the picture that may go.
        draws: random parts of each top.
        baseline, reduction: see `points.PerturbationPoints`; "inpaint" is refused.
        score, target: see `points.ScoreAtPoints`.

    Shapes:
        compute(): three scalars. Costs 2 * draws * len(percent) forwards per image.

    Source: Zheng et al. 2025 (F-Fidelity), FFid+ and FFid-, whose networks are fine-tuned with random parts of at most `bound`
    missing. We leave that to training, and take parts of equal size from both sides.
    """

    columns = ("", "plus", "minus")
    higher_is_better = {"": True, "plus": True, "minus": False}  # type: ignore[assignment]
    role = "faithfulness"
    kind = "robust_fidelity"

    def __init__(
        self,
        percent: Sequence[float] = (10, 30, 50),
        bound: float = 10,
        draws: int = 10,
        baseline: str = "blur",
        reduction: str = "sum",
        score: str = "probability",
        target: str = "predicted",
    ) -> None:
        self.percent, self.bound, self.draws = percent, bound, draws
        self.levels = check_percent(percent, 0.01, 99.99)
        check_percent([bound], 0.01, 100)
        if draws < 1:
            raise UserError(f"at least one draw is needed, got {draws}; 10 is usual")
        if baseline == "inpaint":
            raise UserError("pixels are replaced by one picture, which baseline=inpaint is not; blur is usual")
        self.baseline, self.reduction = check_baseline(baseline), check_reduction(reduction)
        self.score, self.target = score, target
        check_score(score, target)
        super().__init__()

    def measure(self, explanation: Explanation) -> Tensor:
        x, end = explanation.x, baseline_image(explanation, self.baseline)
        good = usable(explanation, self.reduction)
        pixels = x[0, 0].numel()
        heat = torch.where(good[:, None, None], explanation.heatmap(self.reduction), 0)
        rank = pixel_order(heat).argsort(1)
        followed = explanation.logits.argmax(1) if self.target == "predicted" else explanation.target
        clean = target_score(explanation.logits.float(), followed, self.score)
        ids = explanation.sample_ids.to(x.device)
        falls = torch.zeros(2, len(x), dtype=torch.float64, device=x.device)
        for level in self.levels:
            top = rank < max(1, round(level * pixels / 100))
            size = max(1, min(round(self.bound * pixels / 100), int(top[0].sum()), int((~top[0]).sum())))
            for draw in range(self.draws):
                lot = uniform(sample_keys(ids, explanation.seed, STREAM, draw), pixels)
                for side, among in enumerate((top, ~top)):
                    gone = torch.where(among, lot, 2.0).argsort(1).argsort(1) < size
                    mixed = torch.where(gone.view(-1, 1, *x.shape[-2:]), end, x)
                    falls[side] += clean - target_score(explanation.forward(mixed).float(), followed, self.score)
        plus, minus = falls / (len(self.levels) * self.draws)
        return torch.stack((plus - minus, plus, minus), 1).masked_fill(~good[:, None], torch.nan)

    def settings(self) -> tuple[str, ...]:
        sizes = f"{len(self.levels)}x{self.levels[0]:g}-{self.levels[-1]:g}%"
        followed = f"{'p' if self.score == 'probability' else self.score}({self.target})"
        return sizes, f"bound{self.bound:g}%", f"n{self.draws}", self.baseline, followed
