"""Attacks and explanations: what is left of a map when the image is attacked, and how well a map guides an attack."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from explainode.attacks.base import Attack, AttackResult
from explainode.attacks.gradient import GuidedPGD
from explainode.attacks.map_attack import MapAttack
from explainode.attribution import Explanation, check_reduction, rank_pixels, reduce_channels, upsample
from explainode.errors import UserError
from explainode.metrics.agreement import dice, pearson, ssim
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.cuts import check_cut
from explainode.metrics.perturbation import usable
from explainode.metrics.points import correct
from explainode.randomness import input_keys, noise_draw, noise_scope, uniform_like


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
    paths = (
        {"off": 0, "path": 1}.get(explanation.noise)
        if ":" not in explanation.noise
        else int(explanation.noise.partition(":")[2])
    )
    assert paths is not None, "the noise modes are off, path and mean:k"
    network = _OverPaths(explanation.model, paths) if paths > 1 else explanation.model
    with noise_scope(
        explanation.sample_ids[rows.to(explanation.sample_ids.device)], explanation.seed, 0, active=paths > 0
    ):
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

    Source: Galli et al. 2021 in Ayyar et al. 2021 (Dice of Guided Grad-CAM under FGSM and DeepFool). The cut is not given there: We cut at
    the mean of the map. We explain the class of the clean image; another prediction would move the map by itself.
    """

    columns = ("", "pearson", "success")
    higher_is_better = {"": True, "pearson": True, "success": None}
    role = "robustness"
    kind = "map_under_attack"

    def __init__(self, attack: Attack, cut: str = ">mean", reduction: str = "sum") -> None:
        self.attack, self.cut, self.reduction = attack, check_cut(cut), check_reduction(reduction)
        super().__init__()

    def measure(self, explanation: Explanation) -> Tensor:
        everyone = torch.arange(len(explanation), device=explanation.x.device)
        found = explanation.memo(
            ("attacked", self.attack), lambda: attacked(explanation, self.attack, everyone), shared=True
        )
        before = explanation.heatmap(self.reduction)
        after = upsample(reduce_channels(explanation.explain(found.x), self.reduction), explanation.x.shape[-2:])
        values = torch.stack((dice(before, after, self.cut), pearson(before, after), found.success.double()), 1)
        finite = usable(explanation, self.reduction) & torch.isfinite(after).flatten(1).all(1)
        return values.masked_fill(~finite[:, None], torch.nan)

    def settings(self) -> tuple[str, ...]:
        return repr(self.attack), self.cut, self.reduction


