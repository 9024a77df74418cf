"""Where on [0, 1] a path integral is evaluated, and with which weights: fixed rules, and a partition that grows where it must."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from explainode.errors import UserError, nearest

RULES = ("gauss_legendre", "midpoint", "trapezoid")


@dataclass(frozen=True)
class Quadrature:
    """integral of g over [0, 1] ~ sum of weights[k] * g(nodes[k])."""

    nodes: tuple[float, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.nodes) == len(self.weights)
        assert all(0 <= node <= 1 for node in self.nodes)
        assert abs(sum(self.weights) - 1) < 1e-9  # a constant is integrated exactly
        assert abs(sum(w * a for w, a in zip(self.weights, self.nodes, strict=True)) - 0.5) < 1e-9  # and so is a line


def quadrature(name: str, steps: int) -> Quadrature:
    """The rule `name` with `steps` nodes.

    Raises:
        UserError: if there is no such rule, or it needs more nodes.
    """
    if steps < (2 if name == "trapezoid" else 1):
        raise UserError(f"{name} cannot integrate with {steps} steps; take {2 if name == 'trapezoid' else 1} or more")
    if name == "gauss_legendre":
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        nodes, weights = (nodes + 1) / 2, weights / 2
    elif name == "midpoint":
        nodes, weights = (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)
    elif name == "trapezoid":
        nodes, weights = np.linspace(0, 1, steps), np.full(steps, 1 / (steps - 1))
        weights[[0, -1]] /= 2
    else:
        raise UserError(
            f"no quadrature named {name!r}; choose one of {', '.join(RULES)} (nearest: {nearest(name, RULES)})"
        )
    return Quadrature(tuple(nodes.tolist()), tuple(weights.tolist()))


@dataclass
class Partition:
    """The trapezoidal rule on [0, 1], one growing partition per row, for a function whose integral over any interval is known.

    Letters: B rows, n nodes, I = n - 1 intervals; neither is sorted.

    Attributes:
        alpha: (B, n) nodes.
        value: (B, n) F(alpha), the antiderivative.
        slope: (B, n) F'(alpha), the integrand.
        left, right: (B, I) node numbers of each interval's ends.
    """

    alpha: Tensor
    value: Tensor
    slope: Tensor
    left: Tensor
    right: Tensor

    @classmethod
    def uniform(cls, value: Tensor, slope: Tensor) -> Partition:
        """Equally spaced nodes from 0 to 1, for `value` and `slope` (B, n)."""
        batch, n = value.shape
        ends = torch.arange(n, device=value.device).expand(batch, n)
        alpha = torch.linspace(0, 1, n, dtype=value.dtype, device=value.device).expand(batch, n)
        return cls(alpha, value, slope, ends[:, :-1], ends[:, 1:])

    def _ends(self, of: Tensor) -> tuple[Tensor, Tensor]:
        return of.gather(1, self.left), of.gather(1, self.right)

    def length(self) -> Tensor:
        """(B, I)."""
        start, end = self._ends(self.alpha)
        return end - start

    def errors(self) -> Tensor:
        """(B, I): what the trapezoid of each interval lacks."""
        f_start, f_end = self._ends(self.value)
        h_start, h_end = self._ends(self.slope)
        return f_end - f_start - self.length() * (h_start + h_end) / 2

    def total(self) -> Tensor:
        """(B,): F(1) - F(0)."""
        return (
            self.value.gather(1, self.alpha.argmax(1, keepdim=True))[:, 0]
            - self.value.gather(1, self.alpha.argmin(1, keepdim=True))[:, 0]
        )

    def weights(self) -> Tensor:
        """(B, n): the rule's weight of each node."""
        half = self.length() / 2
        return torch.zeros_like(self.alpha).scatter_add(1, self.left, half).scatter_add(1, self.right, half)

    def worst(self) -> tuple[Tensor, Tensor]:
        """The interval (B,) that drives the error of the whole sum most, and its middle (B,)."""
        errors = self.errors()
        interval = (errors * errors.sum(1, keepdim=True).sign()).argmax(1)
        start, end = (ends.gather(1, interval[:, None])[:, 0] for ends in self._ends(self.alpha))
        return interval, (start + end) / 2

    def split(self, interval: Tensor, alpha: Tensor, value: Tensor, slope: Tensor) -> Partition:
        """With a further node (all (B,)) inside `interval` (B,) of each row."""
        node = torch.full_like(interval, self.alpha.shape[1])[:, None]
        end = self.right.gather(1, interval[:, None])
        return Partition(
            torch.cat([self.alpha, alpha[:, None]], 1),
            torch.cat([self.value, value[:, None]], 1),
            torch.cat([self.slope, slope[:, None]], 1),
            torch.cat([self.left, node], 1),
            torch.cat([self.right.scatter(1, interval[:, None], node), end], 1),
        )

    def rows(self, keep: Tensor) -> Partition:
        """Only the rows where `keep` (B,) is true."""
        return Partition(self.alpha[keep], self.value[keep], self.slope[keep], self.left[keep], self.right[keep])
