"""Does the map depend on what it claims to explain: on the network's parameters, on what labels taught it, and on the class?"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from explainode.attribution import Explanation, check_reduction, reduce_channels, upsample
from explainode.errors import UserError
from explainode.metrics.agreement import check_measure
from explainode.metrics.base import ExplanationMetric
from explainode.metrics.perturbation import usable
from explainode.randomness import normal, sample_keys, uniform


def likeness(explanation: Explanation, other: Tensor, similarity: str, reduction: str) -> Tensor:
    """(B,) float64 of the record's heatmaps and another attribution's. NaN where the record's map is constant or not finite, or the
    measure has no meaning (SSIM of pictures smaller than its window).

    A constant or broken map on the other side tells nothing about the first: 0. (A ReLU map of a random network is often all zero;
    leaving these images out would judge a method by the networks on which it still draws something.)
    """
    heat = explanation.heatmap(reduction)
    against = upsample(reduce_channels(other, reduction), heat.shape[-2:])
    low, high = against.flatten(1).amin(1), against.flatten(1).amax(1)  # NaN and infinities reach these two
    says_something = torch.isfinite(low) & torch.isfinite(high) & (high > low)
    alike = check_measure(similarity)(heat, torch.where(says_something[:, None, None], against, 0))
    return torch.where(says_something, alike, 0).masked_fill(~usable(explanation, reduction), torch.nan)


def with_magnitude(explanation: Explanation, other: Tensor, similarity: str, reduction: str) -> Tensor:
    """(B, 2) the likeness of the maps, and of their magnitudes: the absolute values of the channels summed."""
    kinds = (reduction, "abs_sum")
    return torch.stack([likeness(explanation, other, similarity, kind) for kind in kinds], 1)


def layers_from_the_top(model: nn.Module) -> list[str]:
    """Names of the modules that hold parameters of their own, the last registered first."""
    names = [
        name
        for name, module in model.named_modules()
        if any(p.is_floating_point() for p in module.parameters(recurse=False))
    ]
    return names[::-1]


@torch.no_grad()
def randomize(model: nn.Module, layers: list[str], seed: int) -> None:
    """Replace the own parameters of these modules by normal draws with each parameter's own mean and deviation, keyed by seed and name."""
    for name in layers:
        for kind, parameter in model.get_submodule(name).named_parameters(recurse=False):
            if parameter.is_floating_point():
                key = sample_keys(torch.zeros(1, dtype=torch.int64), seed, "randomized parameter", f"{name}.{kind}")
                drawn = normal(key, parameter.numel()).view(parameter.shape).to(parameter)
                parameter.copy_(parameter.mean() + parameter.std(correction=0) * drawn)


class ParameterRandomization(ExplanationMetric):
    """Likeness of the map to the one of a network with random parameters: lower, the map depends on what was learned.

    Results: the headline is the mean over the stages; `end` the last stage alone: all parameters random (cascading), or those of the
    lowest layers (independent); `magnitude`, as the headline, of the maps' magnitudes; `absolute`, the mean of the likeness without its sign.
    A map whose sign is random and whose places are not has a headline near 0 and a `magnitude` near 1: it does not depend on what was learned.
    Curve: likeness against the share of layers that are random (cascading) or that lie above the random ones (independent).

    Args:
        mode: "cascading" (from the output down, all layers above stay random) or "independent" (one group of layers at a time).
        stages: into how many groups of equal size the layers are divided, the output's first.
        similarity: "spearman", "pearson", "ssim", "dice" or another name in `agreement.MEASURES`.
        reduction: of the channels: "sum" keeps the sign, "abs_sum" compares magnitudes.

    Shapes:
        compute(): four scalars. Costs `stages` explanations per image.

    Source: Adebayo et al. 2018 (both modes; Spearman and SSIM). They initialize layers anew; We draw each parameter with the mean
    and deviation that training gave it and keep the statistics of batch norm, so that activations neither die nor explode. Layers are in
    order of registration. Draws are keyed by seed and parameter, the same for all explainers, batches and ranks.
    """

    columns = ("", "end", "magnitude", "absolute")
    higher_is_better = False
    role = "sanity"
    kind = "parameter_randomization"

    def __init__(
        self, mode: str = "cascading", stages: int = 10, similarity: str = "spearman", reduction: str = "sum"
    ) -> None:
        self.mode, self.stages, self.similarity, self.reduction = mode, stages, similarity, check_reduction(reduction)
        check_measure(similarity)
        if mode not in ("cascading", "independent"):
            raise UserError(f"mode must be 'cascading' or 'independent', got {mode!r}")
        if stages < 1:
            raise UserError(f"at least one stage is needed, got {stages}; 10 is usual")
        super().__init__()

    def curve_axis(self) -> tuple[np.ndarray, str, str]:
        where = (
            "share of layers that are random" if self.mode == "cascading" else "share of layers above the random ones"
        )
        first = 1 if self.mode == "cascading" else 0
        return np.arange(first, first + self.stages) / self.stages, where, f"{self.similarity} with the true map"

    def curves(self, explanation: Explanation) -> Tensor:
        return self._stages(explanation)[..., 0]

    def _stages(self, explanation: Explanation) -> Tensor:
        key = ("randomized", self.mode, self.stages, self.similarity, self.reduction)
        return explanation.memo(key, lambda: self._likeness(explanation))

    def _likeness(self, explanation: Explanation) -> Tensor:
        """(B, stages, 2) of the maps, and of their magnitudes."""
        layers = layers_from_the_top(explanation.model)
        if not layers:
            raise UserError(
                "the network has no parameters that could be randomized; leave the metric parameter_randomization out"
            )
        with torch.inference_mode(False):
            network = copy.deepcopy(explanation.model)
            found: list[Tensor] = []
            for stage in range(self.stages):
                low, high = (round(k * len(layers) / self.stages) for k in (stage, stage + 1))
                if low == high and found:  # fewer layers than stages: nothing new became random
                    found.append(found[-1])
                    continue
                if self.mode == "independent":
                    network.load_state_dict(explanation.model.state_dict())
                randomize(network, layers[low : max(high, low + 1)], explanation.seed)
                other = explanation.explain(explanation.x, model=network)
                found.append(with_magnitude(explanation, other, self.similarity, self.reduction))
        return torch.stack(found, 1)

    def measure(self, explanation: Explanation) -> Tensor:
        stages = self._stages(explanation)
        signed, magnitude = stages.unbind(2)
        return torch.stack((signed.mean(1), signed[:, -1], magnitude.mean(1), signed.abs().mean(1)), 1)

    def settings(self) -> tuple[str, ...]:
        return self.mode, f"{self.stages}stages", self.similarity, self.reduction


