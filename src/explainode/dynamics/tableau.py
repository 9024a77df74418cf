"""Butcher tableaus as data that checks itself: one constant per explicit Runge-Kutta method.

c | A        k_i     = f(t + c_i dt, x + dt sum_j a_ij k_j)          i = 1..s, j < i
--+-----     x_{n+1} = x_n + dt sum_i b_i k_i                        Lei et al. 2023, Eq. 15-16
  | b        error   = dt sum_i (b_i - b_hat_i) k_i                  where there is an embedded method
  | b_hat
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from explainode.errors import UserError, nearest

_TOLERANCE = 1e-12  # of sums of published decimals: tsit5 is printed with 16 digits


@dataclass(frozen=True)
class Tableau:
    """One explicit Runge-Kutta method.

    Attributes:
        name: as users write it.
        order: of the method with weights b.
        a: s rows of s entries; row i holds what stage i takes from the stages before it. Written without their zeros, i entries are enough.
        b: weights of the stages in the result.
        c: when each stage is evaluated, in steps.
        b_hat: weights of the embedded method, for the error estimate; None if there is none.
        embedded_order: of the method with weights b_hat.

    Raises:
        UserError: if the lengths differ, a stage needs itself or a later one, a row of a does not sum to its c, or b or b_hat not to 1.
    """

    name: str
    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    b_hat: tuple[float, ...] | None = None
    embedded_order: int | None = None

    def __post_init__(self) -> None:
        s = len(self.b)
        lengths = {"a": len(self.a), "c": len(self.c)} | ({} if self.b_hat is None else {"b_hat": len(self.b_hat)})
        for letter, length in lengths.items():
            if length != s:
                raise UserError(f"tableau {self.name!r}: b has {s} stages, but {letter} has {length}")
        rows = []
        for i, row in enumerate(self.a):
            if len(row) > s or any(row[i:]):
                raise UserError(
                    f"tableau {self.name!r}: stage {i + 1} uses itself or a later stage; only explicit methods can be stepped"
                )
            rows.append((*row, *(0.0,) * (s - len(row))))
            if abs(math.fsum(row) - self.c[i]) > _TOLERANCE:
                raise UserError(
                    f"tableau {self.name!r}: row {i + 1} of a sums to {math.fsum(row):.12g}, but c is {self.c[i]:.12g}"
                )
        for letter, weights in (("b", self.b), ("b_hat", self.b_hat)):
            if weights is not None and abs(math.fsum(weights) - 1) > _TOLERANCE:
                raise UserError(
                    f"tableau {self.name!r}: {letter} sums to {math.fsum(weights):.12g}, but the weights of a step must sum to 1"
                )
        if (self.b_hat is None) is not (self.embedded_order is None):
            raise UserError(f"tableau {self.name!r}: b_hat and embedded_order belong together")
        object.__setattr__(self, "a", tuple(rows))

    @property
    def stages(self) -> int:
        """s, with those that only the error estimate needs."""
        return len(self.b)

    @property
    def working_stages(self) -> tuple[int, ...]:
        """The stages (from 0) that x_{n+1} depends on: those with a weight, and those that feed them."""
        working = {i for i, weight in enumerate(self.b) if weight}
        for i in reversed(range(self.stages)):
            if i in working:
                working |= {j for j in range(i) if self.a[i][j]}
        return tuple(sorted(working))

    @property
    def fsal(self) -> bool:
        """First same as last: the last stage is evaluated at (t_{n+1}, x_{n+1}), so that it serves the next step as its first."""
        return self.stages > 1 and self.a[-1] == self.b and self.c[-1] == 1

    @property
    def adaptive(self) -> bool:
        """Whether there is an error estimate to choose steps by."""
        return self.b_hat is not None

    @property
    def error_weights(self) -> tuple[float, ...]:
        """b - b_hat.

        Raises:
            UserError: if there is no embedded method.
        """
        if self.b_hat is None:
            raise UserError(f"tableau {self.name!r} has no embedded method, so it cannot estimate its error")
        return tuple(b - b_hat for b, b_hat in zip(self.b, self.b_hat, strict=True))


EULER = Tableau("euler", 1, a=((),), b=(1.0,), c=(0.0,))

# The three methods of order 2 carry Euler's method, their own first stage, as the embedded one.
MIDPOINT = Tableau("midpoint", 2, a=((), (1 / 2,)), b=(0.0, 1.0), c=(0.0, 1 / 2), b_hat=(1.0, 0.0), embedded_order=1)
HEUN2 = Tableau("heun2", 2, a=((), (1.0,)), b=(1 / 2, 1 / 2), c=(0.0, 1.0), b_hat=(1.0, 0.0), embedded_order=1)
RALSTON = Tableau("ralston", 2, a=((), (2 / 3,)), b=(1 / 4, 3 / 4), c=(0.0, 2 / 3), b_hat=(1.0, 0.0), embedded_order=1)

# Fehlberg 1969, RKF1(2), stepped with its second-order weights.
FEHLBERG2 = Tableau(
    "fehlberg2",
    2,
    a=((), (1 / 2,), (1 / 256, 255 / 256)),
    b=(1 / 512, 255 / 256, 1 / 512),
    c=(0.0, 1 / 2, 1.0),
    b_hat=(1 / 256, 255 / 256, 0.0),
    embedded_order=1,
)

HEUN3 = Tableau("heun3", 3, a=((), (1 / 3,), (0.0, 2 / 3)), b=(1 / 4, 0.0, 3 / 4), c=(0.0, 1 / 3, 2 / 3))

# Bogacki and Shampine 1989.
BOSH3 = Tableau(
    "bosh3",
    3,
    a=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0.0),
    c=(0.0, 1 / 2, 3 / 4, 1.0),
    b_hat=(7 / 24, 1 / 4, 1 / 3, 1 / 8),
    embedded_order=2,
)

# Kutta 1901: the classical rule, and the 3/8 rule (which torchdiffeq calls rk4).
RK4 = Tableau(
    "rk4",
    4,
    a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    c=(0.0, 1 / 2, 1 / 2, 1.0),
)
RK4_38 = Tableau(
    "rk4_38",
    4,
    a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
    b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
    c=(0.0, 1 / 3, 2 / 3, 1.0),
)

# Dormand and Prince 1980 with Shampine's embedded weights (1986), as in torchdiffeq and diffrax, so that tolerances mean the same: their
# estimate is 2/3 of that of the original ones. The step of b2 = b7 = 0.
DOPRI5 = Tableau(
    "dopri5",
    5,
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    b_hat=(1951 / 21600, 0.0, 22642 / 50085, 451 / 720, -12231 / 42400, 649 / 6300, 1 / 60),
    embedded_order=4,
)

# Tsitouras 2011. The paper prints b - b_hat.
_TSIT5_B = (
    0.09646076681806523,
    0.01,
    0.4798896504144996,
    1.379008574103742,
    -3.290069515436081,
    2.324710524099774,
    0.0,
)
_TSIT5_ERROR = (
    -0.00178001105222577714,
    -0.0008164344596567469,
    0.007880878010261995,
    -0.1447110071732629,
    0.5823571654525552,
    -0.45808210592918697,
    1 / 66,
)
TSIT5 = Tableau(
    "tsit5",
    5,
    a=(
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        _TSIT5_B[:6],
    ),
    b=_TSIT5_B,
    c=(0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    b_hat=tuple(b - error for b, error in zip(_TSIT5_B, _TSIT5_ERROR, strict=True)),
    embedded_order=4,
)

TABLEAUS = {
    method.name: method
    for method in (EULER, MIDPOINT, HEUN2, RALSTON, FEHLBERG2, HEUN3, BOSH3, RK4, RK4_38, DOPRI5, TSIT5)
}


def tableau(name: str) -> Tableau:
    """The method of that name.

    Raises:
        UserError: for an unknown name, with the nearest ones.
    """
    if name not in TABLEAUS:
        raise UserError(f"no tableau named {name!r}; the nearest are {nearest(name, TABLEAUS)}")
    return TABLEAUS[name]