class MapUnderMapAttack(ExplanationMetric):
    """Overlap of the map with the one that an attack on the map itself leaves, the class unchanged: higher is more robust.

    Results: the headline is the Dice coefficient of both foregrounds; `pearson` and `ssim` their likeness, `top` the share of the most important
    pixels that stay among them; `progress` how far the attack came in its own terms (see there); `noise` the Dice coefficient after uniform noise
    of the attack's radius, the control: what lies below it is the attack's doing; `output` how far the explained class' probability moved.
    The predicted class never changes. Images whose map is constant or not finite, before or after, are excluded and counted.

    Only for methods made of gradients (their maps have to be differentiated); others are refused. On a network whose gradient does not depend on
    the image nothing moves: the headline is 1.

    Args:
        attack: a `MapAttack`; its radius and step are in pixel units and part of the protocol.
        cut: where a map is cut into foreground and background, see `cuts.foreground`.
        reduction: of the channels; the attack moves absolute values.
        top: share of the pixels that count as the most important in the result `top`.

    Shapes:
        compute(): seven scalars; `progress` and `output` in [0, 1] (in pixels, for `CenterAttack`), `pearson` and `ssim` in [-1, 1]. Costs
        about six explanations per image and step of the attack.

    Source: Ghorbani et al. 2019 (top-k intersection); Dombrowski et al. 2019 (SSIM, PCC). We use the record's own noise throughout.
    """

    columns = ("", "pearson", "ssim", "top", "progress", "noise", "output")
    higher_is_better = {
        "": True,
        "pearson": True,
        "ssim": True,
        "top": True,
        "progress": False,
        "noise": True,
        "output": None,
    }
    role = "robustness"
    kind = "map_under_map_attack"

    def __init__(self, attack: MapAttack, cut: str = ">mean", reduction: str = "abs_sum", top: float = 0.1) -> None:
        self.attack, self.cut, self.reduction, self.top = attack, check_cut(cut), check_reduction(reduction), top
        if not 0 < top < 1:
            raise UserError(f"top must be a share of the pixels in (0, 1), got {top}; 0.1 is usual")
        super().__init__()

    def measure(self, explanation: Explanation) -> Tensor:
        size = explanation.x.shape[-2:]

        def heatmap(x: Tensor, rows: Tensor) -> Tensor:
            return upsample(reduce_channels(explanation.explain(x, rows=rows), self.reduction), size)

        rows = torch.arange(len(explanation), device=explanation.x.device)
        before, good = explanation.heatmap(self.reduction), usable(explanation, self.reduction)
        values = torch.full((len(explanation), len(self.columns)), torch.nan, dtype=torch.float64, device=before.device)
        if not good.any():
            return values
        with noise_scope(
            explanation.sample_ids, explanation.seed, 0, active=False
        ):  # the keys of the attack's starting point
            found = self.attack(explanation.x, heatmap, explanation.forward)
            noise = self.attack.epsilon * (
                2 * uniform_like(explanation.x, input_keys(explanation.x, "map attack's control", 0)) - 1
            )
        after, shaken = heatmap(found.x, rows), heatmap((explanation.x + noise).clamp(0, 1), rows)
        chosen = explanation.target[:, None]
        moved = (explanation.forward(found.x).softmax(1) - explanation.logits.softmax(1)).gather(1, chosen)[:, 0].abs()
        values = torch.stack(
            (
                dice(before, after, self.cut),
                pearson(before, after),
                ssim(before, after),
                top_intersection(before, after, self.top),
                found.progress.double(),
                dice(before, shaken, self.cut),
                moved.double(),
            ),
            1,
        )
        finite = good & torch.isfinite(after).flatten(1).all(1) & torch.isfinite(shaken).flatten(1).all(1)
        return values.masked_fill(~finite[:, None], torch.nan)

    def settings(self) -> tuple[str, ...]:
        return repr(self.attack), self.cut, self.reduction, f"top{self.top:g}"


def top_intersection(a: Tensor, b: Tensor, top: float) -> Tensor:
    """(B, H, W) twice -> (B,) share of the `top` most important pixels of one map that are so in the other too, in [0, 1]."""
    flat = a.flatten(1)
    count = max(1, round(top * flat.shape[1]))
    first, second = (
        torch.zeros_like(flat, dtype=torch.bool).scatter_(1, rank_pixels(m.nan_to_num())[:, :count], True)
        for m in (a, b)
    )
    return (first & second).sum(1).double() / count


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

    Source: root inference (anonymous), Table 2, whose columns all obey accuracy = 0.71 (1 - ASR), so ASR is over the correctly classified.
    """

    columns = ("", "asr_all", "step", "accuracy", "clean")
    higher_is_better = {"": True, "asr_all": True, "step": False, "accuracy": False, "clean": None}
    conditional = frozenset({"", "step"})  # the correctly classified, the fooled
    needs = frozenset({"label"})
    role = "robustness"
    kind = "guided_pgd"

    def __init__(
        self, top: int = 500, unit: str = "value", epsilon: float = 8 / 255, alpha: float = 1 / 255, steps: int = 20
    ) -> None:
        self.top, self.unit, self.epsilon, self.alpha, self.steps = top, unit, epsilon, alpha, steps
        self.attack = GuidedPGD(epsilon, alpha, steps, top=top, unit=unit)
        super().__init__()

    def measure(self, explanation: Explanation) -> Tensor:
        relevance = explanation.attribution.flatten(1)
        low, high = relevance.amin(1), relevance.amax(1)
        good = torch.nonzero(torch.isfinite(low) & torch.isfinite(high) & (high > low))[:, 0]
        values = torch.full(
            (len(explanation), len(self.columns)), torch.nan, dtype=torch.float64, device=relevance.device
        )
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
        return (
            f"{self.top}{self.unit}s",
            f"eps{255 * self.epsilon:.3g}/255",
            f"alpha{255 * self.alpha:.3g}/255",
            f"{self.steps}steps",
        )
