"""What a ranking of pixels says about a set of them, whatever the scale of the map: areas under curves and the best cut.

Letters: B images, N pixels of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranking:
    """The pixels of each image from the highest score down, with the counts that every curve is made of.

    Equal scores form one group: a threshold takes all of them or none.

    Attributes:
        positive: (B, N) int64, positives among the first n pixels.
        seen: (B, N) int64, counted pixels among the first n.
        last: (B, N) bool, whether a group of equal scores ends here: the places where a threshold can cut.
    """

    positive: Tensor
    seen: Tensor
    last: Tensor

    @classmethod
    def of(cls, score: Tensor, truth: Tensor, counted: Tensor | None = None) -> Ranking:
        """(B, N) finite scores, truths (bool) and which pixels count (bool; all by default)."""
        counted = torch.ones_like(truth) if counted is None else counted
        score, order = torch.sort(score.masked_fill(~counted, -torch.inf), dim=1, descending=True)
        last = torch.ones_like(truth)
        last[:, :-1] = score[:, :-1] != score[:, 1:]
        return cls(
            (truth & counted).gather(1, order).cumsum(1), counted.sum(1, keepdim=True).minimum(_places(score)), last
        )

    def _steps(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """True and false positives at each cut, and what each gained since the cut before: (B, N) float64, 0 gain where there is no cut."""
        true = torch.where(self.last, self.positive, 0).cummax(1).values.double()
        false = torch.where(self.last, self.seen - self.positive, 0).cummax(1).values.double()
        return true, false, _gain(true), _gain(false)

    @property
    def positives(self) -> Tensor:
        """(B,) float64."""
        return self.positive[:, -1].double()

    @property
    def negatives(self) -> Tensor:
        """(B,) float64."""
        return (self.seen - self.positive)[:, -1].double()

    def auroc(self) -> Tensor:
        """(B,) chance that a positive pixel is ranked above a negative one, ties counting half; NaN without either kind.

        The area under the ROC curve by trapezoids, which equals the normalized Mann-Whitney statistic.
        """
        true, _, gained_true, gained_false = self._steps()
        return (gained_false * (true - gained_true / 2)).sum(1) / (self.positives * self.negatives)

    def average_precision(self) -> Tensor:
        """(B,) area under the precision-recall steps, as in scikit-learn's `average_precision_score`; NaN without a positive pixel."""
        true, false, gained, _ = self._steps()
        return (gained * true / (true + false).clamp(min=1)).sum(1) / self.positives

    def best_cut(self) -> tuple[Tensor, Tensor]:
        """The mean IoU of both kinds at the cut where it is largest, (B,), and tp, fp, fn, tn there, (B, 4); NaN without either kind."""
        true, false, _, _ = self._steps()
        true, false = (
            torch.cat((torch.zeros_like(count[:, :1]), count), 1) for count in (true, false)
        )  # the cut that takes nothing
        positives, negatives = self.positives[:, None], self.negatives[:, None]
        # |intersection| / |union| of the positive kind, then of the negative kind
        miou = (true / (positives + false) + (negatives - false) / (positives + negatives - true)) / 2
        best, place = miou.nan_to_num(nan=0.0).max(1)
        best = torch.where((positives * negatives)[:, 0] > 0, best, torch.nan)
        tp, fp = true.gather(1, place[:, None]), false.gather(1, place[:, None])
        return best, torch.cat((tp, fp, positives - tp, negatives - fp), 1)


def _places(score: Tensor) -> Tensor:
    return torch.arange(1, score.shape[1] + 1, device=score.device)


def _gain(total: Tensor) -> Tensor:
    return total.diff(dim=1, prepend=torch.zeros_like(total[:, :1]))
