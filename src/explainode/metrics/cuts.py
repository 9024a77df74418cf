"""Where a map is cut into foreground and background: one rule, named in the protocol."""

from __future__ import annotations

import torch
from torch import Tensor

from explainode.attribution import normalize
from explainode.errors import UserError, nearest

BINS = 256  # of Otsu's histogram
RULES = (">mean", ">=mean", "otsu", "top:0.2", "peak:0.2")


def check_cut(rule: str) -> str:
    """`rule` if a map can be cut that way, see `foreground`.

    Raises:
        UserError: with the rules there are.
    """
    if rule in RULES:
        return rule
    name, _, fraction = rule.partition(":")
    if name in ("top", "peak"):
        try:
            if 0 < float(fraction) < 1:
                return rule
        except ValueError:
            pass
        raise UserError(f"the cut {rule!r} needs a fraction between 0 and 1, such as {name}:0.2")
    raise UserError(f"no cut named {rule!r}; the nearest are {nearest(rule, RULES)}")


def foreground(heatmap: Tensor, rule: str) -> Tensor:
    """(B, H, W) finite map -> (B, H, W) bool, nowhere for a constant map except under `>=mean`.

    `>mean` and `>=mean` cut at the map's own mean; `otsu` where the variance between the two sides is largest; `top:0.2` takes the 20 %
    of pixels with the highest values (all of those equal to the last one, but never the map's minimum); `peak:0.2` what exceeds 20 % of
    the way from minimum to maximum.

    Source: Chefer et al. 2021 (mean); Otsu 1979; Zhou et al. 2016 (20 % of the peak).
    """
    heat = normalize(heatmap)
    name, _, fraction = rule.partition(":")
    if name == "otsu":
        return otsu(heat)
    if name == "top":
        keep = max(1, round(float(fraction) * heat[0].numel()))
        least = heat.flatten(1).topk(keep, dim=1).values[:, -1, None, None]
        return (heat >= least) & (heat > 0)
    if name == "peak":
        return heat > float(fraction)
    mean = heat.mean((1, 2), keepdim=True)
    return heat >= mean if rule == ">=mean" else heat > mean


def otsu(heat: Tensor) -> Tensor:
    """(B, H, W) in [0, 1] -> (B, H, W) bool: the upper side of the cut with the largest between-class variance.

    Source: Otsu 1979, Eq. 18, over a histogram of 256 equal bins. We cut at the upper edge of the best bin, so that the two sides
    are those whose variance was compared (scikit-image cuts at the bin's center).
    """
    bins = (heat.flatten(1) * BINS).long().clamp(0, BINS - 1)
    share = torch.zeros(len(heat), BINS, dtype=torch.float64, device=heat.device)
    share.scatter_add_(1, bins, torch.full(bins.shape, 1.0 / bins.shape[1], dtype=torch.float64, device=heat.device))
    center = (torch.arange(BINS, dtype=torch.float64, device=heat.device) + 0.5) / BINS
    omega, mu = share.cumsum(1), (share * center).cumsum(1)  # zeroth and first moments below each cut
    total = mu[:, -1:]
    between = (total * omega - mu).square() / (omega * (1 - omega))
    between = torch.where((omega > 1e-12) & (omega < 1 - 1e-12), between, 0.0)  # both sides hold pixels
    return (bins > between.argmax(1, keepdim=True)).view_as(heat) & (heat > 0)
