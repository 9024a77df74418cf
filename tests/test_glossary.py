"""The glossary: one line per word, in order, and every word is carried by something that exists."""

import importlib
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "glossary.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\| ([^|]+) \| ([^|]+) \| `([\w.]+)` \|$", PAGE, flags=re.M)


def test_every_line_is_a_word_and_they_are_in_order():
    words = [word for word, _, _ in LINES]
    assert len(LINES) == sum(line.startswith("| ") for line in PAGE.splitlines()) - 1 > 50  # all but the heading
    assert words == sorted(words) and len(set(words)) == len(words)


@pytest.mark.parametrize(("word", "carrier"), [(word, carrier) for word, _, carrier in LINES])
def test_the_carrier_is_there(word, carrier):
    parts = carrier.split(".")
    found = importlib.import_module(f"explainode.{parts[0]}")
    for depth, part in enumerate(parts[1:], 2):
        try:
            found = importlib.import_module(f"explainode.{'.'.join(parts[:depth])}")
        except ModuleNotFoundError:
            found = getattr(found, part)
