"""Threshold-free localization: what counts is the order of the pixels, so that contrast buys nothing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from explainode.attribution import Explanation
from explainode.metrics.localization import LocalizationMetric, agreement, ranking_of


class PixelAUROC(LocalizationMetric):
    """Chance that a pixel of the object is more relevant than one of the background, ties counting half: 0.5 is a random map.

    Shapes:
        compute(): (), in [0, 1]. Unchanged by any increasing function of the map. Images without background are excluded.

    Source: area under the ROC curve (Fawcett 2006) of each image, then the mean over images.
    """

    kind = "pixel_auroc"

    def score(self, heat: Tensor, mask: Tensor, explanation: Explanation) -> Tensor:
        return ranking_of(explanation, self.truth, self.reduction).auroc()[:, None]


class PixelAveragePrecision(LocalizationMetric):
    """Area under the precision-recall steps of the object's pixels: a random map has about the object's share of the image.

    Shapes:
        compute(): (), in (0, 1]. Unchanged by any increasing function of the map.

    Source: average precision as in scikit-learn, of each image, then the mean over images. `SegmentationAgreement`'s `map` is the mean
    of both classes in one list, as in Chefer et al.'s code, and much higher.
    """

    kind = "pixel_average_precision"

    def score(self, heat: Tensor, mask: Tensor, explanation: Explanation) -> Tensor:
        return ranking_of(explanation, self.truth, self.reduction).average_precision()[:, None]


class BestAreaMIoU(LocalizationMetric):
    """Mean IoU of object and background at the cut that suits each image best: what segmentation the ranking allows, an oracle.

    Any number of most relevant pixels may be marked, none and all included; equal values are marked together. The floor is therefore
    half the share of the larger side.

    Results: the headline is the mean over images; `dataset`, the mean IoU of the pixels of all images together, each cut at its own best.

    Shapes:
        compute(): two scalars in [0, 1]. Unchanged by any increasing function of the map. Images without background are excluded.

    Source: ours, beside root inference (anonymous), Table 1, whose fixed cut rewards contrast.
    """

    columns = ("", "tp", "fp", "fn", "tn")
    results = ("", "dataset")
    kind = "best_area_miou"

    def score(self, heat: Tensor, mask: Tensor, explanation: Explanation) -> Tensor:
        best, counts = ranking_of(explanation, self.truth, self.reduction).best_cut()
        return torch.where(best.isnan()[:, None], torch.nan, torch.cat((best[:, None], counts), 1))

    def combine(self, means: np.ndarray) -> np.ndarray:
        return np.stack((means[..., 0], agreement(means[..., 1:])[..., 0]), axis=-1)
