"""The one exception that means "the input was wrong": its text is a sentence for the user, its exit status is 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input, told in one sentence: what came, what was expected, what to try."""


def nearest(name: str, candidates: Iterable[str], count: int = 3) -> str:
    """The candidates closest to `name`, as text for an error message ('a, b, c'); where there are few, all of them, closest first."""
    known = sorted(set(candidates))
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if len(known) <= 8:
        close += [other for other in known if other not in close]
    return ", ".join(close or [*known[:6], "..."])


def user_error(error: BaseException | None) -> UserError | None:
    """The user error behind an exception, also where a library wrapped it."""
    while error is not None:
        if isinstance(error, UserError):
            return error
        error = error.__cause__
    return None
