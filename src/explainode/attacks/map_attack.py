"""Attacks on the map instead of the prediction: a change of the image that nobody sees moves the explanation, and the class stays.

Shape letters: B batch, A rows that are attacked together, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from explainode.attacks.gradient import _check_budget
from explainode.attacks.softened import SoftRectifiers
from explainode.attribution import keep_graph
from explainode.errors import UserError
from explainode.randomness import input_keys, noise_rows, uniform_like
from explainode.turns import ATTENTION_BY_MATH

Heatmap = Callable[[Tensor, Tensor], Tensor]
"""`heatmap(x (A, C, H, W), rows (A,))` -> (A, H, W): the map of the class that was explained; `rows` says which image of the batch each row is."""

_PIXELS_PER_PASS = (
    4 * 224 * 224
)  # rows whose maps are differentiated at once: two derivatives hold about four times the graph of one


@dataclass(frozen=True)
class MapAttackResult:
    """What an attack on maps found.

    Attributes:
        x: (B, C, H, W) pixels in [0, 1], of the same predicted class as before.
        progress: (B,) how far the map was moved, in the attack's own terms, 0 where nothing moves.
    """

    x: Tensor
    progress: Tensor


def importance(heatmap: Tensor) -> Tensor:
    """(B, H, W) -> |map| of sum 1; a zero map stays zero."""
    size = heatmap.abs()
    return size / size.sum((1, 2), keepdim=True).clamp(min=1e-30)


@dataclass(frozen=True)
class MapAttack(ABC):
    """Sign steps of length alpha in a ball of radius epsilon (l-infinity, pixel units), from a keyed random point of radius alpha.

    The steps climb `gain` of the map of a network with softened rectifiers, whose sharpness grows geometrically from `beta` to `last_beta`. Of the
    points on the way, that one is taken whose map in the network *as it is* gained most while its predicted class is that of the image and the
    probability of that class has moved by no more than `drift`; the image itself is among them. Each image is attacked by itself.

    Costs a map with its second derivative (about four passes), a map and a forward for each step.
    """

    epsilon: float = 8 / 255
    alpha: float = 1 / 255
    steps: int = 10
    beta: float = 10.0
    last_beta: float = 100.0
    drift: float = 1.0

    def __post_init__(self) -> None:
        _check_budget(self.epsilon, self.alpha, self.steps)
        if not 0 <= self.drift <= 1:
            raise UserError(
                f"drift is a change of a probability in [0, 1], got {self.drift}; 1 asks for the same class alone"
            )
        for beta in (self.beta, self.last_beta):
            SoftRectifiers(beta)

    @abstractmethod
    def gain(self, before: Tensor, now: Tensor) -> Tensor:
        """What the steps climb, (A,), from the importance (A, H, W) of the image and of the point."""

    def progress(self, before: Tensor, now: Tensor) -> Tensor:
        """(A,) how far the map was moved, a number to be read."""
        return self.gain(before, now) - self.gain(before, before)

    def __call__(self, x: Tensor, heatmap: Heatmap, predict: Callable[[Tensor, Tensor], Tensor]) -> MapAttackResult:
        """Move the maps of x (B, C, H, W).

        Args:
            heatmap: called within `keep_graph` as well, where it must answer with a graph to x.
            predict: `predict(x, rows)` -> (A, K) logits.

        Raises:
            UserError: if the map cannot be differentiated.
        """
        limit = max(1, _PIXELS_PER_PASS // (x.shape[-1] * x.shape[-2]))
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone() if x.is_inference() else x.detach()
            parts = []
            for rows in torch.arange(len(x), device=x.device).split(limit):
                with noise_rows(rows):
                    parts.append(self._attack(x[rows], rows, heatmap, predict))
        return MapAttackResult(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def _attack(
        self, x: Tensor, rows: Tensor, heatmap: Heatmap, predict: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        def look(point: Tensor) -> Tensor:
            return importance(heatmap(point, rows).detach())

        clean = predict(x, rows).softmax(1)
        kept = clean.argmax(1)

        def stays(point: Tensor) -> Tensor:
            now = predict(point, rows).softmax(1)
            moved = (now - clean).gather(1, kept[:, None])[:, 0].abs()
            return (now.argmax(1) == kept) & (moved <= self.drift)

        before = look(x)
        best, most, reached = x.clone(), self.gain(before, before), self.progress(before, before)
        start = self.alpha * (2 * uniform_like(x, input_keys(x, "map attack", 0)) - 1)
        point = self._project(x, x + start)
        for step in range(self.steps):
            beta = self.beta * (self.last_beta / self.beta) ** (step / max(self.steps - 1, 1))
            slope = self._slope(point, rows, heatmap, before, beta)
            point = self._project(x, point + self.alpha * slope.sign())
            now = look(point)
            gained = self.gain(before, now)
            better = (gained > most) & stays(point)
            best = torch.where(better[:, None, None, None], point, best)
            most = torch.where(better, gained, most)
            reached = torch.where(better, self.progress(before, now), reached)
        return best, reached

    def _slope(self, point: Tensor, rows: Tensor, heatmap: Heatmap, before: Tensor, beta: float) -> Tensor:
        """Gradient (A, C, H, W) of the gain of a softened network's map to the point; zero where the map does not depend on it."""
        point = point.detach().requires_grad_()
        with ExitStack() as stack:
            stack.enter_context(SoftRectifiers(beta))
            stack.enter_context(ATTENTION_BY_MATH)  # fused attention has no second derivative
            graph = stack.enter_context(keep_graph())
            heat = heatmap(point, rows)
        if not graph.kept:
            raise UserError(
                "the map carries no gradient to the image, so it cannot be attacked; only methods made of gradients can (saliency, ig, gradcam,"
                " ...), leave the metric out for this one"
            )
        if not heat.requires_grad:  # the gradient of a linear network: the same everywhere
            return torch.zeros_like(point)
        slope = torch.autograd.grad(self.gain(before, importance(heat)).sum(), point, allow_unused=True)[0]
        return torch.zeros_like(point) if slope is None else slope.nan_to_num(0.0, 0.0, 0.0)

    def _project(self, x: Tensor, point: Tensor) -> Tensor:
        return (x + (point - x).clamp(-self.epsilon, self.epsilon)).clamp(0, 1).detach()


