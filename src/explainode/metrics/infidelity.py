"""Infidelity: does the attribution predict how the score moves when the input does?"""

from __future__ import annotations

import torch
from torch import Tensor

from explainode.attribution import Explanation, upsample
from explainode.errors import UserError
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.baselines import baseline_image, check_baseline
from explainode.metrics.input_perturbation import ROWS
from explainode.metrics.perturbation import check_score, target_score
from explainode.randomness import normal_like, sample_keys, uniform

KINDS = ("normal", "square", "baseline")
MAPS = ("sensitivity", "contribution")
STREAM = "infidelity"


class Infidelity(ExplanationMetric):
    """E_I[(beta I . A - (f(x) - f(x - I)))^2] over random I: lower is better.

    Results: the headline with the beta >= 0 per image that makes it smallest, E[(I . A) df] / E[(I . A)^2], so that it does not depend on the
    scale of the map, and does on its sign (beta 0 for a map that predicts nothing, or the opposite); `unscaled` with beta = 1, for attributions
    in units of the score; `relative` is the headline divided by E[df^2], in [0, 1]: 1 is a map that predicts nothing.

    Args:
        perturbation: what I is. "normal": values of N(0, size^2) everywhere. "square": x minus the baseline in a square at a random place,
            0 elsewhere. "baseline": x minus the baseline plus N(0, size^2), everywhere.
        size: standard deviation, in pixel units; for "square" its side as a fraction of the image's shorter side.
        draws: of I.
        baseline: of "square" and "baseline", a name in `baselines.BASELINES`.
        score, target: f, see `points.ScoreAtPoints`.
        map: what the map says of a pixel. "sensitivity": how the score moves per unit of it, as a gradient does. "contribution": how much of the score
            it makes, as input x gradient, integrated gradients, DeepLIFT and SHAP do; then I . A is the sum of A over the square that is gone.
            One is not the other: read as sensitivities, the exact contributions of a linear network fail.

    Shapes:
        compute(): three scalars, >= 0. Costs `draws` forwards per image, once for all explainers of a batch.

    Source: Yeh et al. 2019 (square removal, noisy baseline); beta as in the authors' code, captum's `normalize`.
    We draw squares of one size at any place inside the image, and keep beta from turning the map round. A map of one channel counts for all
    channels of its pixel, of contributions as their sum.
    """

    columns = ("", "unscaled", "relative")
    higher_is_better = False
    role = "faithfulness"
    kind = "infidelity"
    version = 2  # beta >= 0

    def __init__(
        self,
        perturbation: str = "square",
        size: float = 0.25,
        draws: int = 50,
        baseline: str = "blur",
        score: str = "logit",
        target: str = "explained",
        map: str = "sensitivity",
    ) -> None:
        self.perturbation, self.size, self.draws, self.map = perturbation, size, draws, map
        self.baseline, self.score, self.target = check_baseline(baseline), score, target
        check_score(score, target)
        if perturbation not in KINDS:
            raise UserError(f"perturbation must be one of {', '.join(KINDS)}, got {perturbation!r}")
        if map not in MAPS:
            raise UserError(f"map must be one of {', '.join(MAPS)}, got {map!r}")
        if map == "contribution" and perturbation != "square":
            raise UserError(
                f"contributions predict what happens when pixels are gone, so map=contribution needs perturbation=square, got {perturbation}"
            )
        if not size > 0 or (perturbation == "square" and size > 1):
            raise UserError(f"size must be positive, and at most 1 for squares, got {size}; 0.25 is usual")
        if draws < 2:
            raise UserError(
                f"at least two draws are needed, got {draws}: one can always be predicted by its beta; 50 is usual"
            )
        super().__init__()

    def step(self, explanation: Explanation, draw: int) -> Tensor:
        """(B, C, H, W) I number `draw`, keyed by (seed, sample id, draw)."""
        x = explanation.x
        keys = sample_keys(explanation.sample_ids.to(x.device), explanation.seed, STREAM, draw)
        if self.perturbation == "normal":
            return self.size * normal_like(x, keys)
        away = x - baseline_image(explanation, self.baseline)
        if self.perturbation == "baseline":
            return away + self.size * normal_like(x, keys)
        return away * self.square(explanation, draw)

    def square(self, explanation: Explanation, draw: int) -> Tensor:
        """(B, 1, H, W) bool: the square of draw number `draw`."""
        x = explanation.x
        keys = sample_keys(explanation.sample_ids.to(x.device), explanation.seed, STREAM, draw)
        height, width = x.shape[-2:]
        side = max(1, round(self.size * min(height, width)))
        free = torch.tensor([height - side + 1, width - side + 1], device=x.device)
        top, left = (uniform(keys, 2) * free).long().unbind(1)
        rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
        inside = [
            (place >= start[:, None]) & (place < start[:, None] + side)
            for place, start in ((rows, top), (columns, left))
        ]
        return inside[0][:, None, :, None] & inside[1][:, None, None, :]

    def moves(self, explanation: Explanation) -> Tensor:
        """(draws, B) f(x) - f(x - I)."""

        def compute() -> Tensor:
            batch = len(explanation)
            group = max(1, ROWS // batch)
            followed = explanation.logits.argmax(1) if self.target == "predicted" else explanation.target
            clean = target_score(explanation.logits.float(), followed, self.score)
            found = []
            for first in range(0, self.draws, group):
                draws = range(first, min(first + group, self.draws))
                x = torch.cat([explanation.x - self.step(explanation, draw) for draw in draws])
                rows = torch.arange(batch, device=x.device).repeat(len(draws))
                logits = explanation.forward(x, rows=rows).float().unflatten(0, (len(draws), batch))
                found.append(clean - target_score(logits.transpose(0, 1), followed, self.score).T)
            return torch.cat(found)

        settings = (self.perturbation, self.size, self.draws, self.baseline, self.score)
        # other explainers of the batch may explain other targets only if the user chose other classes for each: those do not share a store
        return explanation.memo(
            ("infidelity", *settings, self.target, tuple(explanation.target.tolist())), compute, shared=True
        )

    def predicted(self, explanation: Explanation) -> Tensor:
        """(draws, B) I . A; of contributions, the sum of A over what is gone."""
        A = explanation.attribution
        if self.map == "contribution":
            A = upsample(A.sum(1), explanation.x.shape[-2:])[:, None]
            return torch.stack([(self.square(explanation, draw) * A).flatten(1).sum(1) for draw in range(self.draws)])
        if A.shape != explanation.x.shape:
            A = upsample(A.sum(1), explanation.x.shape[-2:])[:, None]
        return torch.stack([(self.step(explanation, draw) * A).flatten(1).sum(1) for draw in range(self.draws)])

    def measure(self, explanation: Explanation) -> Tensor:
        df, predicted = self.moves(explanation).double(), self.predicted(explanation).double()
        square = predicted.square().mean(0)
        beta = torch.where(square == 0, torch.zeros_like(square), ((predicted * df).mean(0) / square).clamp(min=0))
        scaled = (beta * predicted - df).square().mean(0)
        power = df.square().mean(0)
        return torch.stack(
            (scaled, (predicted - df).square().mean(0), torch.where(power == 0, torch.nan, scaled / power)), 1
        )

    def settings(self) -> tuple[str, ...]:
        where = () if self.perturbation == "normal" else (self.baseline,)
        return self.perturbation, f"{self.size:g}", f"n{self.draws}", *where, f"{self.score}({self.target})", self.map
