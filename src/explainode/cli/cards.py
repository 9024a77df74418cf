"""`explainode cards [METRIC ...]`: what metrics claim on planted networks, where the truth is known."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from explainode.errors import UserError

HELP = """explainode cards [METRIC ...] [--images N] [--csv FILE] [--from FILE]

Measures metrics (default: all that judge maps, about half an hour) on networks whose exact maps are known, and prints a card of each: how often it is wrong,
how often it sees the truth, and by what it is misled. docs/cards.md explains the columns.

  --images N    pictures of each network (default 24; three networks of each of eight kinds)
  --csv FILE    also write the findings behind the cards
  --from FILE   print the cards of findings that were written before, and measure nothing

examples:
  explainode cards insertion_margin single_patch_deletion
  explainode cards gini --config-dir my_conf"""
NOT_ALL = (
    "data_randomization",
    "expansion_ratio",
    "total_attribution_change",
)  # a file of the user's; facts of networks


def run(arguments: Sequence[str]) -> int:
    """Measure or read, and print."""
    if "-h" in arguments or "--help" in arguments:
        print(HELP)
        return 0
    names, options = _parsed(arguments)
    from explainode.metrics.cards import cards, from_csv, table, to_csv

    if "--from" in options:
        path = Path(options["--from"])
        if not path.is_file():
            raise UserError(f"--from {path} is not a file; explainode cards --csv {path} writes one")
        found = from_csv(path.read_text(encoding="utf-8"))
    else:
        found = _measured(names, _number(options.get("--images", "24")))
    if "--csv" in options:
        Path(options["--csv"]).write_text(to_csv(found), encoding="utf-8")
    print(table(cards(found)), end="")
    return 0


def _measured(names: Sequence[str], images: int):  # type: ignore[no-untyped-def]
    import explainode
    from explainode import registry
    from explainode.jobs.cards import has_a_card, measure_cards
    from explainode.metrics.planted import NETWORKS

    chosen = names or [name for name in registry.names("metric") if name not in NOT_ALL]
    metrics = {name: explainode.get(f"metric/{name}") for name in chosen}
    for name in names:
        if not has_a_card(metrics[name]):
            raise UserError(
                f"{name} has no card: planted networks have labels and masks, and cards are of metrics that judge maps by them"
            )
    found = []
    for network in NETWORKS:
        print(f"measuring on {network}", file=sys.stderr)
        found += measure_cards(metrics, [network], images=images)
    return sorted(found, key=lambda f: list(metrics).index(f.metric))


def _parsed(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Names, and the options with their values."""
    names: list[str] = []
    options: dict[str, str] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        key, equals, value = word.partition("=")
        if not word.startswith("--"):
            names.append(word)
        elif key not in ("--images", "--csv", "--from"):
            raise UserError(f"explainode cards has no option {key}; it has --images, --csv and --from")
        elif equals or words:
            options[key] = value if equals else words.pop(0)
        else:
            raise UserError(f"{key} needs a value (explainode cards --help)")
    return names, options


def _number(text: str) -> int:
    if not text.isdigit() or int(text) < 12:
        raise UserError(f"--images must be a whole number of at least 12, got {text}; fewer images cannot be tested")
    return int(text)