@dataclass(frozen=True)
class TopPixelsAttack(MapAttack):
    """Takes importance away from the most important pixels of the image's map: gain = -sum of the importance over them.

    Progress is the share of their importance that was taken away.

    Args:
        top: share of the pixels that count as the most important.

    Source: Ghorbani et al. 2019, Algorithm 1 with D_top-k: 8/255 in 300 steps of 0.5/255, the 1000 most important of 224x224 pixels and the 100
    of 32x32 (hence 0.1). We take 10 steps of 1/255 by default, and let the softplus grow, which they keep fixed.
    """

    top: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.top < 1:
            raise UserError(f"top must be a share of the pixels in (0, 1), got {self.top}; 0.1 is usual")

    def _on_top(self, before: Tensor, now: Tensor) -> Tensor:
        flat = before.flatten(1)
        return now.flatten(1).gather(1, flat.topk(max(1, round(self.top * flat.shape[1])), dim=1).indices).sum(1)

    def gain(self, before: Tensor, now: Tensor) -> Tensor:
        return -self._on_top(before, now)

    def progress(self, before: Tensor, now: Tensor) -> Tensor:
        return 1 - self._on_top(before, now) / self._on_top(before, before)


@dataclass(frozen=True)
class CenterAttack(MapAttack):
    """Moves the map's center of mass: gain = squared distance of the centers, progress their distance in pixels.

    Source: Ghorbani et al. 2019, Algorithm 1 with D_mass-center (there the distance itself, which has no slope where the walk begins).
    """

    def gain(self, before: Tensor, now: Tensor) -> Tensor:
        return (center(now) - center(before)).square().sum(1)

    def progress(self, before: Tensor, now: Tensor) -> Tensor:
        return self.gain(before, now).sqrt()


def center(heat: Tensor) -> Tensor:
    """Importance (A, H, W) of sum 1 -> (A, 2): row and column of its center of mass, in pixels."""
    rows, columns = (torch.arange(n, device=heat.device, dtype=heat.dtype) for n in heat.shape[1:])
    return torch.stack(((heat.sum(2) * rows).sum(1), (heat.sum(1) * columns).sum(1)), 1)


@dataclass(frozen=True)
class TargetMapAttack(MapAttack):
    """Moves the map towards another one: gain = -||h - t||^2 with the importances h and t.

    Progress is the share of the distance ||h - t|| that was covered.

    Source: Dombrowski et al. 2019, Eq. 1-2: target maps of other images, Adam, and a penalty that keeps the logits. We take the image's own map
    turned by 180 degrees as t (so that an image's result does not depend on the others), sign steps in a ball (so that all attacks have
    one budget), and keep the output by choosing among the points (`drift`); how far it moves is reported.
    """

    def gain(self, before: Tensor, now: Tensor) -> Tensor:
        return (
            -(now - self.target(before)).square().sum((1, 2)) * before.shape[1] * before.shape[2]
        )  # of order 1 for any size

    def progress(self, before: Tensor, now: Tensor) -> Tensor:
        target = self.target(before)
        whole = (before - target).flatten(1).norm(dim=1)
        return torch.where(whole > 0, 1 - (now - target).flatten(1).norm(dim=1) / whole.clamp(min=1e-30), 0.0)

    def target(self, before: Tensor) -> Tensor:
        """(A, H, W)."""
        return before.flip(1, 2)
