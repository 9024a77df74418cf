"""One pixel of another color, found by differential evolution: an attack that needs no gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from explainode.attacks.base import Attack, AttackResult, Forward
from explainode.errors import UserError
from explainode.randomness import input_keys, normal_like, uniform

ROWS = 256  # candidate images per forward


@dataclass(frozen=True)
class OnePixel(Attack):
    """Change a single pixel so that the prediction leaves `target`.

    A candidate is a place and a color, (row, column, C values), all in [0, 1]. Each generation makes one child per candidate,
    c_1 + scale (c_2 - c_3) of three others, which replaces its parent if the probability of `target` is lower. Random numbers are keyed by
    the sample, so the same image is attacked alike in any batch.

    Args:
        population: candidates per image.
        generations: at most so many; a generation is a step.
        scale: of the difference.

    Costs at most population * (generations + 1) forwards per image.

    Source: Su et al. 2019: 400 candidates, 100 generations, scale 0.5, no crossover, colors from N(0.5, 0.5). We take 100 and 30 by default
    (3,100 forwards instead of 40,400), wrap places around the border and clip colors.
    """

    population: int = 100
    generations: int = 30
    scale: float = 0.5

    def __post_init__(self) -> None:
        if self.population < 4:
            raise UserError(
                f"differential evolution needs at least 4 candidates, got population={self.population}; 100 is usual"
            )
        if self.generations < 1:
            raise UserError(f"at least one generation is needed, got {self.generations}; 30 is usual")

    def attack(self, forward: Forward, x: Tensor, target: Tensor, allowed: Tensor | None) -> AttackResult:
        rows = torch.arange(len(x), device=x.device)
        best = x.clone()
        steps = torch.full_like(target, self.generations)
        with torch.no_grad():
            success = forward(x, rows).argmax(1) != target
            steps[success] = 0
            parents = self._first(x)
            score, flips = self._evaluate(forward, x, target, allowed, parents, rows)
            for step in range(1, self.generations + 1):
                alive = torch.nonzero(~success)[:, 0]
                if not len(alive):
                    break
                if step > 1:  # the first generation is the random one itself
                    children = self._children(parents[alive], x, alive, step)
                    child_score, child_flips = self._evaluate(forward, x, target, allowed, children, alive)
                    better = child_score < score[alive]
                    parents[alive] = torch.where(better[:, :, None], children, parents[alive])
                    score[alive] = torch.where(better, child_score, score[alive])
                    flips[alive] = torch.where(better, child_flips, flips[alive])
                champion = score[alive].argmin(1)
                best[alive] = self._images(x, allowed, parents[alive, champion][:, None], alive)[:, 0]
                done = alive[flips[alive, champion]]
                success[done], steps[done] = True, step
        return AttackResult(best, success, steps)

    def _first(self, x: Tensor) -> Tensor:
        """(B, P, 2 + C): uniform places, normal colors."""
        places = uniform(input_keys(x, "one pixel places", 0), 2 * self.population).view(len(x), self.population, 2)
        colors = normal_like(x.new_empty(len(x), self.population, x.shape[1]), input_keys(x, "one pixel colors", 0))
        return torch.cat((places.to(x.dtype), (0.5 + 0.5 * colors).clamp(0, 1)), 2)

    def _children(self, parents: Tensor, x: Tensor, rows: Tensor, step: int) -> Tensor:
        """(A, P, 2 + C) children of three different candidates, none of them the parent."""
        keys = input_keys(x, "one pixel partners", step)[rows]
        lots = uniform(keys, self.population**2).view(-1, self.population, self.population)
        lots = lots + 2 * torch.eye(self.population, device=lots.device)
        partners = lots.argsort(2)[:, :, :3]
        first, second, third = (parents.gather(1, partners[:, :, k, None].expand_as(parents)) for k in range(3))
        child = first + self.scale * (second - third)
        return torch.cat((child[:, :, :2] % 1.0, child[:, :, 2:].clamp(0, 1)), 2)

    def _images(self, x: Tensor, allowed: Tensor | None, candidates: Tensor, rows: Tensor) -> Tensor:
        """(A, P, C, H, W): the images `rows` with one pixel changed; a candidate whose place is not allowed changes nothing."""
        height, width = x.shape[-2:]
        a, p = candidates.shape[:2]
        line = (candidates[:, :, 0] * height).long().clamp(max=height - 1)
        column = (candidates[:, :, 1] * width).long().clamp(max=width - 1)
        place = (line * width + column)[:, :, None, None].expand(-1, -1, x.shape[1], 1)
        images = x[rows, None].expand(-1, p, -1, -1, -1).flatten(3).clone()
        color = candidates[:, :, 2:, None]
        if allowed is not None:
            free = allowed[rows, None].expand(-1, p, x.shape[1], -1, -1).flatten(3).gather(3, place)
            color = torch.where(free, color, images.gather(3, place))
        return images.scatter_(3, place, color).view(a, p, *x.shape[1:])

    def _evaluate(
        self, forward: Forward, x: Tensor, target: Tensor, allowed: Tensor | None, candidates: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Probability of the target and whether the prediction left it, both (A, P)."""
        population = candidates.shape[1]
        images = max(1, ROWS // population)
        scores, flips = [], []
        for chunk in torch.arange(len(rows), device=x.device).split(images):
            stack = self._images(x, allowed, candidates[chunk], rows[chunk]).flatten(0, 1)
            of = rows[chunk].repeat_interleave(population)
            logits = torch.cat(
                [forward(part, part_of) for part, part_of in zip(stack.split(ROWS), of.split(ROWS), strict=True)]
            )
            scores.append(logits.softmax(1).gather(1, target[of][:, None]).view(-1, population))
            flips.append((logits.argmax(1) != target[of]).view(-1, population))
        return torch.cat(scores), torch.cat(flips)
