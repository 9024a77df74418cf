"""Networks whose exact maps are known by construction, pictures for them, and maps that miss the truth by one thing: what metrics are examined with.

All networks read zero-mean codes on a gray ground, so that whatever flat or blurred thing replaces a code, its evidence is gone: the truth does not
depend on a metric's baseline. Places are uniform (the picture is a torus where a code may cross its border), so a bump in the middle knows nothing.

Letters: B images, K classes, S side of the picture, T side of a code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainode.blur import gaussian_kernel, separable_filter

CLASSES = 4
OWN, OTHER = 0.36, 0.27  # amplitudes of the explained object's code and of the other's


@dataclass(frozen=True)
class Scene:
    """Pictures of a planted network.

    Attributes:
        x: (B, 3, S, S) in [0, 1]; label: (B,) the class that the network sees most of; mask: (B, S, S) int64, the object that a person would mark.
    """

    x: Tensor
    label: Tensor
    mask: Tensor


class PlantedNetwork(nn.Module):
    """A network of K classes that is positively homogeneous in the gray picture less 1/2, as long as the same detectors are active.

    Therefore gradient x (gray - 1/2) are its exact contributions, see `contributions`.

    Class attributes:
        second: whether its pictures show something of another class too; where they do not, that class has no map.

    Args:
        seed: of the codes.
        size: S; codes have T = S / 4 - 1 pixels a side.
    """

    gain = 1.0
    degree = 1
    codes_made = CLASSES
    second = True

    def __init__(self, seed: int = 0, size: int = 32) -> None:
        super().__init__()
        self.size, self.side = size, size // 4 - 1
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (self.codes_made, self.side, self.side), generator=generator).float() * 2 - 1
        signs = signs - signs.mean((1, 2), keepdim=True)
        self.codes = nn.Parameter(signs / signs.square().mean((1, 2), keepdim=True).sqrt())

    def evidence(self, z: Tensor, x: Tensor) -> Tensor:
        """(B, K) of the gray picture less 1/2, z (B, 1, S, S)."""
        raise NotImplementedError

    def scene(self, n: int, seed: int) -> Scene:
        """n pictures, keyed by the seed."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.evidence(x.mean(1, keepdim=True) - 0.5, x)

    def contributions(self, x: Tensor, target: Tensor) -> Tensor:
        """(B, 1, S, S): what each pixel adds to the target's logit; their sum is the logit."""
        with torch.enable_grad():
            z = (x.mean(1, keepdim=True) - 0.5).detach().requires_grad_()
            chosen = self.gain * self.evidence(z, x).gather(1, target[:, None])
            return (torch.autograd.grad(chosen.sum(), z)[0] * z / self.degree).detach()

    # ---- what scenes are made of

    def ground(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 3, S, S): smooth colors and a little noise around gray."""
        smooth = F.interpolate(
            torch.rand(n, 3, 8, 8, generator=generator), size=(self.size, self.size), mode="bilinear"
        )
        return 0.35 + 0.3 * smooth + 0.03 * torch.randn(smooth.shape, generator=generator)

    def two_classes(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(n,) twice: different classes."""
        label = torch.arange(n) % CLASSES
        return label, (label + 1 + torch.randint(0, CLASSES - 1, (n,), generator=generator)) % CLASSES

    def two_places(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(n, 2) twice: corners on the torus, far enough from each other that codes do not meet."""
        first = torch.randint(0, self.size, (n, 2), generator=generator)
        step = torch.randint(self.side + 3, self.size - self.side - 2, (n, 2), generator=generator)
        return first, (first + step) % self.size

    def stamp(self, x: Tensor, code: Tensor, place: Tensor, amplitude: float, generator: torch.Generator) -> Tensor:
        """Writes (n, T, T) codes at `place` (n, 2) of gray ground into x, around the border, each a tenth stronger or weaker.

        Returns where, (n, S, S) int64.
        """
        mask = torch.zeros(len(x), self.size, self.size, dtype=torch.int64)
        span = torch.arange(code.shape[-1])
        strength = amplitude * (0.9 + 0.2 * torch.rand(len(x), generator=generator))
        for image, pattern, (top, left), marked, size in zip(x, code, place.tolist(), mask, strength, strict=True):
            rows, columns = (top + span)[:, None] % self.size, (left + span)[None] % self.size
            grain = 0.03 * torch.randn(3, *code.shape[-2:], generator=generator)
            image[:, rows, columns] = 0.5 + size * pattern + grain
            marked[rows, columns] = 1
        return mask

    def responses(self, z: Tensor) -> Tensor:
        """(B, codes, S, S): how well each code matches at each place, about its amplitude there; 0 where that is too little."""
        half = self.side // 2
        padded = F.pad(z, (half, self.side - 1 - half) * 2, mode="circular")
        return _where_above(0.18, F.conv2d(padded, self.codes[:, None] / self.side**2))


def _where_above(threshold: float, response: Tensor) -> Tensor:
    """The response where it is above the threshold, 0 elsewhere: homogeneous, as a rectifier with a bias is not."""
    return torch.where(response > threshold, response, torch.zeros_like(response))


class OneObject(PlantedNetwork):
    """Convolution: a detector of each class's code, summed over all places; one object."""

    gain = 14.0
    second = False

    def evidence(self, z: Tensor, x: Tensor) -> Tensor:
        return self.responses(z)[:, :CLASSES].sum((2, 3))

    def scene(self, n: int, seed: int) -> Scene:
        generator = torch.Generator().manual_seed(seed)
        label, _ = self.two_classes(n, generator)
        x, (place, _) = self.ground(n, generator), self.two_places(n, generator)
        mask = self.stamp(x, self.codes.detach()[label], place, OWN, generator)
        return Scene(x.clamp(0, 1), label, mask)


class TwoObjects(OneObject):
    """The same network before pictures of two objects, of which the stronger one is explained."""

    second = True

    def scene(self, n: int, seed: int) -> Scene:
        generator = torch.Generator().manual_seed(seed)
        label, other = self.two_classes(n, generator)
        x, (place, elsewhere) = self.ground(n, generator), self.two_places(n, generator)
        mask = self.stamp(x, self.codes.detach()[label], place, OWN, generator)
        self.stamp(x, self.codes.detach()[other], elsewhere, OTHER, generator)
        return Scene(x.clamp(0, 1), label, mask)


class Gated(PlantedNetwork):
    """Evidence of a class counts only in so far as a mark, a code of its own, is in the picture too: a product, whose two factors share it equally."""

    gain = 40.0
    degree = 2  # both factors of a product have all of it in their gradient
    codes_made = CLASSES + 1
    second = False

    def evidence(self, z: Tensor, x: Tensor) -> Tensor:
        found = self.responses(z).sum((2, 3))
        return found[:, :CLASSES] * found[:, CLASSES:]

    def scene(self, n: int, seed: int) -> Scene:
        generator = torch.Generator().manual_seed(seed)
        label, _ = self.two_classes(n, generator)
        x, (place, elsewhere) = self.ground(n, generator), self.two_places(n, generator)
        codes = self.codes.detach()
        mask = self.stamp(x, codes[label], place, OWN, generator)
        mask = mask | self.stamp(x, codes[-1:].expand(n, -1, -1), elsewhere, OWN, generator)
        return Scene(x.clamp(0, 1), label, mask)


class Linear(PlantedNetwork):
    """One weight for each pixel and class: each class's code at its own place, one quarter of the picture each."""

    gain = 18.0

    def corners(self) -> Tensor:
        """(K, 2) places of the classes."""
        half, inset = self.size // 2, (self.size // 2 - self.side) // 2
        return torch.tensor([[0, 0], [0, half], [half, 0], [half, half]]) + inset

    def evidence(self, z: Tensor, x: Tensor) -> Tensor:
        t = self.side
        parts = [
            (z[:, 0, a : a + t, b : b + t] * code).mean((1, 2))
            for (a, b), code in zip(self.corners().tolist(), self.codes, strict=True)
        ]
        return torch.stack(parts, 1)

    def scene(self, n: int, seed: int) -> Scene:
        generator = torch.Generator().manual_seed(seed)
        label, other = self.two_classes(n, generator)
        x, codes, corners = self.ground(n, generator), self.codes.detach(), self.corners()
        mask = self.stamp(x, codes[label], corners[label], OWN, generator)
        self.stamp(x, codes[other], corners[other], OTHER / 2, generator)
        return Scene(x.clamp(0, 1), label, mask)


class Suppressor(Linear):
    """Linear: a disturbance lies on the object and, alone, in the opposite quarter, where the network reads it only to take it away.

    Those pixels tell nothing of the class (Haufe et al. 2014), yet the network goes by them: they are part of the truth, and not of the mask.
    """

    gain = 14.0

    def evidence(self, z: Tensor, x: Tensor) -> Tensor:
        t, places = self.side, self.corners().tolist()
        return torch.stack(
            [
                ((z[:, 0, a : a + t, b : b + t] - z[:, 0, c : c + t, d : d + t]) * code).mean((1, 2))
                for (a, b), (c, d), code in zip(places, places[::-1], self.codes, strict=True)
            ],
            1,
        )

    def scene(self, n: int, seed: int) -> Scene:
        generator = torch.Generator().manual_seed(seed)
        label, _ = self.two_classes(n, generator)
        x, codes, corners = self.ground(n, generator), self.codes.detach(), self.corners()
        disturbance = 0.4 * torch.rand(n, 1, 1, generator=generator) * codes[label] + 0.3 * codes.roll(1, 0)[label]
        mask = self.stamp(x, codes[label] + disturbance, corners[label], 0.3, generator)
        self.stamp(x, disturbance, corners.flip(0)[label], 0.3, generator)
        return Scene(x.clamp(0, 1), label, mask)


class Disconnected(PlantedNetwork):
    """Each class sees a quarter of the picture and nothing else, all of them with the same eyes; the same object stands in two quarters.

    Source: the idea of DiFull, Rao et al. 2022: relevance outside the own cell is wrong because nothing leads there.
    """

    gain = 14.0

    def evidence(self, z: Tensor, x: Tensor) -> Tensor:
        half = self.size // 2
        code = self.codes[:1, None] / self.side**2
        cells = [z[:, :, a : a + half, b : b + half] for a in (0, half) for b in (0, half)]
        return torch.stack([_where_above(0.18, F.conv2d(cell, code)).sum((1, 2, 3)) for cell in cells], 1)

    def scene(self, n: int, seed: int) -> Scene:
        generator = torch.Generator().manual_seed(seed)
        label, other = self.two_classes(n, generator)
        x, half = self.ground(n, generator), self.size // 2
        cells = torch.tensor([[0, 0], [0, half], [half, 0], [half, half]])
        code = self.codes.detach()[:1].expand(n, -1, -1)
        inside = [torch.randint(0, half - self.side + 1, (n, 2), generator=generator) for _ in range(2)]
        mask = self.stamp(x, code, cells[label] + inside[0], OWN, generator)
        self.stamp(x, code, cells[other] + inside[1], OTHER, generator)
        return Scene(x.clamp(0, 1), label, mask)


class Texture(PlantedNetwork):
    """The class is what the ground is woven of; the object on it, which a person would mark, tells nothing."""

    gain = 0.6
    second = False

    def evidence(self, z: Tensor, x: Tensor) -> Tensor:
        half = self.side // 2
        padded = F.pad(z, (half, self.side - 1 - half) * 2, mode="circular")
        return _where_above(0.12, F.conv2d(padded, self.codes[:, None] / self.side**2)).sum((2, 3))

    def scene(self, n: int, seed: int) -> Scene:
        generator = torch.Generator().manual_seed(seed)
        label, _ = self.two_classes(n, generator)
        x = self.ground(n, generator)
        times = -(-self.size // self.side)
        woven = self.codes.detach()[label].tile(1, times, times)[:, : self.size, : self.size]
        x = 0.5 + 0.3 * (x - 0.5) + 0.25 * woven[:, None]
        flat = torch.full((n, self.side, self.side), 1.0)
        place = torch.randint(0, self.size, (n, 2), generator=generator)
        return Scene(x.clamp(0, 1), label, self.stamp(x, flat, place, 0.3, generator))


class Attention(PlantedNetwork):
    """A token reads from those that are marked red; the codes of all others are there, and not looked at. The truth is the marked token's."""

    gain = 8.0

    def evidence(self, z: Tensor, x: Tensor) -> Tensor:
        cell = self.size // 4
        code = F.pad(self.codes, (0, 1, 0, 1))
        redness = F.avg_pool2d((x[:, :1] - x[:, 2:]).detach(), cell).flatten(2)  # (B, 1, 16), attention is what it is
        values = F.conv2d(z, code[:, None] / self.side**2, stride=cell).flatten(2)  # (B, K, 16)
        return (torch.softmax(40 * redness, -1) * values).sum(2)

    def scene(self, n: int, seed: int) -> Scene:
        generator = torch.Generator().manual_seed(seed)
        label, other = self.two_classes(n, generator)
        x, cell, codes = self.ground(n, generator), self.size // 4, self.codes.detach()
        x = 0.5 + 0.6 * (x.mean(1, keepdim=True) - 0.5).expand(-1, 3, -1, -1).clone()
        first = torch.randint(0, 16, (n,), generator=generator)
        second = (first + 1 + torch.randint(0, 15, (n,), generator=generator)) % 16
        places = [torch.stack((token // 4, token % 4), 1) * cell for token in (first, second)]
        mask = self.stamp(x, codes[label], places[0], OWN, generator)
        self.stamp(x, codes[other], places[1], OWN, generator)
        red = F.interpolate(F.one_hot(first, 16).view(n, 1, 4, 4).float(), scale_factor=cell)
        x = x + red * torch.tensor([0.13, 0.0, -0.13]).view(1, 3, 1, 1)  # its gray stays
        return Scene(x.clamp(0, 1), label, mask)


NETWORKS: dict[str, type[PlantedNetwork]] = {
    "linear": Linear,
    "conv": OneObject,
    "two objects": TwoObjects,
    "gated": Gated,
    "suppressor": Suppressor,
    "disconnected": Disconnected,
    "texture": Texture,
    "attention": Attention,
}


# ---- maps


def _smooth(t: Tensor) -> Tensor:
    side = t.shape[-1]
    return separable_filter(t, gaussian_kernel(2 * (side // 8) + 1, side / 16), "zero")


def _squared(t: Tensor) -> Tensor:
    return t.sign() * t.square()


def _spread(t: Tensor) -> Tensor:
    return t.std((1, 2, 3), keepdim=True)


def _support(t: Tensor) -> Tensor:
    """1 where the truth lies, softened by a pixel."""
    there = (t.abs() > 0.02 * t.abs().amax((1, 2, 3), keepdim=True)).to(t.dtype)
    return F.avg_pool2d(there, 3, 1, 1)


def _center(t: Tensor) -> Tensor:
    side = t.shape[-1]
    place = (torch.arange(side, device=t.device, dtype=t.dtype) + 0.5) / side - 0.5
    bell = torch.exp(-place.square() / (2 * 0.25**2))
    return (bell[:, None] * bell).expand_as(t)


# name -> map of (truth, truth of the second class, two fields of normal noise)
Maker = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
MAPS: dict[str, Maker] = {
    "truth": lambda t, u, a, b: t,
    "noisy": lambda t, u, a, b: t + 0.5 * _spread(t) * a,
    "half": lambda t, u, a, b: t * (a > 0),
    "blurred": lambda t, u, a, b: _smooth(t),
    "squared": lambda t, u, a, b: _squared(t),
    "mask": lambda t, u, a, b: _support(t),
    "inverted": lambda t, u, a, b: -t,
    "other object": lambda t, u, a, b: u,
    "both objects": lambda t, u, a, b: t + u,
    "random": lambda t, u, a, b: a,
    "random again": lambda t, u, a, b: b,
    "smooth noise": lambda t, u, a, b: _smooth(b),
    "center": lambda t, u, a, b: _center(t),
}
WRONG = (
    "inverted",
    "other object",
    "both objects",
    "random",
    "smooth noise",
    "center",
)  # what a metric must put behind the truth
BLIND = ("random again", "smooth noise", "center")  # know as little as `random`
GAMES = ("blurred", "squared", "mask")  # the truth with something done to its looks
