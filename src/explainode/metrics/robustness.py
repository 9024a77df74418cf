"""Attacks and explanations: what is left of a map when the image is attacked, and how well a map guides an attack."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from explainode.attacks.base import Attack, AttackResult
from explainode.attacks.gradient import GuidedPGD
from explainode.attribution import Explanation, check_reduction, reduce_channels, upsample
from explainode.metrics.agreement import dice, pearson
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.cuts import check_cut
from explainode.metrics.perturbation import usable
from explainode.metrics.points import correct
from explainode.randomness import noise_draw, noise_scope


class _OverPaths(nn.Module):
    """Mean logits over the noise paths that a record averages over."""

    def __init__(self, network: nn.Module, paths: int) -> None:
        super().__init__()
        self.network, self.paths = network, paths

    def forward(self, x: Tensor) -> Tensor:
        total = None
        for path in range(self.paths):
            with noise_draw(path):
                logits = self.network(x)
            total = logits if total is None else total + logits
        assert total is not None
        return total / self.paths


def attacked(explanation: Explanation, attack: Attack, rows: Tensor, allowed: Tensor | None = None) -> AttackResult:
    """The images `rows` (R,) of the record attacked away from their predicted class, under the record's own noise."""
    paths = {"off": 0, "path": 1}.get(explanation.noise) if ":" not in explanation.noise else int(explanation.noise.partition(":")[2])
    assert paths is not None, "the noise modes are off, path and mean:k"
    network = _OverPaths(explanation.model, paths) if paths > 1 else explanation.model
    with noise_scope(explanation.sample_ids[rows.to(explanation.sample_ids.device)], explanation.seed, 0, active=paths > 0):
        return attack(network, explanation.x[rows], explanation.logits.argmax(1)[rows], allowed)


class MapUnderAttack(ExplanationMetric):
    """Overlap of the map with that of the attacked image, the same class explained: higher is more robust.

    Results: the headline is the Dice coefficient of both foregrounds; `pearson` the linear correlation (PCC) of the heatmaps;
    `success` the share of images whose predicted class the attack changed, a fact about the network.
    Images whose map is constant or not finite, before or after, are excluded and counted.
    A map that does not look at the network (a centered bump) is perfectly robust: read this beside faithfulness and sanity.

    Args:
        attack: on the predicted class; once for all explainers of a batch.
        cut: where a map is cut into foreground and background, see `cuts.foreground`.
        reduction: of the channels.

    Shapes:
        compute(): three scalars, in [0, 1], [-1, 1] and [0, 1]. Costs the attack once a batch, and one explanation per image.

    Source: Galli et al. 2021 in paper 004 (Dice of Guided Grad-CAM under FGSM and DeepFool). The cut is not given there: We cut at
    the mean of the map. We explain the class of the clean image; another prediction would move the map by itself.
    """

    columns = ("", "pearson", "success")
    higher_is_better = {"": True, "pearson": True, "success": None}
    kind = "map_under_attack"

    def __init__(self, attack: Attack, cut: str = ">mean", reduction: str = "sum") -> None:
        self.attack, self.cut, self.reduction = attack, check_cut(cut), check_reduction(reduction)
        super().__init__()

    def measure(self, explanation: Explanation) -> Tensor:
        everyone = torch.arange(len(explanation), device=explanation.x.device)
        found = explanation.memo(("attacked", self.attack), lambda: attacked(explanation, self.attack, everyone), shared=True)
        before = explanation.heatmap(self.reduction)
        after = upsample(reduce_channels(explanation.explain(found.x), self.reduction), explanation.x.shape[-2:])
        values = torch.stack((dice(before, after, self.cut), pearson(before, after), found.success.double()), 1)
        finite = usable(explanation, self.reduction) & torch.isfinite(after).flatten(1).all(1)
        return values.masked_fill(~finite[:, None], torch.nan)

    def settings(self) -> tuple[str, ...]:
        return repr(self.attack), self.cut, self.reduction


class HeatmapGuidedPGD(ExplanationMetric):
    """How often PGD succeeds if it may change only the values which the map ranks highest: more, the map knows where the network can be hurt.

    Results: the headline ASR is the share of attacked images that were fooled, over the correctly classified; `asr_all` the share of all
    images whose prediction changed; `step` the mean number of steps of the successes (of correctly classified images); `accuracy` that of
    all images after the attack, exactly clean accuracy * (1 - ASR); `clean` the accuracy before it.
    Images whose map is constant or not finite are excluded and counted; they are in none of these. Images that a result is not about (the
    wrongly classified, for ASR) count as excluded from it too.

    Args:
        top, unit, epsilon, alpha, steps: see `GuidedPGD`; alpha is part of the protocol, since `step` is mostly a function of it.

    Shapes:
        explanation.label: (B,), -1 where unknown: such images count in `asr_all` alone.
        compute(): five scalars. Costs at most `steps` forwards and backwards per image.

    Source: paper 002, Table 2, whose columns all obey accuracy = 0.71 (1 - ASR), so ASR is over the correctly classified.
    """

    columns = ("", "asr_all", "step", "accuracy", "clean")
    higher_is_better = {"": True, "asr_all": True, "step": False, "accuracy": False, "clean": None}
    needs = frozenset({"label"})
    kind = "guided_pgd"

    def __init__(self, top: int = 500, unit: str = "value", epsilon: float = 8 / 255, alpha: float = 1 / 255, steps: int = 20) -> None:
        self.top, self.unit, self.epsilon, self.alpha, self.steps = top, unit, epsilon, alpha, steps
        self.attack = GuidedPGD(epsilon, alpha, steps, top=top, unit=unit)
        super().__init__()

    def measure(self, explanation: Explanation) -> Tensor:
        relevance = explanation.attribution.flatten(1)
        low, high = relevance.amin(1), relevance.amax(1)
        good = torch.nonzero(torch.isfinite(low) & torch.isfinite(high) & (high > low))[:, 0]
        values = torch.full((len(explanation), len(self.columns)), torch.nan, dtype=torch.float64, device=relevance.device)
        if not len(good):
            return values
        found = attacked(explanation, self.attack, good, explanation.attribution[good])
        clean = correct(explanation, explanation.logits)[good]  # NaN where the label is not known
        success = found.success.double()
        asr = torch.where(clean == 1, success, torch.nan)
        step = torch.where(asr == 1, found.steps.double(), torch.nan)
        values[good] = torch.stack((asr, success, step, clean * (1 - success), clean), 1)
        return values

    def settings(self) -> tuple[str, ...]:
        return f"{self.top}{self.unit}s", f"eps{255 * self.epsilon:.3g}/255", f"alpha{255 * self.alpha:.3g}/255", f"{self.steps}steps"
