"""Numbers and lists as people read them, the same in the terminal, in Markdown and in the report."""

from __future__ import annotations

import math
from collections.abc import Sequence


def shown(text: object) -> str:
    """Foreign text for a terminal, on one line: what would steer it (escapes, line breaks, marks that turn the direction) is written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def number(value: float) -> str:
    """Three significant digits, a real minus sign, "n/a" for what could not be measured."""
    if math.isnan(value):
        return "n/a"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:.{digits}f}"
    else:
        text = f"{value:.2e}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def interval(low: float, high: float, to: str = "–") -> str:
    """Both ends of an interval with the digits that tell them apart; empty where there is none."""
    if math.isnan(low) or math.isnan(high):
        return ""
    return f"{number(low)}{to}{number(high)}" if to != "–" or low >= 0 else f"{number(low)} to {number(high)}"


def signed(difference: float, low: float, high: float, to: str = " to ") -> tuple[str, str]:
    """A difference and its interval with the digits that the interval deserves: two of its width."""
    width = high - low
    if math.isnan(width) or width <= 0:
        return number(difference), interval(low, high, to)
    digits = min(max(0, 1 - math.floor(math.log10(width))), 12)
    if digits > 5:
        return number(difference), interval(low, high, to)
    shown = [f"{value:+.{digits}f}".replace("-", "−") for value in (difference, low, high)]
    return shown[0], f"{shown[1]}{to}{shown[2]}"


def plus_minus(rows: Sequence[tuple[float, float, float]]) -> list[tuple[str, str]]:
    """(value, low, high) of a column -> each value and half the width of its interval, "" where there is none, with hyphens for minus.

    All with the same digits, two of the narrowest interval's.
    """
    halves = [(high - low) / 2 for _, low, high in rows]
    narrowest = min((half for half in halves if half > 0), default=math.nan)
    digits = 3 if math.isnan(narrowest) else max(0, 1 - math.floor(math.log10(narrowest)))
    form = (
        f".{digits}f" if digits <= 5 and all(abs(value) < 1e6 for value, *_ in rows if math.isfinite(value)) else ".2e"
    )
    shown = [f"{value:{form}}" if math.isfinite(value) else number(value).replace("−", "-") for value, *_ in rows]
    return [(value, "" if math.isnan(half) else f"{half:{form}}") for value, half in zip(shown, halves, strict=True)]


def percent(share: float) -> str:
    """A share in [0, 1] in percent, one decimal."""
    return "n/a" if math.isnan(share) else f"{100 * share:.1f} %"


def correlation(value: float) -> str:
    """A number in [-1, 1] with two decimals."""
    return "n/a" if math.isnan(value) else f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def p_value(p: float) -> str:
    """A p-value with two significant digits; never 0, which no test of finitely many draws can say."""
    if math.isnan(p):
        return "n/a"
    return "<0.0001" if p < 1e-4 else f"{p:.1g}" if p < 1e-3 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def p_phrase(p: float) -> str:
    """ "p = 0.03" or "p < 0.0001"."""
    text = p_value(p)
    return f"p {text[0]} {text[1:]}" if text[0] == "<" else f"p = {text}"


def enumerate_words(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def arrow(higher_is_better: bool | None) -> str:
    """The direction in which a metric improves; empty for neutral facts."""
    return {True: "↑", False: "↓", None: ""}[higher_is_better]