class DataRandomization(ExplanationMetric):
    """Likeness of the map to the one of a twin network that was trained on random labels: lower, the map depends on what labels taught.

    The same class is explained in both. Whatever two networks of one architecture see in a picture before they have learned anything is in
    both maps; what remains alike is not about the classes.

    Args:
        twin: called with a copy of the network, fills it with the twin's weights; see `WeightsOf`. The twin is trained with
            `data=random_labels`, and all else as the network was, until it knows its labels.
        similarity: a name in `agreement.MEASURES`.
        reduction: of the channels: "sum" keeps the sign, "abs_sum" compares magnitudes.

    Shapes:
        compute(): (). Costs one explanation per image, and reads the twin's weights once a batch.

    Source: Adebayo et al. 2018, Sec. 5 (Spearman and SSIM).
    """

    higher_is_better = False
    role = "sanity"
    kind = "data_randomization"

    def __init__(self, twin: Callable[[nn.Module], None], similarity: str = "spearman", reduction: str = "sum") -> None:
        self.twin, self.similarity, self.reduction = twin, similarity, check_reduction(reduction)
        check_measure(similarity)
        super().__init__()

    def measure(self, explanation: Explanation) -> Tensor:
        def build() -> nn.Module:
            with torch.inference_mode(False):
                network = copy.deepcopy(explanation.model)
                self.twin(network)
                return network

        network = explanation.memo(("twin", self.twin), build, shared=True)
        return likeness(
            explanation, explanation.explain(explanation.x, model=network), self.similarity, self.reduction
        )[:, None]

    def settings(self) -> tuple[str, ...]:
        return self.similarity, self.reduction


class ClassSensitivity(ExplanationMetric):
    """Likeness of the map to the one of another class of the same image: lower, the map speaks of its class.

    Results: the headline; `magnitude`, of the maps' magnitudes; `absolute`, the likeness without its sign.

    Args:
        other: "least" (the class with the smallest logit) or "random" (any other, keyed by the sample).
        similarity: a name in `agreement.MEASURES`.
        reduction: of the channels: "sum" keeps the sign, "abs_sum" compares magnitudes. Relevance that is conserved gives a class with a negative
            logit the negative of nearly the same map: -1 with the sign, though the map says nothing of the class, and 1 without it.

    Shapes:
        compute(): three scalars. Costs one explanation per image. A method that does not look at the class gets 1.

    Source: Li et al. 2020 (least likely class); Sixt et al. 2020 (random logit, SSIM), in Quantus `RandomLogit`.
    """

    columns = ("", "magnitude", "absolute")
    higher_is_better = False
    role = "sanity"
    kind = "class_sensitivity"

    def __init__(self, other: str = "least", similarity: str = "spearman", reduction: str = "sum") -> None:
        self.other, self.similarity, self.reduction = other, similarity, check_reduction(reduction)
        check_measure(similarity)
        if other not in ("least", "random"):
            raise UserError(f"other must be 'least' or 'random', got {other!r}")
        super().__init__()

    def classes(self, explanation: Explanation) -> Tensor:
        """(B,) the other class of each image."""
        target, logits = explanation.target, explanation.logits
        if logits.shape[1] < 2:
            raise UserError(
                "the network has a single output, so there is no other class; leave the metric class_sensitivity out"
            )
        if self.other == "random":
            keys = sample_keys(explanation.sample_ids.to(target.device), explanation.seed, "random logit")
            further = 1 + (uniform(keys, 1)[:, 0] * (logits.shape[1] - 1)).long()
            return (target + further) % logits.shape[1]
        return logits.scatter(1, target[:, None], torch.inf).argmin(1)

    def measure(self, explanation: Explanation) -> Tensor:
        other = explanation.explain(explanation.x, target=self.classes(explanation))
        signed, magnitude = with_magnitude(explanation, other, self.similarity, self.reduction).unbind(1)
        return torch.stack((signed, magnitude, signed.abs()), 1)

    def settings(self) -> tuple[str, ...]:
        return self.other, self.similarity, self.reduction
